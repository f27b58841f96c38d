"""Translates the messages of failed network calls from Triton into our errors. Imports nothing of Triton.

Triton's errors have no token, and some have no code. Only this file of the models knows Triton's messages.
"""

import re

from .errors import Draining, NetworkFailed, NetworkGone, RequestError

# Triton's words for an inner call while the server shuts down, and for one to a dead process: of 24.10, and of newer.
STOPPING, UNLOADED = "Server not ready", "has no available versions"
DIED, NOT_READY = "Stub process '.*' is not healthy", "Model '.*' is not ready"
MISFIT = r"expected \d+ inputs|unexpected (?:inference input|shape)"
"""And for tensors that a model's configuration does not declare."""
MISFIT_HINT = "the repository is not of one export, or `any_steps` is not for this profile: export it again"


def failure(model: str, words: str, *, unavailable: bool, there: bool) -> RequestError:
    """The error for a call that Triton has refused with `words`, and perhaps the code UNAVAILABLE.

    there: whether the model is in the repository, or has answered before. Models are neither loaded nor unloaded while
    a server runs. So such a model has died, or the server is stopping. Any other model may never have existed.
    """
    if re.search(STOPPING, words) or (there and re.search(UNLOADED, words)):
        return Draining("the server is shutting down")
    if unavailable:
        return NetworkGone(f"model {model!r} has failed: {words.rstrip('.')}", model=model)
    if re.search(DIED, words) or (there and re.search(NOT_READY, words)):
        # Not in Triton's words: "is not ready" sounds as if the model had never been loaded.
        return NetworkGone(f"the process of model {model!r} has died", model=model)
    hint = f"; {MISFIT_HINT}" if re.search(MISFIT, words) else ""
    return NetworkFailed(f"model {model!r} has failed: {words}{hint}", model=model)
