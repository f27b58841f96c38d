"""A real tritonserver with a small decoder of known arithmetic: previews as images, and images that never change."""

from __future__ import annotations

import json
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from onnx import TensorProto, helper

from brats_ldm_client import Client, Generation, InvalidRequest, Progress
from server.process import TritonServer
from support.fake_triton import Caller
from support.faulty_networks import order, write_faulty
from support.serving import PATIENCE, scrape, stream, wait_until, wait_until_idle
from support.toy_models import declare, tensor, write_model

pytestmark = pytest.mark.slow

T = TypeVar("T")
HALF, QUARTER = np.float32(0.5), np.float32(0.25)
BUDGET_MB = 3
OUTPUTS = ("image", "step", "preview", "preview_image", "preview_source")


def write_tiny(repository: Path, size: int = 256) -> None:
    """`vae_decoder_tiny` with the tensors of `vae_decoder`: larger pixels, half as bright, and a quarter added."""
    write_model(
        repository,
        "vae_decoder_tiny",
        "max_batch_size: 16\n" + declare("input", "latent", "FP32", [1, 64, 64])
        + declare("output", "image", "FP32", [1, size, size]),
        [
            helper.make_node(
                "Resize", ["latent", "", "scales"], ["large"], mode="nearest", nearest_mode="floor",
                coordinate_transformation_mode="asymmetric",
            ),
            helper.make_node("Mul", ["large", "half"], ["dark"]),
            helper.make_node("Add", ["dark", "quarter"], ["image"]),
        ],
        [tensor("latent", TensorProto.FLOAT, ["B", 1, 64, 64])],
        [tensor("image", TensorProto.FLOAT, ["B", 1, size, size])],
        {"scales": np.array([1, 1, size / 64, size / 64], np.float32), "half": HALF, "quarter": QUARTER},
    )  # fmt: skip


def decoded(latents: np.ndarray) -> np.ndarray:
    """What that decoder makes of latents [..., 64, 64], cropped as images are."""
    return (latents.repeat(4, axis=-2).repeat(4, axis=-1) * HALF + QUARTER)[..., 8:248, 8:248]


@pytest.fixture(scope="module")
def server(small_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repository = tmp_path_factory.mktemp("previews") / "repository"
    shutil.copytree(small_repository, repository)
    shutil.rmtree(repository / "vae_decoder_tiny")
    write_tiny(repository)
    for config in repository.glob("mri_ldm*/config.pbtxt"):
        text = config.read_text()
        changed = text.replace(
            '"max_preview_mb" value: { string_value: "64" }',
            f'"max_preview_mb" value: {{ string_value: "{BUDGET_MB}" }}',
        )
        assert changed != text
        config.write_text(changed)
    with TritonServer(repository, profile="cpu") as server:
        server.probe()
        yield server


def until(make: Callable[[], T], holds: Callable[[T], bool]) -> T:
    """What `make` returns once it `holds`: on a busy machine a call of 2 s or more ends decoding for 40 s or more."""
    deadline = time.monotonic() + 6 * PATIENCE
    while not holds(made := make()) and time.monotonic() < deadline:
        time.sleep(1)
    return made


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_previews_are_what_the_small_decoder_makes_and_images_do_not_change(server: TritonServer, kind: str) -> None:
    caller = Caller(kind, server.grpc_url)
    how = {"steps": 6, "sampler": "dpmpp_2m", "return_latents": True}
    without = caller("generate", [1, 2, 3], **how)
    for decoder in ("latent", "tiny"):
        *progress, last = until(
            lambda kind=decoder: [*caller.stream([1, 2, 3], preview_every=2, preview_decoder=kind, **how)],
            lambda events, kind=decoder: all(event.source == kind for event in events[:-1]),
        )
        assert progress[-1].step.tolist() == [6, 6, 6]
        assert {event.source for event in progress} == {decoder}
        for event in progress:
            if decoder == "tiny":
                np.testing.assert_array_equal(event.images, decoded(event.previews))
            else:
                assert event.images is None
        np.testing.assert_array_equal(last.images, without.images)
        np.testing.assert_array_equal(last.latents, without.latents)


def test_one_row_that_asks_is_enough(server: TritonServer) -> None:
    mixed = {"seed": [1, 2], "steps": [2, 4], "preview_every": [0, 2], "preview_decoder": ["tiny", "latent"]}
    *progress, last = until(
        lambda: [*stream(server.grpc_url, *OUTPUTS, **mixed)],
        lambda answers: all((answer.as_numpy("preview_source") == b"tiny").all() for answer in answers[:-1]),
    )
    assert len(progress) == 2
    for answer in progress:
        assert answer.as_numpy("preview_source").tolist() == [[b"tiny"], [b"tiny"]]
        np.testing.assert_array_equal(answer.as_numpy("preview_image"), decoded(answer.as_numpy("preview")))
    assert last.as_numpy("image").shape == (2, 1, 240, 240)
    assert last.as_numpy("preview_image") is None


def test_nothing_is_decoded_for_those_who_do_not_ask_for_the_images(server: TritonServer) -> None:
    before = counted(server)
    asks = {"seed": [1], "steps": [2], "preview_every": [1]}
    first, *_ = stream(server.grpc_url, "image", "step", "preview", "preview_source", **asks, preview_decoder=["tiny"])
    assert first.as_numpy("preview_source").tolist() == [[b"latent"]]
    first, *_ = stream(server.grpc_url, *OUTPUTS, **asks, preview_decoder=["latent"])
    assert first.as_numpy("preview_source").tolist() == [[b"latent"]]
    assert first.as_numpy("preview_image") is None
    first, *_ = stream(server.grpc_url, "image", "preview_image", **asks, preview_decoder=["tiny"])
    assert first.as_numpy("preview_image").shape == (1, 1, 240, 240)
    assert first.as_numpy("preview") is None
    assert counted(server) == before + 2


def counted(server: TritonServer) -> int:
    """Rows that the small decoder has had."""
    url = f"http://{server.http_url}/v2/models/vae_decoder_tiny/stats"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return int(json.load(answer)["model_stats"][0]["inference_count"])


def test_another_decoder_is_refused_by_name(server: TritonServer) -> None:
    with (
        Client(server.grpc_url) as client,
        pytest.raises(InvalidRequest, match="row 0: preview_decoder is 'big'; it must be one of latent, tiny"),
    ):
        list(client.stream(1, steps=1, preview_decoder="big"))
    (error,) = stream(server.grpc_url, "image", seed=[1, 2], steps=[1, 1], preview_decoder=["tiny", ""])
    assert "[INVALID row=1] row 1: preview_decoder is ''" in str(error)


def test_images_count_in_what_is_kept_for_a_stream(server: TritonServer) -> None:
    """Four rows of twenty previews, with images, would be 19 MB; late steps have their share of what is allowed."""
    with Client(server.grpc_url) as client:
        *progress, _ = client.stream([1, 2, 3, 4], steps=20, preview_every=1, preview_decoder="tiny")
    shown = [event for event in progress if event.previews is not None]
    sizes = [event.previews.nbytes + event.images.nbytes for event in shown]
    assert 0.6 * BUDGET_MB <= sum(sizes) / 2**20 <= BUDGET_MB
    assert len(shown) < len(progress)
    assert shown[-1].step.sum() > 0.7 * 4 * 20


def test_generate_stream_has_images_where_asked_and_otherwise_what_it_had(server: TritonServer) -> None:
    *progress, last = events(server, {"seed": 42, "steps": 4, "preview_every": 2, "preview_decoder": "tiny"})
    assert [event["step"] for event in progress] == [2, 4]
    for event in progress:
        assert event["preview_source"] == "tiny"
        latent = np.array(event["preview"], np.float32).reshape(64, 64)
        np.testing.assert_array_equal(np.array(event["preview_image"], np.float32).reshape(240, 240), decoded(latent))
    names = {"image", "final_latent", "provenance", "png"}
    assert set(last) == names | {"model_name", "model_version"}
    *progress, plain = events(server, {"seed": 42, "steps": 4, "preview_every": 2})
    known = {"step", "preview", "model_name", "model_version"}
    assert [set(event) - known for event in progress] == [{"preview_source"}] * 2
    assert {event["preview_source"] for event in progress} == {"latent"}
    assert plain == last


def events(server: TritonServer, data: dict[str, object]) -> list[dict[str, object]]:
    url = f"http://{server.http_url}/v2/models/mri_ldm_stream/generate_stream"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(data).encode()), timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return [json.loads(line.removeprefix("data:")) for line in lines if line.startswith("data:")]


def test_without_the_model_previews_are_latents_and_images_by_it_are_refused(tmp_path: Path) -> None:
    with TritonServer(write_faulty(tmp_path / "repository")) as server, Client(server.grpc_url) as client:
        server.probe()
        known = client.generate([5], steps=4).images
        for _ in range(2):
            *progress, last = client.stream([5], steps=4, preview_every=2, preview_decoder="tiny")
            assert [(event.source, event.images) for event in progress] == [("latent", None)] * 2
            assert all(event.previews is not None for event in progress)
            np.testing.assert_array_equal(last.images, known)
        (error,) = stream(server.grpc_url, "image", seed=[1, 2], steps=[1, 1], decoder=["full", "tiny"])
        assert (
            "[INVALID row=1] row 1: decoder is 'tiny', but this server's model.json names no vae_decoder_tiny"
            in str(error)
        )
        server.probe()


# --- a small decoder that fails


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with TritonServer(write_faulty(tmp_path_factory.mktemp("faulty") / "repository", tiny=True)) as server:
        server.probe()
        yield server


def watch(server: TritonServer, steps: int = 4) -> tuple[list[Progress], Generation]:
    with Client(server.grpc_url, retry_seconds=0) as client:
        *progress, last = client.stream([5], steps=steps, preview_decoder="tiny")
    return progress, last


def test_a_decoder_that_fails_costs_previews_and_nothing_else(faulty: TritonServer) -> None:
    progress, known = watch(faulty)
    assert [event.source for event in progress] == ["tiny"] * 4
    order(faulty.repository, "vae_decoder_tiny", error="the small decoder is ill")
    progress, last = watch(faulty)
    assert [(event.source, event.images) for event in progress] == [("latent", None)] * 4
    np.testing.assert_array_equal(last.images, known.images)
    order(faulty.repository, "vae_decoder_tiny")
    wait_until(lambda: watch(faulty)[0][-1].source == "tiny", "it must be tried again a second later")
    wait_until_idle(faulty)
    now = scrape(faulty)
    assert now["mri_ldm_errors_total"] == 0
    assert now["mri_ldm_preview_seconds_total"] > 0


def test_a_decoder_that_hangs_holds_nobody_up_for_long(faulty: TritonServer) -> None:
    order(faulty.repository, "unet")
    _, known = watch(faulty)
    order(faulty.repository, "vae_decoder_tiny", seconds=25)
    before = scrape(faulty)["mri_ldm_preview_seconds_total"]
    for _ in range(5):
        progress, last = watch(faulty, steps=4)
        assert [event.source for event in progress] == ["latent"] * 4
        np.testing.assert_array_equal(last.images, known.images)
    wait_until_idle(faulty)
    # One call of 2 s was waited for, and none of the nineteen others.
    assert 2 <= scrape(faulty)["mri_ldm_preview_seconds_total"] - before < 10
    order(faulty.repository, "vae_decoder_tiny")


def test_images_of_a_wrong_shape_are_not_sent(tmp_path: Path) -> None:
    repository = write_faulty(tmp_path / "repository", tiny=True)
    shutil.rmtree(repository / "vae_decoder_tiny")
    write_tiny(repository, size=128)
    with TritonServer(repository) as server:
        server.probe()
        progress, last = watch(server)
        assert [event.source for event in progress] == ["latent"] * 4
        assert last.images.shape == (1, 240, 240)
        wrong = "model 'vae_decoder_tiny' makes images of shape [1, 1, 112, 112], not [1, 1, 240, 240]"
        assert f"previews are latents for now: {wrong}" in "\n".join(server.log_tail(1000))
        # Nor as images: that fails its own request alone, even one with images of the right size.
        (failed,) = stream(server.grpc_url, "image", seed=[5, 6], steps=[2, 2], decoder=["full", "tiny"])
        assert f"[NETWORK_FAILED model=vae_decoder_tiny] {wrong}" in str(failed)
        (made,) = stream(server.grpc_url, "image", seed=[5, 6], steps=[2, 2])
        assert made.as_numpy("image").shape == (2, 1, 240, 240)
