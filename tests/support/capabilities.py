"""What this machine computes in, asked of the runtimes with one convolution. Tests hold what it can do, and no more."""

from __future__ import annotations

import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from onnx import TensorProto, helper

from benchmarks.harness.machine import has_bf16
from export.executed import NotRunHere, compile_for_openvino, in_onnxruntime
from support.toy_models import tensor, write_model

SHAPE = (1, 8, 16, 16)


def _write_convolution(folder: Path, kind: int, dtype: type) -> Path:
    weights = np.random.default_rng(0).standard_normal((8, 8, 3, 3)).astype(dtype)
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    write_model(folder, "conv", "", [node], [tensor("x", kind, SHAPE)], [tensor("y", kind, SHAPE)], {"w": weights})
    return folder / "conv" / "1" / "model.onnx"


@cache
def openvino_bf16() -> Literal["native", "emulated", "absent"]:
    """How OpenVINO computes in bf16 here. It emulates it with AVX-512, and computes float32 without."""
    with tempfile.TemporaryDirectory() as folder:
        path = _write_convolution(Path(folder), TensorProto.FLOAT, np.float32)
        try:
            compile_for_openvino(path, {"x": list(SHAPE)}, "bf16")
        except NotRunHere:
            return "absent"
    return "native" if has_bf16() else "emulated"


@cache
def onnxruntime_fp16() -> set[str]:
    """What ONNX Runtime computes a float16 convolution in."""
    with tempfile.TemporaryDirectory() as folder:
        path = _write_convolution(Path(folder), TensorProto.FLOAT16, np.float16)
        return in_onnxruntime(path, {"x": np.zeros(SHAPE, np.float16)})


def closing_lines() -> list[str]:
    """Which precisions this run could hold to anything, and which it could not."""
    import torch

    could, could_not = ["fp32, fp16 and bf16 in PyTorch"], []
    for name, runs, why_not in (_onnxruntime(), _openvino(), _gpu(torch.cuda.is_available())):
        could += [f"{runs} {name}"] if runs else []
        could_not += [f"{why_not} {name}"] if why_not else []
    return [f"precisions that ran here: {'; '.join(could)}", f"and that could not: {'; '.join(could_not) or 'none'}"]


def _onnxruntime() -> tuple[str, str, str]:
    if not find_spec("onnxruntime"):
        return "in ONNX Runtime", "", "all, for it is not installed,"
    precisions = " and ".join(sorted(onnxruntime_fp16()))
    both = precisions == "fp16"
    return "in ONNX Runtime", "fp32 and fp16" if both else "fp32", "" if both else f"fp16 (computed as {precisions})"


def _openvino() -> tuple[str, str, str]:
    if not find_spec("openvino"):
        return "in OpenVINO", "", "all, for it is not installed,"
    runs = {"native": "fp32 and bf16", "emulated": "fp32 and bf16 (emulated)", "absent": "fp32"}[openvino_bf16()]
    return "in OpenVINO", runs, "bf16 (computed as fp32, for want of AVX-512)" if openvino_bf16() == "absent" else ""


def _gpu(there: bool) -> tuple[str, str, str]:
    wanted = "tf32, TensorRT plans and CUDA graphs"
    return "on a GPU", wanted if there else "", "" if there else wanted
