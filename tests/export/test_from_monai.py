"""Weights trained with MONAI as a snapshot: every command that takes our snapshots takes it, stage 2 above all.

The files are those of `test_monai_weights`, written by the classes of older versions.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from export.__main__ import main
from export.graphs import UNET, VAE_DECODER, random_inputs
from export.monai.weights import BUNDLE_FILES, bundle_files, load_monai
from support.common import ROOT
from training import reconstruct, sample, train_diffusion
from training.checkpoint import Snapshot, load_snapshot, save_snapshot
from training.config import load_config
from training.evaluation.features import extract, load_extractor

LEGACY = ROOT / "tests" / "data" / "monai_generative_0.2.2"
CONFIG = ROOT / "tests" / "data" / "monai_small.toml"
SMALL = load_config(str(CONFIG))
AUTOENCODER_FILE, UNET_FILE = (str(LEGACY / name) for name in BUNDLE_FILES.values())


def written(*arguments: object, config: Path = CONFIG) -> Snapshot:
    """The snapshot that the command writes; `--out` is the last argument."""
    assert main(["from-monai", *map(str, arguments[:-1]), "--config", str(config), "--out", str(arguments[-1])]) == 0
    return load_snapshot(Path(str(arguments[-1])))


def same_weights(one: Snapshot, other: Snapshot) -> bool:
    assert one.unet is not None
    assert other.unet is not None
    pairs = ((one.autoencoder, other.autoencoder), (one.unet, other.unet))
    return all(a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in pairs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The snapshot folder of both networks."""
    folder = tmp_path_factory.mktemp("monai") / "snapshot"
    written("--autoencoder", AUTOENCODER_FILE, "--unet", UNET_FILE, "--scale-factor", 0.6, folder)
    return folder


def test_files_and_a_bundle_folder_become_the_same_snapshot(whole: Path, tmp_path: Path) -> None:
    snapshot = load_snapshot(whole)
    assert same_weights(snapshot, load_monai(bundle_files(LEGACY), SMALL, 0.6))
    assert (snapshot.config, snapshot.scale_factor) == (SMALL, 0.6)
    assert {stage: record["monai"]["file"] for stage, record in snapshot.history.items()} == {
        "autoencoder": "model_autoencoder.pt",
        "diffusion": "model.pt",
    }
    assert snapshot.history["diffusion"]["monai"]["scale_factor"] == "given"
    written(LEGACY, "--scale-factor", 0.6, tmp_path / "bundle")
    assert (tmp_path / "bundle" / "snapshot.json").read_bytes() == (whole / "snapshot.json").read_bytes()


def test_to_monai_and_back_gives_the_same_images(whole: Path, tmp_path: Path) -> None:
    """The scale factor is in the weights by then, so the images agree and the tensors do not."""
    assert main(["to-monai", str(whole), "--out", str(tmp_path), "--layout", "monai-1.4"]) == 0
    first, again = load_snapshot(whole), written(tmp_path, "--scale-factor", 1, tmp_path / "again")
    assert not same_weights(first, again)
    latent, timesteps = random_inputs(UNET, rows=1, seed=6)
    with torch.no_grad():
        for network, inputs in ((VAE_DECODER, (latent,)), (UNET, (latent, timesteps))):
            expected, actual = (network.build(part).eval()(*inputs) for part in (first, again))
            assert expected.std() > 0.01
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.slow
def test_stage_2_starts_from_an_autoencoder_that_monai_trained(tiny, small_data, tmp_path: Path, capsys) -> None:
    """A bundle folder after the bundle's stage 1: it has no UNet yet, and needs no scale factor."""
    (tmp_path / "bundle" / "models").mkdir(parents=True)
    shutil.copy(AUTOENCODER_FILE, tmp_path / "bundle" / "models")
    (tmp_path / "small.toml").write_text(
        CONFIG.read_text() + "\n[data]\nsize = 32\ndepth = 4\n"
    )  # stage 2 must see the same
    stage1 = written(tmp_path / "bundle", tmp_path / "snapshot", config=tmp_path / "small.toml")
    assert "training.train_diffusion --autoencoder" in capsys.readouterr().out
    assert (stage1.unet, stage1.scale_factor, list(stage1.history)) == (None, None, ["autoencoder"])

    config = replace(tiny, diffusion_training=replace(tiny.diffusion_training, epochs=1))
    trained = load_snapshot(train_diffusion.train(config, tmp_path / "snapshot", small_data, tmp_path / "run"))
    assert trained.config == train_diffusion.with_autoencoder_of(stage1.config, config)
    assert trained.config.autoencoder == SMALL.autoencoder != config.autoencoder
    assert all(torch.equal(trained.autoencoder[key], tensor) for key, tensor in stage1.autoencoder.items())
    assert trained.history["autoencoder"]["monai"]["layout"] == "monai-generative"
    assert trained.history["diffusion"]["iterations"] == 1
    assert trained.scale_factor is not None


@pytest.mark.slow
def test_the_other_verbs_take_it(whole: Path, phantom, tmp_path: Path) -> None:
    command = ["--data", str(phantom), "--section", "training", "--volumes", "1", "--slices-per-volume", "1"]
    assert reconstruct.main(["--snapshot", str(whole), *command, "--out", str(tmp_path / "reconstruction")]) == 0
    assert len(json.loads((tmp_path / "reconstruction" / "reconstruction.json").read_text())["slices"]) == 1
    assert sample.main(["--snapshot", str(whole), "-n", "1", "--steps", "2", "--out", str(tmp_path / "samples")]) == 0
    assert Image.open(next((tmp_path / "samples").glob("*seed*.png"))).size == (240, 240)
    extractor, _ = load_extractor(whole, torch.device("cpu"))
    images = np.random.default_rng(0).random((2, 32, 32), np.float32)
    assert extract(extractor, images, torch.device("cpu"), "").shape == (2, SMALL.autoencoder.channels[-1])


def test_what_is_wrong_is_one_line_and_nothing_is_written(small_snapshot, tmp_path: Path, capsys) -> None:
    (tmp_path / "empty" / "models").mkdir(parents=True)
    save_snapshot(small_snapshot, tmp_path / "snapshot")
    small = ["--config", CONFIG]
    wrong: list[tuple[list[object], str]] = [
        ([LEGACY, *small], "give --scale-factor"),
        ([LEGACY, "--scale-factor", 1], "does not fit"),  # the bundle's own networks, where no configuration is named
        (["--autoencoder", AUTOENCODER_FILE, "--scale-factor", 1, *small], "without a UNet"),
        (["--autoencoder", UNET_FILE, *small], "(autoencoder) does not fit"),
        (["--autoencoder", tmp_path / "none.pt", *small], "none.pt"),
        ([tmp_path / "empty"], "model_autoencoder.pt: missing"),
        ([tmp_path / "snapshot"], "is no folder of a MONAI bundle"),
        ([AUTOENCODER_FILE], "is no folder of a MONAI bundle"),
        ([LEGACY, "--config", "no"], "no configuration 'no'"),
    ]
    for arguments, message in wrong:
        assert main(["from-monai", *map(str, arguments), "--out", str(tmp_path / "out")]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert main(["from-monai", str(LEGACY), "--out", str(tmp_path / "snapshot")]) == 1
    assert "exists already" in capsys.readouterr().err
    for usage in ([], [str(LEGACY), "--autoencoder", AUTOENCODER_FILE], [str(LEGACY), "--unet", UNET_FILE]):
        with pytest.raises(SystemExit, match="2"):
            main(["from-monai", *usage, "--out", str(tmp_path / "out")])
