"""The network of one step to a graph of several steps: calls of it in a row, with the samplers' recurrence between.

    x' = a * x + b * eps + c * h + e * g        h' = p * x + q * eps + r * h        g' = (1 - r) * h + r * g

The file holds no loop: GPU runtimes cannot capture a loop in a CUDA graph. All calls share the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from export.graphs import Graph, TensorSpec
from export.onnx.write import check_graph
from training.files import whole_file

if TYPE_CHECKING:
    import onnx

DOMAIN = "unrolled"
"""Of the functions from which the graph is built. They are inlined, and none is left in the file."""
# Coefficients [B, 1, 8]. These graphs are deterministic: d, the weight of the noise, is not used.
RECURRENCE = """
<domain: "unrolled", opset_import: ["" : {opset}]>
recurrence (x, eps, h, g, coefficients) => (next_x, next_h, next_g)
{{
    last = Constant <value_ints = [3]> ()
    columns = Unsqueeze (coefficients, last)
    a, b, c, d, e, p, q, r = Split <axis = 2, num_outputs = 8> (columns)
    a_x = Mul (a, x)
    b_eps = Mul (b, eps)
    c_h = Mul (c, h)
    e_g = Mul (e, g)
    first_order = Add (a_x, b_eps)
    second_order = Add (first_order, c_h)
    next_x = Add (second_order, e_g)
    p_x = Mul (p, x)
    q_eps = Mul (q, eps)
    r_h = Mul (r, h)
    estimate = Add (p_x, q_eps)
    next_h = Add (estimate, r_h)
    one = Constant <value_float = 1.0> ()
    passed = Sub (one, r)
    passed_h = Mul (passed, h)
    r_g = Mul (r, g)
    next_g = Add (passed_h, r_g)
}}
"""


def unroll(source: Path, record: Graph, path: Path) -> None:
    """Write several steps of `source`, an ONNX file of `unet` in any precision, to `path`; record: `graphs.unet_steps`.

    Latents and estimates stay float32 between the steps.

    Raises:
        GraphError: the graph is invalid.
    """
    import onnx
    import onnx.inliner

    network = onnx.load(source)
    (opset,) = network.opset_import
    calls = onnx.helper.make_model(
        _calls(network.graph, record),
        functions=[_as_function(network), onnx.parser.parse_function(RECURRENCE.format(opset=opset.version))],
        opset_imports=[opset, onnx.helper.make_opsetid(DOMAIN, 1)],
        ir_version=network.ir_version,
    )
    proto = onnx.inliner.inline_local_functions(calls)
    del proto.opset_import[1:]
    check_graph(proto, path)
    with whole_file(path) as temporary:
        onnx.save(proto, temporary)


def _as_function(network: onnx.ModelProto) -> onnx.FunctionProto:
    """The network as a function whose inputs include the weights."""
    import onnx

    graph = network.graph
    inputs = [value.name for value in (*graph.input, *graph.initializer)]
    outputs = [value.name for value in graph.output]
    return onnx.helper.make_function(DOMAIN, "network", inputs, outputs, graph.node, network.opset_import)


def _calls(network: onnx.GraphProto, record: Graph) -> onnx.GraphProto:
    """The steps as calls of the two functions. New names hold a slash, which no name of the network does."""
    from onnx import helper, numpy_helper

    steps = next(spec.shape[0] for spec in record.inputs if spec.name == "timesteps")
    condition = [spec.name for spec in record.inputs if spec.name == "condition"]
    numbers = range(1, steps + 1)
    timesteps, coefficients = ([f"{name}/{k}" for k in numbers] for name in ("timesteps", "coefficients"))
    latents = ["latent", *(f"latent/{k}" for k in numbers[:-1]), "next_latent"]
    estimates = ["estimate", *(f"estimate/{k}" for k in numbers[:-1]), "next_estimate"]
    earlier = ["earlier_estimate", *(f"earlier_estimate/{k}" for k in numbers[:-1]), "next_earlier_estimate"]
    nodes = [
        helper.make_node("Split", ["timesteps"], timesteps, axis=1, num_outputs=steps),
        helper.make_node("Split", ["coefficients"], coefficients, axis=1, num_outputs=steps),
    ]
    weights = [tensor.name for tensor in network.initializer]
    for k in range(steps):
        x, h, g, eps = latents[k], estimates[k], earlier[k], f"eps/{k + 1}"
        results = [latents[k + 1], estimates[k + 1], earlier[k + 1]]
        nodes += [
            helper.make_node("network", [x, *condition, timesteps[k], *weights], [eps], domain=DOMAIN),
            helper.make_node("recurrence", [x, eps, h, g, coefficients[k]], results, domain=DOMAIN),
            helper.make_node("Unsqueeze", [estimates[k + 1], "step/axis"], [f"estimates/{k + 1}"]),
        ]
    nodes.append(helper.make_node("Concat", [f"estimates/{k}" for k in numbers], ["estimates"], axis=1))
    axis = numpy_helper.from_array(np.array([1], np.int64), "step/axis")
    inputs, outputs = ([_value(spec) for spec in specs] for specs in (record.inputs, record.outputs))
    return helper.make_graph(nodes, record.name, inputs, outputs, [*network.initializer, axis])


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    from onnx import TensorProto, helper

    kinds = {torch.float32: TensorProto.FLOAT, torch.int32: TensorProto.INT32}
    return helper.make_tensor_value_info(spec.name, kinds[spec.dtype], ["batch", *spec.shape])
