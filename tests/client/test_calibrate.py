"""The model of time: recovered from times that follow it, and fitted to a real server."""

import numpy as np
import pytest

from brats_ldm_client import Client
from brats_ldm_client._calibrate import ROWS, STEPS, Calibration, calibrate, describe, fit
from brats_ldm_client._cli import main

TRUE = Calibration(request=0.01, step_base=0.004, step_row=0.013, decode=0.05, worst=0.0)


def measured(of: Calibration, noise: float = 0.0) -> list[tuple[int, int, float]]:
    draw = np.random.default_rng(0)
    return [
        (rows, steps, of.predict(rows, steps, rows) * (1 + noise * draw.standard_normal()))
        for rows in ROWS
        for steps in STEPS
    ]


def test_a_server_that_follows_the_model_is_recovered() -> None:
    found = fit(measured(TRUE))
    for name in ("request", "step_base", "step_row", "decode"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=1e-6)
    assert found.worst < 1e-9


def test_noise_moves_a_prediction_as_little_as_itself_and_no_part_is_negative() -> None:
    flat = Calibration(request=0.0, step_base=0.0, step_row=0.013, decode=0.05, worst=0.0)
    for true in (TRUE, flat):
        found = fit(measured(true, noise=0.02))
        assert min(found.request, found.step_base, found.step_row, found.decode) >= 0
        assert found.predict(1000, 50) == pytest.approx(true.predict(1000, 50), rel=0.05)


def test_a_prediction_counts_waves_of_rows() -> None:
    """Ten images four at once: three times through all steps."""
    assert TRUE.predict(10, 50, 4) == pytest.approx(0.01 + 3 * 50 * 0.004 + 10 * (50 * 0.013 + 0.05))


def test_what_is_shown() -> None:
    text = describe(TRUE, 50, 32, [1, 1_000_000])
    assert "step       4.0 ms + 13.0 ms a row" in text
    assert "1 image " in text
    assert "days" in text.splitlines()[-1]


def test_a_model_with_four_unknowns_needs_two_of_each() -> None:
    with pytest.raises(ValueError, match="two different numbers of rows"):
        calibrate(Client("127.0.0.1:1"), rows=(1,), steps=(1, 2))


def test_the_command_on_a_real_server(small_server, capsys) -> None:
    assert main(["calibrate", "--url", small_server.grpc_url, "-n", "1000", "--steps", "20"]) == 0
    shown = capsys.readouterr()
    assert len(shown.err.splitlines()) == 1 + len(ROWS) * len(STEPS)
    assert "20 steps, 32 images at once:" in shown.out
    assert "1,000 images" in shown.out
