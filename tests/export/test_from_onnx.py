"""Weights read back from exported files: the committed ones, MONAI's layers, and files that cannot be read back."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.harness.weights import load_weights
from export.graphs import graphs_of
from export.manifest import RepositoryError
from export.onnx.read import snapshot_from_onnx
from export.onnx.run import compare_onnx
from export.repository import Extras, export_repository
from support.common import ROOT
from training.checkpoint import CheckpointError, Snapshot, load_snapshot

pytestmark = pytest.mark.slow

COMMITTED = ROOT / "model_repository"


@pytest.fixture(scope="module")
def snapshot(tiny_snapshot) -> Snapshot:
    """`tiny_snapshot` with no two equal tensors. Otherwise all its normalisations have the same scales."""
    torch.manual_seed(5)
    unet, autoencoder = (
        {name: tensor + 0.1 * torch.rand(tensor.shape) for name, tensor in state.items()}
        for state in (tiny_snapshot.unet, tiny_snapshot.autoencoder)
    )
    return replace(
        tiny_snapshot,
        unet=unet,
        autoencoder=autoencoder,
        history={"made": "up"},
        aligned_timesteps=((999, 400, 100, 9),),
    )


@pytest.fixture(scope="module")
def plain(snapshot, tmp_path_factory) -> Path:
    """A repository with MONAI's layers, as in the committed weights."""
    folder = tmp_path_factory.mktemp("plain") / "repository"
    export_repository(snapshot, folder, "plain", report=lambda _: None, extras=Extras(monai_layers=True))
    return folder


def test_every_served_tensor_comes_back_bit_by_bit(snapshot, plain: Path) -> None:
    rebuilt = snapshot_from_onnx(plain)
    assert (rebuilt.config, rebuilt.scale_factor, rebuilt.history, rebuilt.aligned_timesteps) == (
        snapshot.config,
        snapshot.scale_factor,
        {"made": "up"},
        ((999, 400, 100, 9),),
    )
    assert rebuilt.unet.keys() == snapshot.unet.keys()
    assert rebuilt.autoencoder.keys() == snapshot.autoencoder.keys()
    assert rebuilt.tiny_decoder.keys() == snapshot.tiny_decoder.keys()
    decoder = [name for name in snapshot.autoencoder if name.startswith(("decoder.", "post_quant_conv."))]
    for original, state, names in (
        (rebuilt.unet, snapshot.unet, snapshot.unet),
        (rebuilt.autoencoder, snapshot.autoencoder, decoder),
        (rebuilt.tiny_decoder, snapshot.tiny_decoder, snapshot.tiny_decoder),
    ):
        assert [name for name in names if not torch.equal(original[name], state[name])] == []


def test_the_committed_files_are_networks_of_pytorch() -> None:
    snapshot = snapshot_from_onnx(COMMITTED)
    manifest = json.loads((COMMITTED / "manifest.json").read_text())
    for graph in graphs_of(snapshot):
        parity = compare_onnx(graph, graph.build(snapshot), COMMITTED / graph.name / "1" / "model.onnx")
        # Seen: the figures of the manifest; compare_onnx raises beyond 5e-5.
        assert parity.relative_l2 < 3 * manifest["parity"][graph.name]["relative_l2"]


def test_the_autoencoder_to_train_on_from_is_the_served_one() -> None:
    whole, served = load_snapshot(ROOT / "training" / "demo_autoencoder"), snapshot_from_onnx(COMMITTED)
    assert whole.config.autoencoder == served.config.autoencoder
    decoder = [name for name in whole.autoencoder if name.startswith(("decoder.", "post_quant_conv."))]
    assert decoder
    for name in decoder:
        assert torch.equal(whole.autoencoder[name], served.autoencoder[name]), name


def test_a_checkout_without_a_snapshot_has_the_demo_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = tmp_path / "snapshot"
    with pytest.raises(CheckpointError, match=r"snapshot\.json does not exist"):
        load_weights("demo", absent)
    monkeypatch.setattr("benchmarks.harness.weights.DEMO_SNAPSHOT", absent)
    assert load_weights("demo", absent).scale_factor == snapshot_from_onnx(COMMITTED).scale_factor


def test_layers_of_a_file_that_is_not_written_are_refused() -> None:
    with pytest.raises(RepositoryError, match=r"--monai-layers is about model\.onnx, which --no-onnx leaves out"):
        Extras(torch="fp32", with_onnx=False, monai_layers=True)


def refused(repository: Path, message: str, error_class: type[ValueError] = CheckpointError) -> None:
    with pytest.raises(error_class, match=message) as error:
        snapshot_from_onnx(repository)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read_so_are_told_in_a_line(small_repository: Path, plain: Path, tmp_path: Path) -> None:
    refused(tmp_path, r"manifest\.json does not exist", RepositoryError)
    refused(small_repository, r"unet/1/model\.onnx does not hold .* \(\d+ tensors .* give the snapshot itself")
    shutil.copytree(plain, tmp_path / "copy")
    manifest = json.loads((plain / "manifest.json").read_text())
    manifest["training"]["config"]["unet"]["channels"] = [8, 16, 64]
    (tmp_path / "copy" / "manifest.json").write_text(json.dumps(manifest))
    refused(tmp_path / "copy", r"the first of another shape is unet\.")
    (tmp_path / "copy" / "unet" / "1" / "model.onnx").write_bytes(b"another")
    refused(tmp_path / "copy", r"unet/1/model\.onnx: missing, or not the file")
