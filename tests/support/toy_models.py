"""Toy ONNX models with their configs, for tests of the backends that serve ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

DTYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "STRING": TensorProto.STRING,
}
ONE_THREAD = 'parameters { key: "intra_op_thread_count" value { string_value: "1" } }\n'
DYNAMIC = "dynamic_batching { max_queue_delay_microseconds: 200000 }\n"
WEIGHTS = np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32)


def tensor(name: str, kind: int, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def declare(side: str, name: str, kind: str, dims: Sequence[int], more: str = "") -> str:
    return f'{side} {{ name: "{name}" data_type: TYPE_{kind} dims: {list(dims)} {more} }}\n'


def write_model(
    repository: Path,
    name: str,
    config: str,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: dict[str, np.ndarray[Any, Any]] | None = None,
    filename: str = "model.onnx",
) -> None:
    initializers = [onnx.numpy_helper.from_array(value, key) for key, value in (constants or {}).items()]
    graph = helper.make_graph(nodes, name, inputs, outputs, initializers)
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), folder / filename)
    group = "instance_group { count: 1 kind: KIND_CPU }\n"
    (repository / name / "config.pbtxt").write_text(f'backend: "onnxruntime"\n{group}{config}')


def write_echo(repository: Path, names: Sequence[str] = tuple(DTYPES)) -> None:
    write_model(
        repository,
        "echo",
        "max_batch_size: 4\n"
        + "".join(declare("input", f"in_{n}", n, [2]) + declare("output", f"out_{n}", n, [2]) for n in names),
        [helper.make_node("Identity", [f"in_{n}"], [f"out_{n}"]) for n in names],
        [tensor(f"in_{n}", DTYPES[n], ["B", 2]) for n in names],
        [tensor(f"out_{n}", DTYPES[n], ["B", 2]) for n in names],
    )


def write_linear(repository: Path, name: str, config: str, filename: str = "model.onnx") -> None:
    write_model(
        repository,
        name,
        config + ONE_THREAD,
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [tensor("x", TensorProto.FLOAT, ["B", 3])],
        [tensor("y", TensorProto.FLOAT, ["B", 2])],
        {"w": WEIGHTS},
        filename,
    )


def write_reshaped(repository: Path) -> None:
    """The file has `t` of shape [B] and `x` of shape [B, 2, N]; clients see [B, 1] and [B, 1, 2, N]."""
    write_model(
        repository,
        "reshaped",
        "max_batch_size: 4\n"
        + declare("input", "t", "INT32", [1], "reshape { shape: [] }")
        + declare("input", "x", "FP32", [1, 2, -1], "reshape { shape: [2, -1] }")
        + declare("output", "double", "INT32", [1], "reshape { shape: [] }")
        + declare("output", "minus", "FP32", [1, 2, -1], "reshape { shape: [2, -1] }"),
        [helper.make_node("Add", ["t", "t"], ["double"]), helper.make_node("Neg", ["x"], ["minus"])],
        [tensor("t", TensorProto.INT32, ["B"]), tensor("x", TensorProto.FLOAT, ["B", 2, "N"])],
        [tensor("double", TensorProto.INT32, ["B"]), tensor("minus", TensorProto.FLOAT, ["B", 2, "N"])],
    )


def write_lookup(repository: Path) -> None:
    """Fails for an index beyond 9."""
    write_model(
        repository,
        "lookup",
        "max_batch_size: 8\n"
        + DYNAMIC
        + ONE_THREAD
        + declare("input", "index", "INT64", [1])
        + declare("output", "entry", "FP32", [1]),
        [helper.make_node("Gather", ["table", "index"], ["entry"])],
        [tensor("index", TensorProto.INT64, ["B", 1])],
        [tensor("entry", TensorProto.FLOAT, ["B", 1])],
        {"table": np.arange(10, dtype=np.float32) / 3},
    )


def write_optional(repository: Path) -> None:
    write_model(
        repository,
        "optional",
        "max_batch_size: 0\n"
        + "".join(
            f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
            for key, value in {
                "inter_op_thread_count": "1",
                "execution_mode": "1",
                "enable_mem_arena": "1",
                "enable_mem_pattern": "false",
                "memory.enable_memory_arena_shrinkage": "cpu:0",
                "session.intra_op.allow_spinning": "0",
            }.items()
        )
        + "optimization { graph { level: -1 } }\n"
        + declare("input", "x", "FP32", [2])
        + declare("input", "shift", "FP32", [2], "optional: true")
        + declare("output", "y", "FP32", [2]),
        [helper.make_node("Add", ["x", "shift"], ["y"])],
        [tensor("x", TensorProto.FLOAT, [2]), tensor("shift", TensorProto.FLOAT, [2])],
        [tensor("y", TensorProto.FLOAT, [2])],
        {"shift": np.array([10, 20], np.float32)},
    )


def write_front_model(repository: Path) -> Path:
    """A toy `mri_ldm` with a cpu profile: every pixel is the seed. Its config.pbtxt needs a backend that is absent."""
    model = repository / "mri_ldm"
    tensors = (
        'input [ { name: "seed" data_type: TYPE_INT64 dims: [1] }, { name: "steps" data_type: TYPE_INT32 dims: [1] } ]'
        ' output { name: "image" data_type: TYPE_FP32 dims: [1, 240, 240] }'
        " max_batch_size: 4 instance_group { count: 1 kind: KIND_CPU }"
    )
    write_model(
        repository,
        "mri_ldm",
        "",
        [
            helper.make_node("Cast", ["seed"], ["value"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["value", "column"], ["pixel"]),
            helper.make_node("Add", ["pixel", "black"], ["image"]),
        ],
        [tensor("seed", TensorProto.INT64, ["B", 1]), tensor("steps", TensorProto.INT32, ["B", 1])],
        [tensor("image", TensorProto.FLOAT, ["B", 1, 240, 240])],
        {"column": np.array([-1, 1, 1, 1]), "black": np.zeros((1, 1, 240, 240), np.float32)},
    )
    (model / "configs").mkdir()
    (model / "configs" / "cpu.pbtxt").write_text(f'backend: "onnxruntime" {tensors}')
    (model / "config.pbtxt").write_text(f'backend: "absent" {tensors}')
    return repository
