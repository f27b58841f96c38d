"""What README and benchmarks say against the code: folders and pages, the table of measured times, the targets."""

import json
import re

import pytest

from benchmarks.report import read
from benchmarks.serving.names import OURS, few_steps
from support.common import ROOT, run_python, tracked

README = (ROOT / "README.md").read_text()
BENCHMARKS = (ROOT / "benchmarks" / "README.md").read_text()


def test_the_table_of_training_times_is_the_recorded_run() -> None:
    """The command above the table makes as many iterations as the text says."""
    for row in json.loads((ROOT / "benchmarks" / "training_speed.json").read_text())["rows"]:
        cells = rf"\| {row['config']} \| [^|]* \| {row['batch']} \| ([\d.]+) \| ([\d.]+) GB \|"
        shown = [(float(seconds), float(memory)) for seconds, memory in re.findall(cells, BENCHMARKS)]
        # Three digits of a time, one decimal of a memory; with half a unit more for a tie.
        recorded_row = (pytest.approx(row["seconds"], rel=0.01), pytest.approx(row["peak_gb"], abs=0.051))
        assert recorded_row in shown, row
    assert "edian of three iterations" in BENCHMARKS
    help_text = " ".join(run_python("-m", "benchmarks.micro.training_speed", "--help").stdout.split())
    assert "timed iterations a case (default: 3)" in help_text


def recorded(scenario: str) -> dict:
    return read(f"serving/bundle-{scenario}")["result"]


def test_the_targets_tell_what_was_measured() -> None:
    """Compares the first number in a row's second column with the record of its run."""
    section = BENCHMARKS.split("<!-- figures: python -m benchmarks.report, targets -->")[1].split("<!-- end of")[0]
    rows = [row.strip("| ").split(" | ") for row in section.splitlines() if row.startswith("| ")]
    figures = {target: re.search(r"\d+\.\d+", reached) for target, reached, _ in rows}

    single, offline = recorded("single")["contestants"], recorded("offline")["contestants"]
    one, many = (recorded("layers")["concurrent"][count]["gRPC unary"]["tax"]["median"] for count in ("1", "16"))
    wanted = {
        "2.2 times": single[OURS]["faster_than_baseline"]["median"],
        "gRPC at most 1.03": one,
        "at most 1.05": many,
        "20 steps": single[OURS]["median"] / single[few_steps(20)]["median"],
        "eight images": offline[OURS]["faster_than_baseline"]["median"],
        "start": recorded("start")["ready_s"]["median"],
    }
    for start, value in wanted.items():
        (figure,) = (figure for target, figure in figures.items() if target.startswith(start))
        assert figure is not None, start
        assert float(figure[0]) == pytest.approx(value, abs=0.051 if start == "start" else 0.0051), start


def test_readme_is_short() -> None:
    assert len(README.split()) <= 900


def test_what_is_where_leaves_nothing_out() -> None:
    """Folders at the top, and pages of docs."""
    tree = README.split("## What is where")[1].split("```")[1]
    paths = [path.relative_to(ROOT) for path in tracked()]
    folders = {f"{path.parts[0]}/" for path in paths if len(path.parts) > 1 and not path.parts[0].startswith(".")}
    assert {line.split()[0] for line in tree.strip().splitlines()} == folders
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)", README))
    assert linked == {str(path) for path in paths if path.match("docs/*.md")} - {"docs/index.md"}


def test_pages_name_every_verb_of_training_and_every_command_of_export() -> None:
    training = (ROOT / "docs" / "training.md").read_text()
    for path in tracked(".py"):
        module = path.relative_to(ROOT).with_suffix("")
        if module.parts[0] == "training" and "if __name__" in path.read_text():
            verb = ".".join(part for part in module.parts[1:] if part != "__main__")
            assert f"| `{verb}` |" in training, path
    commands = re.findall(r"^ {4}([a-z][a-z-]*)(?: |$)", run_python("-m", "export", "--help").stdout, re.MULTILINE)
    assert len(commands) == 6
    export = (ROOT / "docs" / "export.md").read_text()
    assert all(f"python -m export {command}" in export for command in commands)
