"""A measured figure has one home, a record: pages show what is recorded, and the front pages have no other figures."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from benchmarks.commands import run, shown
from benchmarks.harness.markdown import BEGIN, END, filled
from benchmarks.report import BLOCKS, main, pages, read
from reliability.__main__ import SCENARIOS
from support.common import ROOT
from support.measured import measured

NOT_MEASURED: dict[str, set[str]] = {
    "README.md": set(),
    "docs/deploy.md": {"25.1", "24 MB", "16 MB"},  # a version of pip, and the room that the launcher asks for
    "docs/export.md": set(),
    "docs/from-monai.md": {"0.2", "1.0", "1.4", "1.5"},  # versions of MONAI, and a scale factor
    "docs/generate.md": {"0.26", "3.9", "3.3", "4.9", "6 s"},  # releases of terminals, and how long one is waited for
    "docs/index.md": set(),
    "docs/reliability.md": set(),
    "docs/torch.md": set(),
}
"""What the front page, and the pages for its users, say outside of their blocks that only looks like a measured figure.
"""
TARGETS = (
    *("2.2 times", "3.5 times", "1.03", "1.05", "±5 %", "75 %", "twice as", "16 requests"),
    *("a disk of 500 MB/s", "a manifest of 100 MB", "5 % of servers", "frozen for 3 minutes", "back in a minute"),
    *("once an hour", "for 1 day", "| 1 day |", "for 30 days", "| 30 days |"),
)
"""What was aimed at, asked for or set, in the words around the figures."""


def test_pages_show_what_is_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("page", NOT_MEASURED)
def test_a_page_has_no_figure_without_a_record(page: str) -> None:
    figures = set(measured((ROOT / page).read_text()))
    assert figures == NOT_MEASURED[page], "record it, and have `python -m benchmarks.report` write it"


@pytest.mark.parametrize("name", BLOCKS)
def test_no_figure_is_typed_into_the_words_of_a_table(name: str) -> None:
    """With records in which nothing was measured, nothing that looks measured is left."""

    def blank(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: blank(entry, name) for name, entry in value.items()}
        if isinstance(value, list):
            return [blank(entry) for entry in value]
        if isinstance(value, str):
            return value if key == "sampler" else re.sub(r"\d", "#", value)
        return value if key == "rival_rows" or value is None else math.nan

    words = "\n".join(BLOCKS[name](lambda record: blank(read(record))))
    for target in TARGETS:
        words = words.replace(target, "")
    assert measured(words) == []


def test_every_record_of_a_figure_names_machine_and_date() -> None:
    asked: list[str] = []

    def reader(name: str) -> dict[str, Any]:
        asked.append(name)
        return read(name)

    for lines in BLOCKS.values():
        list(lines(reader))
    for name in asked:
        record = read(name)
        for entry in [record] if "machine" in record else record.values():
            assert entry["machine"]["cores"] > 0, name
            assert re.match(r"\d{4}-\d\d-\d\d", entry["machine"]["date"]), name


def test_the_recorded_reliability_run_is_a_full_one() -> None:
    record = read("reliability")
    assert list(record) == list(SCENARIOS)
    assert {entry["amount"] for entry in record.values()} == {1.0}


@pytest.mark.parametrize(
    ("text", "figures"),
    [
        ("the mean latency is 0.76 of it", ["0.76"]),
        ("It shows it in eight minutes.", ["eight minutes"]),
        ("trained within three hours, twice as fast", ["three hours", "twice as"]),
        ("at 75 % of 30,000 requests", ["75 %", "30,000 requests", "30,000"]),
        ("back within 7 s; 2.5x", ["2.5", "7 s", "2.5x"]),
        ("```console\n$ make demo -n 8\n8 slices in 7.1 s\n```", ["7.1", "7.1 s"]),
        ("Python 3.10 to 3.12, glibc 2.35, 1 mm, 50 steps, `0.5`, [a](b-1.5.md)", []),
        ("<!-- figures: x -->\n1.44 s\n<!-- end of figures -->", []),
        ("two cores, 240 to 250, seeds 0 to 7", []),
        ("```python\nx = 0.5\n```", []),
    ],
)
def test_what_counts_as_a_measured_figure(text: str, figures: list[str]) -> None:
    assert sorted(measured(text)) == sorted(figures)


def test_a_table_goes_between_its_comments_in_any_page() -> None:
    blocks = {"one": lambda: ["| new [why](/docs/cost.md#why) |"]}
    text = f"before\n{BEGIN}one -->\nold\n{END}\nafter\n"
    for _ in range(2):
        text = filled(text, "docs/page.md", blocks)
    assert text == f"before\n{BEGIN}one -->\n\n| new [why](cost.md#why) |\n\n{END}\nafter\n"
    assert "[why](docs/cost.md#why)" in filled(text.replace("cost", "old"), "README.md", blocks)
    assert filled("no marks", "docs/page.md", blocks) == "no marks"
    with pytest.raises(ValueError, match=r"docs/page.md needs a line .* after each line"):
        filled(text.replace(END, ""), "docs/page.md", blocks)
    with pytest.raises(ValueError, match=r"docs/page.md asks for the figures 'one'; there are two"):
        filled(text, "docs/page.md", {"two": list})


def test_every_table_stands_in_a_page() -> None:
    text = "".join((ROOT / page).read_text() for page in pages())
    assert [name for name in BLOCKS if f"{BEGIN}{name} -->" not in text] == []


def test_the_lines_of_a_command_are_passed_on_and_some_are_kept(capfd: pytest.CaptureFixture[str]) -> None:
    status, lines = run(["make", "help"])
    assert (status, lines) == (0, capfd.readouterr().out.splitlines())
    assert run(["make", "no-such-target"])[0] != 0
    printed = [
        "1.00s call test_x",
        "precisions that ran here: a",
        "and that could not: b",
        "1.00s call",
        "= 3 passed =",
    ]
    assert shown("test", printed) == ["precisions that ran here: a", "and that could not: b", "3 passed"]
