"""Runs one tritonserver process: starts it, waits until it answers as itself, stops it with all its children.

The only way in this project to start a server. Knows no model but the one that `probe` asks.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from server.assemble import backends_folder, environment, python_based
from server.errors import ServerError
from server.find import Installation, find
from server.ports import choose_ports, reachable

EXIT_TIMEOUT_S = 5
KILL_AFTER_S = 15.0
TAIL_LINES = 50


class TritonServer:
    """A running tritonserver, as a context manager.

    `profile` picks `configs/<profile>.pbtxt` of each model (None: `config.pbtxt`). A port of None is a free
    one. `log_path` None keeps the log until the server stops.
    """

    def __init__(
        self,
        repository: Path,
        profile: str | None = "cpu",
        *,
        host: str = "127.0.0.1",
        http_port: int | None = None,
        grpc_port: int | None = None,
        metrics_port: int | None = None,
        server_id: str | None = None,
        extra_args: Sequence[str] = (),
        log_path: Path | None = None,
        startup_timeout_s: float = 120.0,
        installation: Installation | None = None,
    ) -> None:
        self.repository = Path(repository).resolve()
        self.profile = profile
        self.host = host
        self.http_port, self.grpc_port, self.metrics_port = choose_ports(
            host, {"--http-port": http_port, "--grpc-port": grpc_port, "--metrics-port": metrics_port}
        )
        self.server_id = server_id or f"brats-ldm-{uuid.uuid4().hex[:12]}"
        self.extra_args = tuple(extra_args)
        self.startup_timeout_s = startup_timeout_s
        self.installation = installation
        self.log_path = log_path
        self._shm_prefix = f"brats_ldm_{uuid.uuid4().hex[:12]}_"
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._last_lines: list[str] = []

    @property
    def grpc_url(self) -> str:
        return f"{reachable(self.host)}:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        return f"{reachable(self.host)}:{self.http_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://{reachable(self.host)}:{self.metrics_port}/metrics"

    @property
    def pid(self) -> int:
        return self._running().pid

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Return once the server is ready. Raises NoServerError or ServerError, leaving nothing behind."""
        if self._started:
            raise ServerError("a TritonServer starts once: make another")
        if not self.repository.is_dir():
            raise ServerError(f"no model repository at {self.repository}")
        installation = self.installation = self.installation or find()
        self._folder = tempfile.TemporaryDirectory(prefix="brats-ldm-server-")
        try:
            self._launch(installation, Path(self._folder.name))
            self._wait_until_ready()
        except BaseException:  # a Ctrl-C during the wait must not leave a server either
            self.stop()
            raise

    def wait(self) -> int:
        """Block until the server ends by itself; its exit status."""
        # Not in one long waitpid: a signal that the kernel hands to a gRPC thread would not wake it, and a Ctrl-C
        # would be lost until the server ends.
        while (status := self._running().poll()) is None:
            time.sleep(0.2)
        return status

    def probe(self, timeout_s: float = 60.0) -> None:
        """Return once a one-step generation was answered. Raises ServerError with the log's tail."""
        try:
            probe(self.grpc_url, timeout_s)
        except ServerError as error:
            raise self.failure(f"the server is up, but {error}; given up") from error

    def stop(self) -> None:
        """End the server and every process it started. Safe to call twice."""
        process, self._process = self._process, None
        try:
            if process:
                _end(process)
        finally:
            if self._folder:
                self._last_lines = self.log_tail(1000)
                self._folder.cleanup()
                self._folder = None
            # A stub that was killed cannot remove its shared memory, and nobody else does.
            for region in Path("/dev/shm").glob(f"{self._shm_prefix}*"):
                region.unlink(missing_ok=True)

    def log_tail(self, lines: int = TAIL_LINES) -> list[str]:
        """The last lines of what the server printed; the last thousand outlive it."""
        if self.log_path is None or not self.log_path.is_file():
            return self._last_lines[-lines:]
        return self.log_path.read_text(errors="replace").splitlines()[-lines:]

    def failure(self, what: str) -> ServerError:
        """A ServerError that says what happened, after how long, and shows the log's tail."""
        # Without Triton's tables: wide, and after its reasons, which they would push out of the tail.
        lines = [line for line in self.log_tail(1000) if line.strip() and not line.startswith(("+", "|"))]
        shown = [f"  {line}" for line in lines[-TAIL_LINES:]]
        took = time.monotonic() - self._started
        return ServerError("\n".join([f"{what} after {took:.1f} s. The end of its log:", *shown]))

    def command(self, binary: Path, backends: Path) -> list[str]:
        profile = [] if self.profile is None else [f"--model-config-name={self.profile}"]
        return [
            str(binary),
            f"--id={self.server_id}",
            f"--model-repository={self.repository}",
            *profile,
            f"--backend-directory={backends}",
            *(f"--backend-config={name},shm-region-prefix-name={self._shm_prefix}" for name in python_based(backends)),
            "--model-control-mode=none",
            "--disable-auto-complete-config",
            "--exit-on-error=true",
            "--strict-readiness=true",
            f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
            f"--http-address={self.host}",
            f"--http-port={self.http_port}",
            f"--grpc-address={self.host}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-address={self.host}",
            f"--metrics-port={self.metrics_port}",
            *self.extra_args,
        ]

    def _launch(self, installation: Installation, folder: Path) -> None:
        command = self.command(installation.binary, backends_folder(installation, folder))
        self.log_path = self.log_path or folder / "tritonserver.log"
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self._started = time.monotonic()
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=environment(installation, folder),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Its own session: a Ctrl-C in the terminal reaches us alone, and we end the server in order.
                start_new_session=True,
            )

    def _wait_until_ready(self) -> None:
        while True:
            status = self._running().poll()
            if status is not None:
                raise self.failure(f"tritonserver ended with {describe(status)}")
            name = _ready_name(reachable(self.host), self.grpc_port)
            if name == self.server_id and self._all_listening():
                return
            if name not in (None, self.server_id):
                raise ServerError(f"another server ({name!r}) answers at {self.grpc_url}: choose another --grpc-port")
            if time.monotonic() - self._started > self.startup_timeout_s:
                raise self.failure("tritonserver was not ready")
            time.sleep(0.1)

    def _all_listening(self) -> bool:
        """Triton opens HTTP and metrics after gRPC, which already says ready by then."""
        ports = {"--allow-http=false": self.http_port, "--allow-metrics=false": self.metrics_port}
        opened = (port for flag, port in ports.items() if flag not in self.extra_args)
        return all(_listening(reachable(self.host), port) for port in opened)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServerError("the server is not running")
        return self._process


def probe(grpc_url: str, timeout_s: float = 60.0) -> float:
    """Generate one slice in one step and check it; the seconds it took. Raises ServerError.

    Triton calls a model ready although models that it calls are dead or missing; only an answer proves it.
    """
    import numpy as np
    import tritonclient.grpc as triton

    seed, steps = triton.InferInput("seed", [1, 1], "INT64"), triton.InferInput("steps", [1, 1], "INT32")
    seed.set_data_from_numpy(np.zeros((1, 1), np.int64))
    steps.set_data_from_numpy(np.ones((1, 1), np.int32))
    outputs = [triton.InferRequestedOutput("image")]
    started = time.monotonic()
    try:
        with triton.InferenceServerClient(grpc_url) as client:
            result = client.infer("mri_ldm", [seed, steps], outputs=outputs, client_timeout=timeout_s)
    except triton.InferenceServerException as error:
        raise ServerError(f"the one-step generation failed: {error}") from error
    image = result.as_numpy("image")
    if image is None or image.shape != (1, 1, 240, 240) or not np.isfinite(image).all():
        got = "nothing" if image is None else f"shape {image.shape}, finite: {bool(np.isfinite(image).all())}"
        raise ServerError(f"the one-step generation gave no finite image of shape (1, 1, 240, 240) but {got}")
    return time.monotonic() - started


def _ready_name(host: str, port: int) -> str | None:
    """The name of the ready Triton server at that address; None while there is none."""
    # A TCP connect first: a gRPC channel that was refused waits longer and longer before it tries again.
    if not _listening(host, port):
        return None
    import tritonclient.grpc as triton

    with triton.InferenceServerClient(f"{host}:{port}") as client:
        try:
            if client.is_server_ready(client_timeout=5):
                return str(client.get_server_metadata(client_timeout=5).name)
        except triton.InferenceServerException:
            pass
    return None


def _listening(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def describe(status: int) -> str:
    return f"exit status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to end; kill what is left of its process group, stubs included."""
    try:
        if process.poll() is None:
            process.terminate()
            process.wait(KILL_AFTER_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for _ in range(20):  # until the group is gone, or holds only zombies that nobody collects
                os.killpg(process.pid, 0)
                time.sleep(0.05)
