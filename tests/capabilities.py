"""What this machine computes in, asked of the runtimes with one convolution. Tests hold what it can do, and no more."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from onnx import TensorProto, helper

from benchmarks.machine import has_bf16
from export.executed import NotRunHere, compile_for_openvino, in_onnxruntime
from toy_models import tensor, write_model

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

    bf16, fp16 = openvino_bf16(), " and ".join(sorted(onnxruntime_fp16()))
    ran, not_run = ["fp32 in ONNX Runtime, OpenVINO and PyTorch", "fp16 and bf16 in PyTorch"], []
    (not_run if bf16 == "absent" else ran).append(
        {
            "native": "bf16 in OpenVINO",
            "emulated": "bf16 in OpenVINO, emulated",
            "absent": "bf16 in OpenVINO, which computes fp32 on this CPU: it has no AVX-512",
        }[bf16]
    )
    if fp16 == "fp16":
        ran.append("fp16 in ONNX Runtime")
    else:
        not_run.append(f"fp16 in ONNX Runtime, which computes such files in {fp16} on this CPU")
    if not torch.cuda.is_available():
        not_run.append("tf32, plans and CUDA graphs: no GPU (pytest -m gpu runs what needs one)")
    return [f"precisions that ran: {'; '.join(ran)}", f"precisions that could not: {'; '.join(not_run) or 'none'}"]
