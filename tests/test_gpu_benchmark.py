"""`make gpu` and its kit, where there is no GPU: the whole run on tiny networks, its table, what the kit packs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import kit
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.table import write_table
from common import ROOT, run_python
from training.checkpoint import save_snapshot


def test_the_whole_benchmark_runs_on_a_cpu(tmp_path: Path) -> None:
    assert main(["--cpu", "--out", str(tmp_path)]) == 0
    records = {path.stem: json.loads(path.read_text())["result"] for path in tmp_path.glob("*.json")}
    assert set(records) == {"small-programs", "small-served-torch", "small-pytorch"}
    assert set(records["small-programs"]["channels_last"]["unet"]["call_ms"]) == {"1", "2"}
    served = records["small-served-torch"]
    for values in (served["network_ms"]["vae_decoder"], served["image_ms"], served["throughput"]):
        assert all(value > 0 for value in values.values())
    step = served["step"]["2"]
    assert 2 <= step["calls"] <= 4  # two rows, two steps: the batcher takes both at once, or what it finds quicker
    assert min(step["step_ms"], step["network_ms"]) > 0
    assert step["overhead_ms"] == pytest.approx(step["step_ms"] - step["network_ms"])
    assert served["parity"]["latent_relative_l2"] < 1e-3
    assert "| UNet, ms |" in (tmp_path / "table.md").read_text()


def test_a_section_that_fails_is_recorded_and_the_others_run(tmp_path: Path, capsys) -> None:
    absent = str(tmp_path / "absent")
    assert main(["--cpu", "--weights", "demo", "--snapshot", absent, "--out", str(tmp_path)]) == 1
    assert "these sections failed: demo-programs, demo-served-torch, demo-pytorch" in capsys.readouterr().err
    errors = [json.loads(path.read_text())["error"] for path in tmp_path.glob("*.json")]
    assert len(errors) == 3
    assert all("snapshot.json does not exist" in error for error in errors)
    assert "Not measured: programs (CheckpointError" in (tmp_path / "table.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_gpu_the_real_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="torch sees no GPU here"):
        main(["--out", str(tmp_path)])


def test_help_is_quick() -> None:
    assert run_python("-X", "importtime", "-m", "benchmarks.gpu", "--help").stderr.count("torch") == 0


def test_table_has_the_rows_of_the_bundles_table(tmp_path: Path) -> None:
    machine = {"gpu": "A GPU", "driver": "1", "torch": "2", "date": "2000-01-01"}
    times = {"unet_ms": {"1": 30.0, "64": 50.0}, "autoencoder_ms": 18.0, "image_ms": 1400.0}
    programs = {"channels_last": {"unet": {"call_ms": {"1": 2.5}}, "vae_decoder": {"call_ms": {"1": 3.5}}}}
    for name, result in (("bundle-pytorch", {"tf32": times, "amp": times}), ("bundle-programs", programs)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"machine": machine, "result": result}))
    lines = write_table(tmp_path).read_text().splitlines()
    assert "|  | torch tf32 | torch amp | profile torch |" in lines
    assert "| UNet, ms | 30.00 | 30.00 | 2.50 |" in lines
    assert "| end to end, ms | 1400.00 | 1400.00 |  |" in lines
    assert "| ms by batch | 1 | 64 |" in lines


def test_kit_takes_the_code_and_leaves_weights_and_pictures(tmp_path: Path) -> None:
    kit.copy_code(tmp_path)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {"export/to_torch.py", "server/backends/torch_export/model.py", "tests/conftest.py"} <= files
    assert "model_repository/unet/configs/torch.pbtxt" in files
    assert os.readlink(tmp_path / "model_repository/mri_ldm_stream/1") == "../mri_ldm/1"
    assert not [name for name in files if name.endswith((".onnx", ".png", ".pyc"))]


def test_kit_needs_a_python_that_the_server_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(kit, "WHEEL_PYTHONS", ((3, 1), (3, 2)))
    assert kit.main(["--python", sys.executable, "--folder", str(tmp_path / "kit")]) == 1
    assert "the server runs models with 3.1 to 3.2" in capsys.readouterr().err


def test_kits_python_runs_where_it_was_not_installed(tmp_path: Path) -> None:
    """Copied, and found through nothing but LD_LIBRARY_PATH, as `run` starts it."""
    minor, base = kit.describe(Path(sys.executable))
    kit.copy_python(base, minor, tmp_path)
    environment = {"LD_LIBRARY_PATH": str(tmp_path / "lib")}
    code = "import ctypes, json, lzma, sys, zlib; print(sys.prefix)"
    command = [str(tmp_path / "bin" / "python3"), "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path)
    assert not (tmp_path / "lib" / f"python{minor}" / "test").exists()


def test_a_snapshot_travels_with_the_kit_as_it_is(small_snapshot, tmp_path: Path) -> None:
    save_snapshot(small_snapshot, tmp_path / "snapshot")
    kit.copy_snapshot(tmp_path / "snapshot", tmp_path / "checkout")
    copied = tmp_path / "checkout" / "runs" / "demo" / "diffusion" / "snapshot"
    assert {path.name for path in copied.iterdir()} == {path.name for path in (tmp_path / "snapshot").iterdir()}
    assert (ROOT / "benchmarks" / "gpu" / "run_kit.sh").stat().st_mode & 0o111
