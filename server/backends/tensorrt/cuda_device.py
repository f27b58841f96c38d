"""One GPU through the CUDA runtime: memory, one stream, graphs. Knows nothing of TensorRT or Triton.

Experimental: not yet run on a GPU. Nothing is freed: the process ends with the model.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class DeviceError(RuntimeError):
    """A call of the CUDA runtime has failed; the message names it."""


class Device:
    """A GPU and one stream on it; `runtime` is the module cuda.bindings.runtime."""

    def __init__(self, runtime: Any, number: int) -> None:
        self.runtime = runtime
        try:
            count = int(self.call("cudaGetDeviceCount"))
            self.call("cudaSetDevice", number)
        except DeviceError as error:
            raise DeviceError(
                f"no NVIDIA GPU {number} that this driver and CUDA {self._cuda()} can use ({error}); "
                "on a machine without one start the server with --model-config-name=cpu"
            ) from error
        self.capability = "{}.{}".format(
            *(self._attribute(f"cudaDevAttrComputeCapability{part}", number) for part in ("Major", "Minor"))
        )
        self.name = f"GPU {number} of {count}, compute capability {self.capability}"
        self.stream = self.call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)

    def call(self, name: str, *arguments: Any) -> Any:
        """What a function of the CUDA runtime returns. Raises DeviceError with its name and CUDA's reason."""
        status, *values = getattr(self.runtime, name)(*arguments)
        if status != self.runtime.cudaError_t.cudaSuccess:
            reason = self.runtime.cudaGetErrorString(status)[1]
            raise DeviceError(f"{name}: {reason.decode() if isinstance(reason, bytes) else reason}")
        return values[0] if values else None

    def allocate(self, size: int) -> int:
        """The address of `size` bytes on the GPU, aligned to 256."""
        return int(self.call("cudaMalloc", max(size, 1)))

    def pinned(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array of zeros in page-locked memory, which the GPU can copy from and to directly."""
        size = int(np.prod(shape)) * dtype.itemsize
        address = int(self.call("cudaMallocHost", max(size, 1)))
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        array: Array = memory.view(dtype).reshape(shape)
        array[...] = 0
        return array

    def to_gpu(self, address: int, array: Array) -> None:
        """Queue a copy of an array to `address`."""
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self.stream)

    def to_host(self, array: Array, address: int) -> None:
        """Queue a copy from `address` into an array."""
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self.stream)

    def wait(self) -> None:
        """Return when everything queued is done."""
        self.call("cudaStreamSynchronize", self.stream)

    def capture(self, queue: Callable[[], None]) -> Any:
        """What `queue` puts on the stream, as a graph for `replay`; none of it runs now."""
        # Only this thread: another instance of the process may allocate at the same time.
        mode = self.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", self.stream, mode)
        try:
            queue()
        except Exception:
            self.runtime.cudaStreamEndCapture(self.stream)  # or the stream stays in this mode
            self.runtime.cudaGetLastError()  # or the next call would return the error
            raise
        graph = self.call("cudaStreamEndCapture", self.stream)
        executable = self.call("cudaGraphInstantiate", graph, 0)
        self.call("cudaGraphDestroy", graph)
        return executable

    def replay(self, graph: Any) -> None:
        """Queue a captured graph."""
        self.call("cudaGraphLaunch", graph, self.stream)

    def _attribute(self, name: str, number: int) -> int:
        return int(self.call("cudaDeviceGetAttribute", getattr(self.runtime.cudaDeviceAttr, name), number))

    def _cuda(self) -> str:
        version = int(self.call("cudaRuntimeGetVersion"))
        return f"{version // 1000}.{version % 1000 // 10}"
