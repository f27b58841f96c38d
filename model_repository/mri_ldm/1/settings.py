"""What the model is told when it loads: the limits in config.pbtxt and the record of the weights in model.json."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .samplers import NoiseSchedule

FORMAT_VERSION = 1


class SettingsError(ValueError):
    """A parameter or model.json that cannot be used; stops the model load."""


@dataclass(frozen=True)
class Settings:
    """Limits, and facts about the weights.

    crop: pixels cut from each side of a decoded image; digest: identifies the weights of both networks.
    """

    max_rows_in_flight: int
    max_rows_waiting: int
    decode_batch: int
    noise_schedule: NoiseSchedule
    crop: int
    model_name: str
    digest: str


# name: (smallest, largest); each is a parameter of config.pbtxt, where its meaning is written.
LIMITS = {"max_rows_in_flight": (1, 1024), "max_rows_waiting": (0, 1_000_000), "decode_batch": (1, 1024)}


def read_settings(model_config: Mapping[str, Any], version_folder: Path) -> Settings:
    """Settings from the parsed config.pbtxt and the model.json beside the code.

    Raises:
        SettingsError: an unknown, missing or malformed parameter, or an unusable model.json.
    """
    parameters = {name: value["string_value"] for name, value in model_config.get("parameters", {}).items()}
    if unknown := sorted(set(parameters) - set(LIMITS)):
        raise SettingsError(f"unknown parameters {unknown}; known are {sorted(LIMITS)}")
    limits = {name: _limit(name, parameters.get(name)) for name in LIMITS}
    record = _read_record(version_folder / "model.json")
    try:
        for name, network in (("max_rows_in_flight", "unet"), ("decode_batch", "vae_decoder")):
            if limits[name] > (most := record["max_batch_size"][network]):
                raise SettingsError(f"parameter {name} is {limits[name]}, but {network} takes {most} rows at most")
        return Settings(
            **limits,
            noise_schedule=NoiseSchedule(**record["noise_schedule"]),
            crop=(record["decoded_size"] - record["image_size"]) // 2,
            model_name=record["name"],
            digest=record["digest"],
        )
    except (KeyError, TypeError) as error:
        raise SettingsError(f"model.json: {error}; write it anew with `python -m export`") from error


def _limit(name: str, text: str | None) -> int:
    low, high = LIMITS[name]
    if text is None or not text.isdecimal() or not low <= int(text) <= high:
        raise SettingsError(f"parameter {name} is {text!r}; it must be a whole number in {low}..{high}")
    return int(text)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: {error}; write it with `python -m export`") from error
    if record.get("format_version") != FORMAT_VERSION or record.get("prediction_type") != "epsilon":
        raise SettingsError(f"{path}: needs format_version {FORMAT_VERSION} and prediction_type epsilon")
    return record
