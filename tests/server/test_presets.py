"""Presets, timestep grids and decoders from the client to files, on a real server with two decoders of known values."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from PIL import Image

from brats_ldm_client import PRESETS, Client, InvalidRequest
from brats_ldm_client._cli import main
from brats_ldm_client._formats import read
from brats_ldm_client._presets import resolve
from brats_ldm_client._protocol import infer_inputs
from brats_ldm_client._request import make_request
from brats_ldm_client.bulk import check_hashes, check_sample, make_all, model_of, plan_for
from server.process import TritonServer
from support.faulty_networks import order, write_faulty

pytestmark = pytest.mark.slow

QUICK = [name for name in PRESETS if name != "reference"]  # a thousand steps
BRIGHTER = np.float32(0.25)
SMALL = {"decoder": "tiny", "timestep_grid": "karras", "sampler": "unipc", "steps": 5}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """The tiny decoder makes what the full one makes, and adds a quarter."""
    repository = write_faulty(tmp_path_factory.mktemp("presets") / "repository", tiny=True)
    order(repository, "vae_decoder_tiny", offset=float(BRIGHTER))
    with TritonServer(repository) as server:
        server.probe()
        yield server


@pytest.fixture
def client(server: TritonServer) -> Iterator[Client]:
    with Client(server.grpc_url) as client:
        yield client


@pytest.fixture
def raw(server: TritonServer) -> Iterator[triton.InferenceServerClient]:
    """Triton's own client."""
    with triton.InferenceServerClient(server.grpc_url) as raw:
        yield raw


@pytest.mark.parametrize("name", QUICK)
def test_a_preset_makes_the_images_of_its_parts(client: Client, name: str) -> None:
    """And the record says which they were: the server knows no presets."""
    parts = asdict(PRESETS[name])
    made, spelled = client.generate([4, 9], preset=name), client.generate([4, 9], **parts)
    np.testing.assert_array_equal(made.images, spelled.images)
    assert all(parts.items() <= record.items() for record in made.provenance)


def test_each_preset_is_another_image(client: Client) -> None:
    images = [client.generate([4], preset=name).images for name in QUICK]
    assert len({image.tobytes() for image in images}) == len(QUICK)


def test_the_decoder_changes_nothing_but_the_image(client: Client) -> None:
    draft = client.generate([4], preset="draft", return_latents=True)
    full = client.generate([4], preset="draft", decoder="full", return_latents=True)
    np.testing.assert_array_equal(draft.latents, full.latents)
    np.testing.assert_array_equal(draft.images, full.images + BRIGHTER)
    *_, streamed = client.stream([4], preset="draft")
    np.testing.assert_array_equal(streamed.images, draft.images)
    (one,) = client.iter_images([4], preset="draft")
    np.testing.assert_array_equal(one.image, draft.images[0])


def test_each_grid_is_another_image(client: Client) -> None:
    images = {
        client.generate([4], steps=8, timestep_grid=grid).images.tobytes() for grid in ("leading", "log_snr", "karras")
    }
    assert len(images) == 3


def test_the_picture_of_the_server_is_the_clients(
    client: Client, raw: triton.InferenceServerClient, tmp_path: Path
) -> None:
    """Its text has the grid and the decoder too, where they are not the default."""
    for how, said in ((SMALL, {"timestep_grid": "karras", "decoder": "tiny"}), ({}, {})):
        inputs = infer_inputs(make_request([4], resolve(**how)))
        text = raw.infer("mri_ldm", inputs, outputs=[triton.InferRequestedOutput("png")]).as_numpy("png")[0, 0]
        file, *_ = client.generate([4], **how).save(tmp_path, "png", contact_sheet=False)
        with Image.open(io.BytesIO(base64.b64decode(text))) as ours, Image.open(file) as theirs:
            assert ours.text == theirs.text
            assert {name: ours.text[name] for name in ("timestep_grid", "decoder") if name in ours.text} == said
            assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"timestep_grid": "square"}, r"timestep_grid is 'square'; it must be one of leading, log_snr, karras"),
        ({"timestep_grid": "aligned"}, "timestep_grid is 'aligned'"),
        ({"decoder": "huge"}, r"decoder is 'huge'; it must be one of full, tiny"),
        ({"sampler": "euler"}, r"sampler is 'euler'; it must be one of .*dpmpp_3m.*unipc"),
    ],
)
def test_what_the_server_says_of_a_wrong_name_is_passed_on(client: Client, wrong: dict[str, str], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as refusal:
        client.generate([4], **wrong)
    assert len(str(refusal.value).splitlines()) == 1


def test_a_draft_needs_a_server_with_a_tiny_decoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with TritonServer(write_faulty(tmp_path / "repository")) as server:
        server.probe()
        arguments = ["generate", "--preset", "draft", "--out", str(tmp_path / "out"), "--url", server.grpc_url]
        assert main(arguments) == 1
        said = capsys.readouterr().err
        assert "give decoder full" in said
        assert len(said.splitlines()) == 1
        assert not (tmp_path / "out").exists()
        assert main([*arguments, "--decoder", "full"]) == 0, "as the page on presets says"


def test_drafts_in_bulk_are_verified_as_drafts(client: Client, server: TritonServer, tmp_path: Path) -> None:
    plan = plan_for(model_of(client), 6, "webdataset,hdf5,nifti", shard_size=4, preset="draft")
    make_all(client, plan, tmp_path / "dataset")
    assert check_hashes(tmp_path / "dataset").sound
    assert check_sample(client, tmp_path / "dataset", 6).faults == []
    assert main(["verify", str(tmp_path / "dataset"), "--url", server.grpc_url]) == 0
    expected = client.generate([5], preset="draft").images[0]
    [image] = (tmp_path / "dataset").glob("*/slice_seed000000005.nii.gz")
    np.testing.assert_array_equal(read(image), expected)
    order(server.repository, "vae_decoder_tiny", offset=0.5)
    try:
        faults = check_sample(client, tmp_path / "dataset", 6).faults
    finally:
        order(server.repository, "vae_decoder_tiny", offset=float(BRIGHTER))
    assert len(faults) >= 6, "they are made by the tiny decoder again, so its change shows"


def test_the_command_makes_and_keeps_such_images(
    client: Client, server: TritonServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = ["generate", "--seeds", "4,9", *options, "--format", "nifti", "--out", str(tmp_path)]
    assert main([*command, "--url", server.grpc_url]) == 0
    expected = client.generate([4, 9], **SMALL).images
    for seed, image in zip((4, 9), expected, strict=True):
        path = tmp_path / f"slice_seed{seed:09}.nii.gz"
        np.testing.assert_array_equal(read(path), image)
        sidecar = json.loads((tmp_path / f"slice_seed{seed:09}.json").read_text())
        assert (sidecar["TimestepGrid"], sidecar["Decoder"]) == ("karras", "tiny")
    capsys.readouterr()
    assert main([*command, "--url", server.grpc_url]) == 0
    assert "2 of them there before" in capsys.readouterr().out
