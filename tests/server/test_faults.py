"""Parts of a server fail: affected requests get an error, others go on, and a watched server comes back."""

import resource
import subprocess
import sys
import threading
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton

from brats_ldm_client import BratsLDMError, Client, ServerUnavailable
from reliability import faults
from reliability.launched import PATIENCE, Launched
from server.errors import ServerError
from server.health import Busy, probe
from server.process import TritonServer
from server.supervisor import FAILED_CHECKS, Policy, Supervisor
from support.container_machine import SCRIPT, import_container
from support.faulty_networks import order, write_faulty
from support.serving import infer, start, wait_for_rows, wait_until_idle

pytestmark = pytest.mark.slow


def test_a_network_that_errs_or_hangs_is_named_and_others_go_on(tmp_path: Path) -> None:
    repository = write_faulty(tmp_path / "repository", network_timeout=1)
    with TritonServer(repository) as server:
        with Client(server.grpc_url) as client:
            assert client.wait_until_ready(deep=True) == server.probe().checksum, "one definition in both"
            order(repository, "vae_decoder", error="out of memory")
            with pytest.raises(ServerUnavailable, match="model 'vae_decoder' has failed: out of memory"):
                client.wait_until_ready(1, deep=True)
            client.wait_until_ready(20)
            order(repository, "vae_decoder")
        counts = faults.network_faults(repository, server.grpc_url)
    assert counts == {
        "faults injected": 4,
        "errors that name the model": 8,
        "others that went on": 2,
        "requests hung": 0,
        "images wrong": 0,
    }


WORDS_OF_26_07 = {
    "Failed for execute the inference request. Model 'unet' is not ready.": "the process of model 'unet' has died",
    "Request for unknown model: 'unet' has no available versions": "the server is shutting down",
}


def test_what_triton_26_07_says_of_a_network_that_died_is_tried_again(tmp_path: Path) -> None:
    """The client once took its words, "is not ready" with the code INTERNAL, for a model that was never loaded."""
    repository = write_faulty(tmp_path / "repository")
    with TritonServer(repository) as server, Client(server.grpc_url, retry_seconds=0) as impatient:
        known = impatient.generate([1], steps=4).images
        for words, ours in WORDS_OF_26_07.items():
            order(repository, "unet", error=words)
            for ask in (lambda: impatient.generate([1], steps=4), lambda: list(impatient.stream([1], steps=4))):
                with pytest.raises(ServerUnavailable, match=f"{ours}: try again in about 5 s") as raised:
                    ask()
                assert raised.value.retryable
            threading.Timer(1, order, (repository, "unet")).start()
            with Client(server.grpc_url, retry_seconds=30) as patient:
                assert np.array_equal(patient.generate([1], steps=4).images, known)


@pytest.mark.parametrize("missing", ["unet", "vae_decoder"])
def test_a_network_that_is_missing_is_named(tmp_path: Path, missing: str) -> None:
    """Triton still calls the server ready; the probe does not."""
    with (
        TritonServer(write_faulty(tmp_path / "repository", missing=missing)) as server,
        triton.InferenceServerClient(server.grpc_url) as raw,
    ):
        assert raw.is_server_ready()
        with pytest.raises(triton.InferenceServerException, match=f"model '{missing}' has failed") as error:
            infer(raw, seed=[1], steps=[2])
        assert error.value.status() == "StatusCode.INTERNAL"
        with pytest.raises(Exception, match=f"model '{missing}' has failed"):
            server.probe()
        if missing == "vae_decoder":
            assert infer(raw, "final_latent", seed=[1], steps=[2]).as_numpy("final_latent") is not None


def test_killed_processes_are_replaced_and_the_client_gets_its_images(tmp_path: Path) -> None:
    """Kills the server itself and a front model under load; the client tries again with the same seeds."""
    counts = faults.kills(write_faulty(tmp_path / "repository"), ["tritonserver", "mri_ldm_stream_0_0"])
    assert counts["restarts"] == counts["faults injected"] == 2
    assert counts["images"] > 0
    for name in ("images wrong", "requests lost", "processes left", "regions left", "ports left"):
        assert counts[name] == 0, counts


def test_wrong_images_are_seen_and_restarts_that_do_not_help_come_to_an_end(tmp_path: Path) -> None:
    repository = write_faulty(tmp_path / "repository")
    with Launched(repository, "--health-interval=0.2", "--max-restarts=1") as launched:
        order(repository, "vae_decoder", offset=1e-6)
        assert launched.process.wait(PATIENCE) == 1
    assert (
        f"the health check failed {FAILED_CHECKS} times in a row: the one-step generation gave sha256:"
        in launched.printed
    )
    assert "error: " in launched.printed
    assert "1 of 1 restarts within 600 s have not helped, given up" in launched.printed
    assert not any(launched.left().values()), launched.left()


def test_to_be_late_while_others_are_served_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue that was longer than the timeout of a health check once caused a restart of a healthy server."""
    container = import_container()
    monkeypatch.setattr(container, "HEALTH_S", 1)
    repository = write_faulty(tmp_path / "repository", max_rows_in_flight=1, network_timeout=2)
    with TritonServer(repository) as server, triton.InferenceServerClient(server.grpc_url) as raw:
        server.probe()
        order(repository, "unet", seconds=0.2)
        calls = [start(raw, seed=[seed], steps=[1])[0] for seed in range(80)]
        wait_for_rows(server, 60, "waiting")
        with pytest.raises(Busy, match="Deadline Exceeded"):
            probe(server.grpc_url, timeout_s=0.5)
        container.health(f"http://{server.http_url}")
        # Nor is it one at a start, for which clients may have waited.
        Supervisor(lambda: server, Policy())._check(lambda: server.probe(0.5))
        for call in calls:
            call.cancel()
        wait_until_idle(server)
        order(repository, "unet", seconds=5)
        with pytest.raises(ServerError, match="Deadline Exceeded") as hangs:
            probe(server.grpc_url, timeout_s=0.5)
        assert not isinstance(hangs.value, Busy)
        with pytest.raises(urllib.error.HTTPError):
            container.health(f"http://{server.http_url}")


def test_an_answer_that_finds_no_memory_becomes_an_error(tmp_path: Path) -> None:
    """If an answer does not fit into shared memory, its request gets an error, and others are answered."""
    repository = write_faulty(tmp_path / "repository")
    for model in ("mri_ldm", "mri_ldm_stream"):
        code = repository / model / "1" / "mri_ldm" / "shared_memory.py"
        code.write_text(code.read_text().replace("MARGIN = 32 * 2**20", "MARGIN = 2**60"))
    with TritonServer(repository) as server, triton.InferenceServerClient(server.grpc_url) as raw:
        known = infer(raw, seed=[3], steps=[2]).as_numpy("image")
        for process, model in server.stubs().items():
            if model.startswith("mri_ldm"):  # its pool cannot grow beyond this, as on a full /dev/shm
                resource.prlimit(process, resource.RLIMIT_FSIZE, (4 * 2**20, 4 * 2**20))
        for _ in range(2):
            with pytest.raises(triton.InferenceServerException, match="expected a single response, got 0"):
                infer(raw, seed=list(range(64)), steps=[2] * 64, timeout=20)
            with Client(server.grpc_url, retry_seconds=0) as ours, pytest.raises(BratsLDMError, match="cannot be sent"):
                list(ours.stream(list(range(64)), steps=2, preview_every=0))
            assert np.array_equal(infer(raw, seed=[3], steps=[2]).as_numpy("image"), known)
        with Client(server.grpc_url) as ours:
            assert np.array_equal(list(ours.stream([3], steps=2, preview_every=0))[-1].images, known[:, 0])


def test_to_be_busy_is_no_fault(tmp_path: Path) -> None:
    """No health check takes "no room now" for a failure, which would cause a restart."""
    repository = write_faulty(tmp_path / "repository", max_rows_in_flight=1, max_rows_waiting=0)
    with TritonServer(repository) as server, triton.InferenceServerClient(server.grpc_url) as raw:
        server.probe()
        order(repository, "unet", seconds=0.1)
        call, done, _ = start(raw, seed=[1], steps=[1000])
        wait_for_rows(server, 1)
        with pytest.raises(Busy):
            probe(server.grpc_url)
        check = [sys.executable, str(SCRIPT), "health", "--url", f"http://{server.http_url}"]
        assert subprocess.run(check, check=False).returncode == 0
        call.cancel()
        assert done.wait(10)
        wait_until_idle(server)
        order(repository, "unet", error="out of memory")
        failed = subprocess.run(check, capture_output=True, text=True, check=False)
        assert failed.returncode == 1, failed
