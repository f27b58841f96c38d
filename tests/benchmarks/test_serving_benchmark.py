"""`make bench` in small: the whole harness on tiny networks against a real server, and the parts that judge others."""

from __future__ import annotations

import json
import shutil
import time
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness.timing import compare, in_turns
from benchmarks.serving.__main__ import SCENARIOS, main
from benchmarks.serving.analyzer.drive import another_image, expecting
from benchmarks.serving.analyzer.fetch import LIBRARIES, FetchError, fetch
from benchmarks.serving.contestants import gate, openvino_in_bf16
from benchmarks.serving.names import BASELINE, OURS, by_preset
from benchmarks.serving.presets import operations
from benchmarks.serving.scenarios import same_bits
from benchmarks.serving.simulation import arrivals
from benchmarks.tables.serving import write_table
from brats_ldm_client import PRESETS
from export.configs import parse_config
from support.common import ROOT, run_python
from training.checkpoint import Snapshot

pytestmark = pytest.mark.slow


def test_the_rivals_make_the_same_images_and_are_timed(small_repository: Path, tmp_path: Path) -> None:
    """Each kind of contestant, but what takes long to start or to compile."""
    slow = ["bf16", "compile", "openvino", "LitServe"]
    shutil.copytree(small_repository, tmp_path / "work" / "small")
    folders = ["--out", str(tmp_path), "--work", str(tmp_path / "work")]
    assert main(["--quick", *folders, "--only", "single", "layers", "start", "--without", *slow]) == 0
    records = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    result = records["small-single"]["result"]
    timed, remarks = result["contestants"], result["told"]
    assert not [name for name in remarks if "left_out" in remarks[name]]
    few = f"{OURS}, 4 steps of DPM-Solver++"
    assert set(timed) == {BASELINE, "diffusers' DDIM, fused attention", "Triton, loop in execute()", OURS, few}
    assert timed[BASELINE]["faster_than_baseline"]["median"] == 1
    assert remarks[OURS]["relative_error"] < 1e-3
    for name in timed:
        assert timed[name]["n"] == (2 if name.startswith(OURS) else 1)
    layers = records["small-layers"]["result"]
    assert layers["same_bits"] == ["engine in process", "gRPC unary", "gRPC stream", "HTTP"]
    assert set(layers["concurrent"]) == {"1", "4"}
    start = records["small-start"]["result"]
    assert start["first_image_s"]["median"] > start["ready_s"]["median"] > 0
    assert start["memory_mb"]["loaded"]["tritonserver"]["peak"] > 10
    assert records["small-start"]["machine"]["load"]
    table = (tmp_path / "table.md").read_text()
    assert all(title in table for title in ("### One image", "### Layers", "### Start and memory"))
    assert (tmp_path / "small.png").stat().st_size > 1000


def test_presets_are_timed_beside_the_loop_with_their_operations(
    small_repository: Path, tiny_snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop takes part with its own steps; a preset's operations are its steps of the UNet and its decoder."""
    monkeypatch.setattr("benchmarks.serving.presets.load_weights", lambda *_: tiny_snapshot)  # those of the repository
    shutil.copytree(small_repository, tmp_path / "work" / "small")
    folders = ["--out", str(tmp_path), "--work", str(tmp_path / "work")]
    assert main(["--quick", *folders, "--only", "presets", "--without", "bf16"]) == 0
    result = json.loads((tmp_path / "small-presets.json").read_text())["result"]
    timed = [name for name in PRESETS if name != "reference"]
    assert set(result["contestants"]) == {BASELINE, *(by_preset(OURS, name) for name in timed)}
    assert {values["n"] for values in result["contestants"].values()} == {1}
    assert "### One image by preset" in (tmp_path / "table.md").read_text()
    counts = result["gflop"]
    assert counts["standard"]["unet"] / 50 == pytest.approx(counts["fast"]["unet"] / PRESETS["fast"].steps)
    assert counts["fast"]["decoder"] == counts["standard"]["decoder"] < counts[BASELINE]["decoder"]


def test_operations_of_an_image_are_those_of_its_steps_and_its_decoder(tiny_snapshot) -> None:
    """Counted once more, by hand: the tiny decoder of 8 channels and one block works at 64 x 64."""
    counts = operations(tiny_snapshot, 10)
    assert set(counts) == {BASELINE, *(name for name in PRESETS if name != "reference")}
    for how in counts.values():
        assert how["image"] == how["unet"] + how["decoder"]
    weights = 9 * (1 * 8 + 8 * 8 + 8 * 8 + 8 * 16)
    assert counts["draft"]["decoder"] == pytest.approx(2 * weights * 64 * 64 / 1e9)
    draft, fast = PRESETS["draft"].steps, PRESETS["fast"].steps
    assert counts["draft"]["unet"] / draft == pytest.approx(counts["fast"]["unet"] / fast)


# --- what judges


def test_turns_are_taken_in_rounds_and_end_with_the_budget() -> None:
    order: list[str] = []

    def contestant(name: str, seconds: float) -> None:
        order.append(name)
        time.sleep(seconds)

    calls = {name: (lambda name=name, s=s: contestant(name, s)) for name, s in (("a", 0.0), ("b", 0.02), ("c", 0.0))}
    times = in_turns(calls, 3, budget_s=0.01)
    assert [sorted(order[:3]), sorted(order[3:5]), sorted(order[5:])] == [["a", "b", "c"], ["a", "c"], ["a", "c"]]
    assert [len(times[name]) for name in "abc"] == [3, 1, 3]  # b has used its budget up
    order.clear()
    in_turns({name: (lambda name=name: contestant(name, 0.0)) for name in "abc"}, 40)
    followed = {(one, other) for one, other in pairwise(order) if one != other}
    assert followed == set(permutations("abc", 2))  # nobody always follows the same one


def test_ratios_are_taken_within_rounds_and_show_how_far_those_are_apart() -> None:
    result = compare({"base": [2.0, 4.0, 3.0], "fast": [1.0, 1.0, 3.0]}, "base")
    assert result["fast"]["faster_than_baseline"] == {"median": 2.0, "min": 1.0, "max": 4.0}
    assert (result["base"]["median"], result["base"]["min"], result["base"]["n"]) == (3.0, 2.0, 3)


def test_few_requests_come_at_the_rate_and_in_the_mix_that_the_table_names() -> None:
    workload = arrivals(30, rate=2.0, seed=5)
    assert [sum(arrival.steps == steps for arrival in workload) for steps in (10, 25, 50)] == [12, 9, 9]
    assert 0 < workload[0].seconds < workload[-1].seconds < 15
    assert {arrival.steps for arrival in workload[:12]} == {10, 25, 50}


@pytest.mark.parametrize("networks", [("unet", "vae_decoder"), ("vae_decoder",)])
def test_bf16_is_switched_on_in_a_copy(networks: tuple[str, ...], small_repository: Path, tmp_path: Path) -> None:
    copy = openvino_in_bf16(small_repository, tmp_path / "bf16", networks)
    for network in ("unet", "vae_decoder"):
        before, after = (
            dict(parse_config(folder / network / "configs" / "openvino.pbtxt").parameters)
            for folder in (small_repository, copy)
        )
        if network in networks:
            assert after.pop("HINT_BF16").string_value == "YES"
        assert after == before


def test_the_committed_table_shows_the_committed_figures(tmp_path: Path) -> None:
    folder = ROOT / "benchmarks" / "serving"
    for path in folder.glob("*.json"):
        shutil.copy(path, tmp_path)
    assert write_table(tmp_path).read_text() == (folder / "table.md").read_text()


def test_who_makes_other_images_is_not_timed() -> None:
    images = np.ones((2, 240, 240))
    assert gate(images * 1.0005, images, "fp32") == pytest.approx(5e-4)
    with pytest.raises(ValueError, match=r"differ from the baseline's by 2\.0e-03"):
        gate(images * 1.002, images, "fp32")
    with pytest.raises(ValueError, match=r"by 1\.0e-06 .* alone: they were not made in bf16"):
        gate(images * 1.000001, images, "bf16")
    with pytest.raises(ValueError, match="by nan"):
        gate(images * np.nan, images, "bf16")
    with pytest.raises(ValueError, match="by 'a' and by 'b' differ"):
        same_bits({"a": images, "b": images + 1e-9})


# --- perf_analyzer


def test_perf_analyzer_gets_images_exactly() -> None:
    images = np.random.default_rng(0).standard_normal((2, 1, 240, 240)).astype(np.float32)
    answers = {"image": images, "provenance": np.array([[b'{"seed": 3}'], [b'{"seed": 4}']], np.object_)}
    data = json.loads(json.dumps(expecting([3, 4], 10, answers)))
    assert data["data"] == [{"seed": [3], "steps": [10]}, {"seed": [4], "steps": [10]}]
    for image, entry in zip(images, data["validation_data"], strict=True):
        assert np.array_equal(np.array(entry["image"]["content"], np.float32).reshape(1, 240, 240), image)
        assert entry["image"]["shape"] == [1, 240, 240]
    assert data["validation_data"][1]["provenance"] == {"content": ['{"seed": 4}'], "shape": [1]}
    other = another_image(answers)
    assert (other["image"] != images).sum(axis=(1, 2, 3)).tolist() == [1, 1]
    assert np.abs(other["image"] - images).max() < 1e-6
    assert other["provenance"] is answers["provenance"]


def test_perf_analyzer_compares_bits(small_repository: Path, perf_analyzer: Path, tmp_path: Path) -> None:
    """It has to refuse an image with one other bit before its figures count; those are of every request."""
    shutil.copytree(small_repository, tmp_path / "work" / "small")
    shutil.copytree(perf_analyzer, tmp_path / "work" / "perf_analyzer")
    folders = ["--out", str(tmp_path), "--work", str(tmp_path / "work")]
    assert main(["--quick", *folders, "--only", "perf_analyzer"]) == 0
    (point,) = json.loads((tmp_path / "small-perf_analyzer.json").read_text())["result"]["points"]
    assert point["requests"] == len(point["seconds"]) == 6
    assert point["mean_batch"].keys() == {"unet", "vae_decoder"}
    assert "Request count: 6\n" in (tmp_path / "small-perf_analyzer.txt").read_text()
    assert "### perf_analyzer" in (tmp_path / "table.md").read_text()


def test_what_cannot_be_fetched_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(FetchError, match=r"pip download .* failed: .* put the file at .*perf_analyzer by hand"):
        fetch(tmp_path)
    (tmp_path / "perf_analyzer").write_text("#!/bin/sh\necho no such library >&2; exit 127\n")
    (tmp_path / "perf_analyzer").chmod(0o755)
    for library in LIBRARIES:
        (tmp_path / library).touch()
    with pytest.raises(FetchError, match=r"(?s)does not run here: .*no such library"):  # after words of the loader
        fetch(tmp_path)


def test_help_names_the_scenarios_and_is_quick() -> None:
    done = run_python("-X", "importtime", "-m", "benchmarks.serving", "--help")
    assert all(name in done.stdout for name in SCENARIOS)
    assert "torch" not in done.stderr
    assert "onnxruntime" not in done.stderr
