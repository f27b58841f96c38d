"""A real tritonserver tells its queue and its start noise, without a step and whatever it has to do."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from brats_ldm_client import Client, InvalidRequest, QueueInfo, ServerUnavailable
from export.configs import parse_config
from mri_ldm.noise import standard_normal
from server.process import TritonServer
from support.common import ROOT
from support.fake_triton import Caller
from support.faulty_networks import order, write_faulty
from support.serving import PATIENCE, infer, scrape, start, stream, tensors, wait_for_rows, wait_until, wait_until_idle

pytestmark = pytest.mark.slow

LIMITS = {"max_rows_in_flight": 2, "max_rows_waiting": 4, "decode_batch": 1}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with TritonServer(write_faulty(tmp_path_factory.mktemp("lookups") / "repository", **LIMITS)) as server:
        server.probe()
        yield server


@pytest.fixture(params=["sync", "async"])
def caller(request: pytest.FixtureRequest, server: TritonServer) -> Caller:
    return Caller(request.param, server.grpc_url)


@pytest.fixture
def raw(server: TritonServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc_url) as raw:
        yield raw


def test_start_noise_is_that_of_the_seeds(caller: Caller) -> None:
    seeds = [0, 7, -3, 2**63 - 1, *range(100, 170)]
    noise = caller("start_noise", seeds)
    np.testing.assert_array_equal(noise, np.concatenate([standard_normal(seed, 0) for seed in seeds]))


def test_images_from_start_noise_are_those_of_the_seeds(caller: Caller) -> None:
    known = caller("generate", [3, 4], steps=5, return_latents=True)
    given = caller("generate", [8, 9], steps=5, return_latents=True, latents=caller("start_noise", [3, 4]))
    np.testing.assert_array_equal(given.images, known.images)
    np.testing.assert_array_equal(given.latents, known.latents)


def test_the_example_of_the_page_runs(server: TritonServer, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "generate.md").read_text(), re.DOTALL)
    (code,) = (block for block in blocks if "start_noise" in block)
    names: dict[str, Any] = {"Client": Client}
    exec(code.replace("127.0.0.1:8001", server.grpc_url), names)
    with Client(server.grpc_url) as client:
        np.testing.assert_array_equal(names["result"].images[[0, 4]], client.generate([3, 8]).images)
    *_, unary, stream = capsys.readouterr().out.splitlines()
    assert unary.startswith("mri_ldm: 0 rows in flight and 0 waiting, at most 6; 0 steps left")
    assert stream.startswith("mri_ldm_stream: ")


def test_a_given_latent_is_its_own_start(raw: triton.InferenceServerClient) -> None:
    latent = np.random.default_rng(0).standard_normal((2, 1, 64, 64)).astype(np.float32)
    answer = infer(raw, "start_latent", "queue", seed=[1, 2], latent=latent)
    np.testing.assert_array_equal(answer.as_numpy("start_latent"), latent)
    first, second = answer.as_numpy("queue")[:, 0]
    assert first == second


def test_beside_other_outputs_they_are_left_out(raw: triton.InferenceServerClient, server: TritonServer) -> None:
    answer = infer(raw, "final_latent", "start_latent", "queue", seed=[1], steps=[2])
    assert [output.name for output in answer.get_response().outputs] == ["final_latent"]
    every = raw.infer("mri_ldm", tensors(seed=[1], steps=[2]))
    assert {output.name for output in every.get_response().outputs} == {"image", "final_latent", "provenance", "png"}
    (last,) = stream(server.grpc_url, "image", "queue", seed=[1], steps=[2])
    assert [output.name for output in last.get_response().outputs] == ["image"]


def test_they_are_checked_like_other_requests(raw: triton.InferenceServerClient) -> None:
    with pytest.raises(triton.InferenceServerException, match=r"\[INVALID row=1\] row 1: latent holds NaN"):
        infer(
            raw,
            "start_latent",
            seed=[1, 2],
            latent=np.stack([np.zeros((1, 64, 64)), np.full((1, 64, 64), np.nan)]).astype(np.float32),
        )


def test_over_http(server: TritonServer) -> None:
    ask = {
        "inputs": [{"name": "seed", "datatype": "INT64", "shape": [1, 1], "data": [0]}],
        "outputs": [{"name": "queue"}],
    }
    url = f"http://{server.http_url}/v2/models/mri_ldm/infer"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(ask).encode()), timeout=PATIENCE) as answer:
        (output,) = json.load(answer)["outputs"]
    assert json.loads(output["data"][0])["max_rows_waiting"] == 4


def test_a_look_up_counts_as_such_and_as_nothing_else(caller: Caller, server: TritonServer) -> None:
    wait_until_idle(server)
    before = scrape(server)
    caller("queue")
    caller("start_noise", [1, 2])
    wait_until_idle(server)
    now = scrape(server)
    changed = {name for name in now if now[name] != before[name]}
    assert changed <= {"mri_ldm_lookups_total", "mri_ldm_alive_timestamp_seconds"}
    assert now["mri_ldm_lookups_total"] - before["mri_ldm_lookups_total"] == 3


def test_a_look_up_that_fails_hides_no_request_that_is_lost(
    raw: triton.InferenceServerClient, server: TritonServer
) -> None:
    """The alert on lost requests subtracts errors from requests."""
    wait_until_idle(server)
    before = scrape(server)
    with pytest.raises(InferenceServerException, match=r"steps is 0; it must lie in 1\.\.1000"):
        raw.infer("mri_ldm", tensors(seed=[1], steps=[0]), outputs=[triton.InferRequestedOutput("queue")])
    wait_until_idle(server)
    now = scrape(server)
    changed = {name for name in now if now[name] != before[name]}
    assert changed <= {"mri_ldm_lookups_total", "mri_ldm_alive_timestamp_seconds"}


def test_the_queue_is_told_while_it_is_full_and_empty_afterwards(
    caller: Caller, server: TritonServer, raw: triton.InferenceServerClient
) -> None:
    order(server.repository, "unet", seconds=0.02)
    call, done, _ = start(raw, seed=[1, 2, 3, 4, 5, 6], steps=[1000] * 6)
    wait_for_rows(server, 1)
    with pytest.raises(ServerUnavailable, match="room for 0 rows"):
        caller("generate", 1, client={"retry_seconds": 0})
    unary, other = caller("queue")
    assert unary.rows_in_flight + unary.rows_waiting == 6
    assert 0 < unary.row_steps_left < 6000
    assert unary.seconds_left is not None
    assert unary.seconds_left > 1
    assert (other.rows_in_flight, other.rows_waiting, other.row_steps_left) == (0, 0, 0)
    assert np.array_equal(caller("start_noise", [1]), standard_normal(1, 0))
    call.cancel()
    assert done.wait(PATIENCE)
    wait_until_idle(server)
    order(server.repository, "unet")
    unary, other = caller("queue")
    assert unary == QueueInfo("mri_ldm", 0, 0, 0, 2, 4, draining=False, seconds_left=0.0)
    assert other.model == "mri_ldm_stream"


def test_the_queue_is_told_while_a_network_hangs(server: TritonServer, raw: triton.InferenceServerClient) -> None:
    order(server.repository, "unet", seconds=10)
    _, done, _ = start(raw, seed=[1], steps=[1])
    wait_for_rows(server, 1)
    with Client(server.grpc_url) as client:
        (unary, _), noise = client.queue(), client.start_noise([1])
    order(server.repository, "unet")
    assert not done.is_set(), "the network was to hang meanwhile"
    assert unary.row_steps_left == 1
    assert len(noise) == 1
    assert done.wait(PATIENCE)


def test_the_queue_is_told_while_the_server_drains(tmp_path: Path) -> None:
    repository = write_faulty(tmp_path / "repository")
    with TritonServer(repository) as server, triton.InferenceServerClient(server.grpc_url) as raw:
        server.probe()
        callers = [Caller(kind, server.grpc_url) for kind in ("sync", "async")]
        assert not any(queue.draining for queue in callers[0]("queue"))
        order(repository, "unet", seconds=0.02)
        call, done, _ = start(raw, seed=[1], steps=[1000])
        wait_for_rows(server, 1)
        assert server.drain_folder is not None
        (server.drain_folder / "drain").touch()
        for caller in callers:
            wait_until(all_of(caller), "the models do not say that they drain")
            assert caller("queue")[0].row_steps_left > 0
            assert np.array_equal(caller("start_noise", [1]), standard_normal(1, 0))
            with pytest.raises(ServerUnavailable, match="stopping"):
                caller("generate", 1, client={"retry_seconds": 0})
        call.cancel()
        assert done.wait(PATIENCE)


def all_of(caller: Caller) -> Callable[[], bool]:
    return lambda: all(queue.draining for queue in caller("queue"))


def test_an_older_server_says_so_in_one_line(tmp_path: Path) -> None:
    """With the declarations of a repository that was exported before these outputs were there."""
    repository = write_faulty(tmp_path / "repository")
    for path in repository.glob("mri_ldm*/config.pbtxt"):
        config = parse_config(path)
        for fields in (config.input, config.output):
            for field in [field for field in fields if field.name in NEW]:
                fields.remove(field)
        path.write_text(str(config))
    with TritonServer(repository) as server:
        server.probe()
        for kind in ("sync", "async"):
            caller = Caller(kind, server.grpc_url)
            refusal = r"mri_ldm{} at \S+ does not know {}: that server is older than this client"
            with pytest.raises(InvalidRequest, match=refusal.format("", "queue")):
                caller("queue")
            with pytest.raises(InvalidRequest, match=refusal.format("", "start_latent")):
                caller("start_noise", [1])
            with pytest.raises(InvalidRequest, match=refusal.format("_stream", "preview_decoder|preview_image")):
                caller.stream(1, steps=2, preview_decoder="tiny")
            first, _ = caller.stream(1, steps=1)
            assert (first.source, first.images) == ("latent", None)
        with Client(server.grpc_url) as client:
            assert client.info().models[1].ready


NEW = ("queue", "start_latent", "preview_decoder", "preview_image", "preview_source")
