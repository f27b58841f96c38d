"""The errors of a call of a network, and which of Triton's messages means which. Imports nothing of Triton."""

import re

# Triton's words for an inner call while the server shuts down, and for one to a dead process: of 24.10, and of newer.
STOPPING, UNLOADED = "Server not ready", "has no available versions"
DIED, NOT_READY = "Stub process '.*' is not healthy", "Model '.*' is not ready"
MISFIT = r"expected \d+ inputs|unexpected (?:inference input|shape)"
"""And for tensors that a model's configuration does not declare."""
RESTART_HINT = "try again in about 5 s"
"""Longer than most restarts of a server take on a CPU; a GPU's takes some tries."""
MISFIT_HINT = "the repository is not of one export, or `any_steps` is not for this profile: export it again"


class NetworkError(Exception):
    """A call of a network has failed; the message names the model."""


class NetworkGone(NetworkError):
    """The model's process has died, or it does not answer or has no room: a later try may work, after a restart."""


class ServerStopping(NetworkGone):
    """The server refuses inner calls because it is shutting down; another server may answer the same request."""


def failure(model: str, words: str, *, unavailable: bool, there: bool) -> NetworkError:
    """What it means that Triton has refused a call with `words`, and perhaps the code UNAVAILABLE.

    there: whether the model is in the repository, or has answered. Models are neither loaded nor unloaded while a
    server runs, so such a one has died or goes with the server; any other may never have been there.
    """
    if re.search(STOPPING, words) or (there and re.search(UNLOADED, words)):
        return ServerStopping(f"the server is shutting down: {RESTART_HINT}")
    if unavailable:
        return NetworkGone(f"model {model!r} has failed: {words.rstrip('.')}: {RESTART_HINT}")
    if re.search(DIED, words) or (there and re.search(NOT_READY, words)):
        # Not in Triton's words: "is not ready" sounds as if the model had never been loaded.
        return NetworkGone(f"the process of model {model!r} has died: {RESTART_HINT}")
    hint = f"; {MISFIT_HINT}" if re.search(MISFIT, words) else ""
    return NetworkError(f"model {model!r} has failed: {words}{hint}")
