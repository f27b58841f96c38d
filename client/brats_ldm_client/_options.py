"""The servers as messages name them, timeouts and limits; builds the keyword arguments of tritonclient's calls."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ._endpoints import ChannelArgs, several
from ._error_map import map_error
from ._errors import BratsLDMError, InvalidRequest, ServerUnavailable
from ._protocol import STREAM, UNARY, infer_inputs, outputs_of, progress_outputs, requested
from ._proxy import proxy_to
from ._request import MAX_ROWS, Previews, Request, previews_of

_INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Options:
    """The checked arguments of a client."""

    url: str
    timeout: float
    connect_timeout: float
    rows_per_request: int
    concurrency: int
    retry_seconds: float
    headers: Mapping[str, str] = field(repr=False)

    def __post_init__(self) -> None:
        for name in ("timeout", "connect_timeout"):
            _check(name, getattr(self, name), 0.001, 1e6)
        _check("retry_seconds", self.retry_seconds, 0, 1e6)
        _check("rows_per_request", self.rows_per_request, 1, MAX_ROWS)
        _check("concurrency", self.concurrency, 1, 1024)

    def control(self) -> dict[str, Any]:
        """For the calls that do no work: metadata, readiness."""
        return {"client_timeout": self.connect_timeout, "headers": dict(self.headers)}

    def infer(self, request: Request, outputs: list[str], timeout: float | None = None) -> dict[str, Any]:
        """For one unary request."""
        timeout = timeout or self.timeout
        call = self._call(UNARY, infer_inputs(request), outputs, timeout)
        return {**call, "client_timeout": timeout, "headers": dict(self.headers)}

    def stream(self, request: Request, previews: Previews) -> dict[str, Any]:
        """For the one request of a stream."""
        outputs = [*outputs_of(request), *progress_outputs(previews)]
        return self._call(STREAM, infer_inputs(request, previews), outputs, self.timeout)

    def look_up(self, request: Request, output: str) -> dict[str, Any]:
        """For a request on a stream that takes no step."""
        return self._call(STREAM, infer_inputs(request), [output], self.timeout)

    def stream_call(self) -> dict[str, Any]:
        """For the stream itself.

        Without the header `triton_grpc_error`, which would put a code on an error and close the stream: closing races
        with Triton's own end of the stream, and about one such error in a hundred ends a 24.10 server.
        """
        return {"stream_timeout": self.timeout, "headers": dict(self.headers)}

    def _call(self, model: str, inputs: list[Any], outputs: list[str], timeout: float) -> dict[str, Any]:
        return {
            "model_name": model,
            "inputs": inputs,
            "outputs": requested(outputs),
            "request_id": secrets.token_hex(8),
            "timeout": round(timeout * 1e6),  # microseconds: the server's queue need not keep it longer
        }

    def hasty(self) -> Options:
        """For requests that are answered at once."""
        return replace(self, timeout=self.connect_timeout)

    def error(self, error: BaseException, model: str = UNARY, timeout: float | None = None) -> BratsLDMError:
        proxy = proxy_to(self.url)
        mapped = map_error(error, url=self.url, model=model, timeout=timeout or self.timeout, proxy=proxy)
        if isinstance(mapped, ServerUnavailable) and several(self.url):
            # Another server may have the model that this one lacks, or room now.
            mapped.retryable, mapped.retry_after = True, 0.0
        return mapped


def check_stream(request: Request, preview_every: int, preview_decoder: str) -> Previews:
    if len(request.seeds) > MAX_ROWS:
        raise InvalidRequest(f"a stream takes at most {MAX_ROWS} images, not {len(request.seeds)}: use generate()")
    return previews_of(preview_every, preview_decoder)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not (isinstance(value, (int, float)) and math.isfinite(value) and low <= value <= high):
        raise InvalidRequest(f"{name} must be from {low:g} to {high:g}, not {value!r}")


def channel_args(url: str, connect_timeout: float) -> ChannelArgs:
    """What tritonclient's own defaults lack for a client that retries; the only place that makes them."""
    args: ChannelArgs = [
        ("grpc.max_send_message_length", _INT32_MAX),
        ("grpc.max_receive_message_length", _INT32_MAX),  # gRPC's 4 MB is less than 20 images
        # A lost channel is dialled again within seconds, not after gRPC's growing pauses of up to 2 minutes.
        ("grpc.initial_reconnect_backoff_ms", 200),
        # No pause, whatever its name says: the time that one attempt to connect may take, as through a slow proxy.
        ("grpc.min_reconnect_backoff_ms", round(1000 * connect_timeout)),
        ("grpc.max_reconnect_backoff_ms", 2000),
        # Channels of one process share connections, and with them the pauses; a new client starts afresh. Not one of
        # several servers: the new channel of a stream would know the one that is quick to connect, and no other.
        ("grpc.use_local_subchannel_pool", 0 if several(url) else 1),
    ]
    if proxy_to(url) is None:  # else gRPC would take one to this machine, too
        args.append(("grpc.enable_http_proxy", 0))
    return args
