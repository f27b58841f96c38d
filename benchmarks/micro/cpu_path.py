"""Where the time of a network's call goes on this CPU, and what threads, spinning and rows change.

    python -m benchmarks.micro.cpu_path --repository build/serving-work/bundle --out benchmarks/cpu_path.json

ONNX Runtime alone, as the profile `cpu` uses it. Settings are timed in turns, as ratios against the profile's own
setting and one row. Operators come from ONNX Runtime's profiler, which slows down small ones.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.harness.command import parser, write_record
from benchmarks.tables.micro import calls as calls_table
from export.executed import profiled_kernels
from training.cli import run_command

if TYPE_CHECKING:
    import onnxruntime

BASELINE = "as served"
SETTINGS: dict[str, tuple[dict[str, str], int, int]] = {
    BASELINE: ({}, 0, 1),
    "1 thread": ({}, 1, 1),
    "threads sleep instead of spinning": ({"session.intra_op.allow_spinning": "0"}, 0, 1),
    "2 rows": ({}, 0, 2),
    "4 rows": ({}, 0, 4),
    "8 rows": ({}, 0, 8),
}
"""Name: entries of the session's configuration, threads (0: one a core), rows of a call."""
CALLS = {"unet": 3, "vae_decoder": 1}
"""Of each setting in a round, after one that is not counted: each setting has its own threads to wake."""
PROFILED_CALLS = 5


def _session(path: Path, entries: dict[str, str], threads: int, profile: str = "") -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _counted_session(path: Path, entries: dict[str, str], threads: int) -> tuple[onnxruntime.InferenceSession, int]:
    """A session and the number of threads that its calls run in, with the caller's, as the kernel counts them.

    Raises:
        RuntimeError: they are not as many as asked for.
    """
    before = psutil.Process().num_threads()
    session = _session(path, entries, threads)
    count = 1 + psutil.Process().num_threads() - before
    if threads and count != threads:
        raise RuntimeError(f"ONNX Runtime should take {threads} threads and has {count}")
    return session, count


def _call(session: onnxruntime.InferenceSession, rows: int) -> Callable[[], Any]:
    import numpy as np

    draw = np.random.default_rng(0)
    feeds: dict[str, Any] = {"latent": draw.standard_normal((rows, 1, 64, 64), np.float32)}
    if len(session.get_inputs()) == 2:
        feeds["timesteps"] = draw.integers(0, 1000, (rows, 1), np.int32)
    return lambda: session.run(None, feeds)


def operators(path: Path, threads: int) -> dict[str, dict[str, float]]:
    """Milliseconds and number of the operators of each kind in a call with one row, most first."""
    with tempfile.TemporaryDirectory() as folder:
        session = _session(path, {}, threads, f"{folder}/calls")
        for _ in range(PROFILED_CALLS):
            _call(session, 1)()
        kernels = profiled_kernels(session)
    milliseconds, count = Counter[str](), Counter[str]()
    for kernel in kernels:
        milliseconds[kernel["op_name"]] += kernel["ms"] / PROFILED_CALLS
        count[kernel["op_name"]] += 1
    return {
        name: {"ms": round(took, 3), "n": count[name] // PROFILED_CALLS} for name, took in milliseconds.most_common()
    }


def settings(path: Path, most_rows: int, rounds: int, calls: int) -> dict[str, Any]:
    """Seconds of a row by setting, and how many times faster than as served with one row."""
    from benchmarks.harness.timing import compare, woken

    timed = {name: setting for name, setting in SETTINGS.items() if setting[2] <= most_rows}
    sessions = {name: _counted_session(path, entries, threads) for name, (entries, threads, _) in timed.items()}
    runs = {name: _call(session, timed[name][2]) for name, (session, _) in sessions.items()}
    seconds = woken(runs, rounds, calls)
    times = {name: [taken / timed[name][2] for one in seconds[name] for taken in one] for name in runs}
    return {name: values | {"threads": sessions[name][1]} for name, values in compare(times, BASELINE).items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, report; returns the exit status."""
    command = parser("benchmarks.micro.cpu_path", __doc__, "repository", "rounds", "out", rounds=10)
    options = command.parse_args(argv)

    from benchmarks.harness.machine import describe

    machine, networks = describe(), {}
    for network, calls in CALLS.items():
        path = options.repository / network / "1" / "model.onnx"
        if not path.is_file():
            command.error(f"{path} is missing: give a model repository with ONNX files")
        networks[network] = {
            "settings": settings(path, 8 if network == "unet" else 2, options.rounds, calls),
            "operators, 1 thread": operators(path, 1),
            "operators, as served": operators(path, 0),
        }
        print("\n".join(calls_table({network: networks[network]})))
    if options.out is not None:
        write_record(options.out, {"machine": machine, "networks": networks})
    return 0


if __name__ == "__main__":
    run_command(main)
