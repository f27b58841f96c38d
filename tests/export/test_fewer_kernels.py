"""The programs for GPUs against MONAI's layers: the same numbers, and how many operations of each kind."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock
from torch import nn

from benchmarks.harness.weights import load_weights
from export.graphs import GRAPHS, UNET, VAE_DECODER, Denoiser, Graph, random_inputs
from export.precision import reduced_precision
from export.torch.fewer_kernels import TabledBlock, with_fewer_kernels
from export.torch.program import export_torch
from training.networks import build_unet, randomize_zero_tensors

VIEWS = {
    "expand",
    "flatten",
    "permute",
    "reshape",
    "select",
    "slice",
    "transpose",
    "unbind",
    "unflatten",
    "unsqueeze",
    "view",
}


def operations(network: nn.Module, graph: Graph) -> Counter[str]:
    """How many operations of each kind a call computes, without views and other operations that compute nothing."""
    nodes = torch.export.export(network, random_inputs(graph, rows=2, seed=0)).graph.nodes
    names = (str(node.target).split(".")[1] for node in nodes if str(node.target).startswith("aten."))
    return Counter(name for name in names if name not in VIEWS | {"dropout", "_assert_tensor_metadata"})


@pytest.mark.parametrize("resampled", [{}, {"up": True}, {"down": True}], ids=str)
@torch.no_grad()
def test_a_block_takes_its_columns_of_the_table(resampled: dict[str, bool]) -> None:
    """With a wider output, and columns in the middle of the table."""
    block = DiffusionUNetResnetBlock(2, 8, 12, out_channels=16, norm_num_groups=4, **resampled).double().eval()
    randomize_zero_tensors(block, seed=0)
    generator = torch.Generator().manual_seed(0)
    x, emb = (torch.randn(2, *shape, dtype=torch.float64, generator=generator) for shape in ((8, 6, 6), (12,)))
    expected = block(x, emb)
    projected = block.time_emb_proj(nn.functional.silu(emb)) + block.conv1.conv.bias
    rows = nn.functional.pad(projected, (5, 3), value=99.0)
    torch.testing.assert_close(TabledBlock(block, start=5)(x, rows), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.name)
@torch.no_grad()
def test_whole_network(graph: Graph, small_snapshot) -> None:
    """The same numbers at each row's timestep, and the original is unchanged."""
    module, inputs = graph.build(small_snapshot).eval(), random_inputs(graph, rows=3, seed=3)
    layers, expected = [type(layer) for layer in module.modules()], module(*inputs)
    result = with_fewer_kernels(module)(*inputs)
    assert [type(layer) for layer in module.modules()] == layers
    assert torch.equal(module(*inputs), expected)
    assert expected.any()
    assert (result - expected).norm() <= 1e-6 * expected.norm()  # float32


@torch.no_grad()
def test_the_table_ends_where_the_training_does(small_snapshot) -> None:
    """No timestep reads outside of the table: on a GPU that would end the process."""
    network = with_fewer_kernels(UNET.build(small_snapshot), timesteps=40)
    latent, _ = random_inputs(UNET, rows=3, seed=0)
    answers = [network(latent, torch.full((3, 1), timestep, dtype=torch.int32)) for timestep in (39, 40, 10**9, -5, 0)]
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])
    assert torch.equal(answers[3], answers[4])
    assert not torch.equal(answers[0], answers[4])


@pytest.mark.slow
@torch.no_grad()
def test_how_many_operations_the_demo_takes() -> None:
    """In fp16. One linear product remains for each attention, and casts only of the latent and at the end."""
    module = UNET.build(load_weights("demo")).eval()
    blocks = sum(isinstance(layer, DiffusionUNetResnetBlock) for layer in module.modules())
    before = operations(reduced_precision(module, torch.float16), UNET)
    after = operations(reduced_precision(with_fewer_kernels(module), torch.float16, float32_norms=False), UNET)
    attentions = before["scaled_dot_product_attention"]
    assert before["linear"] == 2 + blocks + 3 * attentions  # MONAI's UNet has no linear layer after attention
    assert (after["linear"], after["embedding"]) == (attentions, 1)
    assert after["silu"] == before["silu"] - 1 - blocks
    assert (before["to"], after["to"]) == (2 * before["group_norm"] + 3, 3)
    assert not {"arange", "exp", "cos", "sin"} & set(after)
    for name in ("conv2d", "group_norm", "scaled_dot_product_attention"):
        assert after[name] == before[name]
    fewer_of = {name: before[name] - after[name] for name in ("linear", "silu", "to")}
    assert sum(after.values()) < sum(before.values()) - sum(fewer_of.values())


def kernels(network: Any, folder: Path) -> tuple[Counter[str], list[str]]:
    """What Inductor's code for a CPU calls: PyTorch's kernels, and kernels that it has written itself, by name."""
    inputs = random_inputs(UNET, rows=1, seed=0)
    program = torch.export.export(network, inputs)
    options = {"aot_inductor.package": True, "aot_inductor.package_cpp_only": True}  # nothing is compiled
    files = torch._inductor.aot_compile(program.module(), inputs, options=options)
    code = next(Path(file).read_text() for file in files if str(file).endswith("wrapper.cpp"))
    called = re.findall(r"AOTI_TORCH_ERROR_CODE_CHECK\(aoti_torch_cpu_(\w+?)(?:_out)?\(", code)
    return Counter(called), re.findall(r"^\s+(cpp_fused_\w+)\(", code, re.MULTILINE)


@pytest.mark.slow
@torch.no_grad()
def test_inductor_writes_fewer_kernels_too(small_snapshot, tmp_path) -> None:
    """For a UNet with one level: fewer products, and each activation is in the kernel of a normalisation."""
    shape = {"channels": (8,), "attention_levels": (True,), "num_head_channels": (8,), "num_res_blocks": 1}
    config = replace(small_snapshot.config, unet=replace(small_snapshot.config.unet, **shape))
    unet = build_unet(config.unet)
    randomize_zero_tensors(unet, seed=0)
    module = Denoiser(replace(small_snapshot, config=config, unet=unet.state_dict())).eval()
    fewer = with_fewer_kernels(module)
    (before, own_before), (after, own_after) = kernels(module, tmp_path), kernels(fewer, tmp_path)

    def products(called: Counter[str]) -> int:
        return sum(count for name, count in called.items() if name in ("mm", "addmm"))

    count = operations(fewer, UNET)
    assert products(after) == count["linear"] < products(before)
    assert after["convolution"] == before["convolution"] == count["conv2d"]
    assert sum(after.values()) + len(own_after) < sum(before.values()) + len(own_before)
    assert all("group_norm" in name for name in own_after if "silu" in name)


@pytest.mark.slow
def test_bf16_alone_keeps_its_normalisations_in_float32(small_snapshot, tmp_path) -> None:
    """fp16 casts the latent, and the tensors before and after the last normalisation, which is float32."""
    casts = {}
    for precision in ("fp16", "bf16"):
        export_torch(VAE_DECODER, VAE_DECODER.build(small_snapshot), tmp_path / "model.pt2", precision)
        nodes = torch.export.load(tmp_path / "model.pt2").graph.nodes
        casts[precision] = sum(str(node.target) in ("aten.to.dtype", "aten._to_copy.default") for node in nodes)
    norms = sum(
        isinstance(layer, nn.GroupNorm) for layer in VAE_DECODER.build(small_snapshot).autoencoder.decoder.modules()
    )
    assert casts == {"fp16": 3, "bf16": 3 + 2 * (norms - 1)}  # the last one is float32 in both
