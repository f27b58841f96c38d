"""The precision that a runtime reports, against the precision of its results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.executed import NotRunHere, compile_for_openvino, in_onnxruntime, in_openvino, openvino_core
from export.graphs import VAE_DECODER, random_inputs
from export.onnx.run import feeds_of
from export.parity.candidates import in_onnxruntime as candidate_in_onnxruntime
from support.capabilities import onnxruntime_fp16, openvino_bf16
from support.common import run_python

pytestmark = pytest.mark.slow

INPUTS = random_inputs(VAE_DECODER, rows=1, seed=1)
SHAPES = {"latent": [1, 1, 64, 64]}


@pytest.fixture(scope="module")
def decoder(small_repository: Path) -> Path:
    return small_repository / "vae_decoder" / "1"


def test_openvino_says_bf16_where_its_output_is_bf16(decoder: Path) -> None:
    """Every processor accepts the hint; on some, it does not change a bit of the output."""
    core = openvino_core()
    model = core.read_model(decoder / "model.onnx")
    model.reshape(SHAPES)
    answers, executed, property_of = {}, {}, {}
    for hint in ("f32", "bf16"):
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})
        answers[hint] = compiled(feeds_of(VAE_DECODER, INPUTS))[0].copy()
        executed[hint] = in_openvino(compiled)
        property_of[hint] = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    assert executed["f32"] == {"fp32"}
    assert property_of["f32"] == "f32"
    error = np.linalg.norm(answers["bf16"] - answers["f32"]) / np.linalg.norm(answers["f32"])
    if openvino_bf16() == "absent":
        assert error == 0
        assert executed["bf16"] == {"fp32"}
        assert property_of["bf16"] == "f32", "what the backend asks for"
    else:
        assert 1e-4 < error < 4e-2
        assert executed["bf16"] == {"bf16"}
        assert property_of["bf16"] == "bf16"


def test_a_signal_still_finds_its_handler_when_networks_have_come_and_gone(decoder: Path) -> None:
    """On a CPU with AMX, Ctrl-C once ended the process: its signal stack was that of a destroyed OpenVINO core."""
    code = f"""import os, pathlib, signal
from export.executed import compile_for_openvino
compiled = []
for _ in range(4):
    compiled.append(compile_for_openvino(pathlib.Path({str(decoder / "model.onnx")!r}), {SHAPES!r}, "fp32"))
    compiled = compiled[-2:]
del compiled
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)"""
    done = run_python("-c", code)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_bf16_is_compiled_or_refused_and_nothing_between(decoder: Path) -> None:
    assert in_openvino(compile_for_openvino(decoder / "model.onnx", SHAPES, "fp32")) == {"fp32"}
    if openvino_bf16() == "absent":
        with pytest.raises(
            NotRunHere, match="OpenVINO computes in fp32 on this CPU, whatever it is asked for: bf16 needs"
        ):
            compile_for_openvino(decoder / "model.onnx", SHAPES, "bf16")
    else:
        assert in_openvino(compile_for_openvino(decoder / "model.onnx", SHAPES, "bf16")) == {"bf16"}


def test_onnxruntime_is_asked_what_its_kernels_work_on(decoder: Path) -> None:
    feeds = feeds_of(VAE_DECODER, INPUTS)
    assert in_onnxruntime(decoder / "model.onnx", feeds) == {"fp32"}
    # The last convolution is float32 in the file too.
    assert in_onnxruntime(decoder / "model.fp16.onnx", feeds) == onnxruntime_fp16() | {"fp32"}


def test_a_file_that_runs_in_another_precision_is_no_candidate_of_its_own(decoder: Path) -> None:
    repository = decoder.parents[1]
    assert candidate_in_onnxruntime(repository, "fp32").precision == "fp32"
    if "fp16" in onnxruntime_fp16():
        assert candidate_in_onnxruntime(repository, "fp16").precision == "fp16"
    else:
        with pytest.raises(NotRunHere, match=r"ONNX Runtime computes model\.fp16\.onnx in fp32 on this CPU"):
            candidate_in_onnxruntime(repository, "fp16")
