"""Reads the settings when the model loads: the limits in config.pbtxt and the record of the weights in model.json."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .samplers import NoiseSchedule
from .timestep_grids import AlignedTimesteps, read_aligned

FORMAT_VERSION = 1
TINY_DECODER = "vae_decoder_tiny"


class SettingsError(ValueError):
    """A parameter or model.json that cannot be used; stops the model load."""


@dataclass(frozen=True)
class Settings:
    """Limits (`PARAMETERS`), and facts about the weights.

    crop: pixels cut from each side of a decoded image; image_size: pixels of a side that are left.
    digest: identifies the weights of the networks.
    tiny_decode_batch: most rows in one call of `vae_decoder_tiny`; 0 where there is none.
    aligned_timesteps: the grids that were optimised for the weights, if there are any.
    takes_labels: whether the weights were trained with label maps.
    steps_per_call: 0 where there is no `unet_steps`; unrolled: the steps that it is made of, 0 for any number.
    """

    max_rows_per_request: int
    max_steps: int
    max_rows_in_flight: int
    max_rows_waiting: int
    max_row_steps: int
    decode_batch: int
    tiny_decode_batch: int
    network_timeout: int
    max_preview_mb: int
    trace_hold: int
    steps_per_call: int
    unrolled: int
    noise_schedule: NoiseSchedule
    aligned_timesteps: AlignedTimesteps
    takes_labels: bool
    crop: int
    image_size: int
    model_name: str
    digest: str


@dataclass(frozen=True)
class Parameter:
    """A whole number that config.pbtxt may set."""

    default: int
    smallest: int
    largest: int
    meaning: str


PARAMETERS = {
    "max_rows_per_request": Parameter(64, 1, 64, "Most rows of a request; more is answered INVALID_ARGUMENT."),
    "max_steps": Parameter(1000, 1, 1000, "Most steps of a row; more is answered INVALID_ARGUMENT."),
    "max_rows_in_flight": Parameter(
        64, 1, 1024, "Most rows in the step loop and the decoder; at most unet's max_batch_size."
    ),
    "max_rows_waiting": Parameter(
        256, 0, 1_000_000, "Most rows that may wait for a place; a request beyond is answered UNAVAILABLE."
    ),
    "max_row_steps": Parameter(
        100_000, 1, 1_000_000_000, "Most steps left, summed over all rows; a request beyond is answered UNAVAILABLE."
    ),
    "decode_batch": Parameter(2, 1, 1024, "Most rows in one call of `vae_decoder`; at most its max_batch_size."),
    "network_timeout": Parameter(
        60, 1, 86_400, "Most seconds for a call of a network; then its requests are answered UNAVAILABLE."
    ),
    "max_preview_mb": Parameter(64, 0, 100_000, "Most MiB of previews that the server keeps for one stream."),
    "trace_hold": Parameter(10, 0, 86_400, "Most seconds for which a traced request may delay new requests."),
    "steps_per_call": Parameter(0, 0, 1000, "Most steps of a row in one call of `unet_steps`; 0: as exported."),
    "any_steps": Parameter(0, 0, 1, "1: `unet_steps` takes any number of steps and draws noise; 0: it is unrolled."),
}


def read_settings(model_config: Mapping[str, Any], version_folder: Path) -> Settings:
    """Settings from the parsed config.pbtxt and the model.json beside the code.

    Raises:
        SettingsError: an unknown or malformed parameter, or an unusable model.json.
    """
    parameters = {name: value["string_value"] for name, value in model_config.get("parameters", {}).items()}
    if unknown := sorted(set(parameters) - set(PARAMETERS)):
        raise SettingsError(f"unknown parameters {unknown}; known are {sorted(PARAMETERS)}")
    limits = {name: _value(name, parameter, parameters.get(name)) for name, parameter in PARAMETERS.items()}
    record = _read_record(version_folder / "model.json")
    any_steps = limits.pop("any_steps")
    try:
        exported = record.get("steps_per_call", 0)
        if type(exported) is not int or exported < 0:
            raise SettingsError(
                f"model.json: steps_per_call is {exported!r}, no number of steps; "
                "write it again with `python -m export repository`"
            )
        if limits["steps_per_call"] > exported > 0 and not any_steps:
            raise SettingsError(
                f"parameter steps_per_call is {limits['steps_per_call']}, but unet_steps was exported for {exported}: "
                "set 0, or export with more"
            )
        limits["steps_per_call"] = (limits["steps_per_call"] or exported) if exported else 0
        for name, network in (("max_rows_in_flight", "unet"), ("decode_batch", "vae_decoder")):
            if limits[name] > (most := record["max_batch_size"][network]):
                raise SettingsError(f"parameter {name} is {limits[name]}, but {network} takes {most} rows at most")
        noise_schedule = NoiseSchedule(**record["noise_schedule"])
        return Settings(
            **limits,
            tiny_decode_batch=record["max_batch_size"].get(TINY_DECODER, 0),
            unrolled=0 if any_steps else exported,
            noise_schedule=noise_schedule,
            aligned_timesteps=_aligned(record, noise_schedule),
            takes_labels=_takes_labels(record),
            crop=(record["decoded_size"] - record["image_size"]) // 2,
            image_size=record["image_size"],
            model_name=record["name"],
            digest=record["digest"],
        )
    except (KeyError, TypeError) as error:
        raise SettingsError(f"model.json: {error}; write it again with `python -m export repository`") from error


def _value(name: str, parameter: Parameter, text: str | None) -> int:
    if text is None:
        return parameter.default
    low, high = parameter.smallest, parameter.largest
    if not (text.isascii() and text.isdecimal() and low <= int(text) <= high):
        raise SettingsError(f"parameter {name} is {text!r}; it must be a whole number in {low}..{high}")
    return int(text)


def _takes_labels(record: Mapping[str, Any]) -> bool:
    if (conditioning := record.get("conditioning", "none")) not in ("none", "labels"):
        raise SettingsError(
            f"model.json: conditioning is {conditioning!r}, neither none nor labels; "
            "write it again with `python -m export repository`"
        )
    return bool(conditioning == "labels")


def _aligned(record: Mapping[str, Any], schedule: NoiseSchedule) -> AlignedTimesteps:
    try:
        return read_aligned(record.get("aligned_timesteps", []), schedule.num_train_timesteps)
    except ValueError as error:
        raise SettingsError(f"model.json: {error}; write it again with `python -m export repository`") from error


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: {error}; write it with `python -m export repository`") from error
    if record.get("format_version") != FORMAT_VERSION or record.get("prediction_type") != "epsilon":
        raise SettingsError(f"{path}: needs format_version {FORMAT_VERSION} and prediction_type epsilon")
    return record
