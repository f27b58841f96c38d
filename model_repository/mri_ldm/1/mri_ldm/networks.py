"""The networks as functions: NumPy arrays in and out, one BLS call for a function call, with a timeout."""

import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from .errors import NetworkFailed, NetworkGone
from .failures import failure
from .job_queue import Array
from .preview_decoder import LONGEST_SECONDS
from .settings import TINY_DECODER
from .tracing import Tracer

STATE_OUTPUTS = ("next_latent", "next_estimate", "next_earlier_estimate")


class _Refused(Exception):
    """Triton has refused a call; holds its message, and whether its code was UNAVAILABLE."""

    def __init__(self, words: str, unavailable: bool = False) -> None:
        super().__init__(words)
        self.unavailable = unavailable


class Networks:
    """Calls of `unet`, `unet_steps` and the decoders; a call that takes longer than `timeout` seconds fails.

    crop: pixels cut from each side of a decoded image, which then has image_size pixels a side. tracer: whose trace a
    call belongs to. repository: where the models lie, the networks beside this one. draws: whether `unet_steps` draws
    noise, so that it takes seeds.
    """

    def __init__(
        self, crop: int, image_size: int, timeout: float, tracer: Tracer, repository: Path, draws: bool = False
    ) -> None:
        self._crop, self._tracer, self._draws = crop, tracer, draws
        self._image_shape = (1, image_size, image_size)
        # Images and previews have callers of their own for the small decoder: previews give up sooner.
        self._unet, self._unet_steps, self._decoder, self._tiny_decoder, self._preview_decoder = self._callers = [
            Caller(model, seconds, there=(repository / model).is_dir())
            for model, seconds in (
                ("unet", timeout),
                ("unet_steps", timeout),
                ("vae_decoder", timeout),
                (TINY_DECODER, timeout),
                (TINY_DECODER, LONGEST_SECONDS),
            )
        ]

    def denoise(self, latents: Array, timesteps: NDArray[np.int32], *conditions: Array) -> Array:
        """Predicted noise [n, 1, 64, 64] of latents [n, 1, 64, 64], each at its own timestep [n].

        conditions: [n, 4, 64, 64], for weights that take labels.
        """
        inputs: dict[str, NDArray[Any]] = {"latent": latents, "timesteps": timesteps[:, None]}
        if conditions:
            inputs["condition"] = conditions[0]
        with self._tracer.current() as trace:
            return self._unet.run(lambda: _call("unet", inputs, ["pred"], trace))[0]

    def advance(
        self,
        state: Array,
        timesteps: NDArray[np.int32],
        coefficients: Array,
        seeds: NDArray[np.int64],
        draws: NDArray[np.int32],
        every_estimate: bool,
        *conditions: Array,
    ) -> Array | None:
        """Several steps, as `stepping.CallSteps`."""
        inputs: dict[str, NDArray[Any]] = {
            "latent": state[0],
            "estimate": state[1],
            "earlier_estimate": state[2] if len(state) > 2 else np.zeros_like(state[0]),
            "timesteps": timesteps,
            "coefficients": coefficients,
        }
        if conditions:
            inputs["condition"] = conditions[0]
        if self._draws:
            inputs |= {"seed": seeds[:, None], "draw": draws[:, None]}
        outputs = [*STATE_OUTPUTS[: len(state)], *(["estimates"] if every_estimate else [])]
        with self._tracer.current() as trace:
            answer = self._unet_steps.run(lambda: _call("unet_steps", inputs, outputs, trace))
        for part, array in zip(state, answer, strict=False):
            part[...] = array
        return answer[-1] if every_estimate else None

    def decode(self, latents: Array) -> Array:
        """Images [n, 1, 240, 240] of scaled latents [n, 1, 64, 64]; the padding of training is cut off."""
        return self._decode("vae_decoder", self._decoder, latents)

    def decode_tiny(self, latents: Array) -> Array:
        """The same by the small decoder, which a repository may lack."""
        return self._decode(TINY_DECODER, self._tiny_decoder, latents)

    def decode_preview(self, latents: Array) -> Array:
        """As `decode_tiny`, within LONGEST_SECONDS."""
        return self._decode(TINY_DECODER, self._preview_decoder, latents)

    def _decode(self, model: str, caller: "Caller", latents: Array) -> Array:
        with self._tracer.current() as trace:
            images = caller.run(lambda: _call(model, {"latent": latents}, ["image"], trace))[0]
        crop = self._crop
        images = images[:, :, crop:-crop, crop:-crop] if crop else images
        # The rows of a request share one array, so images of another decoder must not have another size.
        if images.shape != (len(latents), *self._image_shape):
            shapes = f"{list(images.shape)}, not {[len(latents), *self._image_shape]}"
            raise NetworkFailed(
                f"model {model!r} makes images of shape {shapes}: export the repository again", model=model
            )
        return images

    def close(self) -> None:
        """No more calls."""
        for caller in self._callers:
            caller.close()


class Caller:
    """Runs the calls of one network in a separate thread: a call that hangs delays nothing beyond its timeout.

    While a call hangs, further calls fail at once; when it has returned, they work again. there: whether the model is
    known to exist; after its first answer that is known, too. Only one thread may call `run`.
    """

    def __init__(self, model: str, timeout: float, there: bool) -> None:
        self._model, self._timeout = model, timeout
        self._calls: queue.SimpleQueue[Callable[[], list[Array]] | None] = queue.SimpleQueue()
        # No future, which takes three times as long to hand over; and a queue's `get` may outlast its timeout.
        self._answered = threading.Event()
        self._answer: list[Array] | BaseException = []
        self._hangs = False
        self._began = 0.0
        self._there = there
        threading.Thread(target=self._work, name=f"calls of {model}", daemon=True).start()

    def run(self, call: Callable[[], list[Array]]) -> list[Array]:
        """What `call` returns. Raises RequestError: NetworkGone also if this or an earlier call takes too long."""
        if self._hangs:
            self._wait(0)
        self._answered.clear()
        self._began = time.monotonic()
        self._calls.put(call)
        self._wait(self._timeout)
        answer = self._answer
        if isinstance(answer, _Refused):
            raise failure(self._model, str(answer), unavailable=answer.unavailable, there=self._there) from answer
        if isinstance(answer, BaseException):
            raise answer
        self._there = True
        return answer

    def _wait(self, seconds: float) -> None:
        self._hangs = not self._answered.wait(seconds)
        if self._hangs:
            since = time.monotonic() - self._began
            raise NetworkGone(f"model {self._model!r} has not answered for {since:.0f} s", model=self._model)

    def close(self) -> None:
        """End the thread, unless it hangs."""
        self._calls.put(None)

    def _work(self) -> None:
        while call := self._calls.get():
            try:
                self._answer = call()
            except BaseException as error:
                self._answer = error
            self._answered.set()


def _call(model: str, inputs: dict[str, NDArray[Any]], outputs: list[str], trace: Any | None) -> list[Array]:
    request = pb_utils.InferenceRequest(
        model_name=model,
        requested_output_names=outputs,
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
    # Copies: the tensors' memory goes back to the pool with the response.
    return [np.array(pb_utils.get_output_tensor_by_name(response, output).as_numpy()) for output in outputs]


def _is_unavailable(error: Any) -> bool:
    """Whether Triton says that trying again makes sense. Before 25.04 it passes on no code."""
    code = getattr(error, "code", None)
    return code is not None and code() == pb_utils.TritonError.UNAVAILABLE
