"""Health check of a server: it generates the image of seed 0 in one step, and the image is that of the first check.

That is the health check of this project, here and in deploy/container.py and `brats-ldm ready --deep` (docs/errors.md).
Uses only the network, no knowledge of processes.
"""

from __future__ import annotations

import hashlib
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from server.channel import EVERYBODY, connect
from server.errors import ServerError
from server.ports import endpoint
from server.security import Access

if TYPE_CHECKING:
    import numpy as np
    import tritonclient.grpc as triton

SHAPE = (1, 1, 240, 240)
# Half precision differs by 1e-3 between the kernels of two batch sizes; a network that is missing, by far more.
TOLERANCE = 1e-2
BUSY = "[BUSY"
"""How the models' errors begin that say so: docs/errors.md."""
DECODERS = {"full": "vae_decoder", "tiny": "vae_decoder_tiny"}
"""The network of each value of the input `decoder`."""
NETWORKS = ("unet", "unet_steps", *DECODERS.values())


class Busy(ServerError):
    """The server has no room for the one-step generation, or is late with it while its networks answer other calls.

    So it is alive, but the image was not checked.
    """


@dataclass(frozen=True)
class Health:
    """The image of seed 0 in one step, and the seconds it took.

    checksum: SHA-256 of its little-endian float32 values, what `brats-ldm ready --deep` prints.
    """

    image: np.ndarray[Any, Any]
    seconds: float

    @property
    def checksum(self) -> str:
        return "sha256:" + hashlib.sha256(self.image.astype("<f4").tobytes()).hexdigest()

    def check_same(self, known: Health, *, bitwise: bool) -> None:
        """Raise ServerError if this is not the known image.

        On the CPU profile an image depends on nothing but the weights and the request, bit for bit. A GPU may take
        another kernel when other rows share the call, so there it must be the same within TOLERANCE of its norm.
        """
        import numpy as np

        if bitwise and self.checksum != known.checksum:
            raise ServerError(f"the one-step generation gave {self.checksum}, and at the start {known.checksum}")
        difference = float(np.linalg.norm(self.image - known.image) / max(float(np.linalg.norm(known.image)), 1e-12))
        if not difference <= TOLERANCE:
            raise ServerError(f"the one-step generation differs by {difference:.2g} of its norm from that at the start")


def probe(grpc_url: str, timeout_s: float = 60.0, access: Access = EVERYBODY) -> Health:
    """Generate one slice in one step and check it. Raises ServerError, or Busy if other requests delay it.

    Triton calls a model ready although models that it calls are dead or missing; only an answer proves it.
    """
    import numpy as np
    import tritonclient.grpc as triton

    seed, steps = triton.InferInput("seed", [1, 1], "INT64"), triton.InferInput("steps", [1, 1], "INT32")
    seed.set_data_from_numpy(np.zeros((1, 1), np.int64))
    steps.set_data_from_numpy(np.ones((1, 1), np.int32))
    outputs = [triton.InferRequestedOutput("image")]
    started = time.monotonic()
    with connect(grpc_url, access) as client:
        calls = network_calls(client, access)
        try:
            result = client.infer(
                "mri_ldm", [seed, steps], outputs=outputs, client_timeout=timeout_s, headers=dict(access.headers)
            )
        except triton.InferenceServerException as error:
            late = error.status() == "StatusCode.DEADLINE_EXCEEDED"
            busy = network_calls(client, access) > calls if late else str(error.message()).startswith(BUSY)
            raise (Busy if busy else ServerError)(f"the one-step generation failed: {error}") from error
    image = result.as_numpy("image")
    if image is None or image.shape != SHAPE or not np.isfinite(image).all():
        got = "nothing" if image is None else f"shape {image.shape}, finite: {bool(np.isfinite(image).all())}"
        raise ServerError(f"the one-step generation gave no finite image of shape {SHAPE} but {got}")
    return Health(image, time.monotonic() - started)


def network_calls(client: triton.InferenceServerClient, access: Access) -> int:
    """Calls that the networks have answered since the server started; 0 if the server does not say."""
    import tritonclient.grpc as triton

    try:
        models = client.get_inference_statistics(headers=dict(access.headers), client_timeout=5).model_stats
    except triton.InferenceServerException:
        return 0
    return sum(int(model.execution_count) for model in models if model.name in NETWORKS)


def ready_name(host: str, port: int, access: Access = EVERYBODY) -> str | None:
    """The name of the Triton server at that address, if it is ready; otherwise None."""
    # A TCP connect first: a gRPC channel that was refused waits longer and longer before it tries again.
    if not listening(host, port):
        return None
    import tritonclient.grpc as triton

    with connect(endpoint(host, port), access) as client:
        try:
            if client.is_server_ready(client_timeout=5):
                return str(client.get_server_metadata(client_timeout=5, headers=dict(access.headers)).name)
        except triton.InferenceServerException:
            pass
    return None


def listening(host: str, port: int) -> bool:
    """Whether a process accepts connections at that address."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True
