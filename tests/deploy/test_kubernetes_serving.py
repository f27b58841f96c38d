"""The pods of deploy/kubernetes without a cluster: their commands start, probe and stop a real tritonserver, and a real
Prometheus answers the autoscaler's question.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil
import pytest
import tritonclient.grpc as triton
import yaml

from brats_ldm_client import TLS, Client, ServerUnavailable
from server.assemble import backends_folder, environment
from server.find import find
from server.ports import free_port
from server.process import TritonServer
from server.security import known_flags
from support.common import ROOT
from support.container_machine import SCRIPT
from support.faulty_networks import order, write_faulty
from support.manifests import KUBERNETES, Json, render
from support.prometheus import Prometheus
from support.serving import front_metrics, gauge, metrics_text, start, tensors, wait_until
from support.throwaway_ca import Authority

pytestmark = pytest.mark.slow
SHARED_MEMORY = Path("/dev/shm")


def container_of(documents: Sequence[Json]) -> Json:
    (spec,) = (document["spec"] for document in documents if document["kind"] == "Deployment")
    (container,) = spec["template"]["spec"]["containers"]
    return container


def rendered(folder: Path, *components: str) -> Json:
    """The server's container in the overlay cpu."""
    kubernetes = Path(os.path.relpath(KUBERNETES, folder.resolve()))
    paths = [str(kubernetes / "components" / name) for name in components]
    own = {"resources": [str(kubernetes / "cpu")], "components": paths}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(own))
    return container_of(render(folder))


def kill(pid: int) -> None:
    """A process and its children."""
    parent = psutil.Process(pid)
    for process in [*parent.children(recursive=True), parent]:
        process.kill()


class Pod:
    """Such a container, with folders and ports of this machine in place of its own."""

    def __init__(self, folder: Path, container: Json, replaced: Mapping[str, str]) -> None:
        self.container, self.replaced = container, {"/opt/brats-ldm/container.py": str(SCRIPT), **replaced}
        self.http, self.grpc, metrics = (free_port("127.0.0.1") for _ in range(3))
        self.metrics_url = f"http://127.0.0.1:{metrics}/metrics"
        self.ports = {"http-port": self.http, "grpc-port": self.grpc, "metrics-port": metrics}
        (folder / "links").mkdir()
        installation = find()
        program = folder / "tritonserver"
        backends = backends_folder(installation, folder)
        program.write_text(f'#!/bin/sh\nexec {installation.binary} --backend-directory={backends} "$@"\n')
        program.chmod(0o755)
        self.env = environment(installation, folder / "links") | {"BRATS_LDM_DRAIN_FOLDER": str(folder / "drain")}
        self.env["PATH"] = f"{folder}:{self.env['PATH']}"
        self.drain, self.log = folder / "drain", folder / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def words(self, command: Sequence[str]) -> list[str]:
        words = list(command)
        for old, new in self.replaced.items():
            words = [word.replace(old, new) for word in words]
        return [sys.executable if word == "python3" else word for word in words]

    def start(self) -> None:
        """The entrypoint runs what is in `args`."""
        here = [f"--{name}={port}" for name, port in self.ports.items()]
        here += ["--grpc-address=127.0.0.1", "--metrics-address=127.0.0.1"]
        command = [*self.words(self.container["args"]), *here]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=self.env, stdout=log, stderr=log, start_new_session=True)
        wait_until(self.started, "the startup probe does not succeed")

    def started(self) -> bool:
        assert self.running.poll() is None, self.log.read_text()
        return self.probe("startupProbe").returncode == 0

    def probe(self, name: str) -> subprocess.CompletedProcess[str]:
        command = [*self.words(self.container[name]["exec"]["command"]), f"--url=http://127.0.0.1:{self.http}"]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=30, check=False)

    @property
    def running(self) -> subprocess.Popen[bytes]:
        assert self.process is not None
        return self.process

    def kill(self) -> None:
        """All at once, as a kernel that has no memory left does it to a container."""
        if self.process is not None and self.process.poll() is None:
            kill(self.process.pid)
            self.process.wait(30)

    def close(self) -> None:
        """Leaves nothing behind, whatever a test has found."""
        self.kill()
        for region in self.regions():
            region.unlink(missing_ok=True)

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.grpc}"

    def regions(self) -> list[Path]:
        """In shared memory, of the server that was started last."""
        record = self.drain / "regions"
        return list(SHARED_MEMORY.glob(f"brats_ldm_{record.read_text()}_*")) if record.exists() else []


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Pod]:
    """A pod of the overlay cpu on toy networks; clients are to connect anew each second."""
    container = rendered(tmp_path)
    age = "--grpc-max-connection-age="
    container["args"] = [f"{age}1000" if word.startswith(age) else word for word in container["args"]]
    pod = Pod(tmp_path, container, {"/source": str(write_faulty(tmp_path / "repository"))})
    try:
        pod.start()
        yield pod
    finally:
        pod.close()


def test_a_pod_with_mutual_tls_serves_the_demo_weights_to_its_clients_alone(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    for name, source in zip(("tls.crt", "tls.key"), authority.issue("server", "127.0.0.1"), strict=True):
        source.rename(tmp_path / name)
    (tmp_path / "ca.crt").write_bytes(authority.ca.read_bytes())
    container = rendered(tmp_path, "tls", "mutual-tls")
    pod = Pod(tmp_path, container, {"/source": str(ROOT / "model_repository"), "/tls/": f"{tmp_path}/"})
    try:
        pod.start()
        assert [pod.probe(name).returncode for name in ("readinessProbe", "livenessProbe")] == [0, 0]
        certificate, key = map(str, authority.issue("client", "client"))
        with Client(pod.url, tls=TLS(ca=str(authority.ca), cert=certificate, key=key)) as client:
            assert client.generate(1, seed=0, steps=1).images.shape == (1, 240, 240)
        stranger = Client(pod.url, tls=str(authority.ca), retry_seconds=0)
        with stranger as client, pytest.raises(ServerUnavailable):
            client.generate(1, seed=0, steps=1)
        assert addresses(pod)[pod.http] == {"127.0.0.1"}
        pod.running.terminate()
        assert pod.running.wait(60) == 0, pod.log.read_text()
    finally:
        pod.close()


def addresses(pod: Pod) -> dict[int, set[str]]:
    """Port to the addresses on which a process of the pod listens."""
    found: dict[int, set[str]] = {}
    for process in psutil.Process(pod.running.pid).children(recursive=True):
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                found.setdefault(connection.laddr.port, set()).add(connection.laddr.ip)
    return found


def test_the_end_of_a_pod_lets_requests_finish_and_refuses_new_ones(toy: Pod) -> None:
    order(Path(toy.replaced["/source"]), "unet", seconds=0.1)
    with triton.InferenceServerClient(toy.url) as raw:
        _, done, outcome = start(raw, seed=[1], steps=[30])
        wait_until(lambda: gauge(toy, "mri_ldm_rows_in_flight") == 1, "the request has not arrived")
        toy.running.terminate()
        wait_until(lambda: (toy.drain / "drain").exists(), "the pod does not drain")
        assert toy.probe("readinessProbe").returncode == 1
        assert done.wait(60)
        assert isinstance(outcome[0], triton.InferResult), outcome
    assert toy.running.wait(60) == 0, toy.log.read_text()
    assert toy.regions() == []


def test_a_container_that_is_started_again_finds_its_shared_memory_empty(toy: Pod) -> None:
    toy.kill()
    left = toy.regions()
    assert left
    toy.start()
    assert not any(region.exists() for region in left)
    assert toy.regions()


def test_clients_connect_anew_and_lose_nothing(toy: Pod) -> None:
    """So they look up the names again, and find pods that were not there before."""
    order(Path(toy.replaced["/source"]), "unet", seconds=0.2)
    used: set[int] = set()

    def connected_anew() -> bool:
        assert client.generate(1, seed=3, steps=10).images.shape[0] == 1  # longer than a connection lasts
        used.update(
            connection.laddr.port
            for connection in psutil.Process().net_connections("tcp")
            if connection.raddr and connection.raddr.port == toy.grpc and connection.status == psutil.CONN_ESTABLISHED
        )
        return len(used) > 2

    with Client(f"dns:///localhost:{toy.grpc}", retry_seconds=0) as client:
        wait_until(connected_anew, "the connection stays")


def test_tritonserver_has_all_flags(tmp_path: Path) -> None:
    installation = find()
    known = known_flags(installation.binary, environment(installation, tmp_path))
    args = rendered(tmp_path, "tls", "mutual-tls")["args"]
    flags = args[args.index("--") + 1 :]
    assert len(flags) > 5
    assert {flag.removeprefix("--").partition("=")[0] for flag in flags} <= known


def test_prometheus_tells_the_autoscaler_the_work_of_each_pod(tmp_path: Path) -> None:
    values = yaml.safe_load((KUBERNETES / "components" / "autoscaling" / "adapter-values.yaml").read_text())
    (rule,) = values["rules"]["custom"]
    series = rule["seriesQuery"].partition("{")[0]
    scaler = yaml.safe_load((KUBERNETES / "components" / "autoscaling" / "autoscaler.yaml").read_text())
    (metric,) = scaler["spec"]["metrics"]
    assert metric["pods"]["metric"] == {"name": series}
    assert {name: each["resource"] for name, each in rule["resources"]["overrides"].items()} == {
        "namespace": "namespace",
        "pod": "pod",
    }
    query = rule["metricsQuery"]
    matchers = 'namespace="slices",pod=~"brats-ldm-1|brats-ldm-2"'
    for part, text in {"<<.Series>>": series, "<<.LabelMatchers>>": matchers, "<<.GroupBy>>": "pod"}.items():
        query = query.replace(part, text)
    assert "<<" not in query

    repository = write_faulty(tmp_path / "repository", network_timeout=600)
    labels = {"namespace": "slices", "pod": "brats-ldm-1"}
    with TritonServer(repository) as server, triton.InferenceServerClient(server.grpc_url) as raw:
        prometheus = Prometheus(server, tmp_path, labels)
        try:
            order(repository, "unet", seconds=60)  # so that the work does not become less meanwhile
            start(raw, seed=[1, 2], steps=[700, 50])
            raw.start_stream(lambda result, error: None)
            raw.async_stream_infer("mri_ldm_stream", tensors(seed=[1], steps=[30]))
            wait_until(lambda: front_metrics(metrics_text(server))[series] == 780, "the work is not counted")
            prometheus.wait_for(f"{query} == 780")
            (answer,) = prometheus.query(query)
            assert answer["metric"] == {"pod": "brats-ldm-1"}
            assert prometheus.query(rule["seriesQuery"])
        finally:
            prometheus.stop()
            kill(server.pid)  # in the middle of a call that takes a minute
