"""What README and benchmarks say against the code: the bundle's fields and our flags, the table of measured times."""

import importlib
import json
import re

import pytest

from benchmarks.figures.__main__ import read
from benchmarks.serving.names import OURS, few_steps
from export.__main__ import main as export
from support.common import ROOT, run_python, tracked

TABLE = (ROOT / "README.md").read_text().split("## From the MONAI bundle to here")[1].split("\n## ")[0]
# Top-level fields of the bundle's configurations, version 1.1.2, that a user may want to set, and two of its trainers.
# Left out are those that are made from others, such as `dnetwork` and `output_dir`'s `create_output_dir`.
FIELDS = """
    amp autoencoder_def bundle_root channel ckpt_dir d_train_steps dataset_dir device discriminator_def image_channels
    infer_batch_size_img infer_batch_size_slice infer_patch_size latent_channels latent_shape load_autoencoder_path
    load_diffusion_path lr lr_scheduler model_dir network_def noise noise_scheduler output_dir output_filename
    output_postfix perceptual_loss_def perceptual_loss_model_weights_path preprocessing_transforms pretrained
    scale_factor set_determinism set_timesteps spatial_dims tf_dir train_batch_size_img train_batch_size_slice
    train_patch_size
"""
VERBS = ("training.train_autoencoder", "training.train_diffusion", "training.reconstruct", "training.sample")


def test_each_field_of_the_bundle_has_a_row() -> None:
    rows = [line.split(" | ")[0] for line in TABLE.splitlines() if line.startswith("| ")]
    named = set(re.findall(r"`(?:--)?(\w+)[` ]", " ".join(rows)))
    assert not set(FIELDS.split()) - named


def test_each_flag_in_the_rows_exists(capsys) -> None:
    flags = set(re.findall(r"--[a-z][\w.-]+", " ".join(re.findall(r" \| (.*) \|", TABLE))))
    flags -= {"--standalone", "--nproc-per-node", "--logdir"}  # torchrun's and TensorBoard's
    flags = {flag for flag in flags if not flag.endswith("-training.")}  # `--diffusion-training.…`
    assert len(flags) > 20
    for verb in VERBS:
        with pytest.raises(SystemExit, match="0"):
            importlib.import_module(verb).main(["--help"])
    for command in ("from-monai", "repository"):
        with pytest.raises(SystemExit, match="0"):
            export([command, "--help"])
    shown = set(re.findall(r"--[a-z][\w.-]+", capsys.readouterr().out))
    assert flags <= shown


def test_the_table_of_training_times_is_the_recorded_run() -> None:
    """And the command above it makes as many iterations as the text says."""
    text = (ROOT / "benchmarks" / "README.md").read_text()
    for row in json.loads((ROOT / "benchmarks" / "training_speed.json").read_text())["rows"]:
        cells = rf"\| {row['config']} \| [^|]* \| {row['batch']} \| ([\d.]+) \| ([\d.]+) GB \|"
        found = [(float(seconds), float(memory)) for seconds, memory in re.findall(cells, text)]
        # Three digits of a time, one decimal of a memory; with half a unit more for a tie.
        wanted = (pytest.approx(row["seconds"], rel=0.01), pytest.approx(row["peak_gb"], abs=0.051))
        assert any(pair == wanted for pair in found), row
    assert "edian of three iterations" in text
    shown = " ".join(run_python("-m", "benchmarks.training_speed", "--help").stdout.split())
    assert "timed iterations a case (default: 3)" in shown


def recorded(scenario: str) -> dict:
    return read(f"serving/bundle-{scenario}")["result"]


def test_how_fast_tells_what_was_measured() -> None:
    """The first number that a row's second column has, beside the record of its run."""
    section = (ROOT / "README.md").read_text().split("## How fast")[1].split("\n## ")[0]
    rows = [row.strip("| ").split(" | ") for row in section.splitlines() if row.startswith("| ")]
    told = {target: re.search(r"\d+\.\d+", reached) for target, reached, _ in rows}

    single, offline = recorded("single")["contestants"], recorded("offline")["contestants"]
    one, many = (recorded("layers")["concurrent"][count]["gRPC unary"]["tax"]["median"] for count in ("1", "16"))
    wanted = {
        "2.2 times": single[OURS]["faster_than_baseline"]["median"],
        "gRPC at most 1.03": one,
        "at most 1.05": many,
        "20 steps": single[OURS]["median"] / single[few_steps(20)]["median"],
        "eight images": offline[OURS]["faster_than_baseline"]["median"],
        "start": recorded("start")["ready_s"]["median"],
    }
    for start, value in wanted.items():
        (figure,) = (figure for target, figure in told.items() if target.startswith(start))
        assert figure is not None, start
        assert float(figure[0]) == pytest.approx(value, abs=0.051 if start == "start" else 0.0051), start


def test_what_is_where_leaves_nothing_out() -> None:
    """Folders at the top, pages of docs, and the verbs of training and export."""
    section = (ROOT / "README.md").read_text().split("## What is where")[1].split("\n## ")[0]
    rows = {row.split(" | ")[0].strip("| "): row for row in section.splitlines() if row.startswith("| ")}
    paths = [path.relative_to(ROOT) for path in tracked()]
    folders = {f"`{path.parts[0]}/`" for path in paths if len(path.parts) > 1 and not path.parts[0].startswith(".")}
    pages = {f"[{path.stem}]({path})" for path in paths if path.match("docs/*.md")}
    assert set(rows) - {"folder", "page"} == folders - {"`docs/`"} | pages
    for path in paths:
        if path.parts[0] in ("training", "export") and path.suffix == ".py" and "if __name__" in path.read_text():
            assert path.stem == "__main__" or re.search(rf"\b{path.stem}\b", rows[f"`{path.parts[0]}/`"]), path
