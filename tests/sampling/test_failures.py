"""Triton's words and codes for an inner call that fails, of 24.10 and of 26.07, and what the client makes of ours."""

import pytest
from tritonclient.utils import InferenceServerException

from brats_ldm_client import BratsLDMError, ServerError, ServerUnavailable
from brats_ldm_client._error_map import map_error
from mri_ldm.errors import Draining, NetworkFailed, NetworkGone, RequestError
from mri_ldm.failures import failure

NOT_READY = "Failed for execute the inference request. Model 'unet' is not ready."
UNLOADED = "Request for unknown model: 'unet' has no available versions"


def as_client(error: RequestError, code: str) -> BratsLDMError:
    """What the client raises for our answer, on a unary call."""
    raised = InferenceServerException(error.message, f"StatusCode.{code}")
    return map_error(raised, url="host:8001", model="mri_ldm", timeout=7)


@pytest.mark.parametrize(
    ("words", "unavailable", "kind"),
    [
        ("Stub process 'unet_0_0' is not healthy.", False, NetworkGone),  # 24.10
        (NOT_READY, False, NetworkGone),  # 26.01 and newer
        ("Exceeds maximum queue size", True, NetworkGone),  # by its code, 25.04 and newer
        ("Server not ready", False, Draining),  # 24.10
        (UNLOADED, False, Draining),  # 26.07
        (UNLOADED, True, Draining),
    ],
)
def test_what_passes_is_tried_again(words: str, unavailable: bool, kind: type[RequestError]) -> None:
    error = failure("unet", words, unavailable=unavailable, there=True)
    assert type(error) is kind
    mapped = as_client(error, "UNAVAILABLE")
    assert isinstance(mapped, ServerUnavailable)
    assert mapped.retryable, "Triton's own words would sound as if the model had never been loaded"
    assert mapped.retry_after == 5


@pytest.mark.parametrize("words", ["CUDA out of memory", NOT_READY, UNLOADED, "Model unet - unknown model"])
def test_a_network_that_may_be_missing_is_not_worth_a_retry(words: str) -> None:
    error = failure("unet", words, unavailable=False, there=False)
    assert type(error) is NetworkFailed
    assert str(error) == f"model 'unet' has failed: {words}"


@pytest.mark.parametrize(
    "words",
    [
        "expected 5 inputs but got 7 inputs for model 'unet_steps'",
        "unexpected shape for input 'coefficients' for model 'unet_steps'. Expected [-1,5,8], got [1,7,8]",
    ],
)
def test_tensors_that_do_not_fit_say_what_to_do(words: str) -> None:
    error = failure("unet_steps", words, unavailable=False, there=True)
    assert str(error).startswith(f"model 'unet_steps' has failed: {words}; the repository is not of one export")
    assert "`any_steps`" in str(error)


def test_other_errors_are_faults_also_of_a_network_that_worked() -> None:
    error = failure("unet", "CUDA out of memory", unavailable=False, there=True)
    assert type(error) is NetworkFailed
    assert isinstance(as_client(error, "INTERNAL"), ServerError)
