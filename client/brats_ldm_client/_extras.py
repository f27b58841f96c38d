"""Packages that only some formats and engines need: the extras of pyproject.toml. Standard library only."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ._errors import MissingPackage


def need(package: str) -> Any:
    """The imported package.

    Raises:
        MissingPackage: it is not installed; the message says how to install it.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:  # it is there, and something that it needs is not
            raise
        raise MissingPackage(f"{package} is not installed: install it with pip install {package}") from None
