"""The configuration of a training run: frozen dataclasses, each field with its meaning, its range and its default.

They are filled from TOML, from snapshot.json, or by a command line (`training.stage_options`). Knows nothing of torch,
so that `--help` is instant. The defaults are those of the MONAI bundle `brats_mri_axial_slices_generative_diffusion`,
except that its perceptual loss needs weights of your own. `configs/brats.toml` writes them out; `configs/demo.toml` is
a small version. `configs/brats-labels.toml` and `configs/demo-labels.toml` are the same with a UNet that takes labels.
"""

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt

from training.ranges import Count, NonNegativeFloat, PositiveFloat, Relation, Section, out_of_range, validated

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIGS = Path(__file__).parent / "configs"
LEVELS = 3  # of the autoencoder: two halvings, because everything after it expects latents of a quarter of the size

Modality = Literal["named", "any"]
Spacing = Literal["1mm", "any"]
Precision = Literal["fp32", "bf16", "fp16"]
Conditioning = Literal["none", "labels"]
Beta = Annotated[float, Field(gt=0, lt=1)]


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the file and the field."""


@dataclass(frozen=True)
class Data(Section):
    """Which slices are read from Task01_BrainTumour, and how."""

    channel: NonNegativeInt = 0
    """Modality: 0 FLAIR, 1 T1w, 2 T1gd, 3 T2w. Names in dataset.json may give it another index."""
    modality: Modality = "named"
    """any = use the channel with the index `channel`, whatever dataset.json calls it."""
    spacing: Spacing = "1mm"
    """any = accept voxels of any size; their slices are still recorded as 1 mm."""
    depth: Count = 100
    """Axial slices kept around the centre of the volume (27..126 of 155)."""
    size: Annotated[int, Field(ge=32, multiple_of=4)] = 240
    """In-plane crop in pixels of 1 mm; the diffusion stage pads it to a multiple of 32."""
    cache_rate: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the volumes kept in memory (23 MB each); 0 = read from disk each time."""
    workers: Count = 2
    """Threads that fill the cache."""


@dataclass(frozen=True)
class Autoencoder(Section):
    """AutoencoderKL with one latent channel; two halvings, so 256 pixels become 64 latents."""

    channels: Annotated[tuple[Count, ...], Field(min_length=LEVELS, max_length=LEVELS)] = (64, 128, 256)
    """Channels of each level."""
    num_res_blocks: Count = 2
    """Residual blocks per level."""
    norm_num_groups: Count = 32
    """Groups of GroupNorm; divides every entry of `channels`."""
    nonlocal_attention: bool = True
    """Self-attention at the bottleneck of encoder and decoder."""

    def relations(self) -> Iterator[Relation]:
        yield _divided_channels(self)


@dataclass(frozen=True)
class Discriminator(Section):
    """PatchGAN discriminator with instance norm."""

    channels: Count = 32
    """Channels of the first layer."""
    num_layers: Annotated[int, Field(ge=1, le=5)] = 3
    """Strided layers."""


@dataclass(frozen=True)
class UNet(Section):
    """DiffusionModelUNet over the 64x64 latent."""

    channels: tuple[Count, ...] = (32, 64, 128, 256)
    """Channels of each level."""
    attention_levels: tuple[bool, ...] = (False, True, True, True)
    """Levels with self-attention."""
    num_head_channels: tuple[NonNegativeInt, ...] = (0, 32, 32, 32)
    """Channels of one attention head, by level; 0 where there is no attention."""
    num_res_blocks: Count = 2
    """Residual blocks per level."""
    norm_num_groups: Count = 32
    """Groups of GroupNorm; divides every entry of `channels`."""
    conditioning: Conditioning = "none"
    """labels = the UNet also sees a label map, in half of the rows of training; it then works with and without one."""

    def relations(self, size: int) -> Iterator[Relation]:
        """size: of the slices; they are padded to a multiple of 32, and latents have a quarter of their pixels."""
        levels, latent = len(self.channels), 8 * math.ceil(size / 32)
        yield _divided_channels(self)
        halved = levels >= 1 and latent % 2 ** (levels - 1) == 0
        yield Relation("channels", halved, f"no more levels than a latent of {latent} pixels can be halved for")
        equal = len(self.attention_levels) == levels
        yield Relation("attention_levels", equal, f"one entry for each level of channels, {levels}")
        divisors = "a divisor of channels at each level with attention and at the last one"
        yield Relation("num_head_channels", self._heads_fit(), divisors)

    def _heads_fit(self) -> bool:
        # The block in the middle always has attention, whatever attention_levels says for the last level.
        attention = (*self.attention_levels[:-1], True)
        heads, channels = self.num_head_channels, self.channels
        return len(heads) == len(attention) == len(channels) and all(
            not attends or (head >= 1 and width % head == 0)
            for width, attends, head in zip(channels, attention, heads, strict=True)
        )


@dataclass(frozen=True)
class TinyDecoder(Section):
    """Residual blocks at the size of the latent, for the images of the autoencoder's decoder."""

    channels: Annotated[int, Field(ge=8, multiple_of=8)] = 64
    """Channels of all blocks; in eights, because images then do not depend on the batch to the last bit."""
    blocks: Count = 14
    """Residual blocks, of two convolutions each."""


@dataclass(frozen=True)
class NoiseSchedule(Section):
    """betas = linspace(sqrt(beta_start), sqrt(beta_end), num_train_timesteps)^2 ("scaled linear")."""

    num_train_timesteps: Annotated[int, Field(ge=20)] = 1000
    """Diffusion steps of training; the sample pictures take 20 of them."""
    beta_start: Beta = 0.0015
    """First beta."""
    beta_end: Beta = 0.0195
    """Last beta."""

    def relations(self) -> Iterator[Relation]:
        yield Relation("beta_end", self.beta_start <= self.beta_end, "beta_start or more, and below 1")


@dataclass(frozen=True)
class Stage(Section):
    """Settings of all stages: length, batches, learning rate, precision, validation."""

    epochs: Count = 1000
    """Passes over the training volumes."""
    volumes_per_batch: Count = 1
    """Volumes drawn for one batch."""
    slices_per_volume: Count = 1
    """Random slices of each drawn volume; the batch is volumes x slices."""
    accumulate: Count = 1
    """Batches, in each process, whose mean gradient makes one update."""
    learning_rate: PositiveFloat = 5e-5
    """Learning rate of Adam."""
    warmup: NonNegativeInt = 0
    """Iterations over which the learning rate rises to its value; 0 = off."""
    milestones: tuple[Count, ...] = ()
    """Epochs at which the learning rate is multiplied by gamma."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor of the learning rate at each milestone."""
    max_grad_norm: NonNegativeFloat = 0.0
    """A gradient with a larger 2-norm is scaled down to it; 0 = off."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the averaged weights that the snapshot carries; 0 = the raw weights."""
    precision: Precision = "fp32"
    """bf16 and fp16 = autocast, fp16 with loss scaling; losses and weights stay fp32."""
    channels_last: bool = True
    """Memory layout of weights and activations: up to twice as fast in convolutions, on CPU and GPU."""
    compile: bool = False
    """torch.compile: takes minutes at the start, makes iterations faster; useful on GPUs."""
    validate_every: NonNegativeInt = 0
    """Epochs between two validations, which also choose the best snapshot; 0 = never."""
    validation_volumes: Count = 16
    """Volumes used for validation, four slices of each."""
    patience: NonNegativeInt = 0
    """Validations without a better result before the run stops; 0 = it never stops early."""
    checkpoint_every: Count = 500
    """Iterations between two resume states; sample pictures are written then too."""

    def relations(self) -> Iterator[Relation]:
        rising = list(self.milestones) == sorted(set(self.milestones))
        yield Relation("milestones", rising, "epochs from 1 on, each later than the one before")
        yield Relation("patience", not self.patience or self.validate_every != 0, "0 where validate_every is 0")


@dataclass(frozen=True)
class AutoencoderTraining(Stage):
    """Stage 1: VAE-GAN."""

    epochs: Count = 1500
    """Passes over the training volumes."""
    slices_per_volume: Count = 26
    """Random slices of each drawn volume; the batch is volumes x slices."""
    kl_weight: NonNegativeFloat = 1e-6
    """Weight of the KL term; 0 = off."""
    adversarial_weight: NonNegativeFloat = 0.5
    """Weight of the least-squares adversarial term; 0 = off."""
    adversarial_start: NonNegativeInt = 0
    """Iterations before the discriminator and the adversarial term begin."""


@dataclass(frozen=True)
class DiffusionTraining(Stage):
    """Stage 2: noise prediction on latents."""

    volumes_per_batch: Count = 2
    """Volumes drawn for one batch."""
    slices_per_volume: Count = 50
    """Random slices of each drawn volume; the batch is volumes x slices."""
    milestones: tuple[Count, ...] = (1000,)
    """Epochs at which the learning rate is multiplied by gamma. The bundle's 1000 has no effect."""
    scale_factor_batches: Count = 8
    """Batches over which the latent scale factor 1/std(z) is measured."""
    max_loss_weight: Annotated[float, Field(ge=1, lt=math.inf)] = 1.0
    """The loss of a timestep is weighted by 1/alpha_bar, up to this; 1, as in the bundle: all weigh the same."""


@dataclass(frozen=True)
class TinyDecoderTraining(Stage):
    """`training.distil_decoder`: the tiny decoder learns the images of the full one."""

    epochs: Count = 200
    """Passes over the training volumes."""
    volumes_per_batch: Count = 4
    """Volumes drawn for one batch."""
    slices_per_volume: Count = 4
    """Random slices of each drawn volume; the batch is volumes x slices."""
    learning_rate: PositiveFloat = 1e-3
    """Learning rate of Adam."""
    squared_weight: NonNegativeFloat = 2.0
    """Weight of the mean squared error beside L1; 0 = off."""
    ssim_weight: NonNegativeFloat = 0.2
    """Weight of 1 - SSIM; 0 = off."""
    reuse: Count = 4
    """Updates that see each latent: the full decoder's image of it costs more than an update."""
    latent_noise: NonNegativeFloat = 0.1
    """Largest standard deviation of the noise on scaled latents; 0 = off."""


@dataclass(frozen=True)
class Perceptual(Section):
    """Perceptual term of stage 1, on the features of a ResNet-50."""

    weights: Annotated[str, Field(min_length=1)] = "none"
    """Path of ResNet-50 weights, of ImageNet or RadImageNet; none = the term is off."""
    weight: NonNegativeFloat = 1.0
    """Weight of the term."""


@dataclass(frozen=True)
class Config(Section):
    """All settings that determine the weights. The data are not part of it."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """All random numbers of a run depend on this seed and the iteration alone."""
    data: Data = field(default_factory=Data)
    autoencoder: Autoencoder = field(default_factory=Autoencoder)
    discriminator: Discriminator = field(default_factory=Discriminator)
    unet: UNet = field(default_factory=UNet)
    noise_schedule: NoiseSchedule = field(default_factory=NoiseSchedule)
    perceptual: Perceptual = field(default_factory=Perceptual)
    autoencoder_training: AutoencoderTraining = field(default_factory=AutoencoderTraining)
    diffusion_training: DiffusionTraining = field(default_factory=DiffusionTraining)
    tiny_decoder: TinyDecoder = field(default_factory=TinyDecoder)
    tiny_decoder_training: TinyDecoderTraining = field(default_factory=TinyDecoderTraining)

    def relations(self) -> Iterator[Relation]:
        """All conditions between settings, with the full names of the settings."""
        sections = {
            "autoencoder": self.autoencoder.relations(),
            "unet": self.unet.relations(self.data.size),
            "noise_schedule": self.noise_schedule.relations(),
            "autoencoder_training": self.autoencoder_training.relations(),
            "diffusion_training": self.diffusion_training.relations(),
            "tiny_decoder_training": self.tiny_decoder_training.relations(),
        }
        for section, relations in sections.items():
            for relation in relations:
                yield relation._replace(field=f"{section}.{relation.field}")


def _divided_channels(network: Autoencoder | UNet) -> Relation:
    groups = network.norm_num_groups
    divided = all(channels % groups == 0 for channels in network.channels)
    return Relation("channels", divided, f"multiples of norm_num_groups, {groups}")


def config_from_dict(values: Mapping[str, Any], source: str) -> Config:
    """Fill a `Config` from nested dictionaries, as of TOML or snapshot.json; `source` is named in the error.

    Raises:
        ConfigError: it names each field that is unknown or has a wrong value, the value and what is allowed.
    """
    try:
        config = validated(Config, values)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None
    broken = [relation for relation in config.relations() if not relation.holds]
    if broken:
        sentences = (out_of_range(name, attrgetter(name)(config), allowed) for name, _, allowed in broken)
        raise ConfigError(f"{source}: " + "; ".join(sentences))
    return config


def check_config(config: Config, source: str) -> None:
    """Raise ConfigError as `config_from_dict` does, for a configuration that was not read from a file."""
    config_from_dict(asdict(config), source)


def load_config(name: str) -> Config:
    """Read a shipped configuration by name (`demo`, `brats`) or any TOML file by path.

    A file may begin with `base`, the name of a shipped configuration: its settings hold where the file gives none.

    Raises:
        ConfigError: there is no such file, or it holds no configuration that can be used.
    """
    path = Path(name) if name.endswith(".toml") else _shipped(name)
    values = _read_toml(path, name)
    base = values.pop("base", None)
    if base is not None:
        values = _merged(_read_toml(_shipped(base), base), values)
    return config_from_dict(values, str(path))


def _shipped(name: object) -> Path:
    return CONFIGS / f"{name}.toml"


def _read_toml(path: Path, name: object) -> dict[str, Any]:
    if not path.is_file():
        shipped = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.toml")))
        raise ConfigError(f"no configuration {name!r}: give one of {shipped}, or the path of a .toml file")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no TOML, or not even text
        raise ConfigError(f"{path}: {error}") from None


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the entries of `changes`, section by section."""
    sections = {name: _merged(base[name], value) for name, value in changes.items() if isinstance(base.get(name), dict)}
    return {**base, **changes, **sections}
