"""Small conversations with the server (connect, ready, info), written once for both clients.

A flow is a generator: it yields the calls it wants made and gets their answers back, or their errors thrown in
as this package's. The sync and the async client each have one loop that performs them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np

from ._error_map import through
from ._errors import (
    AccessDenied,
    BratsLDMError,
    DeadlineExceeded,
    InvalidRequest,
    ProtocolError,
    ServerError,
    ServerUnavailable,
)
from ._options import Options
from ._protocol import STREAM, UNARY, Rows, outputs_of, parse_provenance, parse_queue, parse_rows, parse_start_latents
from ._proxy import proxy_to
from ._request import MAX_ROWS, ONE_STEP, Request, make_request
from ._types import F32, ModelInfo, QueueInfo, ServerInfo, TensorInfo

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """Call this method of tritonclient's client."""

    method: str
    kwargs: dict[str, Any]

    @property
    def model(self) -> str:
        """The model that it is about."""
        return str(self.kwargs.get("model_name", UNARY))


@dataclass(frozen=True)
class Ask:
    """Ask on a stream of its own, for one answer."""

    options: Options
    call: dict[str, Any]


@dataclass(frozen=True)
class Sleep:
    """Wait."""

    seconds: float


Flow: TypeAlias = Generator[Call | Ask | Sleep, Any, T]


def connect(options: Options) -> Flow[None]:
    """Fails soon and clearly where nobody answers."""
    if not (yield from _is_live(options)):
        raise ServerUnavailable(f"the server at {options.url} says that it is not live: try later")


def _is_live(options: Options) -> Flow[bool]:
    try:
        return bool((yield Call("is_server_live", options.control())))
    except DeadlineExceeded as error:
        proxy = proxy_to(options.url)
        raise ServerUnavailable(
            f"no Triton server answers at {options.url} within {options.connect_timeout:g} s: "
            f"{through(proxy) if proxy else 'check the address and the network'}"
        ) from error


def ready(options: Options) -> Flow[bool]:
    """Whether the server and both models say that they are ready; never raises for a server that is not."""
    try:
        return (yield from _not_ready(options)) is None
    except BratsLDMError:
        return False


def _not_ready(options: Options) -> Flow[str | None]:
    """What is not ready yet, or None."""
    if not (yield from _is_live(options)):
        return "the server is not live yet"
    for model in (UNARY, STREAM):
        if not (yield from _is_model_ready(options, model)):
            return f"model {model} is not ready"
    return None


def _is_model_ready(options: Options, name: str) -> Flow[bool]:
    """Whether the server has the model and it is ready. Newer servers call one that they lack an error (NOT_FOUND)."""
    try:
        return bool((yield Call("is_model_ready", {"model_name": name, **options.control()})))
    except ServerUnavailable as error:
        if error.not_loaded:
            return False
        raise


def wait_until_ready(options: Options, timeout: float, deep: bool, checksum: str | None) -> Flow[str | None]:
    """Polls until ready; `deep` also makes the image of seed 0 in one step, and returns its checksum (docs/errors.md).

    A server's word alone is not enough: a model says READY while the models that it calls are gone.
    """
    deadline = time.monotonic() + timeout
    pause = 0.1
    while True:
        image_checksum = None
        try:
            reason = yield from _not_ready(options)
            if reason is None and (deep or checksum):
                image_checksum = yield from _probe_image(options, max(0.1, deadline - time.monotonic()))
                reason = (
                    f"its image has the checksum {image_checksum}, not {checksum}"
                    if checksum not in (None, image_checksum)
                    else None
                )
            cause = None
        except (AccessDenied, InvalidRequest, ProtocolError):
            raise
        except BratsLDMError as error:
            reason, cause = str(error), error
        if reason is None:
            return image_checksum
        if time.monotonic() + pause > deadline:
            raise ServerUnavailable(f"not ready after {timeout:g} s: {reason}") from cause
        yield Sleep(pause)
        pause = min(1.0, pause * 1.5)


def _probe_image(options: Options, timeout: float) -> Flow[str]:
    request = make_request(1, ONE_STEP, seed=0)
    call = options.infer(request, outputs_of(request), timeout=min(timeout, options.timeout))
    return image_checksum(parse_rows((yield Call("infer", call)), request), f"{UNARY} at {options.url}")


def image_checksum(rows: Rows, where: str) -> str:
    """The checksum of an answer's images, which must be finite."""
    if not np.isfinite(rows.images).all():
        raise ServerError(f"{where} made an image with values that are not finite")
    return "sha256:" + hashlib.sha256(rows.images.astype("<f4").tobytes()).hexdigest()


def info(options: Options) -> Flow[ServerInfo]:
    metadata = yield Call("get_server_metadata", options.control())
    models = []
    for name in (UNARY, STREAM):
        models.append((yield from _model(options, name)))
    provenance: dict[str, Any] = {}
    if models[0].ready:
        provenance = yield from _probe_provenance(options)
    return ServerInfo(
        options.url,
        metadata.name,
        metadata.version,
        tuple(models),
        provenance.get("model_digest"),
        provenance,
    )


def _probe_provenance(options: Options) -> Flow[dict[str, Any]]:
    """Without `image` among the outputs the server does not decode: one step of the network, that is all."""
    call = options.infer(make_request(1, ONE_STEP, seed=0), ["provenance"])
    return parse_provenance((yield Call("infer", call)), 1)[0]


def _model(options: Options, name: str) -> Flow[ModelInfo]:
    if not (yield from _is_model_ready(options, name)):
        return ModelInfo(name, ready=False)
    named = {"model_name": name, **options.control()}
    config = (yield Call("get_model_config", named)).config
    return ModelInfo(
        name,
        True,
        config.max_batch_size,
        tuple(_tensor(entry, entry.optional) for entry in config.input),
        tuple(_tensor(entry) for entry in config.output),
        {key: config.parameters[key].string_value for key in sorted(config.parameters)},
    )


def queue(options: Options) -> Flow[tuple[QueueInfo, ...]]:
    """The queue of each model. The seed in the request does not matter."""
    hasty, request = options.hasty(), make_request([0], ONE_STEP)
    unary = yield Call("infer", hasty.infer(request, ["queue"]))
    stream = yield Ask(hasty, hasty.look_up(request, "queue"))
    return parse_queue(unary, UNARY), parse_queue(stream, STREAM)


def start_noise(options: Options, request: Request) -> Flow[F32]:
    """The start noise of the request's rows, in their order."""
    parts = []
    for part in request.split(MAX_ROWS):
        answer = yield Call("infer", options.infer(part, ["start_latent"]))
        parts.append(parse_start_latents(answer, len(part.seeds)))
    return np.concatenate(parts)


def _tensor(entry: Any, optional: bool = False) -> TensorInfo:
    datatype = type(entry).DESCRIPTOR.fields_by_name["data_type"].enum_type
    name = datatype.values_by_number[entry.data_type].name.removeprefix("TYPE_")
    return TensorInfo(entry.name, name, tuple(entry.dims), optional)
