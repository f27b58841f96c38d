"""The Python code of docs/report.md, as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from brats_ldm_client import Client
from brats_ldm_client.testing import FakeTransport
from support.common import ROOT
from support.report_page import ReportPage

EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "report.md").read_text(), re.DOTALL)


def test_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Client(transport=FakeTransport()) as client:
        client.generate(2, seed=0).save("slices")
    for example in EXAMPLES:
        exec(compile(example, "docs/report.md", "exec"), {})
    assert "My slices" in ReportPage(Path("slices.html")).words
    assert [image["label"] for image in ReportPage(Path("noise.html")).viewed["images"]] == ["noise"]
