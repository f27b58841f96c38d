"""The model of time: recovered from times that follow it, and fitted to a real server."""

import json
from dataclasses import replace

import numpy as np
import pytest

from brats_ldm_client import Client, InvalidRequest
from brats_ldm_client._calibrate import REPEATS, ROWS, STEPS, Calibration, as_json, calibrate, describe, fit
from brats_ldm_client._cli import main
from brats_ldm_client.testing import FakeTransport

pytestmark = pytest.mark.slow

TRUE = Calibration(request=0.01, step_base=0.004, step_row=0.013, decode=0.05, worst=0.0)


def measured(of: Calibration, noise: float = 0.0) -> list[tuple[int, int, float]]:
    draw = np.random.default_rng(0)
    return [
        (rows, steps, of.predict(rows, steps, rows) * (1 + noise * draw.standard_normal()))
        for rows in ROWS
        for steps in STEPS
    ]


def test_a_decoder_is_that_of_all_timed_requests() -> None:
    transport = FakeTransport()
    with Client(transport=transport) as client:
        calibrate(client, rows=(1, 2), steps=(1, 2), repeats=1, decoder="tiny")
        assert {request.decoder for request in transport.requests} == {"tiny"}
        calibrate(client, rows=(1, 2), steps=(1, 2), repeats=1)
    assert transport.requests[-1].decoder == "full"


def test_a_server_that_follows_the_model_is_recovered() -> None:
    model = fit(measured(TRUE))
    for name in ("request", "step_base", "step_row", "decode"):
        assert getattr(model, name) == pytest.approx(getattr(TRUE, name), rel=1e-6)
    assert model.worst < 1e-9


def test_noise_moves_a_prediction_as_little_as_itself_and_no_part_is_negative() -> None:
    flat = Calibration(request=0.0, step_base=0.0, step_row=0.013, decode=0.05, worst=0.0)
    for true in (TRUE, flat):
        model = fit(measured(true, noise=0.02))
        assert min(model.request, model.step_base, model.step_row, model.decode) >= 0
        assert model.predict(1000, 50) == pytest.approx(true.predict(1000, 50), rel=0.05)


def test_a_prediction_counts_waves_of_rows() -> None:
    """Ten images four at once: three times through all steps."""
    assert TRUE.predict(10, 50, 4) == pytest.approx(0.01 + 3 * 50 * 0.004 + 10 * (50 * 0.013 + 0.05))


def test_steps_are_computed_in_whole_calls() -> None:
    """Of a network of five steps, seven cost as ten; what a call costs beside its steps is in `step_base`."""
    true = replace(TRUE, steps_per_call=5)
    assert true.predict(2, 7, 2) == TRUE.predict(2, 10, 2)
    assert true.predict(2, 10, 2) == TRUE.predict(2, 10, 2)
    calls = [(rows, steps, true.predict(rows, steps, rows)) for rows in ROWS for steps in (3, 7, 22)]
    model = fit(calls, steps_per_call=5)
    assert model.worst < 1e-9
    assert model.predict(100, 48) == pytest.approx(true.predict(100, 48))
    assert fit(calls).worst > 0.01
    assert "whole calls of 5 steps" in describe(true, 50, 32, [1])
    with pytest.raises(InvalidRequest, match="as many calls"):
        calibrate(Client("127.0.0.1:1"), steps=(5, 25), steps_per_call=50)


@pytest.mark.parametrize("numbers", [(0, 50, 32), (1, 0, 32), (1, 50, 0)])
def test_nothing_is_predicted_for_no_images(numbers) -> None:
    with pytest.raises(InvalidRequest, match="start at 1"):
        TRUE.predict(*numbers)


def test_what_is_shown() -> None:
    text = describe(TRUE, 50, 32, [1, 1_000_000])
    assert "step       4.0 ms + 13.0 ms a row" in text
    assert "1 image " in text
    assert "days" in text.splitlines()[-1]
    assert "calibrate again" not in text
    assert "calibrate again" in describe(replace(TRUE, spread=0.5), 50, 32, [1])
    output = json.loads(as_json(TRUE, 50, 32, [1, 100]))
    assert Calibration(**output["model"]) == TRUE
    assert output["predictions"][1] == {"images": 100, "seconds": pytest.approx(TRUE.predict(100, 50, 32))}


@pytest.mark.parametrize(("rows", "steps"), [((1,), (1, 2)), ((1, 2), (5, 5)), ((0, 1), (1, 2))])
def test_a_model_with_four_unknowns_needs_two_of_each(rows, steps) -> None:
    with pytest.raises(InvalidRequest, match="two different numbers of rows"):
        calibrate(Client("127.0.0.1:1"), rows=rows, steps=steps)


def test_requests_are_sent_round_by_round_and_the_spread_is_told(client) -> None:
    order = []
    calibration = calibrate(
        client, (1, 2), (1, 3), 2, lambda rows, steps, seconds: order.append((rows, steps, seconds))
    )
    assert [call[:2] for call in order] == 2 * [(1, 1), (1, 3), (2, 1), (2, 3)]
    first, second = ([call[2] for call in order][:4], [call[2] for call in order][4:])
    apart = [2 * abs(a - b) / (a + b) for a, b in zip(first, second, strict=True)]
    assert calibration.spread == pytest.approx(max(apart))


def test_the_command_on_a_real_server(small_server, capsys) -> None:
    assert main(["calibrate", "--url", small_server.grpc_url, "-n", "1000", "--steps", "20", "--rows", "1", "3"]) == 0
    shown = capsys.readouterr()
    assert len(shown.err.splitlines()) == 1 + 2 * len(STEPS) * REPEATS
    assert "predicted, not run: 20 steps, 32 images at once" in shown.out
    assert "1,000 images" in shown.out


def test_the_command_prints_json_and_refuses_in_a_line(small_server, capsys) -> None:
    command = ["calibrate", "--url", small_server.grpc_url, "--json", "--rows", "1", "2", "--at-once", "8"]
    assert main(command) == 0
    output = json.loads(capsys.readouterr().out)
    assert [prediction["images"] for prediction in output["predictions"]] == [1, 10, 100, 10_000, 1_000_000]
    assert output["rows_in_flight"] == 8
    assert main(["calibrate", "--url", small_server.grpc_url, "--rows", "1", "65"]) == 1
    assert "rows_per_request must be from 1 to 64" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["calibrate", "-n", "0"])
    assert "argument -n: '0' is not a whole number from 1 on" in capsys.readouterr().err
