"""Packages that only some formats, engines and pages need: the extras of pyproject.toml. Standard library only."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ._errors import MissingPackage


def need(module: str, package: str = "") -> Any:
    """The imported module.

    Args:
        module: Its full name.
        package: The package that has it, if its name differs.

    Raises:
        MissingPackage: it is not installed; the message says how to install it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:  # it is there, and something that it needs is not
            raise
        package = package or module
        raise MissingPackage(f"{package} is not installed: install it with pip install {package}") from None
