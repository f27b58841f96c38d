"""The committed profiles beyond their tensors: CUDA graphs, warm-ups, plans of several GPU generations."""

import pytest
from tritonclient.grpc.model_config_pb2 import ModelConfig

from export.configs import STEPS_TEMPLATES, TINY_TEMPLATES, parse_config
from support.common import ROOT

FOLDERS = {name: ROOT / "model_repository" / name for name in ("unet", "vae_decoder")}
FOLDERS |= {"unet_steps": STEPS_TEMPLATES, "vae_decoder_tiny": TINY_TEMPLATES}
NETWORKS = tuple(FOLDERS)


def profile(model: str, name: str) -> ModelConfig:
    return parse_config(FOLDERS[model] / (f"configs/{name}.pbtxt" if name else "config.pbtxt"))


def captured(config: ModelConfig) -> dict[int, int]:
    """Rows of each CUDA graph, and the fewest that run in it."""
    return {
        spec.batch_size: spec.graph_lower_bound.batch_size or spec.batch_size
        for spec in config.optimization.cuda.graph_spec
    }


@pytest.mark.parametrize("model", NETWORKS)
def test_every_batch_has_one_cuda_graph_of_at_most_half_as_many_rows_again(model: str) -> None:
    config = profile(model, "")
    assert config.optimization.cuda.graphs
    for rows in range(1, config.max_batch_size + 1):
        sizes = [size for size, fewest in captured(config).items() if fewest <= rows <= size]
        assert len(sizes) == 1, rows
        assert sizes[0] <= 1.5 * rows


@pytest.mark.parametrize("model", NETWORKS)
def test_graph_specs_name_every_input_so_that_triton_pads(model: str) -> None:
    """Where a lower bound has no inputs, Triton's TensorRT backend fills in the shapes of the graph itself. Then only
    exact batches match, and every other one runs without a graph, silently."""
    config = profile(model, "")
    inputs = {tensor.name: list(tensor.dims) for tensor in config.input}
    for spec in config.optimization.cuda.graph_spec:
        bounds = [spec.graph_lower_bound] if spec.HasField("graph_lower_bound") else []
        for shapes in (spec, *bounds):
            assert {name: list(shape.dim) for name, shape in shapes.input.items()} == inputs


@pytest.mark.parametrize("model", NETWORKS)
@pytest.mark.parametrize("name", ["", "mixed_gpus", "onnxruntime_gpu"])
def test_gpu_profiles_warm_up_with_the_models_inputs(model: str, name: str) -> None:
    config = profile(model, name)
    sizes = [sample.batch_size for sample in config.model_warmup]
    assert sizes == (list(captured(config)) or [1, config.max_batch_size])
    for sample in config.model_warmup:
        for tensor in config.input:
            warm = sample.inputs[tensor.name]
            assert (warm.data_type, list(warm.dims), warm.zero_data) == (tensor.data_type, list(tensor.dims), True)
        assert len(sample.inputs) == len(config.input)


@pytest.mark.parametrize("model", NETWORKS)
def test_mixed_gpus_is_the_default_profile_with_a_plan_for_each_capability(model: str) -> None:
    default, mixed = profile(model, ""), profile(model, "mixed_gpus")
    files = dict(mixed.cc_model_filenames)
    assert files == {capability: f"model.sm{capability.replace('.', '')}.plan" for capability in files}
    assert {"8.0", "8.9", "9.0"} <= set(files)
    mixed.cc_model_filenames.clear()
    assert mixed == default
    assert not default.cc_model_filenames  # one GPU, one plan: nothing to configure


@pytest.mark.parametrize("name", ["mixed_gpus", "onnxruntime_gpu", "torch", "openvino"])
def test_a_profile_that_one_network_has_the_others_have_too(name: str) -> None:
    """Triton uses config.pbtxt silently if a profile is missing."""
    assert all((folder / "configs" / f"{name}.pbtxt").is_file() for folder in FOLDERS.values())


@pytest.mark.parametrize("name", ["", "mixed_gpus", "onnxruntime_gpu", "openvino", "cpu"])
def test_several_steps_are_served_as_one_is(name: str) -> None:
    """The files differ only in the tensors, and so do their graphs and warm-ups."""
    one, several = profile("unet", name), profile("unet_steps", name)
    assert captured(several) == captured(one)
    assert [sample.batch_size for sample in several.model_warmup] == [sample.batch_size for sample in one.model_warmup]
    for config in (one, several):
        for field in ("name", "input", "output", "model_warmup"):
            config.ClearField(field)
        del config.optimization.cuda.graph_spec[:]
    assert several == one
