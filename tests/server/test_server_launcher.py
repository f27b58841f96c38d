"""The launcher: what it says on a machine that lacks something, and that it starts and stops servers cleanly."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.assemble import backends_folder, environment
from server.errors import NoServerError, ServerError
from server.find import Host, find
from server.log import reasons
from server.ports import free_port
from server.process import TritonServer, probe
from server.regions import SHARED_MEMORY
from support.common import heeding_signals, processor_seconds
from support.toy_models import write_front_model

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A machine on which the wheel's server would run."""
    wheel = tmp_path / "site-packages" / "pytriton"
    for file in (
        "tritonserver/bin/tritonserver",
        "tritonserver/backends/python/libtriton_python.so",
        "tritonserver/python_backend_stubs/3.11/triton_python_backend_stub",
    ):
        (wheel / file).parent.mkdir(parents=True)
        (wheel / file).write_text("")
        (wheel / file).chmod(0o755)
    executable = tmp_path / "venv" / "bin" / "python3"
    libpython = tmp_path / "python" / "libpython3.11.so.1.0"
    for path in (executable, libpython):
        path.parent.mkdir(parents=True)
        path.write_text("")
    return Host("Linux", (2, 36), (3, 11), executable, libpython, "1.26.4", None, None, wheel)


@pytest.fixture
def container(tmp_path: Path) -> Path:
    """The binary of an installation that has its own backends, as in a container."""
    root = tmp_path / "opt" / "tritonserver"
    for folder in ("bin", "backends/python", "backends/onnxruntime"):
        (root / folder).mkdir(parents=True)
    binary = root / "bin" / "tritonserver"
    binary.write_text("")
    binary.chmod(0o755)
    return binary


@pytest.mark.parametrize(
    ("lacks", "message"),
    [
        ({"system": "Darwin"}, "tritonserver runs on Linux only, and this is Darwin"),
        ({"wheel": None}, "`pip install --group server`"),
        ({"glibc": (2, 31)}, "needs glibc 2.35 or newer but this machine has glibc 2.31"),
        ({"glibc": None}, "this machine has another C library"),
        ({"glibc": (2, 31), "wheel": None}, "needs glibc 2.35"),
        ({"libpython": None}, "needs the shared library libpython3.11.so.1.0"),
        ({"python": (3, 13)}, "runs models with Python 3.10 to 3.12"),
        ({"numpy": "2.1.0"}, "has 2.1.0, with which models silently return nothing"),
        ({"numpy": None}, "has none: `pip install"),
        ({"executable": Path("/absent/bin/python3.11")}, "run the server from a virtual environment"),
        ({"env_binary": Path("/absent/tritonserver")}, "$TRITONSERVER is '/absent/tritonserver'"),
    ],
)
def test_a_machine_that_lacks_something_gets_one_sentence(host: Host, lacks: dict[str, object], message: str) -> None:
    with pytest.raises(NoServerError) as caught:
        find(dataclasses.replace(host, **lacks))  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert re.fullmatch(r"[^\n]+\.", str(caught.value))


def test_environment_variable_comes_before_path_before_wheel(host: Host, container: Path) -> None:
    assert host.wheel is not None
    assert find(host).binary == host.wheel / "tritonserver" / "bin" / "tritonserver"
    assert find(dataclasses.replace(host, path_binary=container)).binary == container
    chosen = dataclasses.replace(host, path_binary=Path("/usr/bin/true"), env_binary=container)
    assert find(chosen).binary == container


def test_old_glibc_and_new_numpy_do_not_matter_to_a_container(host: Host, container: Path) -> None:
    inside = dataclasses.replace(host, path_binary=container, glibc=(2, 31), numpy="2.1.0", libpython=None)
    assert find(inside).backends == container.parent.parent / "backends"


def test_surroundings_of_the_wheel(host: Host, tmp_path: Path) -> None:
    (into := tmp_path / "into").mkdir()
    backends = backends_folder(find(host), into)
    files = {str(path.relative_to(backends)) for path in backends.glob("*/*") if path.is_file()}
    assert {"python/libtriton_python.so", "python/triton_python_backend_stub", "onnxruntime/model.py"} <= files
    env = environment(find(host), into, {"PATH": "/bin", "LD_LIBRARY_PATH": "/mine"})
    assert env["PATH"] == f"{host.executable.parent}:/bin"
    lib, wheel_libs, mine = env["LD_LIBRARY_PATH"].split(":")
    assert [path.name for path in Path(lib).iterdir()] == ["libpython3.11.so.1.0"]
    assert (Path(wheel_libs).name, mine) == ("nvidia_pytriton.libs", "/mine")


def test_surroundings_of_a_container(host: Host, container: Path, tmp_path: Path) -> None:
    """Its own backends win over ours, and its environment is left alone."""
    installation = find(dataclasses.replace(host, env_binary=container))
    (into := tmp_path / "into").mkdir()
    assert (backends_folder(installation, into) / "onnxruntime").resolve() == installation.backends / "onnxruntime"
    assert environment(installation, into, {"PATH": "/bin"}) == {"PATH": "/bin"}
    (installation.backends / "onnxruntime").rmdir()
    (into := tmp_path / "without").mkdir()
    assert ((backends := backends_folder(installation, into)) / "onnxruntime" / "model.py").is_file()
    assert (backends / "python").resolve() == installation.backends / "python"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy `mri_ldm`. Its config.pbtxt needs an absent backend."""
    return write_front_model(tmp_path_factory.mktemp("repository"))


def processes_of(group: int) -> list[str]:
    names = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, fields = stat.read_text().rsplit(")", 1)
        except OSError:
            continue
        state, _, its_group = fields.split()[:3]
        if int(its_group) == group and state != "Z":
            names.append(name)
    return names


def shared_memory_of(server: TritonServer) -> list[Path]:
    return list(SHARED_MEMORY.glob(f"{server.shm_prefix}*"))


def test_server_answers_and_leaves_nothing_behind(repository: Path, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "server.log"
    with TritonServer(repository, log_path=log) as server:
        group = server.pid
        assert any("triton_python" in name for name in processes_of(group))
        assert shared_memory_of(server)
        assert probe(server.grpc_url, timeout_s=20).seconds < 20
        assert "Started GRPCInferenceService" in "\n".join(server.log_tail(20))
    assert processes_of(group) == []
    assert "Started GRPCInferenceService" in log.read_text()
    assert shared_memory_of(server) == []
    with pytest.raises(ServerError, match="not running"):
        _ = server.pid


def test_stop_kills_a_server_that_does_not_listen(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.process.KILL_AFTER_S", 0.5)
    server = TritonServer(repository)
    server.start()
    group = server.pid
    os.kill(group, signal.SIGSTOP)
    server.stop()
    server.stop()
    assert processes_of(group) == []
    assert shared_memory_of(server) == []


def test_a_server_that_fails_to_start_shows_its_log(repository: Path) -> None:
    """Without the profile the toy needs a backend that no machine has."""
    with pytest.raises(ServerError, match=r"ended with exit status 1 after \d+\.\d s") as caught:
        TritonServer(repository, profile=None).start()
    assert "unable to find backend library for backend 'absent'" in str(caught.value)


def test_a_server_that_is_late_is_stopped(repository: Path) -> None:
    server = TritonServer(repository, startup_timeout_s=0)
    with pytest.raises(ServerError, match="was not ready after"):
        server.start()
    with pytest.raises(ServerError, match="not running"):
        _ = server.pid


@pytest.mark.parametrize("flag", ["http", "grpc", "metrics"])
def test_a_port_that_is_taken_is_named(repository: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ServerError, match=rf"port {port} \(--{flag}-port\): Address already in use"):
            TritonServer(repository, **{f"{flag}_port": port})


def test_help_is_quick() -> None:
    """Nothing heavy may be imported for it."""
    before = processor_seconds()
    shown = subprocess.run([sys.executable, "-m", "server", "--help"], cwd=CHECKOUT, capture_output=True, check=True)
    assert processor_seconds() - before < 1
    assert b"--profile" in shown.stdout


def command_line(repository: Path, *options: str) -> subprocess.Popen[str]:
    ports = [f"--{name}-port={free_port('127.0.0.1')}" for name in ("http", "grpc", "metrics")]
    command = [sys.executable, "-m", "server", "--repository", str(repository), *ports, *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(heeding_signals(command), cwd=CHECKOUT, text=True, **pipes)


@pytest.fixture
def launched(repository: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`python -m server` when it says that it is up, and what it printed until then."""
    launcher = command_line(repository, "--max-restarts=0", "--", "--log-verbose=0")
    assert launcher.stdout is not None
    try:
        lines = []
        for line in launcher.stdout:
            lines.append(line)
            if line.startswith("Ctrl-C"):
                break
        yield launcher, "".join(lines)
    finally:
        launcher.terminate()
        launcher.communicate(timeout=30)


def test_the_reasons_of_a_failure_are_not_pushed_out_by_what_comes_after_them() -> None:
    """Triton 26.07 goes on for many lines after the reason: it unloads what it had loaded."""
    cases = (
        ("E1127 22:01:24.1 7 model.py:2] ", "I1127 22:01:25.1 7 server.cc:3] "),
        ("2026-11-27T22:01:24Z E 7 model.py:2] ", "2026-11-27T22:01:25Z I 7 server.cc:3] "),
    )
    for error, information in cases:
        lines = [
            f"{error}the file is missing",
            "  in initialize",
            "| model | UNAVAILABLE |",
            *[f"{information}x"] * 500,
        ]
        assert reasons(lines) == [f"{error}the file is missing", "  in initialize"]
    assert reasons(["I1127 22:01:25.1 7 server.cc:3] killed"]) == ["I1127 22:01:25.1 7 server.cc:3] killed"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_command_stops_on_signals(launched: tuple[subprocess.Popen[str], str], number: signal.Signals) -> None:
    launcher, printed = launched
    url = re.search(r"brats-ldm generate --url (\S+)", printed)
    server = re.search(r"process (\d+)", printed)
    assert url, printed
    assert server, printed
    assert probe(url.group(1), timeout_s=20).seconds < 20
    launcher.send_signal(number)
    launcher.send_signal(signal.SIGINT)  # an impatient second Ctrl-C must not leave the server running
    assert launcher.wait(30) == 0
    assert processes_of(int(server.group(1))) == []


def test_command_tells_that_the_server_died(launched: tuple[subprocess.Popen[str], str]) -> None:
    launcher, printed = launched
    match = re.search(r"process (\d+)", printed)
    assert match, printed
    os.kill(int(match.group(1)), signal.SIGKILL)
    _, errors = launcher.communicate(timeout=30)
    assert launcher.returncode == 1
    assert "ended by itself with signal SIGKILL" in errors
    assert "The end of its log:" in errors
    assert processes_of(int(match.group(1))) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--profile=gpu"], "has a profile 'gpu'; there are ['default', 'cpu']"),
        (["--profile=default"], "unable to find backend library for backend 'absent'"),
        (["--repository=/absent"], "no model repository at /absent"),
        (["--log-file=/proc/absent/log"], "/proc/absent"),
    ],
)
def test_command_that_cannot_start_says_why(repository: Path, options: list[str], message: str) -> None:
    launcher = command_line(repository, *options)
    _, errors = launcher.communicate(timeout=30)
    assert launcher.returncode == 1
    assert errors.startswith("error: ")
    assert message in errors
    assert "Traceback" not in errors
