"""Export: the graphs compute what PyTorch computes, the configs describe them, the result is complete."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from common import ROOT, run_python
from export import repository
from export.configs import ConfigMismatch, check_configs
from export.graphs import GRAPHS, UNET, VAE_DECODER, random_inputs
from export.parity import ParityError, compare, cpu_session
from training.checkpoint import CheckpointError, Snapshot, save_snapshot
from training.files import sha256
from training.networks import build_unet
from training.sample import decode


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.name)
@pytest.mark.parametrize("rows", [1, 4])
def test_onnx_is_pytorch(graph, rows: int, small_snapshot, small_repository) -> None:
    parity = compare(graph, graph.build(small_snapshot), small_repository / graph.name / "1" / "model.onnx", rows)
    assert parity.relative_l2 < 5e-5


def test_parity_finds_other_weights(small_snapshot, small_repository) -> None:
    module = UNET.build(small_snapshot)
    with torch.no_grad():
        next(module.parameters()).mul_(1.001)
    with pytest.raises(ParityError, match="unet: ONNX differs from PyTorch"):
        compare(UNET, module, small_repository / "unet" / "1" / "model.onnx")


def test_parity_on_untrained_weights_proves_nothing_and_says_so(small_snapshot, small_repository) -> None:
    fresh = Snapshot(small_snapshot.config, {}, build_unet(small_snapshot.config.unet).state_dict())
    with pytest.raises(ParityError, match="all zero"):
        compare(UNET, UNET.build(fresh), small_repository / "unet" / "1" / "model.onnx")


def test_mixed_timesteps_are_those_of_single_calls(small_repository) -> None:
    session = cpu_session(small_repository / "unet" / "1" / "model.onnx", threads=2)
    latent, timesteps = (tensor.numpy() for tensor in random_inputs(UNET, 7, seed=3))
    together = session.run(None, {"latent": latent, "timesteps": timesteps})[0]
    for row in range(7):
        one = slice(row, row + 1)
        assert np.array_equal(session.run(None, {"latent": latent[one], "timesteps": timesteps[one]})[0], together[one])


def test_the_decoder_divides_by_the_scale_factor(small_snapshot, small_repository) -> None:
    """The slip of the bundle's own inference, and of the tutorials: decoding scaled latents."""
    latent = torch.randn(1, 1, 64, 64)
    image = cpu_session(small_repository / "vae_decoder" / "1" / "model.onnx").run(None, {"latent": latent.numpy()})[0]
    autoencoder = VAE_DECODER.build(small_snapshot).autoencoder.eval()
    expected = decode(autoencoder, latent, scale_factor=0.8, size=256)
    np.testing.assert_allclose(image, expected.numpy(), atol=1e-4)
    assert np.abs(image - decode(autoencoder, latent, scale_factor=1.0, size=256).numpy()).max() > 1e-2


def test_graphs_are_clean(small_repository) -> None:
    for graph in GRAPHS:
        proto = onnx.load(small_repository / graph.name / "1" / "model.onnx")
        assert str(ROOT).encode() not in proto.SerializeToString()
        batch = proto.graph.input[0].type.tensor_type.shape.dim[0]
        assert batch.dim_param
        assert {node.domain for node in proto.graph.node} <= {""}


def test_the_repository_is_complete_and_its_manifest_true(small_repository) -> None:
    manifest = json.loads((small_repository / "manifest.json").read_text())
    # A server that has run on it leaves compiled Python behind.
    paths = [path for path in small_repository.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    files = {str(path.relative_to(small_repository)) for path in paths}
    assert set(manifest["sha256"]) == files - {"manifest.json"}
    assert all(sha256(small_repository / name) == digest for name, digest in manifest["sha256"].items())
    assert not any(path.is_symlink() for path in small_repository.rglob("*"))
    assert manifest["scale_factor"] == 0.8
    assert manifest["parity"]["unet"]["relative_l2"] < manifest["parity"]["unet"]["tolerance_relative_l2"]
    record = (small_repository / "mri_ldm" / "1" / "model.json").read_text()
    assert record == (small_repository / "mri_ldm_stream" / "1" / "model.json").read_text()


def test_a_config_that_drifted_stops_with_the_difference(tmp_path: Path) -> None:
    for profile in ("config.pbtxt", "configs/cpu.pbtxt"):
        (tmp_path / profile).parent.mkdir(exist_ok=True)
        (tmp_path / profile).write_text((repository.SOURCE / "unet" / profile).read_text())
    check_configs(UNET, tmp_path)
    cpu = tmp_path / "configs" / "cpu.pbtxt"
    cpu.write_text(cpu.read_text().replace("TYPE_INT32 dims: [ 1 ]", "TYPE_INT64 dims: [ 1 ]"))
    with pytest.raises(ConfigMismatch) as error:
        check_configs(UNET, tmp_path)
    assert "-input timesteps TYPE_INT64 [1]\n+input timesteps TYPE_INT32 [1]" in str(error.value)
    assert "cpu.pbtxt" in str(error.value)
    cpu.write_text("name: ")
    with pytest.raises(ConfigMismatch, match=r"cpu\.pbtxt"):
        check_configs(UNET, tmp_path)


def test_a_foreign_folder_is_left_alone(small_snapshot, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(repository.RepositoryError, match="not an exported repository"):
        repository.export_repository(small_snapshot, tmp_path, "x")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_failed_export_keeps_the_one_before(small_snapshot, tmp_path: Path) -> None:
    into = tmp_path / "repository"
    into.mkdir()
    (into / "manifest.json").write_text("{}")
    half = Snapshot(small_snapshot.config, small_snapshot.autoencoder)
    with pytest.raises(CheckpointError, match="holds no UNet"):
        repository.export_repository(half, into, "x")
    assert [path.name for path in tmp_path.rglob("*")] == ["repository", "manifest.json"]


def test_the_command_says_what_is_wrong(small_snapshot, tmp_path: Path) -> None:
    help_text = run_python("-m", "export", "--help")
    assert "--into" in help_text.stdout
    missing = run_python("-m", "export", str(tmp_path))
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)
    assert "snapshot.json does not exist" in missing.stderr
    save_snapshot(Snapshot(small_snapshot.config, small_snapshot.autoencoder), tmp_path)
    stage1 = run_python("-m", "export", str(tmp_path), "--into", str(tmp_path / "out"))
    assert stage1.returncode == 1
    assert "training.train_diffusion" in stage1.stderr.splitlines()[-1]
