"""A real tritonserver with both decoders: each row has the image of its own, bit for bit, in any company."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from tritonclient.utils import InferenceServerException

from benchmarks.harness.wire import counts
from export.onnx.run import cpu_session
from server.process import TritonServer
from support.faulty_networks import order, write_faulty
from support.serving import infer, scrape, stream, wait_until_idle
from training.tiny_decoder import build_tiny_decoder

pytestmark = pytest.mark.slow


def decoded(repository: Path, latents: np.ndarray) -> np.ndarray:
    """Images of latents [n, 1, 64, 64] by ONNX Runtime in this process, one by one, cropped as the server crops."""
    session = cpu_session(repository / "vae_decoder_tiny" / "1" / "model.onnx", threads=1)
    rows = [session.run(None, {"latent": latent[None]})[0] for latent in latents]
    return np.concatenate(rows)[:, :, 8:248, 8:248]


def test_its_image_is_that_of_the_network_in_this_process(raw, small_repository, tiny_snapshot) -> None:
    made = infer(raw, "image", "final_latent", seed=[3, 4, 5], steps=[6, 4, 2], decoder=["tiny"] * 3)
    latents = made.as_numpy("final_latent")
    np.testing.assert_array_equal(made.as_numpy("image"), decoded(small_repository, latents))
    network = build_tiny_decoder(tiny_snapshot.config.tiny_decoder, tiny_snapshot.tiny_decoder).eval()
    with torch.no_grad():
        expected = network(torch.from_numpy(latents))[:, :, 8:248, 8:248].numpy()
    np.testing.assert_allclose(made.as_numpy("image"), expected, atol=1e-5 * np.abs(expected).max())


def test_the_decoder_changes_the_image_and_not_the_latent(raw) -> None:
    plain = infer(raw, seed=[3], steps=[4])
    full, tiny = (infer(raw, seed=[3], steps=[4], decoder=[name]) for name in ("full", "tiny"))
    np.testing.assert_array_equal(full.as_numpy("image"), plain.as_numpy("image"))
    np.testing.assert_array_equal(tiny.as_numpy("final_latent"), plain.as_numpy("final_latent"))
    assert np.abs(tiny.as_numpy("image") - plain.as_numpy("image")).max() > 1e-3


def test_rows_of_both_decoders_are_as_if_alone(raw, small_server) -> None:
    """In one request, in the company of others, through the other model, and in chunks of up to 16 rows."""
    seeds, decoders = list(range(20)), ["tiny", "full", "tiny", "tiny"] * 5
    together = infer(raw, "image", seed=seeds, steps=[2] * 20, decoder=decoders).as_numpy("image")
    kinds = {name: infer(raw, "image", seed=seeds, steps=[2] * 20, decoder=[name] * 20) for name in ("full", "tiny")}
    expected = np.stack([kinds[name].as_numpy("image")[row] for row, name in enumerate(decoders)])
    np.testing.assert_array_equal(together, expected)
    for row in (0, 1, 19):
        alone = infer(raw, "image", seed=[row], steps=[2], decoder=[decoders[row]]).as_numpy("image")
        np.testing.assert_array_equal(alone[0], expected[row])

    def ask(row: int) -> np.ndarray:
        *_, last = stream(small_server.grpc_url, "image", seed=[row], steps=[2], decoder=[decoders[row]])
        return last.as_numpy("image")[0]

    with ThreadPoolExecutor(8) as pool:
        for row, image in enumerate(pool.map(ask, seeds)):
            np.testing.assert_array_equal(image, expected[row])


def test_the_record_names_the_decoder(raw) -> None:
    made = infer(raw, "provenance", "png", seed=[1, 2, 3], steps=[1] * 3, decoder=["tiny", "full", "tiny"])
    records = [json.loads(row[0]) for row in made.as_numpy("provenance")]
    assert [record["decoder"] for record in records] == ["tiny", "full", "tiny"]
    assert json.loads(infer(raw, "provenance", seed=[1], steps=[1]).as_numpy("provenance")[0, 0])["decoder"] == "full"


def test_each_decoder_has_the_rows_of_its_own(raw, small_server) -> None:
    wait_until_idle(small_server)
    names = ("vae_decoder", "vae_decoder_tiny")
    before, calls = [counts(raw, name) for name in names], scrape(small_server)["mri_ldm_decoder_calls_total"]
    infer(raw, "image", seed=[1, 2, 3], steps=[2] * 3, decoder=["tiny", "full", "tiny"])
    infer(raw, "final_latent", seed=[1], steps=[1], decoder=["tiny"])
    wait_until_idle(small_server)
    made = [counts(raw, name).since(then) for name, then in zip(names, before, strict=True)]
    assert [network.rows for network in made] == [1, 2]
    # Two calls, or three where a busy machine has started the tiny decoder's rows apart.
    assert scrape(small_server)["mri_ldm_decoder_calls_total"] - calls == sum(network.calls for network in made)


def test_another_decoder_is_refused_by_name(raw) -> None:
    with pytest.raises(InferenceServerException, match="row 1: decoder is 'big'; it must be one of full, tiny"):
        infer(raw, seed=[1, 2], steps=[1, 1], decoder=["tiny", "big"])


# --- a small decoder that fails


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repository = write_faulty(tmp_path_factory.mktemp("faulty") / "repository", tiny=True, network_timeout=5)
    with TritonServer(repository) as server:
        server.probe()
        yield server


def ask(server: TritonServer, *outputs: str, **values) -> list:
    return stream(server.grpc_url, *outputs, seed=[5], steps=[2], **values)


def test_its_failure_fails_its_own_rows_by_its_name(faulty: TritonServer) -> None:
    order(faulty.repository, "vae_decoder_tiny", error="the small decoder is ill")
    (failed,) = ask(faulty, "image", decoder=["tiny"])
    assert "model 'vae_decoder_tiny' has failed: the small decoder is ill" in str(failed)
    (made,) = ask(faulty, "image", decoder=["full"])
    assert made.as_numpy("image").shape == (1, 1, 240, 240)
    order(faulty.repository, "vae_decoder_tiny")
    (again,) = ask(faulty, "image", decoder=["tiny"])
    np.testing.assert_array_equal(again.as_numpy("image"), made.as_numpy("image"))


def test_mixed_rows_have_the_decoder_that_each_asked_for(faulty: TritonServer) -> None:
    """The small decoder adds a half here, so an image shows which one made it."""
    order(faulty.repository, "vae_decoder_tiny", offset=0.5)
    decoders = ["tiny", "full", "tiny", "tiny", "full", "tiny"]
    how = {"seed": list(range(6)), "steps": [3, 1, 2, 3, 3, 1]}
    (made,) = stream(faulty.grpc_url, "image", "final_latent", **how, decoder=decoders)
    (plain,) = stream(faulty.grpc_url, "image", "final_latent", **how)
    order(faulty.repository, "vae_decoder_tiny")
    added = np.where(np.array(decoders) == "tiny", np.float32(0.5), np.float32(0))[:, None, None, None]
    np.testing.assert_array_equal(made.as_numpy("final_latent"), plain.as_numpy("final_latent"))
    np.testing.assert_array_equal(made.as_numpy("image"), plain.as_numpy("image") + added)


def test_an_image_waits_longer_than_a_preview_and_not_for_ever(faulty: TritonServer) -> None:
    """A call of 3 s is too long for a preview, and still makes an image; one of 8 s is beyond the network's 5 s."""
    order(faulty.repository, "vae_decoder_tiny", seconds=3)
    (slow,) = ask(faulty, "image", decoder=["tiny"])
    assert slow.as_numpy("image").shape == (1, 1, 240, 240)
    order(faulty.repository, "vae_decoder_tiny", seconds=8)
    (hanging,) = ask(faulty, "image", decoder=["tiny"])
    assert "model 'vae_decoder_tiny' has not answered for 5 s" in str(hanging)
    (made,) = ask(faulty, "image", decoder=["full"])
    assert made.as_numpy("image").shape == (1, 1, 240, 240)
    order(faulty.repository, "vae_decoder_tiny")
