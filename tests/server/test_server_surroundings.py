"""What surrounds a server: paths, addresses, room, streams to print to, and folders that are cleaned meanwhile."""

from __future__ import annotations

import dataclasses
import io
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tritonclient.grpc as triton

from reliability.launched import PATIENCE, Launched
from server import ports, resources
from server.assemble import backends_folder, check_model_names, environment, plain
from server.errors import ServerError
from server.find import Installation, find
from server.health import listening, probe
from server.ports import endpoint, free_port, prefixed, resolve
from server.process import TritonServer
from server.security import Security
from server.terminal import say
from support.common import ROOT, heeding_signals, run_python
from support.faulty_networks import order, write_faulty
from support.serving import start, wait_for_rows
from support.toy_models import write_front_model

ODD = "a b'\"$(x);&\nü`\\*"
"""What people have in the names of folders, and more."""


@pytest.mark.parametrize("part", [*ODD, ":", "~", "\udcff", ODD])
def test_a_path_that_is_not_plain_gets_a_link_that_is(tmp_path: Path, part: str) -> None:
    path, link = tmp_path / f"x{part}y", tmp_path / "link"
    path.mkdir()
    (path / "file").write_text("content")
    if part in ("a", "b", "x"):
        assert plain(path, link) == path
        return
    assert plain(path, link) == link
    assert (link / "file").read_text() == "content"


def test_a_model_whose_name_no_link_mends_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mein modell").mkdir()
    check_model_names(tmp_path)
    (tmp_path / "mein modell" / "config.pbtxt").write_text("")
    with pytest.raises(ServerError, match=r"has a model 'mein modell': name it by ASCII letters"):
        check_model_names(tmp_path)


def test_an_environment_with_odd_paths_is_given_plain_ones(tmp_path: Path) -> None:
    """Python's own path too, which pyvenv.cfg names."""
    links, venv, base = tmp_path / "links", tmp_path / ODD / "venv", tmp_path / ODD / "base" / "bin"
    for folder in (links, venv / "bin", venv / "lib", base):
        folder.mkdir(parents=True)
    (venv / "bin" / "python3").write_text("python")
    (base / "python3.11").write_text("base")
    home = base.parent.parent.with_name("bäse") / "bin"
    home.parent.symlink_to(base.parent)
    (venv / "pyvenv.cfg").write_text(f"home = {home}\ninclude-system-site-packages = true\n")
    installation = Installation(
        Path("tritonserver"), tmp_path, libpython=base / "libpython.so", wheel_libraries=venv, python_bin=venv / "bin"
    )
    env = environment(installation, links, {"PATH": "/bin"})
    assert all(value.isascii() and " " not in value for value in env.values())
    folder = Path(env["PATH"].removesuffix(":/bin"))
    assert (folder / "python3").read_text() == "python"
    configured, more = (folder.parent / "pyvenv.cfg").read_text().splitlines()
    assert more == "include-system-site-packages = true"
    assert configured.isascii()
    assert Path(configured.removeprefix("home = "), "python3.11").read_text() == "base"
    assert (folder.parent / "lib").is_dir()


def test_hosts_are_resolved_and_written_as_each_part_wants_them() -> None:
    """HTTP of Triton listens nowhere when told `localhost`, and wants another form of IPv6 than gRPC."""
    assert resolve("localhost") in ("127.0.0.1", "::1")
    assert resolve("[::1]") == resolve("::1") == "::1"
    assert (endpoint("::1", 8001), prefixed("::1")) == ("[::1]:8001", "ipv6:::1")
    assert (endpoint("127.0.0.1", 8001), prefixed("127.0.0.1")) == ("127.0.0.1:8001", "127.0.0.1")
    for name in ("no such host", "a..b", ""):
        with pytest.raises(ServerError, match=r"^--host '.*' is no address and no name of one: .+$"):
            resolve(name)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (
            lambda folder: resources.check_shared_memory(folder, 2**60),
            r"has \d+ MB left, and a server needs .*--shm-size=1g",
        ),
        (lambda folder: resources.check_shared_memory(folder / "absent"), "absent, where Triton's processes exchange"),
        (lambda folder: resources.check_temporary(2**60), r"for temporary files, has \d+ MB left.* set TMPDIR"),
        (
            lambda folder: resources.check_runs_programs(folder / "program"),
            r"\(mounted noexec\?\), and Triton's stub must: set TMPDIR",
        ),
        (
            lambda folder: resources.check_descriptors(64),
            r"64 files may be open at once \(ulimit -n\).* ulimit -n 1024",
        ),
    ],
)
def test_too_little_room_is_one_line(tmp_path: Path, check: Callable[[Path], None], message: str) -> None:
    (tmp_path / "program").write_text("")
    with pytest.raises(ServerError, match=rf"^[^\n]*{message}[^\n]*$"):
        check(tmp_path)


def test_enough_room_is_no_error(tmp_path: Path) -> None:
    (program := tmp_path / "program").write_text("")
    program.chmod(0o755)
    resources.check_runs_programs(program)
    resources.check_shared_memory(tmp_path, 1)
    resources.check_temporary(1)
    resources.check_descriptors(resource.RLIM_INFINITY)


def test_no_folder_for_temporary_files_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/absent"])
    with pytest.raises(ServerError, match=r"No usable temporary directory found in .* set TMPDIR"):
        resources.check_temporary()


def test_a_folder_for_temporary_files_that_has_gone_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "cleaned"))
    resources.check_temporary()
    assert tempfile.gettempdir() != str(tmp_path / "cleaned")


def test_what_a_copy_of_the_stub_needs_is_checked_where_it_is_made(tmp_path: Path) -> None:
    stub = tmp_path / "triton_python_backend_stub"
    stub.write_text("")  # without the right to run, as everything is on what is mounted noexec
    (tmp_path / "installed" / "python").mkdir(parents=True)
    (into := tmp_path / "into").mkdir()
    with pytest.raises(ServerError, match="mounted noexec"):
        backends_folder(Installation(Path("tritonserver"), tmp_path / "installed", stub=stub), into)


def test_printing_never_fails() -> None:
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    say("Müller, 李", narrow)
    assert narrow.buffer.getvalue() == b"M\xfcller, \\u674e\n"  # type: ignore[attr-defined]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        for _ in range(2):
            say("nobody reads this", gone)


@pytest.mark.slow
def test_a_server_is_served_from_anywhere_and_outlives_its_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything at once: odd paths all around, IPv6, and all that is in TMPDIR removed amid a request."""
    odd, installation = tmp_path / ODD, find()
    (odd / "tmp").mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(odd / "tmp"))
    if installation.python_bin:  # the wheel's server, in an environment of this name
        (odd / "venv").symlink_to(installation.python_bin.parent)
        installation = dataclasses.replace(installation, python_bin=odd / "venv" / installation.python_bin.name)
    host = "::1" if _has_ipv6() else "localhost"
    repository = write_faulty(odd / "repository")
    order(repository, "unet", seconds=0.02)
    with TritonServer(repository, host=host, installation=installation) as server:
        assert server.probe().seconds < PATIENCE
        assert listening(host, server.http_port)
        with triton.InferenceServerClient(server.grpc_url) as raw:
            _, done, outcome = start(raw, seed=[1], steps=[100])
            wait_for_rows(server, 1)
            for left in (odd / "tmp").iterdir():
                shutil.rmtree(left)
            assert "Started GRPCInferenceService" in "\n".join(server.log_tail(20))
            assert server.drain(PATIENCE)
            assert done.wait(PATIENCE)
            assert outcome[0].as_numpy("final_latent").shape == (1, 1, 64, 64)
    assert server.log_tail(20), "the end of the log outlives it"


def test_launchers_that_start_at_once_take_different_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens yet on the first one's, for seconds: Triton loads its models before that."""
    drawn = [free_port("127.0.0.1") for _ in range(2)]
    ports._RESERVED.clear()
    monkeypatch.setattr(random.SystemRandom, "sample", lambda *_: drawn)
    assert [free_port("127.0.0.1") for _ in range(2)] == drawn
    code = f"from server import ports; ports._reserve({drawn[0]})"
    other = run_python("-c", code)
    assert "Address already in use" in other.stderr


def test_one_port_for_two_is_refused_at_once(tmp_path: Path) -> None:
    port = free_port("127.0.0.1")
    with pytest.raises(
        ServerError, match=rf"^--metrics-port and --grpc-port are both {port} of 127\.0\.0\.1: give one"
    ):
        TritonServer(tmp_path, grpc_port=port, metrics_port=port)


def test_what_is_off_needs_no_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        TritonServer(tmp_path, http_port=port, metrics_port=port, security=Security(http="off", metrics="off"))
        with pytest.raises(ServerError, match=r"^cannot listen on "):
            TritonServer(tmp_path, http_port=port)


def test_a_signal_while_numpy_is_imported_stops_the_command_and_is_no_fault() -> None:
    """NumPy takes the KeyboardInterrupt for a broken installation, and the command ended with that error."""
    code = """import os, signal, sys
from server.__main__ import Stop, _import_extensions
class Interrupting:
    def find_spec(self, name, *_):
        if name.endswith("_multiarray_umath"):
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Interrupting())
signal.signal(signal.SIGTERM, Stop())
try: _import_extensions()
except KeyboardInterrupt: print("stopped", "tritonclient.grpc" in sys.modules)"""
    done = run_python("-c", code)
    assert (done.stdout, done.returncode) == ("stopped True\n", 0), done.stderr


def _has_ipv6() -> bool:
    try:
        free_port("::1")
    except ServerError:
        return False
    return True


@pytest.mark.slow
def test_a_signal_whose_interrupt_is_lost_stops_the_server_too(tmp_path: Path) -> None:
    """gRPC's code between C and Python, in which the first generation is waited for, now and then swallows it."""
    repository = write_front_model(tmp_path / "repository")
    code = """import contextlib, os, signal, sys
from server.__main__ import main
from server.process import TritonServer
probe = TritonServer.probe
def swallowing(*arguments):
    health = probe(*arguments)
    with contextlib.suppress(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
    return health
TritonServer.probe = swallowing
sys.exit(main())"""
    done = run_python("-c", code, *Launched(repository).command[3:], timeout=4 * PATIENCE)
    assert done.returncode == 0, done.stderr
    assert "\nStopped" in done.stdout


@pytest.mark.slow
def test_a_launcher_without_stderr_whose_reader_leaves_goes_on(tmp_path: Path) -> None:
    """With -OO, and few files: it prints to nobody, and a signal ends it with status 0."""
    repository = write_front_model(tmp_path / "repository")
    launched = Launched(repository)

    def surroundings() -> None:
        os.close(2)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

    command = heeding_signals([sys.executable, "-OO", *launched.command[1:]])
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, preexec_fn=surroundings) as launcher:
        try:
            assert launcher.stdout
            assert launcher.stdout.readline().startswith(b"Starting tritonserver")
            launcher.stdout.close()
            while not listening("127.0.0.1", launched.ports["metrics"]):  # the last to open
                assert launcher.poll() is None
                time.sleep(0.02)
            assert probe(launched.grpc_url, PATIENCE).seconds < PATIENCE
            launcher.send_signal(signal.SIGTERM)
            assert launcher.wait(PATIENCE) == 0
        finally:
            launcher.kill()  # else a failure would be waited for, for ever
