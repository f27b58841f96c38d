"""examples/quickstart.ipynb runs on a real server, and is committed with small pictures and nothing of a machine."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from server.process import TritonServer
from support.notebook import LARGEST_BYTES, QUICKSTART, executed


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """What each code cell shows: text, or the kinds of a result."""
    return [
        [",".join(sorted(output.get("data", {"text": ""}))) for output in cell.outputs] for cell in code_cells(notebook)
    ]


@pytest.mark.slow
def test_it_runs_and_shows_what_is_committed(
    small_server: TritonServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The networks of the test are tiny, so the pictures differ; all text is the same."""
    monkeypatch.setenv("BRATS_LDM_URL", small_server.grpc_url)
    notebook, committed = executed(tmp_path), nbformat.read(QUICKSTART, as_version=4)
    assert kinds(notebook) == kinds(committed)
    for cell, same in zip(code_cells(notebook), code_cells(committed), strict=True):
        assert [output.get("text") for output in cell.outputs] == [output.get("text") for output in same.outputs]
    assert len(list((tmp_path / "out" / "quickstart").iterdir())) == 26


def test_it_is_committed_with_small_pictures_and_nothing_of_a_machine() -> None:
    notebook = nbformat.read(QUICKSTART, as_version=4)
    nbformat.validate(notebook)
    assert QUICKSTART.stat().st_size <= LARGEST_BYTES
    assert sum("image/png" in kind for cell in kinds(notebook) for kind in cell) == 4
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert set(notebook.metadata.language_info) == {"name"}
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    for cell in notebook.cells:
        assert cell.metadata == {}
    text = QUICKSTART.read_text()
    for path in ("/ro" + "ot/", "/wo" + "rk/", "/ho" + "me/", "/tmp/"):
        assert path not in text
