"""The precision in which a runtime really computes, asked of the runtime: a hint, or a file's name, is no proof.

OpenVINO accepts the hint bf16 on every CPU and computes float32 on those without AVX-512. ONNX Runtime's kernels for
CPUs run a float16 graph, most of them in float32 between casts.
"""

from __future__ import annotations

import json
import re
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.files import not_written

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime
    import openvino

WORK = re.compile("(Conv|ConvTranspose|Convolution|Deconvolution|FullyConnected|MatMul|Gemm)$")
"""How the names of the costly operations end, in both runtimes; the other operations use the same precision."""
OPENVINO_NAMES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16"}
ONNXRUNTIME_NAMES = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16"}
"""A runtime's name of a precision -> ours."""


class NotRunHere(ValueError):
    """This machine does not run what was asked for; the message says why."""


@cache
def openvino_core() -> openvino.Core:
    """The only OpenVINO core of this process, never destroyed.

    On a CPU with AMX, a core gives the thread a signal stack and removes it when the core is destroyed. With several
    cores, the stack of a destroyed one may stay in place, and then the next signal (Ctrl-C, say) ends the process. Seen
    with OpenVINO 2026.4.1.
    """
    import openvino

    return openvino.Core()


def in_openvino(compiled: openvino.CompiledModel) -> set[str]:
    """The precisions in which OpenVINO runs the costly operations of a compiled network."""
    infos = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ops()]
    kinds = [(info["layerType"].astype(str), info["runtimePrecision"].astype(str)) for info in infos]
    return {OPENVINO_NAMES[precision] for kind, precision in kinds if WORK.search(kind)}


def compile_for_openvino(path: Path, shapes: dict[str, list[int]], precision: str) -> openvino.CompiledModel:
    """The ONNX file compiled for the CPU, for inputs of these shapes, in fp32 or bf16.

    Raises:
        NotRunHere: OpenVINO would compute in another precision.
    """
    core = openvino_core()
    model = core.read_model(path)
    model.reshape(shapes)
    hint = {"fp32": "f32", "bf16": "bf16"}[precision]
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"})
    if (executed := in_openvino(compiled)) != {precision}:
        raise NotRunHere(
            f"OpenVINO computes in {' and '.join(sorted(executed))} on this CPU, whatever it is asked for: "
            "bf16 needs AVX512_BF16 or AMX, or AVX-512, which emulates it"
        )
    return compiled


def in_onnxruntime(path: Path, feeds: dict[str, np.ndarray[Any, Any]]) -> set[str]:
    """The precisions of the inputs of ONNX Runtime's costly kernels on the CPU, in one profiled call of the file.

    Raises:
        NotRunHere: ONNX Runtime has no kernels for the file.
    """
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

    options = onnxruntime.SessionOptions()
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling, options.profile_file_prefix = True, f"{folder}/call"
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except NoKernel as error:
            raise NotRunHere(f"ONNX Runtime has no kernels for {path.name} on this CPU") from error
        session.run(None, feeds)
        kernels = profiled_kernels(session)
    tensors = [tensor for kernel in kernels if WORK.search(kernel["op_name"]) for tensor in kernel["input_type_shape"]]
    return {ONNXRUNTIME_NAMES[kind] for tensor in tensors for kind in tensor if kind in ONNXRUNTIME_NAMES}


def profiled_kernels(session: onnxruntime.InferenceSession) -> list[dict[str, Any]]:
    """End the profiling of a session. Returns a record for each kernel that ran, with its time as `ms`."""
    path = Path(session.end_profiling())
    try:
        events = json.loads(path.read_text())
    except ValueError:
        reason = "ONNX Runtime left an incomplete file there, as on a full disk; TMPDIR can name another folder"
        raise not_written(path, reason) from None
    kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    return [kernel["args"] | {"ms": kernel["dur"] / 1e3} for kernel in kernels]
