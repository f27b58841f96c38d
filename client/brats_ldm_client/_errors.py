"""Everything the client raises, and the map from gRPC answers to it.

BratsLDMError              the root: catch this one
├── ServerUnavailable      no server answers, or it has no room for the request now
├── InvalidRequest         the request is wrong and will stay wrong (also a ValueError)
├── AccessDenied           the server wants a secret, or another one (also a PermissionError)
├── DeadlineExceeded       no answer within the timeout (also a TimeoutError)
├── Cancelled              the server ended the request, and again on each retry
├── ServerError            the server took the request and failed on it
└── ProtocolError          the answer is not what this client's version expects
"""

import re
from typing import Any


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


class InvalidRequest(BratsLDMError, ValueError):
    """An argument is wrong, found by the client or by the server; the message names it."""


class AccessDenied(BratsLDMError, PermissionError):
    """The secret is missing or wrong; the server, or a proxy in front of it, asks for one."""


class DeadlineExceeded(BratsLDMError, TimeoutError):
    """The answer did not come within the timeout; the server has dropped the request."""


class Cancelled(BratsLDMError):
    """The server cancelled the request, as it does when it stops, and the retries failed too."""


class ServerError(BratsLDMError):
    """The server accepted the request and failed on it; its log has the details."""


class ProtocolError(BratsLDMError):
    """The answer has a missing tensor or a wrong shape: the server has another version or another model."""


_BY_CODE: dict[str, type[BratsLDMError]] = {
    "UNAVAILABLE": ServerUnavailable,
    "RESOURCE_EXHAUSTED": ServerUnavailable,
    "INVALID_ARGUMENT": InvalidRequest,
    "OUT_OF_RANGE": InvalidRequest,
    "UNAUTHENTICATED": AccessDenied,
    "PERMISSION_DENIED": AccessDenied,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "CANCELLED": Cancelled,
}

# Errors on a stream come as text. Our models put the code before it; for Triton's own the words must do.
_CODE = re.compile(r"\[([A-Z_]+)\] ")
_BY_WORDS: list[tuple[str, type[BratsLDMError]]] = [
    (r"deadline|timed out|timeout expired", DeadlineExceeded),
    (r"cancel", Cancelled),
    (
        r"unavailable|overload|too many|try (again|later)|stopping|shutting down|stopped accepting"
        r"|failed to connect|connection refused",
        ServerUnavailable,
    ),
    (
        r"invalid|(must|should) be|expect|not in \[|allowed|mismatch|does not match|unable to find data|incomplete"
        r"|already exists|missing|requires",
        InvalidRequest,
    ),
]
_RESTRICTED = re.compile(r"protocol is restricted", re.I)
_NOT_LOADED = re.compile(r"unknown model|no available versions|is not ready", re.I)
# Also what Triton says of a model that it unloads when it stops, so another server may have it.
_UNLOADING = re.compile(r"no available versions", re.I)
_NO_CONNECTION = re.compile(
    r"failed to connect|connection refused|errors? resolving|resolution|handshake|unreachable|socket closed"
    r"|connection reset|http/?1|http2|goaway|broken pipe",
    re.I,
)
_TLS_TROUBLE = re.compile(r"handshake|socket closed|wrong_version|connection reset", re.I)
_TLS_HINT = "pass tls= with the server's authority (and a certificate) if it wants TLS, and none if not"
# Triton's words, with the code INTERNAL, where the model's process has died: a watched server is restarted then.
_DIED = re.compile(r"stub process .* is not healthy", re.I)
# What answers is another kind of server, or a proxy before none: gRPC calls that UNIMPLEMENTED.
_NO_TRITON = re.compile(r"http2 header with status: 404", re.I)
_RETRY_AFTER = re.compile(r"try again in about (\d{1,6}) s")
_TOO_LARGE = re.compile(r"message larger than max", re.I)


def status_and_text(error: BaseException) -> tuple[str | None, str]:
    """The gRPC code's name (None where there is none) and the text of a tritonclient or grpc error."""
    code: Any = getattr(error, "status", None) or getattr(error, "code", None)
    code = code() if callable(code) else code
    text: Any = getattr(error, "message", None) or getattr(error, "details", None)
    text = text() if callable(text) else text
    name = getattr(code, "name", None) or str(code or "").rpartition(".")[2]
    words = " ".join(str(text or error).split())
    if not name and (found := _CODE.match(words)):
        name, words = found[1], words[found.end() :]
    return (name or None), words


def map_error(error: BaseException, *, url: str, model: str, timeout: float, proxy: str | None = None) -> BratsLDMError:
    """The error of this package for what tritonclient or grpc raised or reported on a stream.

    proxy: the variable by which gRPC goes through a proxy to `url`, with its value.
    """
    if isinstance(error, BratsLDMError):
        return error
    code, text = status_and_text(error)
    kind = _kind(code, text)
    mapped = kind(_message(kind, code, text, url, model, timeout, proxy))
    if isinstance(mapped, ServerUnavailable):
        mapped.not_loaded = _NOT_LOADED.search(text) is not None
        mapped.retryable = _UNLOADING.search(text) is not None or not mapped.not_loaded
        hint = _RETRY_AFTER.search(text)
        mapped.retry_after = float(hint[1]) if hint else 0.0
    mapped.__cause__ = error
    return mapped


def _kind(code: str | None, text: str) -> type[BratsLDMError]:
    if _RESTRICTED.search(text):  # which Triton calls UNAVAILABLE
        return AccessDenied
    if any(words.search(text) for words in (_NOT_LOADED, _DIED, _NO_TRITON)):
        return ServerUnavailable
    if _TOO_LARGE.search(text):
        return ServerError
    if code is not None:
        return _BY_CODE.get(code, ServerError)
    return next((kind for words, kind in _BY_WORDS if re.search(words, text, re.I)), ServerError)


def _message(
    kind: type[BratsLDMError], code: str | None, text: str, url: str, model: str, timeout: float, proxy: str | None
) -> str:
    if kind is ServerUnavailable:
        return _unavailable(text, url, model, proxy)
    if kind is DeadlineExceeded:
        return f"{model} at {url} gave no answer within {timeout:g} s: raise the timeout or ask for less at once"
    if kind is Cancelled:
        return f"the request to {model} at {url} was cancelled ({text}): the server may be stopping; try again"
    if kind is AccessDenied:
        return f"{model} at {url} wants a secret ({text}): pass secret=, or $BRATS_LDM_SECRET to brats-ldm"
    if kind is InvalidRequest:
        return f"{model} at {url} refused the request: {text}"
    return f"{model} at {url} failed ({code or 'no code'}): {text}; see the server's log"


def _unavailable(text: str, url: str, model: str, proxy: str | None) -> str:
    if _NOT_LOADED.search(text):
        return f"model {model} is not loaded at {url} ({text}): see the server's log and `brats-ldm info`"
    if _NO_CONNECTION.search(text):
        reason = text.rpartition("last error: ")[2].removeprefix("UNKNOWN: ")
        hint = through(proxy) if proxy else _TLS_HINT if _TLS_TROUBLE.search(reason) else "start one"
        return (
            f"no Triton server answers at {url} ({reason}): "
            f"{hint}, or pass the host:port of its gRPC endpoint (port 8001 by default)"
        )
    if _DIED.search(text):
        return f"{model} at {url} has died ({text}): try later, when the server has been restarted"
    return f"{model} at {url} has no room for the request now ({text}): try later or with less concurrency"


def through(proxy: str) -> str:
    """What to do where a proxy is on the way."""
    return f"the way there is the proxy of {proxy}; check it, or name the host in no_proxy"
