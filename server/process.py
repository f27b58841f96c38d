"""Runs one tritonserver process: starts it, waits until it is ready, stops it with all its children.

All code of this project that needs a server starts it here. The only model it knows is that of the health check.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path
from types import TracebackType

from server.assemble import backends_folder, check_model_names, environment, plain, python_based
from server.conceal import conceal
from server.errors import ServerError
from server.find import Installation, find
from server.health import Busy, Health, listening, probe, ready_name
from server.log import TAIL_LINES, has_read_its_command, last_lines, reasons
from server.ports import bracketed, choose_ports, endpoint, prefixed, reachable, resolve
from server.proc import children, model_of
from server.regions import SHARED_MEMORY, private_folder, region_prefix, remove_orphaned_regions, remove_regions
from server.resources import check_descriptors, check_shared_memory, check_temporary
from server.security import Security, known_flags
from server.shutdown import describe, drain, kill

DRAIN_VARIABLE = "BRATS_LDM_DRAIN_FOLDER"
EXIT_TIMEOUT_S = 5
KILL_AFTER_S = 15.0
# Triton looks once a second whether its models are gone: with nothing in flight there is no use in waiting for that.
KILL_AFTER_DRAIN_S = 1.0
# For refused requests: time for one step and for their answers. A network that hangs gets no more time.
REFUSE_S = 2.0


class TritonServer:
    """A running tritonserver, as a context manager.

    profile: selects `configs/<profile>.pbtxt` of each model; None: `config.pbtxt`. A port of None: any free port.
    log_path: file to append the log to; None: the log is kept until the server stops. drain_folder: folder of
    mri_ldm/1/drain.py; None: a private folder. security: None: everybody who reaches `host` has access.
    Raises ServerError for unusable certificates and keys.
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
        drain_folder: Path | None = None,
        security: Security | None = None,
    ) -> None:
        self.repository = Path(repository).resolve()
        self.profile = profile
        self.host = host = resolve(host)
        self.security = security = security or Security()
        self.access = security.access()
        self.http_host = security.address(security.http, host)
        self.metrics_host = security.address(security.metrics, host)
        # What is off needs no certain port, and several servers may have the same one for it.
        self.http_port, self.grpc_port, self.metrics_port = choose_ports(
            {
                "--http-port": (self.http_host, None if security.http == "off" else http_port),
                "--grpc-port": (host, grpc_port),
                "--metrics-port": (self.metrics_host, None if security.metrics == "off" else metrics_port),
            }
        )
        self.concealed = False
        self.server_id = server_id or f"brats-ldm-{uuid.uuid4().hex[:12]}"
        self.extra_args = tuple(extra_args)
        self.startup_timeout_s = startup_timeout_s
        self.installation = installation
        self.log_path = log_path
        self.drain_folder = drain_folder
        self.shm_prefix = region_prefix()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._log: FileIO | None = None
        self._log_start = 0
        self._last_lines: list[str] = []

    @property
    def grpc_url(self) -> str:
        return endpoint(reachable(self.host), self.grpc_port)

    @property
    def http_url(self) -> str:
        return endpoint(reachable(self.http_host), self.http_port)

    @property
    def metrics_url(self) -> str:
        return f"http://{endpoint(reachable(self.metrics_host), self.metrics_port)}/metrics"

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
        check_model_names(self.repository)
        check_descriptors()
        installation = self.installation = self.installation or find()
        remove_orphaned_regions()
        check_shared_memory(SHARED_MEMORY)
        check_temporary()
        self._folder = tempfile.TemporaryDirectory(prefix="brats-ldm-server-")
        try:
            self._launch(installation, Path(self._folder.name), private_folder(self.shm_prefix))
            self._wait_until_ready()
        except BaseException:  # a Ctrl-C during the wait must not leave a server either
            self.stop()
            raise

    def poll(self) -> int | None:
        """The exit status of a server that ended by itself; None while it runs."""
        return self._running().poll()

    @property
    def draining(self) -> bool:
        """Whether somebody has asked the models to drain."""
        return self.drain_folder is not None and (self.drain_folder / "drain").exists()

    def probe(self, timeout_s: float = 60.0) -> Health:
        """Return once a one-step generation was answered. Raises Busy, and other ServerError with the log's tail."""
        try:
            return probe(self.grpc_url, timeout_s, self.access)
        except Busy:
            raise
        except ServerError as error:
            raise self.failure(f"the server is up, but {error}; given up") from error

    def stubs(self) -> dict[int, str]:
        """The living processes of Python models: process id to model instance."""
        return {pid: name for pid, alive in children(self.pid).items() if alive and (name := model_of(pid))}

    def drain(self, grace_s: float, hurry: Callable[[], bool] = lambda: False, *, refuse: bool = False) -> bool:
        """Have the models refuse new requests and finish; whether they have within `grace_s`.

        hurry: ends the wait. refuse: what is running is refused too, at its next step.
        """
        command = self.repository / "mri_ldm" / "1" / "drain.py"
        if not command.is_file() or self.drain_folder is None or self._process is None:
            return False
        return drain(
            command, self.drain_folder, grace_s, refuse=refuse, enough=lambda: self.poll() is not None or hurry()
        )

    def stop(self, quick: bool = False) -> None:
        """End the server and every process it started. Safe to call twice. `quick`: nothing in flight matters."""
        try:
            if self._process and self._process.poll() is None:
                # Before Triton stops: 24.10 would break off what is left, and newer ones would let it finish.
                drained = quick or self.drain(REFUSE_S, refuse=True)
                self._process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(KILL_AFTER_DRAIN_S if drained else KILL_AFTER_S)
        finally:
            process, self._process = self._process, None
            if process:
                kill(process)
            if self._log:
                self._last_lines = last_lines(self._log, 1000)
                self._log.close()
                self._log = None
            if self._folder:
                self._folder.cleanup()
                self._folder = None
            remove_regions(self.shm_prefix)

    def log_tail(self, lines: int = TAIL_LINES) -> list[str]:
        """The last lines of what the server printed; the last thousand outlive it."""
        return last_lines(self._log, lines) if self._log else self._last_lines[-lines:]

    def failure(self, what: str) -> ServerError:
        """A ServerError that says what happened, after how long, and shows the log's tail."""
        shown = [f"  {line}" for line in reasons(self.log_tail(1000))]
        took = time.monotonic() - self._started
        return ServerError("\n".join([f"{what} after {took:.1f} s. The end of its log:", *shown]))

    def command(self, binary: Path, repository: Path, backends: Path, known: frozenset[str]) -> list[str]:
        """repository, backends: paths that are plain; known: names of the flags that the binary has."""
        profile = [] if self.profile is None else [f"--model-config-name={self.profile}"]
        return [
            str(binary),
            f"--id={self.server_id}",
            f"--model-repository={repository}",
            *profile,
            f"--backend-directory={backends}",
            *(f"--backend-config={name},shm-region-prefix-name={self.shm_prefix}" for name in python_based(backends)),
            "--model-control-mode=none",
            "--disable-auto-complete-config",
            "--exit-on-error=true",
            "--strict-readiness=true",
            f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
            f"--http-address={prefixed(self.http_host)}",
            f"--http-port={self.http_port}",
            f"--grpc-address={bracketed(self.host)}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-address={prefixed(self.metrics_host)}",
            f"--metrics-port={self.metrics_port}",
            *self.security.flags(known),
            *self.extra_args,
        ]

    def _launch(self, installation: Installation, folder: Path, lasting: Path) -> None:
        """folder: for what is large and read at the start alone; lasting: for links, and what is needed to the end."""
        env = environment(installation, lasting)
        repository = plain(self.repository, lasting / "repository")
        backends = plain(backends_folder(installation, folder), lasting / "backends")
        command = self.command(installation.binary, repository, backends, known_flags(installation.binary, env))
        self.log_path = self.log_path or folder / "tritonserver.log"
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self.drain_folder = self.drain_folder or lasting / "drain"
        self.drain_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in (self.drain_folder / "drain", self.drain_folder / "over", *self.drain_folder.glob("*.serving")):
            old.unlink(missing_ok=True)
        self._started = time.monotonic()
        # Kept open: it is read also where it has been moved or removed meanwhile.
        self._log = FileIO(self.log_path, "a+")
        self._log_start = self._log.tell()
        self._process = subprocess.Popen(
            command,
            env=env | {DRAIN_VARIABLE: str(self.drain_folder)},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            # Its own session: a Ctrl-C in the terminal reaches us alone, and we end the server in order.
            start_new_session=True,
        )

    def _wait_until_ready(self) -> None:
        while True:
            status = self._running().poll()
            if status is not None:
                raise self.failure(f"tritonserver ended with {describe(status)}")
            self._conceal()
            name = ready_name(reachable(self.host), self.grpc_port, self.access)
            if name == self.server_id and self._all_listening():
                self._conceal()
                return
            if name not in (None, self.server_id):
                raise ServerError(f"another server ({name!r}) answers at {self.grpc_url}: choose another --grpc-port")
            if time.monotonic() - self._started > self.startup_timeout_s:
                raise self.failure("tritonserver was not ready")
            time.sleep(0.1)

    def _all_listening(self) -> bool:
        """Triton opens HTTP and metrics after gRPC, which already says ready by then."""
        ports = {"http": (self.http_host, self.http_port), "metrics": (self.metrics_host, self.metrics_port)}
        off = {*self.security.flags(frozenset()), *self.extra_args}
        opened = (address for name, address in ports.items() if f"--allow-{name}=false" not in off)
        return all(listening(reachable(host), port) for host, port in opened)

    def _conceal(self) -> None:
        if not self.concealed and self._log and has_read_its_command(self._log, self._log_start):
            self.concealed = conceal(self.pid, self.security.secrets())

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServerError("the server is not running")
        return self._process
