"""An answer that finds no shared memory is known before it is sent, and says what to do."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from tritonclient.utils import serialize_byte_tensor

from mri_ldm import shared_memory
from mri_ldm.shared_memory import NoRoom, check_fits, size_of, surely_fits

IMAGES = 64 * 240 * 240 * 4


@pytest.mark.parametrize(("pool", "left", "fits"), [(0, 16e6, True), (16e6, 0, True), (9e6, 9e6, False)])
def test_an_answer_must_fit_in_one_piece(monkeypatch: pytest.MonkeyPatch, pool: float, left: float, fits: bool) -> None:
    stub = SimpleNamespace(shared_memory=SimpleNamespace(free_memory=lambda: int(pool)))
    monkeypatch.setitem(sys.modules, "c_python_backend_utils", stub)
    monkeypatch.setattr(shared_memory, "_left", lambda: int(left))
    assert not surely_fits(IMAGES)
    if fits:
        check_fits(IMAGES)
    else:
        with pytest.raises(NoRoom, match=r"^it has 14\.7 MB, and 9\.0 MB of shared memory are left"):
            check_fits(IMAGES)


def test_the_size_of_an_answer_is_that_of_its_text_too() -> None:
    """As Triton lays it out in memory: the length of each string in four bytes, then the string."""
    texts = np.array([[b"x" * 20_000], [b""]], dtype=np.object_)
    assert size_of(texts) == len(serialize_byte_tensor(texts).item())
    assert size_of(np.zeros((2, 1, 240, 240), np.float32)) == 2 * 240 * 240 * 4


def test_a_server_that_does_not_say_what_its_pool_has_is_left_to_find_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "c_python_backend_utils", raising=False)
    check_fits(2**60)
    assert not surely_fits(2**60)
    assert surely_fits(0) == (shared_memory._left() >= shared_memory.MARGIN)
