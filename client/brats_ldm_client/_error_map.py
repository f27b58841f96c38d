"""Which of this package's errors an answer of a server becomes.

Errors of our models begin with a token, such as `[BUSY retry_after=3]`, which alone decides (docs/errors.md). Errors of
Triton itself have no token: for them the gRPC code counts, and some of Triton's words, which this file alone knows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from ._errors import (
    AccessDenied,
    BratsLDMError,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    ServerError,
    ServerUnavailable,
)

_TOKEN = re.compile(r"\[([A-Z_]+)((?: \w+=[^\s\]]+)*)\] ")
BY_TOKEN: dict[str, type[BratsLDMError]] = {
    "BUSY": ServerUnavailable,
    "DRAINING": ServerUnavailable,
    "NETWORK_GONE": ServerUnavailable,
    "NETWORK_FAILED": ServerError,
    "DEADLINE": DeadlineExceeded,
    "CANCELLED": Cancelled,
    "INVALID": InvalidRequest,
    "INTERNAL": ServerError,
}
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
# Triton's errors on a stream are text without a code.
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
_TLS_HINT = (
    "start it again if it has stopped, "
    "pass tls= with the server's authority (and a certificate) if it wants TLS, and none if not"
)
# Triton's words, with the code INTERNAL, where the model's process has died: a watched server is restarted then.
_DIED = re.compile(r"stub process .* is not healthy", re.I)
# Another kind of server answers, or a proxy with no server behind it: gRPC calls that UNIMPLEMENTED.
_NO_TRITON = re.compile(r"http2 header with status: 404", re.I)
_UNKNOWN_TENSOR = re.compile(r"unexpected inference (?:input|output) '(\w+)'")
_TOO_LARGE = re.compile(r"message larger than max", re.I)


@dataclass(frozen=True)
class _Answer:
    """An error as it came: gRPC's code (None on a stream), our token ("" in an error of Triton's), and the words."""

    code: str | None
    words: str
    token: str = ""
    fields: dict[str, str] = field(default_factory=dict)

    def number(self, name: str) -> int | None:
        """A field that is a number; None where there is none."""
        text = self.fields.get(name, "")
        return int(text[:9]) if text.isdecimal() else None


def _read(error: BaseException) -> _Answer:
    """The answer in an error of tritonclient or grpc."""
    code: Any = getattr(error, "status", None) or getattr(error, "code", None)
    code = code() if callable(code) else code
    text: Any = getattr(error, "message", None) or getattr(error, "details", None)
    text = text() if callable(text) else text
    name = getattr(code, "name", None) or str(code or "").rpartition(".")[2]
    words = " ".join(str(text or error).split())
    if not (token := _TOKEN.match(words)):
        return _Answer(name or None, words)
    fields = dict(pair.split("=", 1) for pair in token[2].split())
    return _Answer(name or None, words[token.end() :], token[1], fields)


def map_error(error: BaseException, *, url: str, model: str, timeout: float, proxy: str | None = None) -> BratsLDMError:
    """The error of this package for what tritonclient or grpc raised or reported on a stream.

    proxy: the variable by which gRPC goes through a proxy to `url`, with its value.
    """
    if isinstance(error, BratsLDMError):
        return error
    answer = _read(error)
    kind = _kind(answer)
    mapped = kind(_message(kind, answer, url, model, timeout, proxy))
    if isinstance(mapped, InvalidRequest):
        mapped.row = answer.number("row")
    if isinstance(mapped, ServerUnavailable):
        mapped.not_loaded = not answer.token and _NOT_LOADED.search(answer.words) is not None
        mapped.retryable = not mapped.not_loaded or _UNLOADING.search(answer.words) is not None
        mapped.retry_after = float(answer.number("retry_after") or 0)
        mapped.token = answer.token
    mapped.__cause__ = error
    return mapped


def _kind(answer: _Answer) -> type[BratsLDMError]:
    if answer.token in BY_TOKEN:
        return BY_TOKEN[answer.token]
    if _RESTRICTED.search(answer.words):  # which Triton calls UNAVAILABLE
        return AccessDenied
    if any(words.search(answer.words) for words in (_NOT_LOADED, _DIED, _NO_TRITON)):
        return ServerUnavailable
    if _TOO_LARGE.search(answer.words):
        return ServerError
    if answer.code is not None:
        return _BY_CODE.get(answer.code, ServerError)
    return next((kind for words, kind in _BY_WORDS if re.search(words, answer.words, re.I)), ServerError)


def _message(
    kind: type[BratsLDMError], answer: _Answer, url: str, model: str, timeout: float, proxy: str | None
) -> str:
    words = answer.words
    if kind is ServerUnavailable:
        return _unavailable(answer, url, model, proxy)
    if kind is DeadlineExceeded:
        return f"{model} at {url} gave no answer within {timeout:g} s: raise the timeout or ask for less at once"
    if kind is Cancelled:
        return f"the request to {model} at {url} was cancelled ({words}): the server may be stopping; try again"
    if kind is AccessDenied:
        return f"{model} at {url} wants a secret ({words}): pass secret=, or $BRATS_LDM_SECRET to brats-ldm"
    if unknown := _UNKNOWN_TENSOR.search(words):
        return f"{model} at {url} does not know {unknown[1]}: that server is older than this client, update it"
    if kind is InvalidRequest:
        return f"{model} at {url} refused the request: {words}"
    return f"{model} at {url} failed ({answer.code or answer.token or 'no code'}): {words}; see the server's log"


def _unavailable(answer: _Answer, url: str, model: str, proxy: str | None) -> str:
    words = answer.words
    if answer.token:
        state = "has no room for" if answer.token == "BUSY" else "cannot answer"
        return f"{model} at {url} {state} the request now ({words}): try later or with less concurrency"
    if _NOT_LOADED.search(words):
        return f"model {model} is not loaded at {url} ({words}): see the server's log and `brats-ldm info`"
    if _NO_CONNECTION.search(words):
        reason = words.rpartition("last error: ")[2].removeprefix("UNKNOWN: ")
        hint = through(proxy) if proxy else _TLS_HINT if _TLS_TROUBLE.search(reason) else "start one"
        return (
            f"no Triton server answers at {url} ({reason}): "
            f"{hint}, or pass the host:port of its gRPC endpoint (port 8001 by default)"
        )
    if _DIED.search(words):
        return f"{model} at {url} has died ({words}): try later, when the server has been restarted"
    return f"{model} at {url} has no room for the request now ({words}): try later or with less concurrency"


def through(proxy: str) -> str:
    """What to do where a proxy is on the way."""
    return f"the way there is the proxy of {proxy}; check it, or name the host in no_proxy"
