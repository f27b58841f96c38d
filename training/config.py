"""The configuration of a training run: frozen dataclasses filled from TOML, every field open to the command line.

Knows nothing of torch, so that `--help` is instant. The defaults are those of the MONAI bundle
`brats_mri_axial_slices_generative_diffusion`, but that its perceptual loss needs weights of your own;
`configs/brats.toml` spells them out, `configs/demo.toml` shrinks them.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from training.checks import problems, structured

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIGS = Path(__file__).parent / "configs"


Modality = Literal["named", "any"]
Spacing = Literal["1mm", "any"]


class ConfigError(ValueError):
    """A configuration file that cannot be used; the message names the file and the field."""


@dataclass(frozen=True)
class Data:
    """Which slices are read from Task01_BrainTumour, and how."""

    channel: int = 0
    """Modality: 0 FLAIR, 1 T1w, 2 T1gd, 3 T2w; at another index, where dataset.json names it there."""
    modality: Modality = "named"
    """any = take the channel of the index `channel`, even where dataset.json names no such modality."""
    spacing: Spacing = "1mm"
    """any = take volumes with voxels of any size; their slices are called 1 mm all the same."""
    depth: int = 100
    """Axial slices kept around the centre of the volume (27..126 of 155)."""
    size: int = 240
    """In-plane crop in pixels of 1 mm; the diffusion stage pads it to a multiple of 32."""
    cache_rate: float = 1.0
    """Share of the volumes kept in memory (23 MB each); 0 = read from disk each time."""
    workers: int = 2
    """Threads that fill the cache."""


@dataclass(frozen=True)
class Autoencoder:
    """AutoencoderKL with one latent channel; two halvings, so 256 pixels become 64 latents."""

    channels: tuple[int, ...] = (64, 128, 256)
    """Channels of each level."""
    num_res_blocks: int = 2
    """Residual blocks a level."""
    norm_num_groups: int = 32
    """Groups of GroupNorm; divides every entry of `channels`."""
    nonlocal_attention: bool = True
    """Self-attention at the bottleneck of encoder and decoder."""


@dataclass(frozen=True)
class Discriminator:
    """PatchGAN discriminator with instance norm."""

    channels: int = 32
    """Channels of the first layer."""
    num_layers: int = 3
    """Strided layers."""


@dataclass(frozen=True)
class UNet:
    """Unconditional DiffusionModelUNet over the 64x64 latent."""

    channels: tuple[int, ...] = (32, 64, 128, 256)
    """Channels of each level."""
    attention_levels: tuple[bool, ...] = (False, True, True, True)
    """Levels with self-attention."""
    num_head_channels: tuple[int, ...] = (0, 32, 32, 32)
    """Channels of one attention head, by level; 0 where there is no attention."""
    num_res_blocks: int = 2
    """Residual blocks a level."""
    norm_num_groups: int = 32
    """Groups of GroupNorm; divides every entry of `channels`."""


@dataclass(frozen=True)
class NoiseSchedule:
    """betas = linspace(sqrt(beta_start), sqrt(beta_end), num_train_timesteps)^2 ("scaled linear")."""

    num_train_timesteps: int = 1000
    """Diffusion steps of training."""
    beta_start: float = 0.0015
    """First beta."""
    beta_end: float = 0.0195
    """Last beta."""


Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Stage:
    """What both stages share: how long, in what portions, at what rate, and when to look."""

    epochs: int = 1000
    """Passes over the training volumes."""
    volumes_per_batch: int = 1
    """Volumes drawn for one batch."""
    slices_per_volume: int = 1
    """Random slices of each drawn volume; the batch is volumes x slices."""
    accumulate: int = 1
    """Batches, in each process, whose mean gradient makes one update."""
    learning_rate: float = 5e-5
    """Adam's."""
    warmup: int = 0
    """Iterations over which the learning rate rises to its value; 0 = off."""
    milestones: tuple[int, ...] = ()
    """Epochs at which the learning rate is multiplied by gamma."""
    gamma: float = 0.1
    """Factor of the learning rate at each milestone."""
    max_grad_norm: float = 0.0
    """A gradient with a larger 2-norm is scaled down to it; 0 = off."""
    ema_decay: float = 0.0
    """Decay of the averaged weights that the snapshot carries; 0 = the raw weights."""
    precision: Precision = "fp32"
    """bf16, fp16 = autocast, fp16 with loss scaling; losses and weights stay fp32."""
    channels_last: bool = True
    """Memory layout of weights and activations: up to twice as fast in convolutions, on CPU and GPU."""
    compile: bool = False
    """torch.compile: minutes at the start for faster iterations; pays on GPUs."""
    validate_every: int = 0
    """Epochs between two validations, which also choose the best snapshot; 0 = never."""
    validation_volumes: int = 16
    """Validation volumes looked at, four slices of each."""
    patience: int = 0
    """Validations without a better result before the run stops; 0 = it never stops early."""
    checkpoint_every: int = 500
    """Iterations between two resume states; sample pictures are written then too."""


@dataclass(frozen=True)
class AutoencoderTraining(Stage):
    """Stage 1: VAE-GAN."""

    epochs: int = 1500
    """Passes over the training volumes."""
    slices_per_volume: int = 26
    """Random slices of each drawn volume; the batch is volumes x slices."""
    kl_weight: float = 1e-6
    """Weight of the KL term; 0 = off."""
    adversarial_weight: float = 0.5
    """Weight of the least-squares adversarial term; 0 = off."""
    adversarial_start: int = 0
    """Iterations before the discriminator and the adversarial term begin."""


@dataclass(frozen=True)
class DiffusionTraining(Stage):
    """Stage 2: noise prediction on latents."""

    volumes_per_batch: int = 2
    """Volumes drawn for one batch."""
    slices_per_volume: int = 50
    """Random slices of each drawn volume; the batch is volumes x slices."""
    milestones: tuple[int, ...] = (1000,)
    """Epochs at which the learning rate is multiplied by gamma. The bundle's 1000 lies at its end and does nothing."""
    scale_factor_batches: int = 8
    """Batches over which the latent scale factor 1/std(z) is measured."""


@dataclass(frozen=True)
class Perceptual:
    """Perceptual term of stage 1 on the features of a ResNet-50."""

    weights: str = "none"
    """Path of ResNet-50 weights, ImageNet's or RadImageNet's; none = the term is off."""
    weight: float = 1.0
    """Weight of the term."""


@dataclass(frozen=True)
class Config:
    """Everything that decides the weights, but for the data."""

    seed: int = 0
    """Every random number of a run is a function of this seed and the iteration."""
    data: Data = field(default_factory=Data)
    autoencoder: Autoencoder = field(default_factory=Autoencoder)
    discriminator: Discriminator = field(default_factory=Discriminator)
    unet: UNet = field(default_factory=UNet)
    noise_schedule: NoiseSchedule = field(default_factory=NoiseSchedule)
    perceptual: Perceptual = field(default_factory=Perceptual)
    autoencoder_training: AutoencoderTraining = field(default_factory=AutoencoderTraining)
    diffusion_training: DiffusionTraining = field(default_factory=DiffusionTraining)


def config_from_dict(values: dict[str, Any], source: str) -> Config:
    """Fill a `Config` from nested dictionaries; `source` is named in the error.

    Raises:
        ConfigError: an unknown field, or a value of the wrong type.
    """
    try:
        return structured(values, Config)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None


def check(config: Config, source: str) -> Config:
    """`config`, if every value is one that training can work with; `source` is named in the error.

    Raises:
        ConfigError: it names each field that is wrong, its value and what is allowed.
    """
    if wrong := problems(config):
        raise ConfigError(f"{source}: " + "; ".join(wrong))
    return config


def load_config(name: str) -> Config:
    """Read a shipped configuration by name (`demo`, `brats`) or any TOML file by path.

    Raises:
        ConfigError: no such file, one that does not fit the dataclasses, or a value out of its range.
    """
    path = Path(name) if name.endswith(".toml") else CONFIGS / f"{name}.toml"
    if not path.is_file():
        shipped = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.toml")))
        raise ConfigError(f"no configuration {name!r}: give one of {shipped}, or the path of a .toml file")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no TOML, or not even text
        raise ConfigError(f"{path}: {error}") from None
    return check(config_from_dict(values, str(path)), str(path))


class HasSettings(Protocol):
    """The command line of a stage."""

    @property
    def settings(self) -> Config: ...


Arguments = TypeVar("Arguments", bound=HasSettings)


def parse_arguments(
    arguments: type[Arguments], argv: Sequence[str] | None, program: str, description: str | None
) -> Arguments:
    """Parse a command line in two passes: `--config` chooses the defaults, the rest overrides single fields.

    `arguments` is a dataclass with a `config: str` and a `settings: Config`. What cannot be used ends the program.
    """
    import tyro

    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--config", default="demo")
    name = first.parse_known_args(argv)[0].config
    try:
        defaults = arguments(config=name, settings=load_config(name))
        parsed = tyro.cli(arguments, prog=program, default=defaults, args=argv, description=description)
        check(parsed.settings, "command line")
    except ConfigError as error:
        sys.exit(f"error: {error}")
    return parsed
