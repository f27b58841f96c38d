"""What the served sampling loop costs beside the calls of its network: milliseconds of a step.

    python -m benchmarks.micro.loop --as now --out benchmarks/loop.json
    python -m benchmarks.micro.loop --as demo --own-networks --out benchmarks/loop.json

A tritonserver has the front model of a repository and toy networks that compute next to nothing, and a model that makes
bare calls of the same network with the same tensors. What a step takes longer than its share of such a call is the
loop's own: threads, recurrence, noise, bookkeeping. With --own-networks the repository's networks are served. Nothing
else may run meanwhile; the load at the start is recorded.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness.command import parser, read_record, write_record
from benchmarks.harness.markdown import Record
from benchmarks.harness.toys import copy_front, copy_model
from training.cli import run_command
from training.files import write_text

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient

MODELS = Path(__file__).with_name("loop_models")
FRONT, BARE_CALLS = "mri_ldm", "bls_calls"
NETWORKS = ("unet", "vae_decoder", "unet_steps")
STEPS_A_CALL = (1, 5, 10, 25)
SAMPLERS = ("ddim", "ddpm")
WARM_UP_STEPS = 40  # in which the loop learns how many rows go together


@dataclass(frozen=True)
class Amount:
    """How much is measured. seconds: of bare calls in a round."""

    rows: tuple[int, ...]
    steps: int
    rounds: int
    seconds: float


# So many steps that what a request costs once is nothing beside them.
TOYS = Amount(rows=(1, 8, 64), steps=500, rounds=5, seconds=0.5)
OWN_NETWORKS = Amount(rows=(1, 8), steps=20, rounds=5, seconds=1.0)
QUICK = Amount(rows=(1, 2), steps=20, rounds=2, seconds=0.05)


@dataclass(frozen=True)
class Done:
    """What the server has counted: rows of calls of either network, and calls."""

    single_rows: int
    several_rows: int
    calls: int

    def without(self, before: Done, bare: int, rows: int, several: bool) -> Done:
        """Since `before`, and without so many bare calls of `rows` rows."""
        single, more = self.single_rows - before.single_rows, self.several_rows - before.several_rows
        calls = self.calls - before.calls - bare
        return Done(single, more - bare * rows, calls) if several else Done(single - bare * rows, more, calls)


def generate(client: InferenceServerClient, rows: int, sampler: str, steps: int) -> float:
    """Seconds of one request of so many rows, not decoded."""
    import numpy as np

    from benchmarks.harness.wire import ask, image_feeds

    feeds = {**image_feeds(range(rows), steps), "sampler": np.full((rows, 1), sampler, np.object_)}
    began = time.perf_counter()
    ask(client, FRONT, "final_latent", feeds)
    return time.perf_counter() - began


def bare_calls(client: InferenceServerClient, rows: int, steps: int, seconds: float) -> list[float]:
    """Seconds of each call of `unet`, or of `unet_steps` for more than one step, from a model of nothing else."""
    import numpy as np

    from benchmarks.harness.wire import ask

    whole = {"rows": rows, "steps": steps if steps > 1 else 0}
    feeds = {name: np.array([value], np.int32) for name, value in whole.items()}
    took = ask(client, BARE_CALLS, "took", {**feeds, "seconds": np.array([seconds], np.float32)})
    return [float(one) for one in took]


def done(client: InferenceServerClient, networks: Sequence[str]) -> Done:
    """What has been computed since the start."""
    from benchmarks.harness.wire import settled

    counted = settled(client, networks)
    several = counted["unet_steps"].rows if "unet_steps" in counted else 0
    return Done(counted["unet"].rows, several, sum(counts.calls for counts in counted.values()))


def measure(client: InferenceServerClient, networks: Sequence[str], most: int, amount: Amount) -> Iterator[Record]:
    """A record for each number of rows and sampler; `most` are the most steps that a call may have.

    Raises:
        RuntimeError: the server has computed fewer steps than were asked for.
    """
    import numpy as np

    cells = [(rows, sampler) for rows in amount.rows for sampler in SAMPLERS]
    for rows, sampler in cells:
        generate(client, rows, sampler, min(WARM_UP_STEPS, amount.steps))
    for rows, sampler in cells:
        before, served, calls, bare = done(client, networks), [], [], 0
        for _ in range(amount.rounds):
            served.append(1e3 * generate(client, rows, sampler, amount.steps) / amount.steps)
            took = bare_calls(client, rows, most, amount.seconds)
            calls.append(1e3 * float(np.median(took)))
            bare += len(took)
        counted = done(client, networks).without(before, bare, rows, several=most > 1)
        setting = {"rows": rows, "sampler": sampler, "most_steps_a_call": most}
        yield setting | _record(rows * amount.steps * amount.rounds, most, counted, served, calls)


def _record(row_steps: int, most: int, counted: Done, served: Sequence[float], calls: Sequence[float]) -> Record:
    from benchmarks.harness.timing import spread

    row_calls = counted.single_rows + counted.several_rows
    if counted.single_rows + most * counted.several_rows < row_steps:
        raise RuntimeError(f"{row_steps} steps of rows were asked for, and the server counts {counted}")
    step, call = spread(served), spread(calls)
    steps_a_call = row_steps / row_calls
    share = call["median"] / steps_a_call
    return {
        "row_steps": row_steps,
        "calls": counted.calls,
        "steps_a_call": steps_a_call,
        "rows_a_call": row_calls / counted.calls,
        "step_ms": step,
        "bare_call_ms": call,
        "beside_call_ms": step["median"] - share,
        "times_the_call": step["median"] / share,
    }


# --- repositories: the front model of one, its networks or toys, and the model of bare calls


def write_repository(options: argparse.Namespace, folder: Path, most: int) -> list[str]:
    """Write it; returns the names of its UNets."""
    source = options.repository
    copy_front(source, FRONT, folder, toys=not options.own_networks)
    copy_model(MODELS / f"{BARE_CALLS}.pbtxt", MODELS / "bls_calls.py", folder)
    if options.own_networks:
        for model in (model for model in NETWORKS if (source / model).is_dir()):
            (folder / model).symlink_to((source / model).resolve())
    else:
        for model in NETWORKS if most > 1 else NETWORKS[:2]:
            copy_model(MODELS / f"{model}.pbtxt", MODELS / "toy.py", folder)
        if most > 1:
            _allow_steps(folder / FRONT, most)
    return [model for model in ("unet", "unet_steps") if (folder / model).is_dir()]


def _allow_steps(front: Path, most: int) -> None:
    """A call may have any number of steps up to `most`."""
    from export.configs import parse_config

    write_record(front / "1" / "model.json", read_record(front / "1" / "model.json") | {"steps_per_call": most})
    config = parse_config(front / "config.pbtxt")
    for name, value in {"steps_per_call": most, "any_steps": 1}.items():
        config.parameters[name].string_value = str(value)
    write_text(front / "config.pbtxt", str(config))


def _records(options: argparse.Namespace) -> Iterator[Record]:
    """They come as they are measured."""
    from server.channel import connect
    from server.process import TritonServer

    amount = QUICK if options.quick else OWN_NETWORKS if options.own_networks else TOYS
    for most in _steps_a_call(options):
        with tempfile.TemporaryDirectory() as folder:
            networks = write_repository(options, Path(folder), most)
            with TritonServer(Path(folder), options.profile) as server, connect(server.grpc_url) as client:
                server.probe()
                yield from measure(client, networks, most, amount)


def _steps_a_call(options: argparse.Namespace) -> Sequence[int]:
    """The numbers of steps a call to measure; with a repository's own networks, the one that it was exported for."""
    if options.own_networks:
        return [max(1, read_record(options.repository / FRONT / "1" / "model.json").get("steps_per_call", 1))]
    return options.steps_per_call or ((1, 5) if options.quick else STEPS_A_CALL)


def _code(repository: Path) -> str:
    """The commit of the serving code, "+" where it has changed since; empty outside of a checkout."""
    git = ["git", "-C", str(repository), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; returns the exit status."""
    command = parser("benchmarks.micro.loop", __doc__, "repository", "profile", "quick", "out")
    add = command.add_argument
    add("--own-networks", action="store_true", help="serve the networks of the repository instead of toys")
    add("--steps-per-call", type=int, nargs="+", metavar="K", help="steps in a call of the toys (default: 1 5 10 25)")
    add("--as", dest="name", default="now", help="name of this run in the record; other runs stay")
    options = command.parse_args(argv)
    if not (options.repository / FRONT / "config.pbtxt").is_file():
        command.error(f"--repository: no mri_ldm/config.pbtxt in {options.repository}")

    from benchmarks.harness.machine import describe
    from benchmarks.tables.micro import loop_steps

    run: Record = {"machine": describe(), "code": _code(options.repository)}
    run |= {"networks": "its own" if options.own_networks else "toys", "records": []}
    print("\n".join(loop_steps([])))
    for record in _records(options):
        run["records"].append(record)
        print(list(loop_steps([record]))[-1], flush=True)
    if options.out is not None:
        write_record(options.out, read_record(options.out) | {options.name: run})
    return 0


if __name__ == "__main__":
    run_command(main)
