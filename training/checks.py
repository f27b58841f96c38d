"""What the values of a configuration may be: their types, and their ranges in one line each.

What is refused here would end in a foreign message, in a run without effect, or in networks that nothing after takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin

if TYPE_CHECKING:
    from training.config import Autoencoder, Config, Stage, UNet

T = TypeVar("T")
# A field, whether its value is allowed, and what is allowed.
Rule = tuple[str, bool, str]

SCALARS = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
LEVELS = 3  # of the autoencoder: two halvings, and everything after takes latents of a quarter of the pixels


class WrongType(ValueError):
    """A value of another type than its field."""


def structured(values: dict[str, Any], kind: type[T]) -> T:
    """The dataclass `kind` filled from nested dictionaries, as of TOML or JSON. Nothing is converted but int to float.

    Raises:
        ValueError: unknown fields and values of the wrong type; each is named.
    """
    import cattrs

    # As cattrs comes, "false" is True, 1.7 is 1, and "123" three channels.
    converter = cattrs.Converter(forbid_extra_keys=True)
    for scalar in SCALARS:
        converter.register_structure_hook(scalar, _scalar)
    converter.register_structure_hook_func(lambda kind: get_origin(kind) is tuple, _array)
    converter.register_structure_hook_func(lambda kind: get_origin(kind) is Literal, _choice)

    def sentence(error: BaseException, kind: type | None) -> str:
        return str(error) if isinstance(error, WrongType) else cattrs.v.format_exception(error, kind)

    try:
        return converter.structure(values, kind)
    except cattrs.BaseValidationError as error:
        raise ValueError("; ".join(cattrs.transform_error(error, format_exception=sentence))) from None


def _scalar(value: Any, kind: type) -> Any:
    if type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value)
    raise WrongType(f"{value!r} is not {SCALARS[kind]}")


def _array(value: Any, kind: type) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise WrongType(f"{value!r} is not an array")
    return tuple(_scalar(item, get_args(kind)[0]) for item in value)


def _choice(value: Any, kind: type) -> Any:
    if value not in get_args(kind):
        raise WrongType(f"{value!r} is not one of {', '.join(get_args(kind))}")
    return value


def problems(config: Config) -> list[str]:
    """A sentence for each value that is not allowed: the field, the value, and what is."""
    rules = [*_general(config), *_autoencoder(config.autoencoder), *_unet(config.unet, config.data.size)]
    rules += _stage("autoencoder_training", config.autoencoder_training)
    rules += _stage("diffusion_training", config.diffusion_training)
    return [f"{name} is {attrgetter(name)(config)!r}, must be {allowed}" for name, fine, allowed in rules if not fine]


def _general(config: Config) -> Iterator[Rule]:
    data, schedule = config.data, config.noise_schedule
    yield "seed", 0 <= config.seed < 2**63, "0 or more, and below 2^63"
    yield "data.channel", data.channel >= 0, "0 or more"
    yield "data.depth", data.depth >= 1, "1 or more"
    yield "data.size", data.size >= 32 and data.size % 4 == 0, "a multiple of 4, 32 or more"
    yield "data.cache_rate", 0 <= data.cache_rate <= 1, "0 to 1"
    yield "data.workers", data.workers >= 1, "1 or more"
    yield "discriminator.channels", config.discriminator.channels >= 1, "1 or more"
    yield "discriminator.num_layers", 1 <= config.discriminator.num_layers <= 5, "1 to 5"
    yield "noise_schedule.num_train_timesteps", schedule.num_train_timesteps >= 20, "20 or more, the steps of pictures"
    yield "noise_schedule.beta_start", 0 < schedule.beta_start < 1, "above 0 and below 1"
    rising = schedule.beta_start <= schedule.beta_end < 1
    yield "noise_schedule.beta_end", rising, "beta_start or more, and below 1"
    yield "perceptual.weights", bool(config.perceptual.weights), "none or the path of a file"
    yield "perceptual.weight", _not_negative(config.perceptual.weight), "0 or more, and finite"
    stage1 = config.autoencoder_training
    yield "autoencoder_training.kl_weight", _not_negative(stage1.kl_weight), "0 or more, and finite"
    yield "autoencoder_training.adversarial_weight", _not_negative(stage1.adversarial_weight), "0 or more, and finite"
    yield "autoencoder_training.adversarial_start", stage1.adversarial_start >= 0, "0 or more"
    yield "diffusion_training.scale_factor_batches", config.diffusion_training.scale_factor_batches >= 1, "1 or more"


def _autoencoder(network: Autoencoder) -> Iterator[Rule]:
    groups = network.norm_num_groups
    yield "autoencoder.norm_num_groups", groups >= 1, "1 or more"
    divided = all(channels >= 1 and groups >= 1 and channels % groups == 0 for channels in network.channels)
    of_groups = f"multiples of norm_num_groups, {groups}"
    yield "autoencoder.channels", len(network.channels) == LEVELS and divided, f"{LEVELS} levels, {of_groups}"
    yield "autoencoder.num_res_blocks", network.num_res_blocks >= 1, "1 or more"


def _unet(network: UNet, size: int) -> Iterator[Rule]:
    levels, groups = len(network.channels), network.norm_num_groups
    latent = 8 * math.ceil(size / 32)  # the slices are padded to a multiple of 32
    yield "unet.norm_num_groups", groups >= 1, "1 or more"
    divided = all(channels >= 1 and groups >= 1 and channels % groups == 0 for channels in network.channels)
    halved = levels >= 1 and latent % 2 ** (levels - 1) == 0
    yield (
        "unet.channels",
        divided and halved,
        f"multiples of norm_num_groups, {groups}, of no more levels than a latent of {latent} pixels can be halved for",
    )
    yield "unet.attention_levels", len(network.attention_levels) == levels, f"one entry a level of channels, {levels}"
    # The block between the way down and the way up has attention whatever attention_levels says of its level.
    attending = [*network.attention_levels[:-1], True]
    heads = network.num_head_channels
    fine = len(heads) == len(attending) == levels and all(
        not attends or (head >= 1 and channels % head == 0)
        for channels, attends, head in zip(network.channels, attending, heads, strict=True)
    )
    yield "unet.num_head_channels", fine, "a divisor of channels at each level with attention and at the last one"
    yield "unet.num_res_blocks", network.num_res_blocks >= 1, "1 or more"


def _stage(name: str, stage: Stage) -> Iterator[Rule]:
    for field in ("epochs", "volumes_per_batch", "slices_per_volume", "accumulate", "checkpoint_every"):
        yield f"{name}.{field}", getattr(stage, field) >= 1, "1 or more"
    for field in ("warmup", "validate_every", "patience"):
        yield f"{name}.{field}", getattr(stage, field) >= 0, "0 or more"
    yield f"{name}.learning_rate", 0 < stage.learning_rate < math.inf, "above 0, and finite"
    rising = list(stage.milestones) == sorted(set(stage.milestones)) and all(epoch >= 1 for epoch in stage.milestones)
    yield f"{name}.milestones", rising, "epochs from 1 on, each later than the one before"
    yield f"{name}.gamma", 0 < stage.gamma <= 1, "above 0, at most 1"
    yield f"{name}.max_grad_norm", _not_negative(stage.max_grad_norm), "0 (off) or more, and finite"
    yield f"{name}.ema_decay", 0 <= stage.ema_decay < 1, "0 (off) or more, and below 1"
    yield f"{name}.validation_volumes", stage.validation_volumes >= 1, "1 or more"
    yield f"{name}.patience", not stage.patience or stage.validate_every != 0, "0 where validate_every is 0"


def _not_negative(value: float) -> bool:
    return 0 <= value < math.inf
