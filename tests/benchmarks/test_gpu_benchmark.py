"""`make gpu` and its kit, where there is no GPU: the whole run on tiny networks, its table, what the kit packs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.harness.sections import recorded, run_sections
from benchmarks.serving import __main__ as serving
from benchmarks.serving.gpu import kit, timetable
from benchmarks.serving.gpu.served import served
from benchmarks.serving.gpu.setup import Setup
from benchmarks.tables.serving import write_table
from support.common import ROOT, run_python


def main(arguments: list[str]) -> int:
    return serving.main(["--device", "gpu", *arguments])


@pytest.mark.slow
def test_the_whole_benchmark_runs_on_a_cpu(tmp_path: Path) -> None:
    assert main(["--quick", "--out", str(tmp_path)]) == 0
    records = {path.stem.removeprefix("gpu-"): json.loads(path.read_text()) for path in tmp_path.glob("gpu-*.json")}
    results = {name: record["result"] for name, record in records.items()}
    served, programs = results["small-served-torch"], results["small-programs"]
    # What the timetable says of a GPU is what is measured, in its order; on a CPU there is one arithmetic.
    assert list(served) == list(timetable.PARTS["served-torch"])
    assert list(programs) == list(timetable.PARTS["programs"])
    assert set(results.pop("small-pytorch")) == {"fp32"}
    assert results.keys() == {"small-served-torch", "small-programs"}
    assert all(record["seconds_each"].keys() == record["result"].keys() for record in records.values())
    assert set(programs["channels_last"]["unet"]["call_ms"]) == {"1", "2"}
    assert all(values["relative_l2"] < 5e-5 for networks in programs.values() for values in networks.values())
    for values in (served["network_ms"]["vae_decoder"], served["image_ms"], served["throughput"]):
        assert all(value > 0 for value in values.values())
    # With several steps a call where the repository has unet_steps: one, two, and as many as the batcher likes.
    by_steps = served["steps_a_call"]
    assert set(by_steps) in ({"own"}, {"1", "2", "own"})
    for name, figures in by_steps.items():
        assert figures["image_ms"]["p50"] > 0
        step = figures["step"]["2"]
        assert step["rows"] == 2
        assert 1 <= step["calls"] <= 4  # two rows, two steps: the batcher takes both at once, or what it finds quicker
        assert step["steps_a_call"] == {"1": 1, "2": 2}.get(name, step["steps_a_call"])
        assert min(step["step_ms"], step["network_ms"]) > 0
        assert step["overhead_ms"] == pytest.approx(step["step_ms"] - step["network_ms"])
    assert served["poisson"]["requests"] == 2
    assert served["poisson"]["p99"] > 0
    assert served["parity"]["latent_relative_l2"] < 1e-3
    table = (tmp_path / "table.md").read_text()
    assert "| UNet, ms |" in table
    assert "a step of 2 rows" in table
    assert "None of these are figures of a GPU" in table
    assert "Not measured" not in table


def test_sections_that_fail_are_recorded_and_the_others_run(tmp_path: Path, capsys) -> None:
    absent = str(tmp_path / "absent")
    assert main(["--quick", "--weights", "demo", "--snapshot", absent, "--out", str(tmp_path)]) == 1
    assert (
        "these sections failed: gpu-demo-served-torch, gpu-demo-pytorch, gpu-demo-programs" in capsys.readouterr().err
    )
    errors = [json.loads(path.read_text())["error"] for path in tmp_path.glob("*.json")]
    assert len(errors) == 3
    assert all("snapshot.json does not exist" in error for error in errors)
    assert "Not measured to the end: programs (CheckpointError" in (tmp_path / "table.md").read_text()


def test_nothing_begins_after_its_time(tmp_path: Path) -> None:
    assert main(["--quick", "--minutes", "0", "--out", str(tmp_path)]) == 1
    errors = [json.loads(path.read_text())["error"] for path in tmp_path.glob("*.json")]
    assert len(errors) == 3
    assert all("give more with --minutes" in error for error in errors)


def test_figures_are_on_disk_before_the_next_is_measured(tmp_path: Path) -> None:
    """Whoever stops a run, in whatever way, keeps all figures but the one under way."""
    seen = []

    def figures():
        yield "first", {"ms": 1.0}
        seen.append(json.loads((tmp_path / "bundle-pytorch.json").read_text()))
        yield "second", {"ms": 2.0}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sections([("bundle-pytorch", figures)], tmp_path, dict, lambda: seen.append("written"))
    (path,) = tmp_path.iterdir()
    assert seen[0] == seen[2] == "written"
    assert seen[1]["result"] == {"first": {"ms": 1.0}}
    record = json.loads(path.read_text())
    assert record["result"] == {"first": {"ms": 1.0}, "second": {"ms": 2.0}}
    assert record["error"] == "stopped before its end"
    assert not recorded(path)
    run_sections([("bundle-pytorch", lambda: {"whole": 1})], tmp_path, dict, lambda: None)
    assert recorded(path)


@pytest.mark.slow
def test_wrong_trained_weights_fail_after_all_figures_are_there(
    small_snapshot, torch_repository, tmp_path: Path
) -> None:
    few = {"batches": (1, 2), "steps": 2, "steps_a_call": (1, 2), "images": 2, "requests": 2, "repeats": 1}
    cpu = {"device": torch.device("cpu"), "precision": "fp32", "deadline": time.monotonic() + 600}
    setup = Setup(**few, **cpu, work=tmp_path, demo_snapshot=tmp_path)
    unet = {name: 1.1 * tensor for name, tensor in small_snapshot.unet.items()}
    other = replace(small_snapshot, unet=unet)
    figures = served(setup, other, lambda: torch_repository, "torch", trained=True)
    run_sections([("demo-served-torch", lambda: figures)], tmp_path / "out", dict, lambda: None)
    record = json.loads((tmp_path / "out" / "demo-served-torch.json").read_text())
    assert "served latents differ from fp32 by more than they may" in record["error"]
    assert list(record["result"]) == list(timetable.SERVED)
    assert record["result"]["parity"]["latent_relative_l2"] > 1e-3


def test_the_plan_has_the_headline_first_and_fits_the_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dry-run"]) == 0
    *lines, end, limit, kit_line = capsys.readouterr().out.splitlines()
    order = [line.split(maxsplit=2)[2] for line in lines[2:]]
    assert order[:4] == [f"bundle-served-torch: {part}" for part in ("export_s", "start_s", "image_ms", "throughput")]
    sections = list(dict.fromkeys(line.partition(":")[0] for line in order))
    torch_alone = [name for name in sections if "tensorrt" not in name]
    headline = ["bundle-served-torch", "bundle-pytorch", "bundle-served-compiled"]
    assert torch_alone == [*headline, "demo-served-torch", "bundle-programs", "tests"]
    starts, takes = zip(*(map(int, line.split()[:2]) for line in lines[1:]), strict=True)
    assert [start + seconds for start, seconds in zip(starts, takes, strict=True)] == [*starts[1:], int(end.split()[0])]
    seconds = {name: sum(timetable.PARTS[timetable.kind(name)].values()) for name in torch_alone}
    assert timetable.START_S + sum(seconds[name] for name in headline) < 540
    # In a second command of what is left: both, with the start of a machine, within a quarter of an hour.
    assert 2 * timetable.START_S + sum(seconds.values()) < 15 * 60 - 100
    assert "nothing new begins after 540 (--minutes 9)" in limit
    assert kit_line.startswith("kit: ")
    assert "at most 44 MB" in kit_line


def test_a_part_of_the_plan_is_run_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dry-run", "--only", "demo-served-torch", "bundle-programs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[2].rstrip(":") for line in lines[2:-3]} == {"demo-served-torch", "bundle-programs"}
    with pytest.raises(SystemExit, match="2"):
        main(["--dry-run", "--only", "nothing"])
    assert "no section nothing here, but bundle-served-torch, " in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_gpu_the_real_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="torch sees no GPU here"):
        main(["--out", str(tmp_path)])


@pytest.mark.parametrize("arguments", [["--help"], ["--device", "gpu", "--dry-run"]])
def test_help_is_quick(arguments: list[str]) -> None:
    done = run_python("-X", "importtime", "-m", "benchmarks.serving", *arguments)
    assert done.returncode == 0
    assert done.stderr.count("torch") == 0


def test_table_has_the_rows_of_the_bundles_table(tmp_path: Path) -> None:
    machine = {"gpu": "A GPU", "driver": "1", "versions": {"torch": "2"}, "date": "2000-01-01"}
    times = {"unet_ms": {"1": 30.0, "64": 50.0}, "autoencoder_ms": 18.0, "image_ms": 1400.0}
    programs = {
        "channels_last": {
            "unet": {"call_ms": {"1": 2.5}, "relative_l2": 1e-3},
            "vae_decoder": {"call_ms": {"1": 3.5}, "relative_l2": 2e-3},
        }
    }
    for name, result in (("gpu-bundle-pytorch", {"tf32": times, "amp": times}), ("gpu-bundle-programs", programs)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"machine": machine, "result": result}))
    lines = write_table(tmp_path).read_text().splitlines()
    assert "|  | torch tf32 | torch amp | profile torch |" in lines
    assert "| UNet, ms | 30.00 | 30.00 | 2.50 |" in lines
    assert "| end to end, ms | 1400.00 | 1400.00 |  |" in lines
    assert "| ms by batch | 1 | 64 |" in lines


def test_kit_needs_a_python_that_the_server_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(kit, "WHEEL_PYTHONS", ((3, 1), (3, 2)))
    assert kit.main(["--python", sys.executable, "--archive", str(tmp_path / "kit")]) == 1
    assert "the server runs models with 3.1 to 3.2" in capsys.readouterr().err


def test_kit_needs_the_headers_of_its_python(tmp_path: Path, capsys) -> None:
    """A Python without them, as distributions install it: a prefix with a library and nothing else."""
    minor = "{}.{}".format(*sys.version_info[:2])
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / f"libpython{minor}.so.1.0").touch()
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho {minor}\necho {tmp_path}\n")
    python.chmod(0o755)
    assert kit.main(["--python", str(python), "--archive", str(tmp_path / "kit")]) == 1
    assert "has no Python.h, which torch.compile needs" in capsys.readouterr().err


@pytest.fixture(scope="module")
def bare_kit(tmp_path_factory) -> Path:
    """A kit without packages."""
    minor, base = kit.describe(Path(sys.executable))
    folder = tmp_path_factory.mktemp("kit")
    kit.copy_python(base, minor, folder / "python")
    (folder / "python" / "lib" / f"python{minor}" / "site-packages").mkdir()
    shutil.copy2(ROOT / "benchmarks" / "serving" / "gpu" / "run_kit.sh", folder / "run")
    return folder


def test_kits_python_runs_where_it_was_not_installed(bare_kit: Path) -> None:
    """Copied, and found through nothing but LD_LIBRARY_PATH, as `run` starts it; with its own headers."""
    environment = {"LD_LIBRARY_PATH": str(bare_kit / "python" / "lib")}
    code = "import ctypes, json, lzma, sys, sysconfig, zlib; print(sys.prefix); print(sysconfig.get_path('include'))"
    command = [str(bare_kit / "python" / "bin" / "python3"), "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    prefix, include = map(Path, done.stdout.splitlines())
    assert prefix == bare_kit / "python"
    assert include.is_relative_to(prefix)
    assert (include / "Python.h").is_file()
    assert (include / "pyconfig.h").is_file()
    assert not list((prefix / "lib").glob("python3.*/test"))


@pytest.mark.slow
def test_run_measures_the_checkout_it_is_called_in(bare_kit: Path, tmp_path: Path) -> None:
    environment = os.environ | {"TORCH_SITE": str(Path(torch.__file__).parents[1])}

    def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(bare_kit / "run"), *arguments]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    done = run(ROOT, "--dry-run")
    assert "bundle-served-torch: image_ms" in done.stdout, done.stderr
    failed = run(ROOT, "--quick", "--minutes", "0", "--out", str(tmp_path / "figures"))
    assert "these sections failed" in failed.stderr
    assert (tmp_path / "figures" / "table.md").is_file()
    environment["TORCH_SITE"] = str(tmp_path)
    assert "no torch for Python 3." in run(ROOT, "--dry-run").stderr
    elsewhere = run(tmp_path, "--dry-run")
    assert (elsewhere.returncode, elsewhere.stdout) == (1, "")
    assert elsewhere.stderr == f"error: {tmp_path} is no checkout of this project: call {bare_kit}/run in one\n"
