"""Everything the client raises; `_error_map` says which answer of a server becomes which error.

BratsLDMError              the root: catch this one
├── ServerUnavailable      no server answers, or it has no room for the request now
├── InvalidRequest         the request is wrong and will stay wrong (also a ValueError)
├── MissingPackage         a format or an engine needs a package that is not installed (also an ImportError)
├── AccessDenied           the server wants a secret, or another one (also a PermissionError)
├── DeadlineExceeded       no answer within the timeout (also a TimeoutError)
├── Cancelled              the server ended the request, and again on each retry
├── ServerError            the server took the request and failed on it
├── EngineError            Ray, Dask or another engine could not make the shards
├── WeightsChanged         the images of one run would come from different weights
└── ProtocolError          the answer is not what this client's version expects
"""

from __future__ import annotations


class BratsLDMError(Exception):
    """The root of all errors of this package."""


class ServerUnavailable(BratsLDMError):
    """No server answers at the address, or it has no room for the request now: a later try may succeed."""

    not_loaded = False
    """The server answers, but the model is not loaded."""
    retryable = True
    """The same request can succeed later; false if the model is not loaded."""
    retry_after = 0.0
    """Seconds after which the server expects to have room; 0 if it does not say."""
    token = ""
    """Why, for programs: "BUSY", "DRAINING" or "NETWORK_GONE"; "" if the server does not say."""


class InvalidRequest(BratsLDMError, ValueError):
    """An argument is wrong, found by the client or by the server; the message names it."""

    #: The row that the server names, counted within its request; None where it names none.
    row: int | None = None


class MissingPackage(BratsLDMError, ImportError):
    """A format or an engine needs a package that is not installed; the message says how to install it."""


class AccessDenied(BratsLDMError, PermissionError):
    """The secret is missing or wrong; the server, or a proxy in front of it, asks for one."""


class DeadlineExceeded(BratsLDMError, TimeoutError):
    """The answer did not come within the timeout; the server has dropped the request."""


class Cancelled(BratsLDMError):
    """The server cancelled the request, as it does when it stops, and the retries failed too."""


class ServerError(BratsLDMError):
    """The server accepted the request and failed on it; its log has the details."""


class EngineError(BratsLDMError):
    """Ray, Dask or another engine failed, so that not all shards of a run are made."""


class WeightsChanged(BratsLDMError):
    """A server with other weights answered during a run, so that its images do not belong together."""


class ProtocolError(BratsLDMError):
    """The answer has a missing tensor or a wrong shape: the server has another version or another model."""
