"""What needs a secret: the APIs of a real tritonserver over both protocols, and that the secret is shown nowhere."""

import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from brats_ldm_client import AccessDenied, Client
from reliability.bad_wire import Wire
from server.errors import ServerError
from server.process import TritonServer
from server.security import ADMIN_HEADER, GRPC_PREFIX, INFERENCE_HEADER, Security, new_secret
from support.toy_pipeline import write_pipeline

pytestmark = pytest.mark.slow

ADMIN, INFERENCE = new_secret(), new_secret()
ADMIN_KEY = {GRPC_PREFIX + ADMIN_HEADER: ADMIN}
INFERENCE_KEY = {GRPC_PREFIX + INFERENCE_HEADER: INFERENCE}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (folder := tmp_path_factory.mktemp("secrets") / "model_repository").mkdir()
    return write_pipeline(folder)


@pytest.fixture(scope="module")
def secretive(repository: Path) -> Iterator[TritonServer]:
    """Both secrets asked for, in the clear, with a talkative log."""
    security = Security(admin_secret=ADMIN, inference_secret=INFERENCE)
    with TritonServer(repository, security=security, extra_args=["--log-verbose=1"]) as server:
        server.probe()
        yield server


ADMIN_CALLS = [
    ("get_system_shared_memory_status", "GET systemsharedmemory/status"),
    ("get_cuda_shared_memory_status", "GET cudasharedmemory/status"),
    ("get_model_repository_index", "POST repository/index"),
    ("get_trace_settings", "GET trace/setting"),
    ("get_log_settings", "GET logging"),
]
INFERENCE_CALLS = [
    ("get_server_metadata", "GET "),
    ("get_inference_statistics", "GET models/stats"),
    ("get_model_config", "GET models/unet/config"),
]


def http_status(server: TritonServer, call: str, headers: dict[str, str]) -> int:
    method, path = call.split(" ")
    connection = http.client.HTTPConnection(server.http_url, timeout=5)
    connection.request(method, f"/v2/{path}".rstrip("/"), headers=headers)
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize(
    ("call", "path", "header", "secret"),
    [(*call, ADMIN_HEADER, ADMIN) for call in ADMIN_CALLS]
    + [(*call, INFERENCE_HEADER, INFERENCE) for call in INFERENCE_CALLS],
    ids=[call for call, _ in ADMIN_CALLS + INFERENCE_CALLS],
)
def test_an_api_answers_its_own_secret_alone(
    secretive: TritonServer, call: str, path: str, header: str, secret: str
) -> None:
    other = {ADMIN_HEADER: (INFERENCE_HEADER, INFERENCE), INFERENCE_HEADER: (ADMIN_HEADER, ADMIN)}[header]
    arguments = ("unet",) if call == "get_model_config" else ()
    with triton.InferenceServerClient(secretive.grpc_url) as client:
        for wrong in ({}, {header: "*" * len(secret)}, dict([other]), {header: secret[:-1]}):
            in_grpc = {GRPC_PREFIX + name: value for name, value in wrong.items()}
            with pytest.raises(InferenceServerException, match="This protocol is restricted"):
                getattr(client, call)(*arguments, headers=in_grpc)
            assert http_status(secretive, path, wrong) == 403
        assert getattr(client, call)(*arguments, headers={GRPC_PREFIX + header: secret}) is not None
    assert http_status(secretive, path, {header: secret}) == 200


def test_without_the_secret_no_image_and_no_retry(secretive: TritonServer) -> None:
    for wrong in (None, new_secret()):
        with Client(secretive.grpc_url, secret=wrong, retry_seconds=60) as client:
            client.wait_until_ready(5)  # health is open
            for ask in (lambda: client.generate(1, steps=1), lambda: list(client.stream(1, steps=1)), client.info):
                with pytest.raises(AccessDenied, match=r"wants a secret .*pass secret="):
                    ask()
            with pytest.raises(AccessDenied):
                client.wait_until_ready(5, deep=True)
    with Client(secretive.grpc_url, secret=INFERENCE) as client:
        client.wait_until_ready(5, deep=True)
        assert len(client.generate(1, steps=1)) == 1
        assert len(list(client.stream(1, steps=1))) == 2


def test_models_are_not_loaded_or_unloaded_even_with_the_secret(secretive: TritonServer) -> None:
    with triton.InferenceServerClient(secretive.grpc_url) as client:
        for change in (client.load_model, client.unload_model):
            with pytest.raises(InferenceServerException, match="explicit model load / unload is not allowed"):
                change("unet", headers=ADMIN_KEY)


def test_shared_memory_is_not_taken_from_clients(secretive: TritonServer) -> None:
    with triton.InferenceServerClient(secretive.grpc_url) as client:
        for register in (
            lambda: client.register_system_shared_memory("mine", "/mine", 64, headers=INFERENCE_KEY),
            lambda: client.register_cuda_shared_memory("mine", b"", 0, 64, headers=INFERENCE_KEY),
        ):
            with pytest.raises(InferenceServerException, match="This protocol is restricted"):
                register()


def test_secrets_are_shown_nowhere(secretive: TritonServer) -> None:
    assert secretive.concealed
    seen = "\n".join(secretive.log_tail(100_000))
    assert "Started GRPCInferenceService" in seen
    for process in [secretive.pid, *secretive.stubs()]:
        seen += Path(f"/proc/{process}/cmdline").read_text() + Path(f"/proc/{process}/environ").read_text()
    seen += repr(secretive.security) + repr(secretive.access) + str(secretive.failure("a look at it"))
    assert "inference-key=*" in seen
    assert not [secret for secret in (ADMIN, INFERENCE) if secret in seen]


# --- what ends some servers if it is let in

DEADLY = {
    "deep JSON": b"[" * 1_000_000,
    "huge shape in JSON": b'{"inputs":[{"name":"seed","datatype":"INT64","shape":[4611686018427387904,1],"data":[1]}]}',
    "classes of text": b'{"inputs":[{"name":"seed","datatype":"INT64","shape":[1,1],"data":[1]}],'
    b'"outputs":[{"name":"provenance","parameters":{"classification":1}}]}',
}
SAFE_FROM = {"deep JSON": (2, 58), "huge shape in JSON": (2, 68), "classes of text": (2, 60)}
"""Versions of tritonserver; docs/security.md has the releases."""


@pytest.mark.parametrize("kind", DEADLY)
def test_the_secret_stands_before_what_ends_the_server(secretive: TritonServer, repository: Path, kind: str) -> None:
    """Without it, an older server ends, and a newer one refuses the request and goes on."""
    wire = Wire(secretive.grpc_url, secretive.http_url)
    for header in ({}, {INFERENCE_HEADER: new_secret()}):
        assert "403" in wire.post(DEADLY[kind], header).text
    secretive.probe(5)
    wire.close()
    with TritonServer(repository) as open_to_all, triton.InferenceServerClient(open_to_all.grpc_url) as client:
        major, minor, *_ = map(int, client.get_server_metadata().version.split("."))
        wire = Wire(open_to_all.grpc_url, open_to_all.http_url)
        reply = wire.post(DEADLY[kind], {})
        if (major, minor) >= SAFE_FROM[kind]:
            assert reply.kind in ("refusal", "refusal by a parser"), reply
            open_to_all.probe(5)
        else:
            assert reply.kind == "no connection"
            with pytest.raises(ServerError):
                open_to_all.probe(5)
        wire.close()


def test_the_secret_stands_before_a_length_that_ends_triton_26_06(secretive: TritonServer) -> None:
    """A header that some releases take modulo 2^32. 24.10 refuses it; here it must not even be looked at."""
    wire = Wire(secretive.grpc_url, secretive.http_url)
    header = {"Inference-Header-Content-Length": "4294967296"}
    assert "403" in wire.post(b'{"inputs":[]}', header).text
    assert wire.post(b'{"inputs":[]}', {**header, INFERENCE_HEADER: INFERENCE}).kind == "refusal"
    secretive.probe(5)
    wire.close()
