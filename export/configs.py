"""The committed config.pbtxt files against the graph records: a mismatch is shown as a difference.

Imports no torch, because the preflight runs where there is none.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import TYPE_INT32, TYPE_INT64, ModelConfig

from training.files import write_text

if TYPE_CHECKING:
    from export.graphs import Graph, TensorSpec

FRONT_MODELS = ("mri_ldm", "mri_ldm_stream")
"""The models that make images, by calls of the networks."""
STEPS_MODEL = "unet_steps"
STEPS_TEMPLATES = Path(__file__).parent / STEPS_MODEL
"""Its configs, for STEPS_PER_CALL steps. The source repository has no unet_steps, so they stand here."""
STEPS_PER_CALL = 5
TINY_MODEL = "vae_decoder_tiny"
TINY_TEMPLATES = Path(__file__).parent / TINY_MODEL
"""Its configs. They stand here because a repository without a tiny decoder must not have the folder."""
TRITON_TYPES = {"torch.float32": "TYPE_FP32", "torch.int32": "TYPE_INT32"}


class ConfigMismatch(ValueError):
    """A config.pbtxt does not describe its network; the message is a difference."""


def parse_config(path: Path) -> ModelConfig:
    """A config.pbtxt as Triton reads it.

    Raises:
        ConfigMismatch: it cannot be parsed.
    """
    try:
        return text_format.Parse(path.read_text(), ModelConfig())
    except text_format.ParseError as error:
        raise ConfigMismatch(f"{path}: {error}") from None


def profiles(model_folder: Path) -> dict[str, Path]:
    """The config.pbtxt of a model, as "default", and its configs/*.pbtxt by name."""
    others = sorted((model_folder / "configs").glob("*.pbtxt"))
    return {"default": model_folder / "config.pbtxt"} | {path.stem: path for path in others}


def _expected(graph: Graph) -> list[str]:
    def line(kind: str, spec: TensorSpec) -> str:
        return f"{kind} {spec.name} {TRITON_TYPES[str(spec.dtype)]} {list(spec.shape)}"

    tensors = [line("input", spec) for spec in graph.inputs] + [line("output", spec) for spec in graph.outputs]
    return [f"name {graph.name}", f"max_batch_size {graph.max_batch_size}", *tensors]


def declared(config: ModelConfig) -> list[str]:
    """Name, largest batch and tensors of a config, one per line."""
    types = ModelConfig.DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number
    tensors = [("input", tensor) for tensor in config.input] + [("output", tensor) for tensor in config.output]
    lines = [f"{kind} {tensor.name} {types[tensor.data_type].name} {list(tensor.dims)}" for kind, tensor in tensors]
    return [f"name {config.name}", f"max_batch_size {config.max_batch_size}", *lines]


def as_profile(default: ModelConfig, profile: str) -> ModelConfig:
    """A config.pbtxt with the tensors that a profile of the model must have.

    They are the same, except for unet_steps in the profile torch: a program takes any number of steps, and draws the
    noise of a row itself.
    """
    config = ModelConfig()
    config.CopyFrom(default)
    if (default.name, profile) == (STEPS_MODEL, "torch"):
        for tensor in (*config.input, *config.output):
            if tensor.name in ("timesteps", "coefficients", "estimates"):
                tensor.dims[0] = -1
        config.input.add(name="seed", data_type=TYPE_INT64, dims=[1])
        config.input.add(name="draw", data_type=TYPE_INT32, dims=[1])
    return config


def check_configs(graph: Graph, model_folder: Path) -> None:
    """Check that config.pbtxt of a model describes the graph, and that every configs/*.pbtxt does too.

    Raises:
        ConfigMismatch: with the lines that differ.
    """
    default = parse_config(model_folder / "config.pbtxt")
    for profile, path in profiles(model_folder).items():
        expected = _expected(graph) if profile == "default" else declared(as_profile(default, profile))
        actual = declared(parse_config(path))
        if expected != actual:
            difference = difflib.unified_diff(actual, expected, str(path), f"export.graphs: {graph.name}", lineterm="")
            raise ConfigMismatch("\n".join(difference))


def write_steps_configs(model_folder: Path, steps: int) -> None:
    """The configs of unet_steps for `steps` steps in a call, from the templates."""
    first_dim = re.compile(rf"(\bdims?: *\[? *){STEPS_PER_CALL}\b")
    for path in profiles(STEPS_TEMPLATES).values():
        target = model_folder / path.relative_to(STEPS_TEMPLATES)
        write_text(target, first_dim.sub(rf"\g<1>{steps}", path.read_text()))


def write_tiny_configs(model_folder: Path) -> None:
    """The configs of vae_decoder_tiny."""
    for path in profiles(TINY_TEMPLATES).values():
        write_text(model_folder / path.relative_to(TINY_TEMPLATES), path.read_text())


LATENT_INPUT = re.compile(r"""
    ^\ *\{\ name:\ "latent"\ .*\n                 # of the model
    | \ input\ \{\ key:\ "latent"\ .*?\}\ \}       # of a CUDA graph
    | ^\ *inputs\ \{\ key:\ "latent"\ .*\n          # of a warm-up
""", re.MULTILINE | re.VERBOSE)  # fmt: skip


def takes_condition(model_folder: Path) -> bool:
    """Whether the config.pbtxt of a denoiser has the input `condition`."""
    return any(tensor.name == "condition" for tensor in parse_config(model_folder / "config.pbtxt").input)


def write_condition(source: Path, model_folder: Path, channels: int) -> None:
    """The configs of a denoiser in `source` to `model_folder`, with an input `condition` of `channels` after `latent`.

    0: without such an input. `source` may have it or not, and may be `model_folder`.
    """
    for path in profiles(source).values():
        plain = re.sub(
            LATENT_INPUT.pattern.replace("latent", "condition"), "", path.read_text(), flags=LATENT_INPUT.flags
        )
        text = (
            LATENT_INPUT.sub(lambda match: match[0] + _as_condition(match[0], channels), plain) if channels else plain
        )
        write_text(model_folder / path.relative_to(source), text)


def _as_condition(latent: str, channels: int) -> str:
    """The text of an input `latent` as that of the input `condition`."""
    return re.sub(r"\[ ?1,", lambda match: match[0].replace("1", str(channels)), latent.replace("latent", "condition"))


def check_image_size(size: int, path: Path) -> None:
    """Check that the `image` output of a front model has the size of the slices that training saw.

    Raises:
        ConfigMismatch: with both sizes.
    """
    declared = next(list(tensor.dims) for tensor in parse_config(path).output if tensor.name == "image")
    if declared != [1, size, size]:
        raise ConfigMismatch(f"{path}: image has dims {declared}, but the weights make {[1, size, size]}")
