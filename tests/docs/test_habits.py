"""Files for contributors and for the forge: schemas, one version, and the same commands before a commit as in CI."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from support.common import ROOT

SCHEMAS = {
    "CITATION.cff": "citation-file-format",
    ".github/workflows/ci.yml": "github-workflows",
    ".github/ISSUE_TEMPLATE/bug.yml": "github-issue-forms",
    ".github/ISSUE_TEMPLATE/feature.yml": "github-issue-forms",
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_file_for_the_forge_is_valid(name: str) -> None:
    program = Path(sys.executable).with_name("check-jsonschema")
    command = [str(program), "--builtin-schema", f"vendor.{SCHEMAS[name]}", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_before_a_commit_the_commands_of_make_check_run() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (recipe,) = re.findall(r"^check:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    expected = [line.strip("\t@").replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()]
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["entry"] for hook in repository["hooks"]] == expected


def test_what_a_contributor_is_sent_to_exists() -> None:
    """Files, folders and names of the code in CONTRIBUTING; NAME stands for one to come."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = {path for path in re.findall(r"`([\w.]+/[\w./-]*)`", text) if "NAME" not in path}
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []
    code = "\n".join((ROOT / path).read_text() for path in paths if path.endswith(".py"))
    names = re.findall(r"`([A-Z]{4,}|_?[a-z]+_[a-z]+|_[a-z]+)`", text)
    assert [name for name in names if name not in code and not (ROOT / "model_repository" / name).exists()] == []


def test_continuous_integration_is_one_script() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["jobs"]["test"]["steps"][-1] == {"run": ".ci/run"}


def test_the_version_is_one() -> None:
    (version,) = re.findall(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    released = re.findall(r"^## \[(\d.*)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == (version, citation["date-released"])
    assert citation["version"] == version


@pytest.fixture
def fetch_tools(tmp_path: Path) -> Callable[[], subprocess.CompletedProcess[str]]:
    """Runs the script with what is in tmp_path/here as the whole of PATH; it puts its programs into tmp_path/into."""
    for folder in ("here", "into"):
        (tmp_path / folder).mkdir()
    for name in ("mktemp", "rm", "ln"):
        (tmp_path / "here" / name).symlink_to(str(shutil.which(name)))

    def run() -> subprocess.CompletedProcess[str]:
        command = [str(shutil.which("sh")), str(ROOT / "tests" / "support" / "fetch_debian.sh"), str(tmp_path / "into")]
        env = {"PATH": str(tmp_path / "here")}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)

    return run


def test_tools_on_path_are_taken_and_those_that_cannot_be_fetched_are_named(
    fetch_tools: Callable[[], subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    slurm = ("munged", "mungekey", "slurmctld", "slurmd", "slurmstepd", "sbatch", "scancel", "scontrol", "squeue")
    others = ("sixel2png", "chromium-headless-shell")
    tools = ("promtool", "prometheus", "dciodvfy", "dcentvfy", "haproxy", "socat", *slurm, *others, "jq")
    for name in tools[:-1]:
        (tmp_path / "here" / name).touch(mode=0o755)
    done = fetch_tools()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: no jq here, and no apt-get to fetch it: put it on PATH\n"
    (tmp_path / "here" / "jq").touch(mode=0o755)
    for _ in range(2):  # the second time, they are there
        done = fetch_tools()
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        links = {path.name: path.resolve() for path in (tmp_path / "into").iterdir()}
        assert links == {name: tmp_path / "here" / name for name in tools}
