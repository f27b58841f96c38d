"""Export of a UNet that takes label maps: its graph record, its configs, its files."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from export.__main__ import main
from export.configs import check_configs, declared, parse_config, profiles, takes_condition, write_condition
from export.graphs import CONDITION, UNET, UNET_LABELS, graphs_of, random_inputs, unet_steps
from export.monai.weights import load_monai, save_monai
from export.onnx.read import snapshot_from_onnx
from export.onnx.run import cpu_session, run_onnx
from export.repository import SOURCE, export_repository
from training.checkpoint import without_labels

pytestmark = pytest.mark.slow


def test_the_files_take_a_condition_in_every_profile(labelled_repository) -> None:
    """The export itself has compared the files with PyTorch, and five steps with single steps."""
    record = json.loads((labelled_repository / "mri_ldm" / "1" / "model.json").read_text())
    assert record["conditioning"] == "labels"
    check_configs(UNET_LABELS, labelled_repository / "unet")
    check_configs(unet_steps(5, labels=True), labelled_repository / "unet_steps")
    assert main(["check", str(labelled_repository)]) == 0
    names = {
        tensor.name for tensor in cpu_session(labelled_repository / "unet_steps" / "1" / "model.onnx").get_inputs()
    }
    assert "condition" in names


def test_without_labels_it_is_the_network_without_condition(labelled_snapshot, labelled_repository) -> None:
    latent, timesteps = random_inputs(UNET, rows=3, seed=5)
    none = torch.zeros(3, *CONDITION.shape)
    session = cpu_session(labelled_repository / "unet" / "1" / "model.onnx")
    served = run_onnx(UNET_LABELS, session, (latent, none, timesteps))
    with torch.no_grad():
        expected = UNET.build(labelled_snapshot)(latent, timesteps).numpy()
    np.testing.assert_allclose(served, expected, atol=2e-5)
    other = run_onnx(UNET_LABELS, session, (latent, none + 0.5, timesteps))
    assert np.abs(other - served).max() > 1e-3


def test_a_config_with_a_condition_and_back_is_the_same_text(tmp_path) -> None:
    write_condition(SOURCE / "unet", tmp_path / "with", 4)
    write_condition(tmp_path / "with", tmp_path / "with", 4)
    assert takes_condition(tmp_path / "with")
    check_configs(UNET_LABELS, tmp_path / "with")
    write_condition(tmp_path / "with", tmp_path / "without", 0)
    check_configs(UNET, tmp_path / "without")
    for profile, path in profiles(tmp_path / "with").items():
        config = parse_config(path)
        graphs = config.optimization.cuda.graph_spec
        assert all("condition" in spec.input for spec in graphs)
        assert all("condition" in spec.graph_lower_bound.input for spec in graphs if spec.HasField("graph_lower_bound"))
        assert all("condition" in warmup.inputs for warmup in config.model_warmup)
        plain = profiles(tmp_path / "without")[profile]
        assert not takes_condition(tmp_path / "without")
        write_condition(tmp_path / "without", tmp_path / "again", 4)
        assert profiles(tmp_path / "again")[profile].read_text() == path.read_text()
        assert "condition" not in plain.read_text()
    assert declared(parse_config(tmp_path / "with" / "config.pbtxt"))[3] == "input condition TYPE_FP32 [4, 64, 64]"


def test_its_weights_are_read_back_from_onnx(labelled_snapshot, tmp_path) -> None:
    from export.repository import Extras

    export_repository(labelled_snapshot, tmp_path / "r", "n", lambda line: None, Extras(monai_layers=True))
    again = snapshot_from_onnx(tmp_path / "r")
    assert again.config == labelled_snapshot.config
    assert all(torch.equal(again.unet[name], tensor) for name, tensor in labelled_snapshot.unet.items())


def test_the_bundle_gets_the_network_without_labels(labelled_snapshot, tmp_path) -> None:
    paths = save_monai(labelled_snapshot, tmp_path)
    config = without_labels(labelled_snapshot).config
    again = load_monai(dict(zip(("autoencoder", "unet"), paths, strict=True)), config, scale_factor=1.0)
    assert torch.equal(again.unet["conv_in.conv.weight"], labelled_snapshot.unet["conv_in.conv.weight"][:, :1])


def test_graphs_follow_from_the_snapshot(labelled_snapshot) -> None:
    assert [graph.name for graph in graphs_of(labelled_snapshot, 5)] == ["unet", "vae_decoder", "unet_steps"]
    assert graphs_of(labelled_snapshot)[0] is UNET_LABELS
    assert graphs_of(without_labels(labelled_snapshot))[0] is UNET
    assert without_labels(labelled_snapshot).config.unet == replace(labelled_snapshot.config.unet, conditioning="none")
