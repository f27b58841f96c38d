"""How much is measured, and what the scenarios share: the model repository, and the contestants once they run."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks import COMMITTED
from benchmarks.serving.ours import Ours
from benchmarks.serving.worker import Array, Running, Worker

Contestant = Ours | Worker | Running


@dataclass(frozen=True)
class Amount:
    """How much of everything; the numbers of seconds are for the bundle's networks on two cores."""

    steps: int = 50
    few_steps: int = 20
    """Of DPM-Solver++."""
    rounds: int = 10
    requests: int = 3
    """Of one image, of our server, in each round."""
    batch: int = 8
    """Rows of a rival's batch."""
    images: int = 8
    """At once, offline."""
    offline_rounds: int = 3
    concurrent: int = 16
    """Requests at once, of the serving tax."""
    concurrent_rounds: int = 3
    budget_s: float = 150.0
    """Of one contestant in one scenario; then it is left out of further rounds."""
    compile_limit_s: float = 150.0
    """Of torch.compile: it is given up then."""
    loads: tuple[float, ...] = (0.2, 0.5, 0.8, 0.95)
    load_requests: int = 10
    simulated_requests: int = 2000
    mixed_requests: int = 40
    gpu_requests: int = 10_000
    """Of the simulated GPU."""
    cost_rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    cost_steps: int = 10
    cost_rows_a_turn: int = 16
    cost_rounds: int = 2
    starts: int = 3
    preset_rounds: int = 5
    analyzer_concurrency: tuple[int, ...] = (1, 16)
    analyzer_requests: int = 24


AMOUNTS = {
    "bundle": Amount(),
    "demo": Amount(rounds=7, load_requests=40, mixed_requests=120, offline_rounds=3, concurrent_rounds=3, cost_rounds=5,
                   analyzer_concurrency=(1, 4, 16), analyzer_requests=48),
    "small": Amount(steps=10, few_steps=4, compile_limit_s=2, rounds=1, requests=2, batch=2, images=2,
                    offline_rounds=1, concurrent=4, concurrent_rounds=1, loads=(0.5,), load_requests=6,
                    simulated_requests=50, mixed_requests=12, gpu_requests=120, cost_rows=(1, 2), cost_steps=2,
                    cost_rounds=1, starts=1, preset_rounds=1, analyzer_concurrency=(2,), analyzer_requests=6),
}  # fmt: skip
# Relative L2 of images after WARM_UP_STEPS steps against the baseline's. Who makes other images is not compared.
WARM_UP_STEPS = 2
TOLERANCES = {"fp32": 1e-3, "bf16": 5e-2}


@dataclass
class Bench:
    """One run. `weights`: bundle, demo or small. `work`: a folder that is kept, for what can be used again.

    without: contestants with one of these in their name take no part.
    """

    weights: str
    amount: Amount
    work: Path
    snapshot: Path
    report: Callable[[str], object] = print
    without: tuple[str, ...] = ()
    _open: dict[str, Contestant] = field(default_factory=dict)
    _failed: dict[str, str] = field(default_factory=dict)

    def repository(self) -> Path:
        """Exported once; that of the demo weights is committed."""
        into = self.work / self.weights
        if self.weights == "demo":
            return COMMITTED
        if not into.is_dir():
            from benchmarks.harness.weights import load_weights
            from export.repository import export_repository

            self.report(f"  exporting the weights '{self.weights}'")
            export_repository(load_weights(self.weights, self.snapshot), into, self.weights, report=print)
        else:
            _renew_code(into)
        return into

    def contestant(self, name: str, start: Callable[[], Contestant]) -> Contestant:
        """The contestant of that name, started when it is first asked for, and awake."""
        if name not in self._open:
            self._open[name] = start()
        _signal(self._open[name], signal.SIGCONT)
        return self._open[name]

    def rest(self) -> None:
        """Stop the processes of all contestants, each until its turn.

        An idle server polls for requests, some with a tenth of a core. On two cores the threads of a network then wait
        for each other, which affects quick contestants most.
        """
        for contestant in self._open.values():
            _signal(contestant, signal.SIGSTOP)

    @contextlib.contextmanager
    def turn(self, name: str) -> Iterator[Contestant]:
        """The contestant of that name, awake while the others rest."""
        contestant = self._open[name]
        _signal(contestant, signal.SIGCONT)
        try:
            yield contestant
        finally:
            _signal(contestant, signal.SIGSTOP)

    def failed(self, name: str, why: str | None = None) -> str | None:
        """Why a contestant takes no part, or None; `why` says so from now on."""
        if why is not None:
            self._failed[name] = why
            self.drop(name)
        return self._failed.get(name)

    def drop(self, name: str) -> None:
        """Close one."""
        if (contestant := self._open.pop(name, None)) is not None:
            _signal(contestant, signal.SIGCONT)
            contestant.close()

    def close(self) -> None:
        """Close all that were started."""
        with contextlib.ExitStack() as stack:
            for contestant in self._open.values():
                _signal(contestant, signal.SIGCONT)
                stack.callback(contestant.close)
            self._open = {}


def _signal(contestant: Contestant, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # one that has failed
        os.killpg(contestant.pid, number)


def _renew_code(repository: Path) -> None:
    """Bring code and configuration of an earlier export's models up to date. Only weights take long."""
    # Imported here, as the export in `Bench.repository`.
    from export.configs import write_condition
    from export.manifest import read_model
    from training.conditioning import CHANNELS

    def others(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if not (Path(folder, name).is_dir() or name.endswith((".py", ".pbtxt")))]

    for model in COMMITTED.iterdir():
        if (repository / model.name).is_dir():
            shutil.copytree(model, repository / model.name, ignore=others, dirs_exist_ok=True)
    labels = read_model(repository).get("conditioning") == "labels"
    write_condition(repository / "unet", repository / "unet", CHANNELS if labels else 0)


def relative_error(images: Array, reference: Array) -> float:
    """L2 of the difference over L2 of the reference."""
    return float(np.linalg.norm(images - reference) / np.linalg.norm(reference))
