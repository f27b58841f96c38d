"""manifest.json of an exported repository. Imports no torch."""

import json
from pathlib import Path
from typing import Any

Manifest = dict[str, Any]
MANIFEST = "manifest.json"


class RepositoryError(ValueError):
    """A folder is no exported repository, or an export into it is not possible."""


def is_exported(folder: Path) -> bool:
    """Whether an export has written the folder."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """What export has written about a repository.

    Raises:
        RepositoryError: the folder or its manifest is missing, or is no JSON.
    """
    if not folder.is_dir():
        raise RepositoryError(f"{folder} is no exported repository: there is no such folder")
    if not is_exported(folder):
        raise RepositoryError(
            f"{folder} is no exported repository: {MANIFEST} does not exist; `python -m export repository` writes one"
        )
    try:
        manifest: Manifest = json.loads((folder / MANIFEST).read_text())
    except ValueError as error:
        raise RepositoryError(f"{folder / MANIFEST} is damaged: {error}: export again") from error
    return manifest


def read_model(folder: Path) -> dict[str, Any]:
    """The model.json of a repository: what its sampling loop knows of the weights."""
    record: dict[str, Any] = json.loads((folder / "mri_ldm" / "1" / "model.json").read_text())
    return record
