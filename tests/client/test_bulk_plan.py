"""Which seeds a shard has, what a manifest keeps, and the errors about a folder of another plan."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from brats_ldm_client import PRESETS, InvalidRequest
from brats_ldm_client._statistics import BINS, HIGH, LOW, Statistics, total
from brats_ldm_client.bulk import FORMATS, Plan, plan_for
from brats_ldm_client.bulk.plan import check_same, read_manifest, write_manifest

MODEL = {"model_name": "mri_ldm", "model_digest": "sha256:" + "ab" * 32}


def plan(count: int = 10, formats: str = "png", **more: object) -> Plan:
    return plan_for(MODEL, count, formats, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "size"), [(1, 1), (1, 1000), (10, 3), (9, 3), (1000, 1)])
def test_shards_hold_each_seed_once(count: int, size: int) -> None:
    made = plan(count, seed_base=-4, shard_size=size)
    shards = [made.shard(index) for index in range(made.shards)]
    assert [seed for shard in shards for seed in shard] == [*range(-4, count - 4)]
    assert {len(shard) for shard in shards[:-1]} <= {size}
    for index in (-1, made.shards):
        with pytest.raises(InvalidRequest, match=rf"no shard {index}: choose 0 to {made.shards - 1}"):
            made.shard(index)


def test_seeds_are_int64() -> None:
    assert plan(2, seed_base=2**63 - 2).shard(0)[-1] == 2**63 - 1
    assert plan(1, seed_base=-(2**63)).shard(0)[0] == -(2**63)
    for base in (2**63 - 1, -(2**63) - 1):
        with pytest.raises(InvalidRequest, match="do not fit in int64"):
            plan(2, seed_base=base)


WRONG: list[dict[str, object]] = [{"count": 0}, {"shard_size": 0}, {"formats": "npz"}, {"formats": ""}]


@pytest.mark.parametrize(
    "wrong", [*WRONG, {"steps": 5, "preset": "fast"}, {"timestep_grid": 1}, {"sampler": "dpmpp_2m", "eta": 0.5}]
)
def test_what_makes_no_plan(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        plan(**wrong)  # type: ignore[arg-type]


def test_a_plan_without_plan_for_knows_its_formats_too() -> None:
    with pytest.raises(InvalidRequest, match="unknown format 'npz': use webdataset"):
        replace(plan(), formats=("npz",))


def test_a_plan_says_what_the_server_says() -> None:
    """ddpm is recorded with an eta of 1, and asked for without one; the server rounds an eta to 7 digits."""
    assert (plan(sampler="ddpm").eta, plan(sampler="ddpm").sampling()["eta"]) == (1.0, 0.0)
    assert plan(eta=0.123456789).eta == 0.1234568
    for name, preset in PRESETS.items():
        assert plan(preset=name).sampling() == asdict(preset)


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m"])
def test_an_eta_that_would_have_no_effect_is_refused(sampler: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"eta is 0\.3 with sampler {sampler}: only ddim takes an eta"):
        plan(sampler=sampler, eta=0.3)


def test_an_eta_out_of_range_is_left_to_the_server() -> None:
    """It must not become another one: the server refuses it, and takes -0.0 for 0."""
    assert plan(eta=-0.5).sampling()["eta"] == -0.5
    assert str(plan(eta=-1e-9).eta) == "0.0"


def test_numpy_integers_are_kept_as_json(tmp_path: Path) -> None:
    made = plan(np.int64(3), seed_base=np.int64(5), shard_size=np.int32(2), steps=np.int16(20))  # type: ignore[arg-type]
    write_manifest(tmp_path, made)
    assert read_manifest(tmp_path)["plan"] == made == plan(3, seed_base=5, shard_size=2, steps=20)


def test_the_order_of_formats_makes_no_other_plan() -> None:
    assert plan(formats="dicom, PNG,png") == plan(formats="png,dicom")
    assert plan(formats=",".join(FORMATS)).formats == FORMATS


def test_a_manifest_keeps_the_plan(tmp_path: Path) -> None:
    made = plan(7, "hdf5,zarr", eta=0.3, seed_base=5)
    write_manifest(tmp_path, made)
    assert read_manifest(tmp_path)["plan"] == made
    document = json.loads((tmp_path / "manifest.json").read_text())
    assert document["synthetic"] is True
    assert document["notice"].startswith("SYNTHETIC")
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


OLD = {
    "seed_base": 0,
    "count": 10,
    "shard_size": 1000,
    "sampler": "ddim",
    "steps": 50,
    "eta": 0.0,
    "formats": ["png"],
    **MODEL,
}
"""A plan of a client that knew no grids and decoders."""


def test_a_plan_without_grid_and_decoder_has_the_bytes_that_it_had(tmp_path: Path) -> None:
    """So a folder of an older client can be finished by this one, and by that one again."""
    write_manifest(tmp_path, plan())
    path = tmp_path / "manifest.json"
    document = json.loads(path.read_text())
    assert list(document["plan"].items()) == list(OLD.items())
    assert plan(timestep_grid="leading", decoder="full") == plan() == read_manifest(tmp_path)["plan"]
    assert plan().record(3) == {"synthetic": True, "seed": 3, "sampler": "ddim", "steps": 50, "eta": 0.0, **MODEL}


def test_a_plan_keeps_grid_and_decoder(tmp_path: Path) -> None:
    more = {"timestep_grid": "log_snr", "decoder": "tiny"}
    draft = plan(**more)
    write_manifest(tmp_path, draft)
    assert read_manifest(tmp_path)["plan"] == draft != plan(timestep_grid="log_snr")
    assert more.items() <= draft.record(3).items()
    with pytest.raises(
        InvalidRequest, match="timestep_grid log_snr, not karras; decoder tiny, not full: give the same"
    ):
        check_same(draft, replace(draft, timestep_grid="karras", decoder="full"), tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "mine"}, "is not of a run in bulk"),
        ({"format_version": 2}, "format version 2, not 1: update the client"),
        ({"plan": {"count": 1}}, "has no whole plan"),
        ({"plan": 3}, "has no whole plan"),
        ({"plan": {**asdict(plan()), "count": "10"}}, "has no whole plan"),
        ({"plan": {**asdict(plan()), "formats": ["exe"]}}, "unknown format 'exe'"),
        ({"shards": []}, "is damaged"),
    ],
)
def test_other_manifests_are_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    write_manifest(tmp_path, plan())
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InvalidRequest, match=words):
        read_manifest(tmp_path)
    for text in ("half {", "[1]"):
        path.write_text(text)
        with pytest.raises(InvalidRequest, match=r"manifest\.json is damaged"):
            read_manifest(tmp_path)


def test_another_plan_is_told_what_differs(tmp_path: Path) -> None:
    made = plan(formats="png,dicom")
    check_same(made, replace(made), tmp_path)
    with pytest.raises(InvalidRequest, match=r"steps 50, not 20; formats png,dicom, not png: give the same options"):
        check_same(made, replace(made, steps=20, formats=("png",)), tmp_path)
    with pytest.raises(InvalidRequest, match=r"model_digest sha256:abab.*, not other: ask a server with those weights"):
        check_same(made, replace(made, model_digest="other"), tmp_path)


def test_statistics_are_those_of_numpy_and_add_up() -> None:
    random = np.random.default_rng(0)
    images = [random.normal(0.5, 0.5, (24, 24)).astype(np.float32) for _ in range(6)]
    images[3][0, :3] = np.nan, np.inf, -np.inf
    images[4][:] = np.nan
    parts = []
    for pair in (images[:2], images[2:4], images[4:5], images[5:]):
        part = Statistics()
        for image in pair:
            part.add(image)
        parts.append(json.loads(json.dumps(part.as_dict())))
    whole = total(parts)
    values = np.stack(images)
    finite = values[np.isfinite(values)]
    histogram = whole["histogram"]
    assert (whole["least"], whole["largest"]) == (finite.min(), finite.max())
    assert whole["not_finite"] == 3 + 24 * 24
    assert histogram["below"] == (finite < LOW).sum()
    assert sum(histogram["counts"]) + histogram["below"] + histogram["above"] == finite.size
    counts, _ = np.histogram(finite, BINS, (LOW, HIGH))
    moved = np.abs(np.cumsum(counts) - np.cumsum(histogram["counts"])).max()
    assert moved <= 2, "float32 puts a value that is at the edge of a bin on either side"
