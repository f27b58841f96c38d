"""The two networks as functions: NumPy arrays in and out, one BLS call each, each bounded in time."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from .failures import RESTART_HINT, NetworkGone, failure
from .line import Array
from .tracing import Tracer


class _Refused(Exception):
    """What Triton said of a call, and whether its code was UNAVAILABLE."""

    def __init__(self, words: str, unavailable: bool = False) -> None:
        super().__init__(words)
        self.unavailable = unavailable


class Networks:
    """Calls of `unet` and `vae_decoder`; one that takes longer than `timeout` seconds is given up.

    crop: pixels cut from each side of a decoded image. tracer: whose trace a call belongs to. repository: where the
    models lie, the networks beside this one.
    """

    def __init__(self, crop: int, timeout: float, tracer: Tracer, repository: Path) -> None:
        self._crop, self._tracer = crop, tracer
        self._unet, self._decoder = (
            Caller(model, timeout, there=(repository / model).is_dir()) for model in ("unet", "vae_decoder")
        )

    def denoise(self, latents: Array, timesteps: NDArray[np.int32]) -> Array:
        """Predicted noise [n, 1, 64, 64] of latents [n, 1, 64, 64], each at its own timestep [n]."""
        inputs = {"latent": latents, "timesteps": timesteps[:, None]}
        with self._tracer.current() as trace:
            return self._unet.run(lambda: _call("unet", inputs, "pred", trace))

    def decode(self, latents: Array) -> Array:
        """Images [n, 1, 240, 240] of scaled latents [n, 1, 64, 64]; the padding of training is cut off."""
        with self._tracer.current() as trace:
            images = self._decoder.run(lambda: _call("vae_decoder", {"latent": latents}, "image", trace))
        crop = self._crop
        return images[:, :, crop:-crop, crop:-crop] if crop else images

    def close(self) -> None:
        """No more calls."""
        self._unet.close()
        self._decoder.close()


class Caller:
    """Runs the calls of one network in a thread of its own: a call that hangs holds nothing up beyond its timeout.

    While it hangs, further calls fail at once; when it has come back, they work again. there: whether the model is
    known to be there; it is, too, once it has answered.
    """

    def __init__(self, model: str, timeout: float, there: bool) -> None:
        self._model, self._timeout = model, timeout
        self._calls: queue.SimpleQueue[tuple[Future[Array], Callable[[], Array]] | None] = queue.SimpleQueue()
        self._last: Future[Array] | None = None
        self._began = 0.0
        self._there = there
        threading.Thread(target=self._work, name=f"calls of {model}", daemon=True).start()

    def run(self, call: Callable[[], Array]) -> Array:
        """What `call` returns. Raises NetworkError, NetworkGone also where it takes too long or an earlier one does."""
        future = self._last
        if future is None or future.done():
            future = self._last = Future()
            self._began = time.monotonic()
            self._calls.put((future, call))
            wait([future], self._timeout)
        if not future.done():
            seconds = time.monotonic() - self._began
            raise NetworkGone(f"model {self._model!r} has not answered for {seconds:.0f} s: {RESTART_HINT}")
        try:
            answer = future.result()
        except _Refused as refused:
            words, there = str(refused), self._there
            raise failure(self._model, words, unavailable=refused.unavailable, there=there) from refused
        self._there = True
        return answer

    def close(self) -> None:
        """End the thread, unless it hangs."""
        self._calls.put(None)

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call = item
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)


def _call(model: str, inputs: dict[str, NDArray[Any]], output: str, trace: Any | None) -> Array:
    request = pb_utils.InferenceRequest(
        model_name=model,
        requested_output_names=[output],
        inputs=[pb_utils.Tensor(name, array) for name, array in inputs.items()],
        # A GPU model would leave its output there, where NumPy cannot read it.
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        **({"trace": trace} if trace is not None else {}),
    )
    try:
        response = request.exec()
    except pb_utils.TritonModelException as error:
        raise _Refused(str(error)) from error
    if response.has_error():
        raise _Refused(response.error().message(), _is_unavailable(response.error()))
    # A copy: the tensor's memory goes back to the pool with the response.
    return np.array(pb_utils.get_output_tensor_by_name(response, output).as_numpy())


def _is_unavailable(error: Any) -> bool:
    """Whether Triton itself says that trying again makes sense. Before 25.04 it passes no code on."""
    code = getattr(error, "code", None)
    return code is not None and code() == pb_utils.TritonError.UNAVAILABLE
