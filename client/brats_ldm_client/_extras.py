"""Packages that only some formats need: the extras of this package. Standard library only."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ._errors import MissingPackage

_EXTRAS = {"pydicom": "dicom", "webdataset": "webdataset", "h5py": "hdf5", "zarr": "zarr"}


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
        extra = f"brats-ldm-client[{_EXTRAS[package]}]"
        raise MissingPackage(f"{package} is not installed: install it with pip install '{extra}'") from None
