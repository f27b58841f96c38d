"""How the synchronous client reaches a server: requests, streams and small conversations over tritonclient.

`TransportConnection` has the same methods for a transport of the user's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, Protocol, TypeAlias

import grpc
from tritonclient.utils import InferenceServerException

from . import _flows
from ._errors import BratsLDMError
from ._options import Options
from ._protocol import STREAM, Rows, outputs_of, parse_rows
from ._request import Previews, Request
from ._stream import ResponseStream, stream_event
from ._types import F32, Generation, Progress, QueueInfo, ServerInfo

GRPC_ERRORS = (InferenceServerException, grpc.RpcError)
Outcome: TypeAlias = Callable[[], Rows]
"""Returns the answer to a request, or raises why there is none."""


class Cancellable(Protocol):
    """A request in flight."""

    def cancel(self) -> Any: ...


class GrpcConnection:
    """A gRPC channel to a server, made by tritonclient when it is first used."""

    def __init__(self, options: Options, channel: dict[str, Any]) -> None:
        self._options, self._channel = options, channel
        self._grpc = self._new_grpc()
        self._answered = False

    def _new_grpc(self) -> Any:
        from tritonclient.grpc import InferenceServerClient

        return InferenceServerClient(**self._channel)

    def connect(self) -> None:
        """Fail soon and clearly where nobody answers; does nothing once somebody has."""
        if not self._answered:
            self._drive(_flows.connect(self._options))
            self._answered = True

    def send(self, request: Request, answered: Callable[[Outcome], None]) -> Cancellable:
        """Send a request; `answered` is called later, from another thread."""

        def callback(result: Any, error: BaseException | None) -> None:
            answered(partial(self._outcome, request, result, error))

        try:
            call: Cancellable = self._grpc.async_infer(
                callback=callback, **self._options.infer(request, outputs_of(request))
            )
            return call
        except (*GRPC_ERRORS, ValueError) as error:  # ValueError: another thread has closed the channel
            raise self._options.error(error) from error

    def _outcome(self, request: Request, result: Any, error: BaseException | None) -> Rows:
        if error is not None:
            raise self._options.error(error)
        return parse_rows(result, request)

    def stream(self, request: Request, previews: Previews) -> Generator[Progress | Generation, None, None]:
        """The events of one stream, tried once."""
        began = time.monotonic()
        with self._responses(self._options, self._options.stream(request, previews)) as responses:
            for result in responses:
                event = stream_event(result, request, time.monotonic() - began)
                responses.answered = isinstance(event, Generation)
                yield event
                if responses.answered:
                    return

    @contextmanager
    def _responses(self, options: Options, call: dict[str, Any]) -> Iterator[ResponseStream]:
        # tritonclient allows one stream a client, and none shared by threads: each stream gets its own.
        grpc_client = self._new_grpc()
        try:
            with closing(ResponseStream(grpc_client, options, call)) as responses:
                yield responses
        except GRPC_ERRORS as error:
            raise options.error(error, STREAM) from error
        finally:
            grpc_client.close()

    def info(self) -> ServerInfo:
        self.connect()
        return self._drive(_flows.info(self._options))

    def is_ready(self) -> bool:
        return self._drive(_flows.ready(self._options))

    def wait_until_ready(self, timeout: float, deep: bool, checksum: str | None) -> str | None:
        return self._drive(_flows.wait_until_ready(self._options, timeout, deep, checksum))

    def queue(self) -> tuple[QueueInfo, ...]:
        self.connect()
        return self._drive(_flows.queue(self._options))

    def start_noise(self, request: Request) -> F32:
        self.connect()
        return self._drive(_flows.start_noise(self._options, request))

    def _drive(self, flow: _flows.Flow[_flows.T]) -> _flows.T:
        try:
            step = next(flow)
            while True:
                try:
                    answer = self._perform(step)
                except BratsLDMError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(answer)
        except StopIteration as stop:
            result: _flows.T = stop.value
            return result

    def _perform(self, step: _flows.Call | _flows.Ask | _flows.Sleep) -> Any:
        if isinstance(step, _flows.Sleep):
            return time.sleep(step.seconds)
        if isinstance(step, _flows.Ask):
            with self._responses(step.options, step.call) as responses:
                answer = next(iter(responses))
                responses.answered = True
                return answer
        try:
            return getattr(self._grpc, step.method)(**step.kwargs)
        except GRPC_ERRORS as error:
            raise self._options.error(error, step.model, step.kwargs.get("client_timeout")) from error

    def close(self) -> None:
        self._grpc.close()
