"""The tensors of a request: what is taken, what is refused and in which words."""

import json
from dataclasses import replace

import numpy as np
import pytest

from export.configs import parse_config
from mri_ldm.errors import InvalidRequest
from mri_ldm.request import parse_rows
from mri_ldm.samplers import NoiseSchedule
from mri_ldm.settings import PARAMETERS, Settings, SettingsError, read_settings
from mri_ldm.timestep_grids import TIMESTEP_GRIDS, grid_timesteps
from support.common import ROOT

SCHEDULE = NoiseSchedule(1000, 0.0015, 0.0195)
SETTINGS = Settings(
    max_rows_per_request=64, max_steps=1000, max_rows_in_flight=64, max_rows_waiting=256, max_row_steps=100_000,
    decode_batch=2, network_timeout=60, max_preview_mb=64, trace_hold=10, steps_per_call=0, unrolled=0, crop=8,
    image_size=240, tiny_decode_batch=16, takes_labels=False,
    noise_schedule=SCHEDULE, aligned_timesteps=(),
    model_name="m", digest="sha256:0",
)  # fmt: skip


def tensors(rows: int = 1, **extra) -> dict[str, np.ndarray]:
    return {"seed": np.arange(rows, dtype=np.int64)[:, None], **extra}


def test_defaults_and_rows() -> None:
    rows = parse_rows(tensors(3, steps=np.array([[1], [50], [1000]], np.int32)), SETTINGS)
    assert [(row.seed, row.steps, row.sampler, row.eta) for row in rows] == [
        (0, 1, "ddim", 0.0), (1, 50, "ddim", 0.0), (2, 1000, "ddim", 0.0),
    ]  # fmt: skip


@pytest.mark.parametrize("sampler", [b"dpmpp_2m", "dpmpp_2m"])
def test_strings_come_as_bytes_or_text(sampler: bytes | str) -> None:
    (row,) = parse_rows(tensors(sampler=np.array([[sampler]], dtype=np.object_)), SETTINGS)
    assert row.sampler == "dpmpp_2m"


NAN_LATENT = np.zeros((1, 1, 64, 64), np.float32)
NAN_LATENT[0, 0, 3, 5] = np.nan
BAD = [
    ({"steps": np.array([[0]], np.int32)}, r"row 0: steps is 0; it must lie in 1\.\.1000"),
    ({"steps": np.array([[-5]], np.int32)}, "steps is -5"),
    ({"steps": np.array([[1001]], np.int32)}, "steps is 1001"),
    ({"eta": np.array([[1.5]], np.float32)}, r"eta is 1.5; it must lie in 0\.\.1"),
    ({"eta": np.array([[-0.1]], np.float32)}, "eta is -0.1"),
    ({"eta": np.array([[np.nan]], np.float32)}, "eta is nan"),
    (
        {"sampler": np.array([[b"euler"]], np.object_)},
        "'euler'; it must be one of ddim, ddpm, dpmpp_2m, dpmpp_3m, unipc",
    ),
    (
        {"timestep_grid": np.array([[b"even"]], np.object_)},
        "'even'; it must be one of leading, log_snr, karras, aligned",
    ),
    ({"timestep_grid": np.array([[b"aligned"]], np.object_)}, "these weights have no aligned timesteps: give leading,"),
    ({"sampler": np.array([[b"\xff\xfe"]], np.object_)}, "it must be one of"),
    ({"sampler": np.array([[b""]], np.object_)}, "sampler is ''"),
    ({"sampler": np.array([[b"ddpm"]], np.object_), "eta": np.array([[0.5]], np.float32)}, "only ddim takes an eta"),
    ({"decoder": np.array([[b"small"]], np.object_)}, "decoder is 'small'; it must be one of full, tiny"),
    ({"preview_decoder": np.array([[b"big"]], np.object_)}, "preview_decoder is 'big'; it must be one of latent, tiny"),
    ({"latent": NAN_LATENT}, "latent holds NaN or infinity"),
    ({"latent": np.zeros((1, 1, 32, 32), np.float32)}, r"shape \[1, 1, 32, 32\]; it must be \[rows, 1, 64, 64\]"),
    ({"seed": np.zeros(1, np.int64)}, r"seed has shape \[1\]; it must be \[rows, 1\], with 1 row or more"),
    ({"seed": np.zeros((0, 1), np.int64)}, r"seed has shape \[0, 1\]"),
    ({"steps": np.zeros((), np.int32)}, r"steps has shape \[\]; it must be \[rows, 1\]"),
    ({"eta": np.array([[-1e-9]], np.float32)}, r"eta is -1e-09; it must lie in 0\.\.1"),
    ({"latent": np.full((1, 1, 64, 64), -1e38, np.float32)}, r"latent holds 1e\+38; it must lie within 1000 of 0"),
    ({"preview_every": np.array([[-1]], np.int32)}, "preview_every is -1"),
    ({"steps": np.array([[5], [5]], np.int32)}, "steps has 2 rows and seed has 1"),
]


@pytest.mark.parametrize(("extra", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_bad_values_are_named(extra: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        parse_rows(tensors(**extra), SETTINGS)


def test_a_missing_seed_is_named() -> None:
    with pytest.raises(InvalidRequest, match="seed is missing"):
        parse_rows({"steps": np.ones((1, 1), np.int32)}, SETTINGS)


def test_the_bad_row_is_named() -> None:
    with pytest.raises(InvalidRequest, match="row 2: steps is 0"):
        parse_rows(tensors(3, steps=np.array([[1], [2], [0]], np.int32)), SETTINGS)


def test_the_tiny_decoder_is_chosen_row_by_row_where_there_is_one() -> None:
    asked = tensors(3, decoder=np.array([[b"full"], [b"tiny"], ["full"]], np.object_))
    rows = parse_rows(asked, SETTINGS)
    assert [json.loads(row.provenance(SETTINGS))["decoder"] for row in rows] == ["full", "tiny", "full"]
    assert parse_rows(tensors(), SETTINGS)[0].decoder == "full"
    without = replace(SETTINGS, tiny_decode_batch=0)
    with pytest.raises(InvalidRequest, match=r"row 1: decoder is 'tiny', but this server's model\.json names no vae_"):
        parse_rows(asked, without)
    assert len(parse_rows(tensors(1, decoder=np.array([[b"full"]], np.object_)), without)) == 1


def test_a_given_latent_is_copied_and_used() -> None:
    latent = np.random.default_rng(0).standard_normal((1, 1, 64, 64)).astype(np.float32)
    expected = latent[0].copy()
    (row,) = parse_rows(tensors(latent=latent), SETTINGS)
    latent[:] = 0  # Triton reuses the buffer after execute
    assert np.array_equal(row.start(), expected)
    assert json.loads(row.provenance(SETTINGS))["start_noise"] == "given"


def test_provenance_says_synthetic_and_how() -> None:
    (row,) = parse_rows(tensors(sampler=np.array([[b"ddpm"]], np.object_)), SETTINGS)
    record = json.loads(row.provenance(SETTINGS))
    assert record["synthetic"] is True
    assert (record["sampler"], record["eta"], record["steps"], record["seed"]) == ("ddpm", 1.0, 50, 0)
    assert record["model_digest"] == "sha256:0"
    assert "warning" not in record
    (row,) = parse_rows(tensors(steps=np.array([[300]], np.int32)), SETTINGS)
    assert "leave out the noisiest 100 timesteps;" in json.loads(row.provenance(SETTINGS))["warning"]
    assert json.loads(row.provenance(SETTINGS))["timestep_grid"] == "leading"


def test_a_row_has_the_timesteps_of_its_grid() -> None:
    grids = np.array([["leading"], [b"log_snr"], [b"karras"], [b"aligned"]], np.object_)
    settings = replace(SETTINGS, aligned_timesteps=((999, 500, 20),))
    rows = parse_rows(tensors(4, steps=np.full((4, 1), 3, np.int32), timestep_grid=grids), settings)
    for row, grid in zip(rows, TIMESTEP_GRIDS, strict=True):
        expected = grid_timesteps(grid, 3, SCHEDULE.alpha_bars(), settings.aligned_timesteps)
        assert row.table(settings).timesteps.tolist() == expected.tolist()
        record = json.loads(row.provenance(settings))
        assert record["timestep_grid"] == grid
        assert ("warning" in record) == (grid == "leading"), "the other grids leave nothing out"


def test_the_limits_of_the_server_hold_for_a_request() -> None:
    small = replace(SETTINGS, max_rows_per_request=2, max_steps=20)
    with pytest.raises(InvalidRequest, match="the request has 3 rows; this server takes up to 2"):
        parse_rows(tensors(3), small)
    with pytest.raises(InvalidRequest, match=r"row 0: steps is 50; it must lie in 1\.\.20"):
        parse_rows(tensors(), small)


def test_a_repository_without_a_tiny_decoder_has_settings_too(tmp_path) -> None:
    record = {**RECORD, "max_batch_size": {"unet": 64, "vae_decoder": 4}}
    (tmp_path / "model.json").write_text(json.dumps(record))
    assert read_settings({}, tmp_path) == replace(SETTINGS, tiny_decode_batch=0)


def parameters(**values: str) -> dict:
    return {"parameters": {key: {"string_value": value} for key, value in values.items()}}


RECORD = {
    "format_version": 1, "name": "m", "digest": "sha256:0", "prediction_type": "epsilon", "decoded_size": 256,
    "noise_schedule": {"num_train_timesteps": 1000, "beta_start": 0.0015, "beta_end": 0.0195}, "image_size": 240,
    "max_batch_size": {"unet": 64, "vae_decoder": 4, "vae_decoder_tiny": 16},
}  # fmt: skip


def test_settings_come_from_config_and_record(tmp_path) -> None:
    (tmp_path / "model.json").write_text(json.dumps(RECORD))
    assert read_settings({}, tmp_path) == SETTINGS
    for config in (ROOT / "model_repository").glob("mri_ldm*/config.pbtxt"):
        written = {name: value.string_value for name, value in parse_config(config).parameters.items()}
        assert written.keys() == PARAMETERS.keys(), "each parameter stands in the configuration, at its default"
        assert read_settings(parameters(**written), tmp_path) == SETTINGS
    assert read_settings(parameters(max_steps="30"), tmp_path) == replace(SETTINGS, max_steps=30)
    (tmp_path / "model.json").write_text(json.dumps(RECORD | {"aligned_timesteps": [[999, 3], [9, 8, 7]]}))
    assert read_settings({}, tmp_path) == replace(SETTINGS, aligned_timesteps=((999, 3), (9, 8, 7)))


@pytest.mark.parametrize("model", ["mri_ldm", "mri_ldm_stream"])
def test_the_profile_torch_differs_in_the_steps_of_a_call_alone(model: str) -> None:
    folder = ROOT / "model_repository" / model
    config, torch = parse_config(folder / "config.pbtxt"), parse_config(folder / "configs" / "torch.pbtxt")
    for name in ("steps_per_call", "any_steps"):
        assert int(torch.parameters[name].string_value) > int(config.parameters[name].string_value)
        torch.parameters[name].CopyFrom(config.parameters[name])
    assert torch == config


@pytest.mark.parametrize(
    ("exported", "changes", "steps_per_call", "unrolled"),
    [
        (None, {}, 0, 0),
        (None, {"steps_per_call": "25", "any_steps": "1"}, 0, 0),  # a repository without unet_steps, in profile torch
        (5, {}, 5, 5),
        (5, {"steps_per_call": "2"}, 2, 5),
        (5, {"steps_per_call": "25", "any_steps": "1"}, 25, 0),
    ],
)
def test_the_steps_of_a_call_are_what_the_repository_has(tmp_path, exported, changes, steps_per_call, unrolled) -> None:
    record = RECORD | ({"steps_per_call": exported} if exported else {})
    (tmp_path / "model.json").write_text(json.dumps(record))
    settings = read_settings(parameters(**changes), tmp_path)
    assert (settings.steps_per_call, settings.unrolled if exported else 0) == (steps_per_call, unrolled)


def test_the_documented_parameters_are_those_of_the_code() -> None:
    rows = [f"| `{name}` | {p.smallest}..{p.largest} | {p.default} | {p.meaning} |" for name, p in PARAMETERS.items()]
    table = "\n".join(["| parameter | range | default | meaning |", "|---|---|---|---|", *rows])
    assert table in (ROOT / "docs" / "configuration.md").read_text(), f"the table must be:\n{table}"


@pytest.mark.parametrize(
    ("changes", "record", "message"),
    [
        ({"decode_batch": "two"}, RECORD, "parameter decode_batch is 'two'; it must be a whole number in 1..1024"),
        ({"decode_batch": "0"}, RECORD, "decode_batch is '0'"),
        ({"max_rows_in_flight": "65"}, RECORD, "max_rows_in_flight is 65, but unet takes 64 rows at most"),
        ({"max_steps": "1001"}, RECORD, r"max_steps is '1001'; it must be a whole number in 1\.\.1000"),
        (
            {"steps_per_call": "6"},
            RECORD | {"steps_per_call": 5},
            "steps_per_call is 6, but unet_steps was exported for 5: set 0, or export with more",
        ),
        ({}, RECORD | {"steps_per_call": "many"}, "model.json: steps_per_call is 'many', no number of steps"),
        ({}, RECORD | {"steps_per_call": -4}, "model.json: steps_per_call is -4, no number of steps"),
        ({}, RECORD | {"aligned_timesteps": [[3, 9]]}, r"model.json: aligned_timesteps has \[3, 9\]; it must descend"),
        ({"max_row_steps": "\u0664"}, RECORD, "max_row_steps is"),
        ({"max_row_waiting": "5"}, RECORD, r"unknown parameters \['max_row_waiting'\]; known are"),
        ({}, {**RECORD, "format_version": 2}, "needs format_version 1"),
        ({}, {**RECORD, "prediction_type": "v"}, "prediction_type epsilon"),
        ({}, {k: v for k, v in RECORD.items() if k != "digest"}, "digest"),
        ({}, None, "python -m export"),
    ],
)
def test_a_bad_setting_stops_the_load_by_name(tmp_path, changes, record, message) -> None:
    if record is not None:
        (tmp_path / "model.json").write_text(json.dumps(record))
    with pytest.raises(SettingsError, match=message):
        read_settings(parameters(**changes), tmp_path)
