"""A network to an ONNX file with a dynamic batch, in any of the precisions; the file is checked before it is saved."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from export.graphs import Graph, Network, random_inputs
from export.precision import DTYPES, Precision
from training.files import whole_file

if TYPE_CHECKING:
    import onnx

# The lowest that the exporter writes without down-converting; opset 21's GroupNormalization is slower on CPUs.
OPSET = 18
# The first whose convolutions may be bfloat16. The converter raises the number and leaves the nodes as they are; the
# exporter would write newer ones.
BFLOAT16_OPSET = 22


class GraphError(ValueError):
    """The exporter has written an invalid graph."""


def onnx_file(precision: Precision) -> str:
    """Name of the file in a version folder."""
    return "model.onnx" if DTYPES[precision] == torch.float32 else f"model.{precision}.onnx"


def export_onnx(graph: Graph, module: Network, path: Path) -> None:
    """Write `module` to `path`: one file, weights inside, tensors named as in the graph's record.

    The file is strongly typed: the graph says in which type each operation computes. Softmax is float32 in every
    precision.

    Raises:
        GraphError: the exporter has written an invalid graph.
    """
    # Imported here: machines that serve only the profile torch may lack it.
    import onnx.version_converter

    proto = _exported(graph, module)
    if module.dtype != torch.float32:
        _keep_softmax_in_float32(proto, module.dtype)
    if module.dtype == torch.bfloat16:
        proto = onnx.version_converter.convert_version(proto, BFLOAT16_OPSET)
    check_graph(proto, path)
    _strip_notes(proto)
    with whole_file(path) as temporary:
        onnx.save(proto, temporary)


def check_graph(proto: onnx.ModelProto, path: Path) -> None:
    """Check a graph that is about to be written to `path`.

    Raises:
        GraphError: it is invalid.
    """
    import onnx.checker

    try:
        onnx.checker.check_model(proto, full_check=True)
    except onnx.checker.ValidationError as error:
        raise GraphError(f"{path}: not written, the graph is invalid: {error}") from error


def _exported(graph: Graph, module: Network) -> onnx.ModelProto:
    batch = torch.export.Dim("batch", min=1, max=graph.max_batch_size)
    with warnings.catch_warnings():
        # They are about the exporter's internals and torchvision, which nothing here uses.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module.eval(),
            random_inputs(graph, rows=2, seed=0),
            input_names=[spec.name for spec in graph.inputs],
            output_names=[spec.name for spec in graph.outputs],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=tuple({0: batch} for _ in graph.inputs),
            verbose=False,
        )
    proto: onnx.ModelProto = program.model_proto
    return proto


def _keep_softmax_in_float32(proto: onnx.ModelProto, dtype: torch.dtype) -> None:
    """Put casts around every Softmax: the exporter splits attention into parts, all in the type of the inputs."""
    import onnx

    kinds = {torch.float16: onnx.TensorProto.FLOAT16, torch.bfloat16: onnx.TensorProto.BFLOAT16}
    nodes = []
    for node in proto.graph.node:
        if node.op_type != "Softmax":
            nodes.append(node)
            continue
        scores, weights = node.input[0], node.output[0]
        node.input[0], node.output[0] = f"{scores}_float32", f"{weights}_float32"
        before = onnx.helper.make_node("Cast", [scores], [node.input[0]], f"{node.name}_in", to=onnx.TensorProto.FLOAT)
        after = onnx.helper.make_node("Cast", [node.output[0]], [weights], f"{node.name}_out", to=kinds[dtype])
        nodes += [before, node, after]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _strip_notes(proto: onnx.ModelProto) -> None:
    """Remove the exporter's notes on its source: stack traces with file paths, a tenth of the UNet's file."""
    graph = proto.graph
    for item in (proto, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
