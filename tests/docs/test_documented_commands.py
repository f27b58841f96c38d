"""Every command in the pages and the Makefile starts, has the options that are shown, and is run by a test.

Two commands once failed for users although tests ran them. One worked only inside pytest, which had put the checkout on
the path; the other worked only with an absolute folder.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from reliability.launched import Launched
from support.common import ROOT, tracked, write_toml
from support.documented_commands import BY_TESTS, IN_SMALL, NOT_RUN
from training.checkpoint import save_snapshot

pytestmark = pytest.mark.slow

PROGRAMS = (
    *("make", "python", "python3", "pytest", "pip", "brats-ldm", "torchrun", "tensorboard", "prometheus", "openssl"),
    *("docker", "tritonserver", "perf_analyzer", "mkdocs", "sbatch"),
)
RELIABILITY = "python tests/reliability"
"""A tool of the tests; it imports what they import."""
OURS = ("python -m ", "brats-ldm ", "python model_repository/", "python deploy/", "torchrun training.")


@cache
def documented() -> set[str]:
    """The commands that pages show (after a `$` in a console block, or in backquotes), and the targets of make."""
    commands = {"make", *(f"make {target}" for target in targets())}
    for page in tracked(".md"):
        text = page.read_text()
        blocks = "".join(re.findall(r"```console\n(.*?)```", text, re.DOTALL))
        lines = re.sub(r"\\\n\s*", "", blocks).splitlines()
        commands |= {re.sub(r"\s+# .*", "", line[2:]) for line in lines if line.startswith("$ ")}
        quoted = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        commands |= {command for command in quoted if command.split()[0] in PROGRAMS and len(command.split()) > 1}
    return {" ".join(command.split()) for command in commands}


def targets() -> list[str]:
    return re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)


def words_of(command: str) -> list[str]:
    """The words of a command, without the environment variables before it."""
    words = shlex.split(re.sub(r"^([A-Z_]+=(\$\([^)]*\)|\S+) )+", "", command))
    return ["python", *words[1:]] if words[0] == "python3" else words


def program(command: str) -> str:
    """The part before the arguments."""
    words = words_of(command)
    name, *rest = words
    if name == "torchrun":
        return f"torchrun {rest[rest.index('-m') + 1]}"
    if name == "python" and rest[0] == "-m":
        return " ".join(["python", *rest[: 3 if rest[1] == "export" else 2]])
    if rest[:1] == ["deploy/container.py"]:
        return " ".join(words[:3])
    alone = name in ("pytest", "prometheus", "tensorboard", "tritonserver", "perf_analyzer", "sbatch") or not rest
    return name if alone else f"{name} {rest[0]}"


def test_every_command_is_run_by_a_test_or_has_a_reason() -> None:
    known = [*IN_SMALL, *BY_TESTS, *NOT_RUN]
    assert len(known) == len(set(known)), "one entry each"
    shown = {program(command) for command in documented()}
    assert sorted(shown - set(known)) == [], "new: add what runs it to documented_commands.py"
    assert sorted(set(known) - shown) == [], "gone from the pages"


@pytest.mark.parametrize("command", BY_TESTS)
def test_the_test_file_of_a_command_runs_it(command: str) -> None:
    """It holds the command's name in quotes, or imports from it. A foreign program's name is enough."""
    words = words_of(python_of(command))
    name, text = words[-1], text_of_test(BY_TESTS[command])
    parent, _, last = name.rpartition(".")
    ours = (
        re.escape(f'"{Path(name).name}"'),
        rf"from {name} import",
        rf"from {name}\.__main__ import",
        rf"from {parent} import [\w, ]*\b{last}\b",
    )
    if words[:3] == ["python", "-m", "export"]:
        ours = (rf'"export", "{name}"', rf'main\(\["{name}"')
    assert any(re.search(use, text) for use in (ours if " " in command else (name,))), name


def text_of_test(name: str) -> str:
    """The text of a test file; of the files conftest.py, that of the one at the top."""
    return min((ROOT / "tests").rglob(name), key=lambda path: len(path.parts)).read_text()


def python_of(command: str) -> str:
    """The module or script behind a command of ours; for a target of make, that of its recipe."""
    if not command.startswith("make "):
        return command
    target = command.removeprefix("make ")
    make = [
        "make",
        "-n",
        "VENV=venv",
        *(f"--old-file=venv/.{extra}" for extra in ("server", "studio", "test", "bench", "export")),
    ]
    shown = subprocess.run([*make, target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    line = next(line for line in shown.splitlines() if "venv/bin/python" in line)
    words = line.removeprefix("@").split()[1:]
    return "python " + " ".join(words[:2] if words[0] == "-m" else words[:1])


@cache
def help_of(command: str) -> subprocess.CompletedProcess[str]:
    """The --help of a program of ours; standard error has a line for each import."""
    words = ["python", "-m", command.split()[1]] if command.startswith("torchrun ") else command.split()
    words, env = executable([*words, "--help"]), os.environ | {"PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def options_of(command: str) -> set[str]:
    """All options that the --help of a program of ours names."""
    return set(re.findall(r"(?<![\w-])--?[a-z][\w.-]*", help_of(command).stdout))


def shown_options(command: str) -> tuple[str, set[str]]:
    """The program of a command, and the options that the command gives to it."""
    words = words_of(command)
    if words[0] == "make":
        given = [word.removeprefix("ARGS=") for word in words if word.startswith("ARGS=")]
        owner, words = python_of(f"make {words[1]}"), shlex.split(given[0]) if given else []
    else:
        owner = program(command)
        words = words[words.index("-m") + 2 :] if "-m" in words else words[1:]
    words = words[: words.index("--")] if "--" in words else words
    return owner, {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}


def with_options() -> list[str]:
    commands = [command for command in documented() if command.startswith("make ") or program(command).startswith(OURS)]
    commands = [command for command in commands if program(command) not in NOT_RUN]
    return sorted(command for command in commands if not command.startswith("make ") or "ARGS=" in command)


@pytest.mark.parametrize("command", with_options())
def test_a_command_starts_and_has_the_options_that_are_shown(command: str) -> None:
    owner, shown = shown_options(command)
    missing = {option for option in shown if not option.endswith("-training.")} - options_of(owner)
    assert not missing, f"{owner} --help does not name them"


@pytest.mark.parametrize("command", sorted({shown_options(command)[0] for command in with_options()} - {RELIABILITY}))
def test_help_imports_no_large_library(command: str) -> None:
    imports = set(re.findall(r"\| +(\w+)$", help_of(command).stderr, re.MULTILINE))
    assert "argparse" in imports
    assert imports & {"numpy", "torch", "tritonclient"} == set()


@pytest.fixture(scope="module")
def workspace(small_snapshot, small_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout with tiny networks, trained and exported."""
    folder = tmp_path_factory.mktemp("checkout")
    for path in tracked():
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target, follow_symlinks=False)
    write_toml(small_snapshot.config, folder / "tiny.toml")
    for run in ("autoencoder", "diffusion"):
        save_snapshot(small_snapshot, folder / "runs" / run / "snapshot")
    shutil.copytree(small_repository, folder / "build" / "model_repository")
    return folder


@pytest.fixture(scope="module")
def server(workspace: Path) -> Iterator[Launched]:
    """`python -m server` with the demo weights."""
    with Launched(workspace / "model_repository") as launched:
        yield launched


@pytest.mark.parametrize("command", IN_SMALL)
def test_in_small(command: str, workspace: Path, request: pytest.FixtureRequest) -> None:
    arguments = IN_SMALL[command]
    if "URL" in arguments or "DRAIN" in arguments:
        server = request.getfixturevalue("server")
        drain = re.findall(r"drain\.py (\S+)", server.printed)[-1]
        arguments = arguments.replace("URL", server.grpc_url).replace("DRAIN", drain)
    words = executable([*command.split(), *shlex.split(arguments)])
    done = subprocess.run(words, cwd=workspace, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def executable(words: list[str]) -> list[str]:
    """The words, with this environment's programs."""
    ours = {"python": sys.executable, "brats-ldm": str(Path(sys.executable).with_name("brats-ldm"))}
    return [ours.get(words[0], words[0]), *words[1:]]
