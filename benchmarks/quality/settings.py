"""Which settings are compared, with what, and on how many images. Knows nothing of how images are made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from training.evaluation import FEWEST

SAMPLERS = {"ddim": "DDIM", "dpmpp_2m": "DPM-Solver++(2M)", "dpmpp_3m": "DPM-Solver++(3M)", "unipc": "UniPC"}
GRIDS = ("leading", "log_snr", "karras", "aligned")


@dataclass(frozen=True)
class Setting:
    """A way to make images of seeds, without fresh noise on the way."""

    sampler: str
    steps: int
    timestep_grid: str = "leading"
    decoder: str = "full"

    @property
    def trajectory(self) -> str:
        """Of the folder of its latents, which no decoder changes."""
        return f"{self.sampler}-{self.steps}-{self.timestep_grid}"

    @property
    def name(self) -> str:
        """In records."""
        return self.trajectory if self.decoder == "full" else f"{self.trajectory}-{self.decoder}"

    @property
    def title(self) -> str:
        """For people."""
        parts = [f"{SAMPLERS[self.sampler]}, {self.steps} steps"]
        parts += [] if self.timestep_grid == "leading" else [self.timestep_grid]
        parts += [] if self.decoder == "full" else [f"{self.decoder} decoder"]
        return ", ".join(parts)


@dataclass(frozen=True)
class Design:
    """What takes part. Images of a setting are those of the first seeds.

    presets: compared with real slices on `images` seeds; the change is that beside `baseline`.
    sweep: each image beside the reference's of its seed, on `sweep_images` seeds.
    reference: where all samplers would end with many steps, on `reference_images` seeds.
    whole: with all steps of the training, on `whole_images` seeds: shows that the reference has enough.
    """

    presets: tuple[Setting, ...]
    sweep: tuple[Setting, ...]
    baseline: Setting
    reference: Setting
    whole: Setting
    images: int
    sweep_images: int
    reference_images: int
    whole_images: int

    def counts(self) -> dict[Setting, int]:
        """Most images of each setting, by its trajectory (decoder "full"); those that matter most come first."""
        groups = [
            ([self.reference], self.reference_images),
            (self.presets, self.images),
            (self.sweep, self.sweep_images),
            ([self.whole], self.whole_images),
        ]
        counts: dict[Setting, int] = {}
        for settings, images in groups:
            for setting in settings:
                trajectory = replace(setting, decoder="full")
                counts[trajectory] = max(images, counts.get(trajectory, 0))
        return counts

    def served(self, aligned: bool, tiny: bool) -> Design:
        """Without what a repository lacks: aligned timesteps, the tiny decoder."""

        def kept(settings: Iterable[Setting]) -> tuple[Setting, ...]:
            return tuple(
                setting
                for setting in settings
                if (aligned or setting.timestep_grid != "aligned") and (tiny or setting.decoder != "tiny")
            )

        return replace(self, presets=kept(self.presets), sweep=kept(self.sweep))


def presets() -> dict[str, Setting]:
    """The client's presets by name."""
    from brats_ldm_client import PRESETS  # with NumPy, which --help is spared

    return {name: Setting(how.sampler, how.steps, how.timestep_grid, how.decoder) for name, how in PRESETS.items()}


def preset_name(setting: Setting) -> str:
    """The preset that stands for it, or nothing."""
    return next((name for name, preset in presets().items() if preset == setting), "")


def _measured_presets() -> tuple[Setting, ...]:
    """All but the reference, and with the full decoder those that have another: it tells the two errors apart."""
    named = [setting for name, setting in presets().items() if name != "reference"]
    return tuple(dict.fromkeys([*named, *(replace(setting, decoder="full") for setting in named)]))


def _sweep(steps: tuple[int, ...], baseline: Setting) -> tuple[Setting, ...]:
    """DDIM on the bundle's grid alone: it is there for comparison."""
    ways = [("ddim", "leading"), *((sampler, grid) for sampler in SAMPLERS if sampler != "ddim" for grid in GRIDS)]
    swept = [Setting(sampler, count, grid) for sampler, grid in ways for count in steps]
    return tuple(dict.fromkeys([*swept, baseline]))


def full() -> Design:
    """The recorded one."""
    baseline = presets()["standard"]
    return Design(
        _measured_presets(), _sweep((4, 6, 8, 10, 15, 20), baseline), baseline, Setting("ddim", 250),
        Setting("ddim", 1000), images=200, sweep_images=16, reference_images=40, whole_images=8,
    )  # fmt: skip


def quick() -> Design:
    """To try the command; its figures mean nothing."""
    baseline = Setting("ddim", 4)
    few = (Setting("dpmpp_2m", 3, "log_snr", "tiny"), Setting("dpmpp_2m", 3, "log_snr"), baseline)
    return Design(
        few, _sweep((2, 3), baseline), baseline, Setting("ddim", 8), Setting("ddim", 10),
        images=24, sweep_images=8, reference_images=FEWEST + 4, whole_images=8,
    )  # fmt: skip
