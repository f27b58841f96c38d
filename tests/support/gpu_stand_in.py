"""Stand-ins for the CUDA runtime and TensorRT, where there is no GPU: the calls that our backend makes, with the
rules that it has to keep. Memory is that of the host; a stream runs at once, and while it captures it runs nothing.
"""

import ctypes
import enum
import json
from types import SimpleNamespace
from typing import Any

import numpy as np

Status = enum.Enum("Status", "cudaSuccess cudaErrorNoDevice cudaErrorStreamCaptureUnsupported")
Call = Any


class Cuda:
    """The functions of cuda.bindings.runtime; each returns a status first."""

    cudaError_t = Status
    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaDeviceAttr = SimpleNamespace(
        cudaDevAttrComputeCapabilityMajor="Major", cudaDevAttrComputeCapabilityMinor="Minor"
    )

    def __init__(self, capability: str = "9.0") -> None:
        self.capability = dict(zip(("Major", "Minor"), map(int, capability.split(".")), strict=True))
        self.memory: dict[int, Any] = {}
        self.captured: list[Call] | None = None
        self.launches = 0

    def queue(self, call: Call) -> tuple[Status]:
        if self.captured is not None:
            self.captured.append(call)
        else:
            call()
        return (Status.cudaSuccess,)

    def _allocate(self, size: int) -> tuple[Any, ...]:
        if self.captured is not None:
            return (Status.cudaErrorStreamCaptureUnsupported, None)
        buffer = ctypes.create_string_buffer(b"\xff" * size, size)  # whatever the memory held before
        self.memory[ctypes.addressof(buffer)] = buffer
        return (Status.cudaSuccess, ctypes.addressof(buffer))

    cudaMalloc = cudaMallocHost = _allocate

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return (Status.cudaSuccess, 1)

    def cudaSetDevice(self, number: int) -> tuple[Status]:
        return (Status.cudaSuccess if number == 0 else Status.cudaErrorNoDevice,)

    def cudaRuntimeGetVersion(self) -> tuple[Any, ...]:
        return (Status.cudaSuccess, 13050)

    def cudaGetErrorString(self, status: Status) -> tuple[Any, ...]:
        return (Status.cudaSuccess, status.name.encode())

    def cudaGetLastError(self) -> tuple[Status]:
        return (Status.cudaSuccess,)

    def cudaDeviceGetAttribute(self, name: str, number: int) -> tuple[Any, ...]:
        return (Status.cudaSuccess, self.capability[name])

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        return (Status.cudaSuccess, 7)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[Status]:
        return self.queue(lambda: ctypes.memmove(to, source, size))

    def cudaStreamSynchronize(self, stream: int) -> tuple[Status]:
        return (Status.cudaErrorStreamCaptureUnsupported if self.captured is not None else Status.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[Status]:
        self.captured = []
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        graph, self.captured = self.captured, None
        return (Status.cudaSuccess, graph)

    def cudaGraphInstantiate(self, graph: list[Call], flags: int) -> tuple[Any, ...]:
        return (Status.cudaSuccess, list(graph))

    def cudaGraphDestroy(self, graph: list[Call]) -> tuple[Status]:
        graph.clear()
        return (Status.cudaSuccess,)

    def cudaGraphLaunch(self, graph: list[Call], stream: int) -> tuple[Status]:
        self.launches += 1
        for call in graph:
            call()
        return (Status.cudaSuccess,)


class Logger:
    Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR INFO")


class Context:
    """Adds timesteps to twice the latent, in float32, at the shapes and addresses that were set.

    A plan may have the output "both", too: the latent, and that.
    """

    def __init__(self, cuda: Cuda, rows: list[int]) -> None:
        self.cuda, self.rows = cuda, rows
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory = 0
        self.runs: list[int] = []

    def set_device_memory(self, address: int, size: int) -> None:
        assert address in self.cuda.memory
        assert size == 1000
        self.memory = address

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return self.rows[0] <= shape[0] <= self.rows[2]

    def execute_async_v3(self, stream: int) -> bool:
        assert self.memory
        assert set(self.addresses) - {"both"} == {"latent", "timesteps", "pred"}
        shapes = dict(self.shapes)
        if self.cuda.captured is not None and shapes["latent"][0] not in self.runs:
            return False  # the first run of a shape sets things up
        self.runs.append(shapes["latent"][0])

        def compute() -> None:
            assert shapes == self.shapes, "the shapes of a captured context have changed"
            latent, timesteps = (self.array(name, shapes[name]) for name in ("latent", "timesteps"))
            pred = self.array("pred", shapes["latent"])
            pred.view(np.float32)[...] = 2 * latent.view(np.float32) + timesteps.view(np.int32)[:, :, None]
            if "both" in self.addresses:
                both = self.array("both", (shapes["latent"][0], 2, *shapes["latent"][1:]))
                both[...] = np.stack([latent, pred], axis=1)

        self.cuda.queue(compute)
        return True

    def array(self, name: str, shape: tuple[int, ...]) -> Any:
        size = 4 * int(np.prod(shape))
        return np.frombuffer((ctypes.c_byte * size).from_address(self.addresses[name]), np.uint32).reshape(shape)


class TensorRT:
    """The module tensorrt: takes plans that `plan` makes, of its own version alone."""

    __name__ = "tensorrt"
    ILogger = Logger
    TensorIOMode = enum.Enum("TensorIOMode", "INPUT OUTPUT")
    ExecutionContextAllocationStrategy = enum.Enum("Strategy", "STATIC USER_MANAGED")

    def __init__(self, cuda: Cuda, version: str = "10.13.2.6") -> None:
        self.cuda, self.__version__ = cuda, version

    def Runtime(self, logger: Any) -> Any:
        def deserialize(plan: bytes) -> Any:
            content = json.loads(plan)
            if content["version"] != self.__version__:
                logger.log(Logger.Severity.ERROR, f"Version tag does not match: {content['version']}")
                return None
            return Engine(self, content["tensors"], content["rows"])

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


class Engine:
    device_memory_size_v2 = 1000

    def __init__(self, trt: TensorRT, tensors: dict[str, Any], rows: list[int]) -> None:
        self.trt, self.tensors, self.rows = trt, tensors, rows
        self.num_io_tensors = len(tensors)
        self.contexts: list[Context] = []

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self.trt.TensorIOMode.OUTPUT if name in OUTPUTS else self.trt.TensorIOMode.INPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.tensors[name][0])

    def get_tensor_shape(self, name: str) -> list[int]:
        return list(self.tensors[name][1])

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        assert profile == 0
        assert name not in OUTPUTS
        return [[rows, *self.tensors[name][1][1:]] for rows in self.rows]

    def create_execution_context(self, strategy: Any) -> Context:
        assert strategy is self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self.contexts.append(Context(self.trt.cuda, self.rows))
        return self.contexts[-1]


OUTPUTS = ("pred", "both")
TENSORS = {"latent": ("FLOAT", [-1, 4, 4]), "timesteps": ("INT32", [-1, 1]), "pred": ("FLOAT", [-1, 4, 4])}


def plan(version: str = "10.13.2.6", rows: tuple[int, int, int] = (1, 8, 64), **tensors: Any) -> bytes:
    """A plan for `TensorRT`."""
    return json.dumps({"version": version, "rows": rows, "tensors": TENSORS | tensors}).encode()


def feeds(rows: int) -> dict[str, Any]:
    """Inputs of such a plan, different for each number of rows."""
    rng = np.random.default_rng(rows)
    latent = rng.standard_normal((rows, 4, 4)).astype(np.float32)
    return {"latent": latent, "timesteps": rng.integers(0, 1000, (rows, 1)).astype(np.int32)}


def expected(given: dict[str, Any]) -> Any:
    """Its output "pred" for them."""
    return 2 * given["latent"] + given["timesteps"][:, :, None].astype(np.float32)


class Request:
    """A request as the stub hands it over."""

    def __init__(self, rows: int, *outputs: str) -> None:
        self.given, self.outputs = feeds(rows), outputs

    def inputs(self) -> list[Any]:
        return [SimpleNamespace(name=lambda n=n: n, as_numpy=lambda a=a: a) for n, a in self.given.items()]

    def requested_output_names(self) -> tuple[str, ...]:
        return self.outputs
