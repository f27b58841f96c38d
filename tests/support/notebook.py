"""Runs examples/quickstart.ipynb.

`python tests/support/notebook.py` runs it on the server at $BRATS_LDM_URL and keeps its outputs, as they are committed.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart.ipynb"
LARGEST_BYTES = 500_000


def executed(folder: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs, run in `folder`; without what depends on the machine or the moment."""
    notebook = nbformat.read(QUICKSTART, as_version=4)
    metadata = notebook.metadata.copy()
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, record_timing=False, resources=resources, coalesce_streams=True).execute()
    notebook.metadata = metadata
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop("image/jpeg", None)  # Pillow gives every picture twice
    return notebook


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        result = executed(Path(folder))
    nbformat.write(result, QUICKSTART)
    print(f"{QUICKSTART}: {QUICKSTART.stat().st_size} bytes, from {os.environ.get('BRATS_LDM_URL', '127.0.0.1:8001')}")
