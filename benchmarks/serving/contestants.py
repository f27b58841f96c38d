"""The contestants, and the gate before them: only who makes the baseline's images is timed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.harness.machine import has_bf16
from benchmarks.serving.bench import TOLERANCES, WARM_UP_STEPS, Bench, Contestant, relative_error
from benchmarks.serving.names import (
    BASELINE,
    BF16_LOOP,
    COMPILED_LOOP,
    DECODER_IN_BF16,
    DIFFUSERS_LOOP,
    IN_BF16,
    LOOP_IN_EXECUTE,
    OPENVINO,
    OURS,
    few_steps,
    litserve,
)
from benchmarks.serving.ours import Ours
from benchmarks.serving.rivals.bls_loop import bls_loop
from benchmarks.serving.rivals.litserve_client import litserve_server
from benchmarks.serving.rivals.loops import diffusers_loop, monai_loop
from benchmarks.serving.worker import Array, Running, Worker
from server.health import DECODERS
from training.files import write_text

SEEDS = range(1000, 1064)
LEAST_ERROR = {"fp32": 0.0, "bf16": 1e-4}
"""Relative L2 that rounding to 8 bits makes at least (seen: 1e-2); float32 is below 1e-5."""


@dataclass(frozen=True)
class Entry:
    """A contestant. compares: its images must be the baseline's. limit_s: of the warm-up of a worker."""

    start: Callable[[], Contestant]
    precision: str = "fp32"
    compares: bool = True
    limit_s: float = 900.0


def entries(bench: Bench) -> dict[str, Entry]:
    """The baseline first."""
    weights, snapshot, batch = bench.weights, bench.snapshot, bench.amount.batch
    listed = {
        BASELINE: Entry(lambda: Worker(monai_loop, weights, snapshot, "fp32", batch)),
        BF16_LOOP: Entry(lambda: Worker(monai_loop, weights, snapshot, "bf16", batch), "bf16"),
        COMPILED_LOOP: Entry(
            lambda: Worker(monai_loop, weights, snapshot, "fp32", batch, True), limit_s=bench.amount.compile_limit_s
        ),
        DIFFUSERS_LOOP: Entry(lambda: Worker(diffusers_loop, weights, snapshot, batch)),
        litserve(batch): Entry(lambda: litserve_server(weights, snapshot, batch, bench.work / "litserve.log")),
        LOOP_IN_EXECUTE: Entry(lambda: bls_loop(bench.repository(), bench.work / "bls_loop")),
        OURS: Entry(lambda: ours(bench)),
        few_steps(bench.amount.few_steps): Entry(lambda: _with_few_steps(bench), compares=False),
    }
    if find_spec("openvino") and (bench.repository() / "unet/configs/openvino.pbtxt").is_file():
        listed[OPENVINO] = Entry(lambda: Ours(bench.repository(), "openvino"))
        if has_bf16():
            decoders = [name for name in DECODERS.values() if (bench.repository() / name).is_dir()]
            for name, networks in ((DECODER_IN_BF16, decoders), (IN_BF16, ["unet", *decoders])):
                listed[name] = Entry(partial(_in_bf16, bench, networks), "bf16")
    left_out = [name for name in listed if any(part.lower() in name.lower() for part in bench.without)]
    return {name: entry for name, entry in listed.items() if name == BASELINE or name not in left_out}


def ours(bench: Bench) -> Ours:
    """The server of the profile cpu, started when it is first asked for."""
    contestant = bench.contestant(OURS, lambda: Ours(bench.repository()))
    assert isinstance(contestant, Ours)
    return contestant


def _with_few_steps(bench: Bench) -> Running:
    """The same server with DPM-Solver++ in place of DDIM, in fewer steps than are asked for."""
    server, steps = ours(bench), bench.amount.few_steps
    return Running(server.pid, lambda seeds, _: server.generate(seeds, steps, "dpmpp_2m"), lambda: None)


def _in_bf16(bench: Bench, networks: Sequence[str]) -> Ours:
    copy = openvino_in_bf16(bench.repository(), bench.work / f"bf16-{'-'.join(networks)}", networks)
    return Ours(copy, "openvino")


def openvino_in_bf16(repository: Path, into: Path, networks: Sequence[str]) -> Path:
    """A copy of `repository` whose profile openvino computes these networks in bf16."""
    shutil.copytree(repository, into, dirs_exist_ok=True)
    for network in networks:
        path = into / network / "configs" / "openvino.pbtxt"
        hint = 'parameters [\n  { key: "HINT_BF16" value: { string_value: "YES" } },\n'
        write_text(path, path.read_text().replace("parameters [\n", hint))
    return into


def ready(bench: Bench, rows: int, only: Collection[str] = ()) -> tuple[dict[str, Contestant], dict[str, Any]]:
    """The contestants that are warm and make the baseline's images with `rows` at once; and facts about all of them.

    only: those with these names; without, all of them.

    Raises:
        RuntimeError: the baseline itself cannot run.
    """
    listed = {name: entry for name, entry in entries(bench).items() if not only or name in only}
    facts: dict[str, Any] = {}
    reference: list[Array] = []
    for name, entry in listed.items():  # all at once: workers import torch meanwhile
        _try(bench, name, partial(bench.contestant, name, entry.start))
    for name, entry in listed.items():
        admitted = _try(bench, name, partial(_admit, bench, name, entry, rows, reference))
        facts[name] = admitted or {"left_out": bench.failed(name)}
        bench.report(f"  {name}: {facts[name]}")
    return {name: bench.contestant(name, listed[name].start) for name in listed if not bench.failed(name)}, facts


def _try(bench: Bench, name: str, call: Callable[[], Any]) -> Any:
    """What `call` returns; None where the contestant has failed, now or before. The others go on.

    Raises:
        RuntimeError: the baseline itself does not run.
    """
    if bench.failed(name) is not None:
        return None
    try:
        return call()
    except Exception as error:
        if name == BASELINE:
            raise RuntimeError(f"the baseline does not run: {error}") from error
        bench.failed(name, f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}")
        return None


def _admit(bench: Bench, name: str, entry: Entry, rows: int, reference: list[Array]) -> dict[str, float]:
    """Warm up, and compare with `reference`, which the first images become. Raises TookTooLong and as `gate` does."""
    contestant, arguments = bench.contestant(name, entry.start), (list(SEEDS[:rows]), WARM_UP_STEPS)
    began = time.perf_counter()
    if isinstance(contestant, Worker):
        images = contestant.generate(*arguments, entry.limit_s)
    else:
        images = contestant.generate(*arguments)
    facts = {"warm_up_s": time.perf_counter() - began}
    reference += [] if reference else [images]
    return {**facts, "relative_error": gate(images, reference[0], entry.precision)} if entry.compares else facts


def gate(images: Array, reference: Array, precision: str) -> float:
    """The relative error of `images`; raises ValueError where it is not what the precision explains."""
    error, allowed, least = relative_error(images, reference), TOLERANCES[precision], LEAST_ERROR[precision]
    if not error <= allowed:
        raise ValueError(f"images differ from the baseline's by {error:.1e} (relative L2), allowed are {allowed:.0e}")
    if error < least:
        raise ValueError(
            f"images differ from the baseline's by {error:.1e} (relative L2) alone: they were not made in {precision}"
        )
    return error
