"""Which settings are compared, and with what. Knows nothing of how images are made."""

from __future__ import annotations

from dataclasses import dataclass

SAMPLERS = {"ddim": "DDIM", "ddpm": "DDPM", "dpmpp_2m": "DPM-Solver++"}


@dataclass(frozen=True)
class Setting:
    """A way to make images."""

    sampler: str
    steps: int

    @property
    def name(self) -> str:
        """Of its folder and in records."""
        return f"{self.sampler}-{self.steps}"

    @property
    def title(self) -> str:
        """For people."""
        return f"{SAMPLERS[self.sampler]} {self.steps}"


@dataclass(frozen=True)
class Design:
    """What takes part.

    fewer: deterministic samplers with fewer steps, each paired with the image of the same seed by `reference`.
    reference: the end of the same trajectory.
    ancestral: the original sampler; other images of the same seeds, so it is compared as a distribution only.
    baseline: times are multiples of its speed.
    """

    fewer: tuple[Setting, ...]
    reference: Setting
    ancestral: Setting
    baseline: Setting

    @property
    def paired(self) -> tuple[Setting, ...]:
        """Those whose images of a seed belong together."""
        return (*self.fewer, self.reference)

    @property
    def all(self) -> tuple[Setting, ...]:
        """In the order of the table."""
        return (*self.paired, self.ancestral)


def _design(ddim: tuple[int, ...], dpmpp_2m: tuple[int, ...], whole: int, baseline: int) -> Design:
    fewer = [Setting("ddim", steps) for steps in ddim] + [Setting("dpmpp_2m", steps) for steps in dpmpp_2m]
    return Design(tuple(fewer), Setting("ddim", whole), Setting("ddpm", whole), Setting("ddim", baseline))


FULL = _design((10, 20, 50, 100, 250), (10, 15, 20, 25), whole=1000, baseline=50)
QUICK = _design((2, 4), (3,), whole=8, baseline=4)
