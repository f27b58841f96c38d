"""A real gRPC server in this process that speaks just enough of Triton's protocol to misbehave on request.

Its image of a seed is a plane filled with the seed's value, so a test sees at once whose image it got.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from brats_ldm_client import AsyncClient, Client

DIGEST = "sha256:" + "ab" * 32
DATATYPES = {"int32": "INT32", "int64": "INT64", "float32": "FP32", "object": "BYTES"}
QUEUE: dict[str, Any] = {
    "rows_in_flight": 3,
    "rows_waiting": 2,
    "row_steps_left": 90,
    "max_rows_in_flight": 64,
    "max_rows_waiting": 256,
    "draining": False,
    "seconds_left": 1.25,
}
Behave = Callable[[list[int], grpc.ServicerContext], None]


def read(request: Any) -> dict[str, np.ndarray]:
    dtypes = {"INT64": np.int64, "INT32": np.int32, "FP32": np.float32, "UINT8": np.uint8}
    tensors = {}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        if tensor.datatype == "BYTES":
            size = int.from_bytes(raw[:4], "little")
            cells = [raw[i + 4 : i + 4 + size].decode() for i in range(0, len(raw), 4 + size)]
            tensors[tensor.name] = np.array(cells, object).reshape(tensor.shape)
        else:
            tensors[tensor.name] = np.frombuffer(raw, dtypes[tensor.datatype]).reshape(tensor.shape)
    return tensors


def response(tensors: dict[str, np.ndarray]) -> Any:
    message = service_pb2.ModelInferResponse(model_name="mri_ldm", model_version="1")
    for name, array in tensors.items():
        message.outputs.add(name=name, datatype=DATATYPES[array.dtype.name], shape=array.shape)
        raw = array.tobytes()
        if array.dtype == object:
            raw = b"".join(len(cell).to_bytes(4, "little") + cell for cell in array.ravel())
        message.raw_output_contents.append(raw)
    return message


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self) -> None:
        self.size = 24
        self.behave: Behave = lambda seeds, context: None
        self.stream_behave: Callable[[int, grpc.ServicerContext], None] = lambda step, context: None
        self.stream_ends_early = False
        self.models = {"mri_ldm", "mri_ldm_stream"}
        self.failing: set[str] = set()
        self.names_missing_models = False  # as Triton 26.07 does; 2.51 says that they are not ready
        self.received: list[dict[str, np.ndarray]] = []
        self.asked: list[list[str]] = []
        self.metadata: list[dict[str, Any]] = []
        self.cancelled: list[list[int]] = []
        self.omit: set[str] = set()
        self.digest = DIGEST
        self.more: dict[str, Any] = {}  # in each record
        self.lock = threading.Lock()

    def seeds(self) -> list[list[int]]:
        return [tensors["seed"][:, 0].tolist() for tensors in self.received]

    def stall(self, seeds: list[int], context: grpc.ServicerContext) -> None:
        """Behaviour: answer nothing until the client gives up, and take note that it did."""
        gone = threading.Event()
        if context.add_callback(gone.set):
            gone.wait(10)
        with self.lock:
            self.cancelled.append(seeds)
        context.abort(grpc.StatusCode.CANCELLED, "cancelled")

    def wait_cancelled(self, count: int) -> None:
        deadline = threading.Event()
        for _ in range(100):
            with self.lock:
                if len(self.cancelled) >= count:
                    return
            deadline.wait(0.05)
        raise AssertionError(f"{len(self.cancelled)} requests were cancelled, not {count}")

    def note(self, request: Any, context: grpc.ServicerContext) -> tuple[dict[str, np.ndarray], list[int]]:
        tensors = read(request)
        with self.lock:
            self.received.append(tensors)
            self.asked.append([output.name for output in request.outputs])
            self.metadata.append(dict(context.invocation_metadata()))
        return tensors, tensors["seed"][:, 0].tolist()

    def outputs(self, tensors: dict[str, np.ndarray], asked: list[str]) -> dict[str, np.ndarray]:
        seeds = tensors["seed"][:, 0]
        plane = np.ones((1, 1, self.size, self.size), np.float32)
        value = seeds.astype(np.float32)[:, None, None, None]
        records = [
            json.dumps(
                {
                    "synthetic": True,
                    "seed": int(seed),
                    "sampler": tensors["sampler"][0, 0],
                    "steps": int(tensors["steps"][0, 0]),
                    "eta": float(tensors.get("eta", np.zeros((1, 1)))[0, 0]),
                    "timestep_grid": tensors.get("timestep_grid", [["leading"]])[0][0],
                    "decoder": tensors.get("decoder", [["full"]])[0][0],
                    "start_noise": "given" if "latent" in tensors else "seed",
                    "model_name": "mri_ldm",
                    "model_digest": self.digest,
                    **labelled(tensors, row),
                    **self.more,
                    "versions": {"server": "2.51.0"},
                }
            ).encode()
            for row, seed in enumerate(seeds)
        ]
        every = {
            "image": value * plane,
            "final_latent": tensors.get("latent", value * np.ones((1, 1, 8, 8), np.float32)),
            "provenance": np.array(records, object)[:, None],
            "queue": np.array([json.dumps(QUEUE).encode()] * len(seeds), object)[:, None],
            "start_latent": value * np.ones((1, 1, 8, 8), np.float32),
        }
        return {name: every[name] for name in asked if name in every and name not in self.omit}

    def ServerLive(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    def ModelReady(self, request: Any, context: Any) -> Any:
        if request.name in self.failing:
            context.abort(grpc.StatusCode.INTERNAL, "out of order")
        if self.names_missing_models and request.name not in self.models:
            words = f"Request for unknown model: '{request.name}' is not found"
            context.abort(grpc.StatusCode.NOT_FOUND, words)
        return service_pb2.ModelReadyResponse(ready=request.name in self.models)

    def ServerMetadata(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerMetadataResponse(name="triton", version="2.51.0")

    def ModelConfig(self, request: Any, context: Any) -> Any:
        config = model_config_pb2.ModelConfig(name=request.name, max_batch_size=64)
        config.input.add(name="seed", data_type="TYPE_INT64", dims=[1])
        config.input.add(name="sampler", data_type="TYPE_STRING", dims=[1], optional=True)
        config.output.add(name="image", data_type="TYPE_FP32", dims=[1, 240, 240])
        config.parameters["max_steps"].string_value = "1000"
        return service_pb2.ModelConfigResponse(config=config)

    def ModelInfer(self, request: Any, context: Any) -> Any:
        tensors, seeds = self.note(request, context)
        self.behave(seeds, context)
        return response(self.outputs(tensors, [output.name for output in request.outputs]))

    def ModelStreamInfer(self, requests: Any, context: Any) -> Iterator[Any]:
        for request in requests:
            tensors, seeds = self.note(request, context)
            ended = threading.Event()
            context.add_callback(lambda seeds=seeds, ended=ended: ended.is_set() or self.cancelled.append(seeds))
            self.behave(seeds, context)
            every = int(tensors["preview_every"][0, 0]) if "preview_every" in tensors else 0
            tiny = "preview_decoder" in tensors
            for step in range(1, int(tensors["steps"][0, 0]) + 1):
                self.stream_behave(step, context)
                if every and step % every == 0:
                    yield service_pb2.ModelStreamInferResponse(infer_response=response(progress(seeds, step, tiny)))
            ended.set()
            if self.stream_ends_early:
                return
            final = response(self.outputs(tensors, [output.name for output in request.outputs]))
            yield service_pb2.ModelStreamInferResponse(infer_response=final)


def labelled(tensors: dict[str, np.ndarray], row: int) -> dict[str, Any]:
    """What the record of a row says of its labels."""
    if "labels" not in tensors:
        return {}
    guidance = tensors["guidance"][row, 0] if "guidance" in tensors else 1.0
    digest = hashlib.sha256(tensors["labels"][row].tobytes()).hexdigest()
    return {"labels_sha256": digest, "guidance": round(float(guidance), 5)}


def progress(seeds: list[int], step: int, tiny: bool) -> dict[str, np.ndarray]:
    n = len(seeds)
    tensors = {
        "step": np.full((n, 1), step, np.int32),
        "preview": np.full((n, 1, 8, 8), step, np.float32) + np.array(seeds, np.float32)[:, None, None, None],
    }
    if tiny:
        tensors["preview_image"] = 2 * tensors["preview"]
        tensors["preview_source"] = np.full((n, 1), b"tiny", object)
    return tensors


class Served:
    """The fake server at its address; it can be stopped and started there again."""

    def __init__(self) -> None:
        self.triton, self.url = FakeTriton(), "127.0.0.1:0"
        self.start()

    def start(self) -> None:
        self._server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.max_send_message_length", -1)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self.triton, self._server)
        self.url = f"127.0.0.1:{self._server.add_insecure_port(self.url)}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0).wait(5)


class Caller:
    """Calls a method of `Client`, or the same of `AsyncClient` in an event loop of its own."""

    def __init__(self, kind: str, url: str) -> None:
        self.kind, self.url = kind, url

    def __call__(self, method: str, *args: Any, client: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        options = {"retry_seconds": 5.0, **(client or {})}
        if self.kind == "sync":
            with Client(self.url, **options) as opened:
                return getattr(opened, method)(*args, **kwargs)
        return asyncio.run(self._async(method, args, kwargs, options))

    async def _async(self, method: str, args: Any, kwargs: Any, options: Any) -> Any:
        async with AsyncClient(self.url, **options) as opened:
            return await getattr(opened, method)(*args, **kwargs)

    def stream(self, *args: Any, **kwargs: Any) -> list[Any]:
        """The events of a stream; with `take`, leave the loop after so many."""
        return self._iterate("stream", *args, **kwargs)

    def iter_images(self, *args: Any, **kwargs: Any) -> list[Any]:
        """The images; with `take`, leave the loop after so many."""
        return self._iterate("iter_images", *args, **kwargs)

    def _iterate(
        self, method: str, *args: Any, take: int | None = None, client: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        options = {"retry_seconds": 5.0, **(client or {})}
        if self.kind == "async":
            return asyncio.run(self._async_iterate(method, args, kwargs, take, options))
        items = []
        with Client(self.url, **options) as opened, closing(getattr(opened, method)(*args, **kwargs)) as iterator:
            for item in iterator:
                items.append(item)
                if len(items) == take:
                    break
        return items

    async def _async_iterate(self, method: str, args: Any, kwargs: Any, take: int | None, options: Any) -> list[Any]:
        items = []
        async with (
            AsyncClient(self.url, **options) as opened,
            aclosing(getattr(opened, method)(*args, **kwargs)) as iterator,
        ):
            async for item in iterator:
                items.append(item)
                if len(items) == take:
                    break
        return items
