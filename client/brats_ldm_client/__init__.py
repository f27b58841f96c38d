"""Synthetic 2D FLAIR brain MRI slices from a Triton server: `Client`, `AsyncClient`, presets, results, errors.

The names load on first use (PEP 562), so that importing the package, and `brats-ldm --help`, cost nothing.
"""

from typing import TYPE_CHECKING

__all__ = [
    "PRESETS",
    "TLS",
    "AccessDenied",
    "AsyncClient",
    "BratsLDMError",
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "EngineError",
    "Generation",
    "InvalidRequest",
    "MissingPackage",
    "ModelInfo",
    "Progress",
    "ProtocolError",
    "QueueInfo",
    "Request",
    "Rows",
    "Sampling",
    "ServerError",
    "ServerInfo",
    "ServerUnavailable",
    "Slice",
    "TensorInfo",
    "Transport",
    "WeightsChanged",
]

if TYPE_CHECKING:
    from ._access import TLS
    from ._aio import AsyncClient
    from ._client import Client
    from ._errors import (
        AccessDenied,
        BratsLDMError,
        Cancelled,
        DeadlineExceeded,
        EngineError,
        InvalidRequest,
        MissingPackage,
        ProtocolError,
        ServerError,
        ServerUnavailable,
        WeightsChanged,
    )
    from ._presets import PRESETS, Sampling
    from ._protocol import Rows
    from ._request import Request
    from ._transport import Transport
    from ._types import Generation, ModelInfo, Progress, QueueInfo, ServerInfo, Slice, TensorInfo
else:
    _HOMES = {"TLS": "_access", "AsyncClient": "_aio", "Client": "_client", "Rows": "_protocol"}
    _HOMES |= {"PRESETS": "_presets", "Sampling": "_presets", "Request": "_request", "Transport": "_transport"}
    _TYPES = ("Generation", "ModelInfo", "Progress", "QueueInfo", "ServerInfo", "Slice", "TensorInfo")
    _HOMES |= dict.fromkeys(_TYPES, "_types")

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(f"{__name__}.{_HOMES.get(name, '_errors')}"), name)
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *__all__})
