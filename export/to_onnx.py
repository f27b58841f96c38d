"""A network to an ONNX file with a dynamic batch, checked."""

import logging
import os
import warnings
from pathlib import Path

import onnx
import torch
from torch import nn

from export.graphs import Graph, random_inputs

# The lowest that the exporter writes without down-converting; opset 21's GroupNormalization is slower on CPUs.
OPSET = 18


def export_onnx(graph: Graph, module: nn.Module, path: Path) -> None:
    """Write `module` to `path`: one file, weights inside, tensors named as in the record.

    Raises:
        onnx.checker.ValidationError: the exporter has written an invalid graph.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    batch = torch.export.Dim("batch", min=1, max=graph.max_batch_size)
    with warnings.catch_warnings():
        # They concern the exporter's own insides and torchvision, which nothing here uses.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            module.eval(),
            random_inputs(graph, rows=2, seed=0),
            temporary,
            input_names=[spec.name for spec in graph.inputs],
            output_names=[graph.output.name],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=tuple({0: batch} for _ in graph.inputs),
            external_data=False,
            verbose=False,
        )
    proto = onnx.load(temporary)
    onnx.checker.check_model(proto, full_check=True)
    _strip_notes(proto)
    onnx.save(proto, temporary)
    os.replace(temporary, path)


def _strip_notes(proto: onnx.ModelProto) -> None:
    """Remove what the exporter says about its source: stack traces with file paths, a tenth of the UNet's file."""
    graph = proto.graph
    for item in (proto, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
