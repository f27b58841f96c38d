"""The repository in its default profile on the pip server of a GPU machine.

Padded and exact batches of both networks against ONNX Runtime. Needs `server-tensorrt` or `server-tensorrt-rtx`.
Run it with `pytest -m gpu tests/server/backends/test_tensorrt_gpu.py`.
"""

import importlib
import importlib.util
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as triton

from export.graphs import GRAPHS, random_inputs
from server.process import TritonServer
from support.common import ROOT
from support.serving import tensors

pytestmark = pytest.mark.gpu
CPU = ["CPUExecutionProvider"]


def build(onnx: Path, plan: Path, most: int) -> None:
    """A plan for 1 to `most` rows with whichever TensorRT is here."""
    name = "tensorrt" if importlib.util.find_spec("tensorrt") else "tensorrt_rtx"
    trt = importlib.import_module(name)
    builder = trt.Builder(logger := trt.Logger(trt.Logger.WARNING))
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    assert trt.OnnxParser(network, logger).parse_from_file(str(onnx))
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        row = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, (1, *row), (min(8, most), *row), (most, *row))
    config.add_optimization_profile(profile)
    plan.write_bytes(bytes(builder.build_serialized_network(network, config)))


def test_on_a_gpu_the_served_plans_answer_like_onnx_runtime(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(ROOT / "model_repository", repository)
    for model, most in (("unet", 64), ("vae_decoder", 4)):
        build(repository / model / "1" / "model.onnx", repository / model / "1" / "model.plan", most)
    with (
        TritonServer(repository, profile=None, startup_timeout_s=300) as server,
        triton.InferenceServerClient(server.grpc_url) as client,
    ):
        server.probe()
        for graph in GRAPHS:
            session = onnxruntime.InferenceSession(repository / graph.name / "1" / "model.onnx", providers=CPU)
            for rows in sorted({1, 3, min(5, graph.max_batch_size), min(33, graph.max_batch_size)}):
                arrays = [tensor.numpy() for tensor in random_inputs(graph, rows, seed=rows)]
                given = {spec.name: array for spec, array in zip(graph.inputs, arrays, strict=True)}
                reference = session.run([graph.output.name], given)[0]
                answer = client.infer(graph.name, tensors(**given), client_timeout=60).as_numpy(graph.output.name)
                # TF32 keeps 10 bits of the products: 1e-3 each, less in sums.
                assert np.linalg.norm(answer - reference) < 5e-3 * np.linalg.norm(reference)
