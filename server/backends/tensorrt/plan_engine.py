"""A TensorRT plan that runs batches on a GPU, padded to the sizes of CUDA graphs. Knows nothing of Triton.

Experimental: not yet run on a GPU. The tensors of a plan must have a dynamic batch axis in front, and no
other dynamic axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cuda_device import Array, Device, DeviceError

DTYPES: dict[str, np.dtype[Any]] = {
    "FLOAT": np.dtype(np.float32),
    "HALF": np.dtype(np.float16),
    "INT64": np.dtype(np.int64),
    "INT32": np.dtype(np.int32),
    "INT8": np.dtype(np.int8),
    "UINT8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


class PlanError(ValueError):
    """A plan that this TensorRT does not accept, or that fails."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a plan; shape is that of one row, min_rows and max_rows the batches of its profile 0."""

    name: str
    is_input: bool
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    min_rows: int
    max_rows: int


def deserialize(trt: Any, plan: bytes) -> Any:
    """The engine in `plan`; `trt` is the module tensorrt or tensorrt_rtx. Raises PlanError with TensorRT's reasons."""
    errors: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                errors.append(message)

    runtime = trt.Runtime(Logger())
    # Version compatible plans carry code; a repository with Python models is trusted anyway.
    runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise PlanError(f"{trt.__name__} {trt.__version__} does not take the plan: {' / '.join(errors) or 'no reason'}")
    return engine


def describe(trt: Any, engine: Any) -> list[TensorInfo]:
    """The tensors of an engine. Raises PlanError if this backend cannot run one of them."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = {name: engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
    profiles = [engine.get_tensor_profile_shape(name, 0) for name in names if inputs[name]]
    low, high = max(profile[0][0] for profile in profiles), min(profile[2][0] for profile in profiles)
    tensors = []
    for name in names:
        shape, dtype = tuple(engine.get_tensor_shape(name)), engine.get_tensor_dtype(name).name
        if dtype not in DTYPES or shape[:1] != (-1,) or -1 in shape[1:]:
            raise PlanError(
                f"tensor {name!r} is {dtype} {list(shape)}; needed are {sorted(DTYPES)} with a dynamic first axis alone"
            )
        tensors.append(TensorInfo(name, inputs[name], DTYPES[dtype], shape[1:], int(low), int(high)))
    return tensors


class Engine:
    """Runs one engine; each call is one batch, padded to the next size in `sizes` that holds it.

    sizes: rows of a CUDA graph -> the fewest rows that run in it; other batches run without padding.
    warn: called with a message about sizes that could not be captured; they run without a graph.
    """

    def __init__(
        self, trt: Any, engine: Any, device: Device, sizes: Mapping[int, int], warn: Callable[[str], None]
    ) -> None:
        self.trt, self.engine, self.device, self.sizes = trt, engine, device, dict(sorted(sizes.items()))
        self.tensors = describe(trt, engine)
        self.name = "a plan"
        rows = self.tensors[0].max_rows
        self.host = {t.name: device.pinned((rows, *t.shape), t.dtype) for t in self.tensors}
        self.addresses = {name: device.allocate(array.nbytes) for name, array in self.host.items()}
        # One memory for the activations of all contexts: they take turns on one stream.
        self.memory = (device.allocate(engine.device_memory_size_v2), engine.device_memory_size_v2)
        # TensorRT-RTX compiles kernels when a shape first comes, and captures by itself at the right moment.
        self.captures_itself = hasattr(trt, "CudaGraphStrategy")
        self.context = self._context(self._self_capturing() if self.captures_itself else None)
        self.graphs: dict[int, Any] = {}
        self.contexts: list[Any] = []
        for size in list(self.sizes) if not self.captures_itself else ():
            try:
                self._capture(size)
            except (DeviceError, PlanError) as error:
                del self.sizes[size]
                warn(f"no CUDA graph for {size} rows, they run without one: {error}")

    def run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs [n, ...] by name of inputs [n, ...] by name, n rows within the plan's profile.

        Raises:
            PlanError: the rows are too few or too many.
            DeviceError: the GPU has failed.
        """
        rows, first = len(next(iter(feeds.values()))), self.tensors[0]
        if not first.min_rows <= rows <= first.max_rows:
            raise PlanError(f"{rows} rows; the plan takes {first.min_rows} to {first.max_rows}")
        padded = self.padded(rows)
        for name, array in feeds.items():
            self.host[name][:rows] = array
        if padded in self.graphs:
            self.device.replay(self.graphs[padded])
        else:
            self._set_shapes(self.context, padded)
            self._queue(self.context, padded)
        self.device.wait()
        # Copies: the next batch writes here.
        return {name: self.host[name][:rows].copy() for name in names}

    def padded(self, rows: int) -> int:
        """The batch size in which `rows` rows run. Spare rows hold old values, which no other row reads."""
        return next((size for size, fewest in self.sizes.items() if fewest <= rows <= size), rows)

    def _queue(self, context: Any, rows: int) -> None:
        for tensor in self.tensors:
            if tensor.is_input:
                self.device.to_gpu(self.addresses[tensor.name], self.host[tensor.name][:rows])
        if not context.execute_async_v3(int(self.device.stream)):
            raise PlanError(f"TensorRT could not run {rows} rows; its log says why")
        for tensor in self.tensors:
            if not tensor.is_input:
                self.device.to_host(self.host[tensor.name][:rows], self.addresses[tensor.name])

    def _capture(self, rows: int) -> None:
        # A context of its own: a graph is undefined once the shapes of its context have changed.
        context = self._context()
        self._set_shapes(context, rows)
        self._queue(context, rows)  # TensorRT sets things up in a first run, which may not be captured
        self.device.wait()
        self.graphs[rows] = self.device.capture(lambda: self._queue(context, rows))
        self.contexts.append(context)

    def _context(self, how: Any = None) -> Any:
        """An execution context on our memory; `how` is a runtime configuration of TensorRT-RTX."""
        strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if how is not None:
            how.set_execution_context_allocation_strategy(strategy)
        context = self.engine.create_execution_context(strategy if how is None else how)
        if context is None:
            raise PlanError("TensorRT could not make an execution context; its log says why")
        context.set_device_memory(*self.memory)
        for name, address in self.addresses.items():
            if not context.set_tensor_address(name, address):
                raise PlanError(f"TensorRT takes no address for tensor {name!r}")
        return context

    def _self_capturing(self) -> Any:
        how = self.engine.create_runtime_config()
        how.cuda_graph_strategy = self.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        # Not lazily in the background, or the first replays would be of slower kernels.
        how.dynamic_shapes_kernel_specialization_strategy = self.trt.DynamicShapesKernelSpecializationStrategy.EAGER
        return how

    def _set_shapes(self, context: Any, rows: int) -> None:
        for tensor in self.tensors:
            if tensor.is_input and not context.set_input_shape(tensor.name, (rows, *tensor.shape)):
                raise PlanError(f"TensorRT takes no shape {(rows, *tensor.shape)} for input {tensor.name!r}")
