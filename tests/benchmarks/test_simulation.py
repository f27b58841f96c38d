"""The benchmark of mixed requests: the simulation against what is known of queues, and the real thing in small."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.harness.device import Device
from benchmarks.serving.__main__ import main
from benchmarks.serving.simulation import (
    COMPILED,
    MEAN_STEPS,
    OWN,
    Arrival,
    Calls,
    arrivals,
    capacity,
    compare,
    request_level,
    step_level,
    summary,
)

CPU, GPU = Device(0.003, 0.0135, 0.1), Device(0.004, 0.0003, 0.002)


def test_one_request_takes_its_steps() -> None:
    for way in (step_level, request_level):
        assert way([Arrival(1.0, 10)], CPU, 8) == pytest.approx([10 * 0.0165 + 0.1])


def test_whole_requests_one_at_a_time_wait_as_queueing_theory_says() -> None:
    """Pollaczek and Khinchine's mean of a queue with one server, to the noise of 20,000 requests."""
    seconds = {steps: steps * CPU.step(1) + CPU.decode for steps in (10, 25, 50)}
    shares = dict(zip(seconds, (0.4, 0.3, 0.3), strict=True))
    mean, square = (sum(share * seconds[steps] ** power for steps, share in shares.items()) for power in (1, 2))
    rate = 0.6 / mean
    workload = arrivals(20_000, rate, seed=3)
    assert capacity(CPU, 1) == pytest.approx(1 / mean, rel=0.02)
    mean_latency = summary(workload, request_level(workload, CPU, 1))["mean"]
    assert mean_latency == pytest.approx(mean + rate * square / (2 * (1 - 0.6)), rel=0.05)


def test_few_steps_leave_early_and_all_leave_sooner() -> None:
    """What the README claims, of the batcher itself: half the mean at three quarters of the rival's capacity."""
    workload = arrivals(600, 0.75 * capacity(GPU, 8), seed=1)
    ours, rival = summary(workload, step_level(workload, GPU, 64)), summary(workload, request_level(workload, GPU, 8))
    assert ours["mean"] < 0.5 * rival["mean"]
    assert ours["p99"] < 0.6 * rival["p99"]
    assert ours["mean_10_steps"] < 0.3 * ours["mean_50_steps"]
    assert pytest.approx(26.5) == MEAN_STEPS


def test_a_call_of_several_steps_takes_its_time() -> None:
    """Alone: ten steps in calls of four are three calls; an unrolled network computes the two that nobody needs."""
    device = Device(0.003, 0.0135, 0.1, call=0.5)
    for padded, steps in ((False, 10), (True, 12)):
        latencies = step_level([Arrival(1.0, 10)], device, 8, Calls(4, always=True, padded=padded))
        assert latencies == pytest.approx([3 * 0.5 + steps * 0.0165 + 0.1])


def test_the_batcher_chooses_as_many_steps_as_are_good() -> None:
    """At each load nearly as good as the best fixed number for it, in the mean and for whoever waits longest."""
    record = compare(COMPILED, 1000)
    assert record["images_per_s"][OWN] > 0.95 * record["images_per_s"]["1 step"]
    for point in record["latencies"]:
        ways = {name: ways for name, ways in point["ways"].items() if "unrolled" not in name}
        ours = ways.pop(OWN)
        for kind, most in (("mean", 1.1), ("p99", 1.2)):
            assert ours[kind] < most * min(way[kind] for way in ways.values()), (point["load"], kind)


@pytest.mark.slow
def test_the_command_measures_a_real_server(small_repository, tmp_path: Path, capsys) -> None:
    shutil.copytree(small_repository, tmp_path / "work" / "small")
    assert main(["--quick", "--out", str(tmp_path), "--work", str(tmp_path / "work"), "--only", "mixed"]) == 0
    served, *simulated = json.loads((tmp_path / "small-mixed.json").read_text())["result"]["records"]
    assert served["where"] == "tritonserver, this machine"
    assert min(served["step_level"].values()) > 0
    assert {record["where"] for record in simulated} == {"simulated, as this machine", "simulated, as a GPU"}
    printed = capsys.readouterr().out
    assert "| tritonserver, this machine | 8 |" in printed
    assert "| images/s at most |" in printed
