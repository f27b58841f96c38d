"""Export: the graphs compute what PyTorch computes, the configs describe them, the result is complete."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from onnx.shape_inference import infer_shapes

from export import repository
from export.__main__ import main
from export.compare import ParityError
from export.configs import ConfigMismatch, check_configs
from export.graphs import UNET, UNET_LABELS, VAE_DECODER, VAE_DECODER_TINY, graphs_of, random_inputs, with_steps
from export.onnx.read import _weights
from export.onnx.run import compare_onnx, cpu_session
from export.onnx.write import export_onnx
from export.precision import reduced_precision
from export.torch.program import compare_torch, export_torch
from support.common import ROOT
from training.checkpoint import CheckpointError, Snapshot, save_snapshot
from training.files import sha256
from training.networks import build_unet
from training.sample import decode

pytestmark = pytest.mark.slow

GRAPHS = with_steps(1, tiny=True)
"""The networks of `small_repository`."""


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.name)
@pytest.mark.parametrize("rows", [1, 4])
def test_onnx_is_pytorch(graph, rows: int, tiny_snapshot, small_repository) -> None:
    parity = compare_onnx(graph, graph.build(tiny_snapshot), small_repository / graph.name / "1" / "model.onnx", rows)
    assert parity.relative_l2 < 5e-5


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.name)
def test_reduced_onnx_is_pytorch(graph, tiny_snapshot, small_repository) -> None:
    path = small_repository / graph.name / "1" / "model.fp16.onnx"
    parity = compare_onnx(graph, graph.build(tiny_snapshot), path, rows=2, precision="fp16")
    assert 1e-4 < parity.relative_l2 < 5e-3
    with pytest.raises(ParityError, match="allowed for fp32: 5e-05"):
        compare_onnx(graph, graph.build(tiny_snapshot), path, rows=1)


def test_what_a_reduced_graph_computes_in_float32(small_snapshot, small_repository, tmp_path: Path) -> None:
    """Norms and softmax get float32, convolutions fp16 except for the last; a bf16 graph differs only in the type.

    Kernels for bf16 are missing in ONNX Runtime for CPUs: what holds the graph is that it is the fp16 one, which runs.
    """
    export_onnx(UNET, reduced_precision(UNET.build(small_snapshot), torch.bfloat16), tmp_path / "model.bf16.onnx")
    fp16 = infer_shapes(onnx.load(small_repository / "unet" / "1" / "model.fp16.onnx")).graph
    bf16 = onnx.load(tmp_path / "model.bf16.onnx").graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*fp16.input, *fp16.value_info)}
    types |= {tensor.name: tensor.data_type for tensor in fp16.initializer}
    kinds: dict[str, list[int]] = {}
    for node in fp16.node:
        kinds.setdefault(node.op_type, []).append(types[node.input[0]])
    assert set(kinds["InstanceNormalization"]) == set(kinds["Softmax"]) == {TensorProto.FLOAT}
    assert len(kinds["Softmax"]) == 4
    assert (set(kinds["Conv"][:-1]), kinds["Conv"][-1]) == ({TensorProto.FLOAT16}, TensorProto.FLOAT)
    assert set(kinds["MatMul"] + kinds["Gemm"]) == {TensorProto.FLOAT16}
    assert [as_fp16(node) for node in bf16.node] == [as_fp16(node) for node in fp16.node]
    shapes = [[(tensor.name, list(tensor.dims)) for tensor in graph.initializer] for graph in (bf16, fp16)]
    assert shapes[0] == shapes[1]


def as_fp16(node: onnx.NodeProto) -> tuple[object, ...]:
    """A node without its name, with float16 instead of bfloat16 in its attributes."""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if attributes.get("to") == TensorProto.BFLOAT16:
        attributes["to"] = TensorProto.FLOAT16
    return node.op_type, tuple(node.input), tuple(node.output), str(attributes)


def test_parity_finds_other_weights(small_snapshot, small_repository) -> None:
    module = UNET.build(small_snapshot)
    with torch.no_grad():
        next(module.parameters()).mul_(1.001)
    with pytest.raises(ParityError, match="unet: ONNX differs from float32"):
        compare_onnx(UNET, module, small_repository / "unet" / "1" / "model.onnx")


def test_parity_on_untrained_weights_proves_nothing_and_says_so(small_snapshot, small_repository) -> None:
    fresh = Snapshot(small_snapshot.config, {}, build_unet(small_snapshot.config.unet).state_dict())
    with pytest.raises(ParityError, match="all zero"):
        compare_onnx(UNET, UNET.build(fresh), small_repository / "unet" / "1" / "model.onnx")


def test_mixed_timesteps_are_those_of_single_calls(small_repository) -> None:
    session = cpu_session(small_repository / "unet" / "1" / "model.onnx", threads=2)
    latent, timesteps = (tensor.numpy() for tensor in random_inputs(UNET, 7, seed=3))
    together = session.run(None, {"latent": latent, "timesteps": timesteps})[0]
    for row in range(7):
        one = slice(row, row + 1)
        assert np.array_equal(session.run(None, {"latent": latent[one], "timesteps": timesteps[one]})[0], together[one])


def test_images_of_the_tiny_decoder_do_not_depend_on_the_batch(small_repository) -> None:
    session = cpu_session(small_repository / "vae_decoder_tiny" / "1" / "model.onnx", threads=2)
    (latents,) = (tensor.numpy() for tensor in random_inputs(VAE_DECODER_TINY, 16, seed=3))
    alone = np.concatenate([session.run(None, {"latent": latents[row : row + 1]})[0] for row in range(16)])
    for rows in (2, 3, 7, 16):
        assert np.array_equal(session.run(None, {"latent": latents[:rows]})[0], alone[:rows]), rows


def test_the_tiny_decoder_as_a_program_of_torch(tiny_snapshot, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    for precision in ("fp32", "fp16", "bf16"):
        export_torch(VAE_DECODER_TINY, VAE_DECODER_TINY.build(tiny_snapshot), path, precision)
        compare_torch(VAE_DECODER_TINY, VAE_DECODER_TINY.build(tiny_snapshot), path, precision, rows=3)


def test_a_snapshot_without_a_tiny_decoder_has_no_such_network(small_snapshot) -> None:
    assert [graph.name for graph in graphs_of(small_snapshot)] == ["unet", "vae_decoder"]
    with pytest.raises(CheckpointError, match=r"no tiny decoder: training\.distil_decoder adds one"):
        VAE_DECODER_TINY.build(small_snapshot)


def test_the_tiny_decoder_comes_back_from_its_file(tiny_snapshot, small_repository, tmp_path: Path) -> None:
    graph = VAE_DECODER_TINY
    weights = _weights(graph, graph.build(tiny_snapshot).eval(), small_repository / graph.name / "1" / "model.onnx")
    assert weights.keys() == {f"decoder.{name}" for name in tiny_snapshot.tiny_decoder}
    for name, tensor in tiny_snapshot.tiny_decoder.items():
        assert torch.equal(weights[f"decoder.{name}"], tensor)


def test_the_decoder_divides_by_the_scale_factor(small_snapshot, small_repository) -> None:
    """The bundle's own inference and the tutorials have this bug: they decode scaled latents."""
    latent = torch.randn(1, 1, 64, 64)
    image = cpu_session(small_repository / "vae_decoder" / "1" / "model.onnx").run(None, {"latent": latent.numpy()})[0]
    autoencoder = VAE_DECODER.build(small_snapshot).autoencoder.eval()
    expected = decode(autoencoder, latent, scale_factor=0.8, size=256)
    np.testing.assert_allclose(image, expected.numpy(), atol=1e-4)
    assert np.abs(image - decode(autoencoder, latent, scale_factor=1.0, size=256).numpy()).max() > 1e-2


def test_graphs_are_clean(small_repository) -> None:
    for graph in GRAPHS:
        for name in ("model.onnx", "model.fp16.onnx"):
            proto = onnx.load(small_repository / graph.name / "1" / name)
            assert str(ROOT).encode() not in proto.SerializeToString()
            for value in (*proto.graph.input, *proto.graph.output):
                assert value.type.tensor_type.shape.dim[0].dim_param
                assert value.type.tensor_type.elem_type in (TensorProto.FLOAT, TensorProto.INT32)
            assert {node.domain for node in proto.graph.node} <= {""}


def test_the_repository_is_complete_and_its_manifest_true(small_repository) -> None:
    manifest = json.loads((small_repository / "manifest.json").read_text())
    # A server that has run on the repository leaves compiled Python in it.
    paths = [path for path in small_repository.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    files = {str(path.relative_to(small_repository)) for path in paths}
    assert set(manifest["sha256"]) == files - {"manifest.json"}
    assert all(sha256(small_repository / name) == digest for name, digest in manifest["sha256"].items())
    assert not any(path.is_symlink() for path in small_repository.rglob("*"))
    assert manifest["scale_factor"] == 0.8
    assert manifest["parity"]["unet"]["relative_l2"] < manifest["parity"]["unet"]["tolerance_relative_l2"]
    assert [entry["file"] for entry in manifest["reduced_onnx"]] == [f"{g.name}/1/model.fp16.onnx" for g in GRAPHS]
    assert manifest["plans"] == []
    record = (small_repository / "mri_ldm" / "1" / "model.json").read_text()
    assert record == (small_repository / "mri_ldm_stream" / "1" / "model.json").read_text()


def test_a_config_that_drifted_stops_with_the_difference(tmp_path: Path) -> None:
    for profile in ("config.pbtxt", "configs/cpu.pbtxt"):
        (tmp_path / profile).parent.mkdir(exist_ok=True)
        (tmp_path / profile).write_text((repository.SOURCE / "unet" / profile).read_text())
    check_configs(UNET_LABELS, tmp_path)
    cpu = tmp_path / "configs" / "cpu.pbtxt"
    cpu.write_text(cpu.read_text().replace("TYPE_INT32 dims: [ 1 ]", "TYPE_INT64 dims: [ 1 ]"))
    with pytest.raises(ConfigMismatch) as error:
        check_configs(UNET_LABELS, tmp_path)
    assert "-input timesteps TYPE_INT64 [1]\n+input timesteps TYPE_INT32 [1]" in str(error.value)
    assert "cpu.pbtxt" in str(error.value)
    cpu.write_text("name: ")
    with pytest.raises(ConfigMismatch, match=r"cpu\.pbtxt"):
        check_configs(UNET_LABELS, tmp_path)


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


def test_weights_in_place_take_the_plans_of_others_away(tmp_path: Path) -> None:
    """Otherwise the old plan would be served with the new model.json, and nobody would notice."""
    staging, into = tmp_path / "staging", tmp_path / "into"
    for folder, names in (
        (staging, ["model.onnx"]),
        (into, ["model.onnx", "model.plan", "model.fp16.onnx", "code.py"]),
    ):
        for name in names:
            (folder / "unet").mkdir(parents=True, exist_ok=True)
            (folder / "unet" / name).write_text(folder.name)
    repository._replace_weights(staging, into)
    assert {path.name: path.read_text() for path in (into / "unet").iterdir()} == {
        "model.onnx": "staging",
        "code.py": "into",
    }


def test_the_command_says_what_is_wrong(small_snapshot, tmp_path: Path, capsys) -> None:
    assert main(["repository", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "snapshot.json does not exist" in error
    save_snapshot(Snapshot(small_snapshot.config, small_snapshot.autoencoder), tmp_path)
    assert main(["repository", str(tmp_path), "--into", str(tmp_path / "out")]) == 1
    assert "training.train_diffusion" in capsys.readouterr().err.splitlines()[-1]


def test_aligned_timesteps_reach_the_server_and_its_digest(tiny_snapshot, small_repository) -> None:
    """Images on the grid "aligned" depend on them as on weights, and the digest must tell two such models apart."""

    def record(*grids: tuple[int, ...]):
        return repository._model_record(replace(tiny_snapshot, aligned_timesteps=grids), small_repository, "x", steps=1)

    plain, aligned, other = record(), record((999, 500)), record((999, 400))
    assert "aligned_timesteps" not in plain
    assert plain["digest"] == json.loads((small_repository / "mri_ldm/1/model.json").read_text())["digest"]
    assert aligned["aligned_timesteps"] == ((999, 500),)
    assert len({part["digest"] for part in (plain, aligned, other)}) == 3
