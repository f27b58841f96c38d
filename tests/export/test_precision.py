"""fp16 and bf16 copies of the networks: what is reduced, what stays float32, and how far off they are."""

import copy

import pytest
import torch
from torch import nn

from export.graphs import GRAPHS, UNET, random_inputs
from export.precision import DTYPES, reduced_precision

# Half the distance of two neighbouring numbers, 2^-11 and 2^-8, times about three for some forty layers in a row.
TOLERANCES = {torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
graphs = pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.name)
dtypes = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)


@pytest.mark.slow
@graphs
@dtypes
@torch.no_grad()
def test_a_reduced_network_is_close_and_leaves_the_original_alone(graph, dtype: torch.dtype, small_snapshot) -> None:
    module, inputs = graph.build(small_snapshot).eval(), random_inputs(graph, rows=2, seed=0)
    before = copy.deepcopy(module.state_dict())
    reference = module(*inputs)
    answer = reduced_precision(module, dtype)(*inputs)
    assert answer.dtype == torch.float32
    error = (answer - reference).norm() / reference.norm()
    assert TOLERANCES[dtype] / 100 < error < TOLERANCES[dtype]
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())


@graphs
@dtypes
@torch.no_grad()
def test_what_is_reduced(graph, dtype: torch.dtype, small_snapshot) -> None:
    """Every norm gets and holds float32; every convolution and linear layer `dtype`, except the last convolution."""
    network = reduced_precision(graph.build(small_snapshot), dtype)
    seen: dict[type[nn.Module], list[torch.dtype]] = {}

    def note(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert layer.weight.dtype == inputs[0].dtype
        seen.setdefault(type(layer), []).append(inputs[0].dtype)

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.GroupNorm | nn.LayerNorm):
            layer.register_forward_pre_hook(note)
    network(*random_inputs(graph, rows=1, seed=0))
    *convolutions, last = seen.pop(nn.Conv2d)
    assert (set(convolutions), last) == ({dtype}, torch.float32)
    assert set(seen.pop(nn.Linear, [dtype])) == {dtype}
    assert all(set(dtypes) == {torch.float32} for dtypes in seen.values())
    assert len(seen[nn.GroupNorm]) > 5


@pytest.mark.slow
@graphs
@dtypes
@torch.no_grad()
def test_norms_can_be_reduced_too_without_their_casts(graph, dtype: torch.dtype, small_snapshot) -> None:
    module, inputs = graph.build(small_snapshot).eval(), random_inputs(graph, rows=2, seed=0)

    def program(float32_norms: bool) -> torch.export.ExportedProgram:
        return torch.export.export(reduced_precision(module, dtype, float32_norms=float32_norms), inputs)

    def count(program: torch.export.ExportedProgram, operation: str) -> int:
        return sum(str(node.target) == operation for node in program.graph.nodes)

    kept, reduced = program(True), program(False)
    casts = count(kept, "aten.to.dtype") - count(reduced, "aten.to.dtype")
    assert casts == 2 * (count(kept, "aten.group_norm.default") - 1)  # the last stays as it is
    reference, answer = module(*inputs), reduced.module()(*inputs)
    assert TOLERANCES[dtype] / 100 < (answer - reference).norm() / reference.norm() < TOLERANCES[dtype]


def test_full_precision_is_the_module_itself(small_snapshot) -> None:
    module = UNET.build(small_snapshot)
    assert reduced_precision(module, DTYPES["fp32"]) is module
    assert reduced_precision(module, DTYPES["tf32"]) is module


@pytest.mark.slow
@torch.no_grad()
def test_it_exports_with_one_call_for_each_attention(small_snapshot) -> None:
    network, inputs = reduced_precision(UNET.build(small_snapshot), torch.float16), random_inputs(UNET, rows=2, seed=0)
    program = torch.export.export(network, inputs)
    calls = [str(node.target) for node in program.graph.nodes]
    assert calls.count("aten.scaled_dot_product_attention.default") == 4
    assert not [name for name in calls if "softmax" in name]
    assert torch.equal(program.module()(*inputs), network(*inputs))
