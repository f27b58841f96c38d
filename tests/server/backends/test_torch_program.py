"""The backend of the profile "torch" below Triton: files that are refused, configs, and the rows of a batch.

What needs a GPU runs here on a stand-in for its memory and its graphs; with a GPU, `-m gpu`, on the real ones.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf.json_format import MessageToDict

from export.configs import parse_config
from export.graphs import GRAPHS, UNET, random_inputs
from support.common import ROOT
from support.torch_stand_in import TorchCuda

pytestmark = pytest.mark.slow

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
Feeds = dict[str, np.ndarray[Any, Any]]


@pytest.fixture
def backend(torch_backend: SimpleNamespace) -> SimpleNamespace:
    return torch_backend


@pytest.fixture
def unet(torch_repository: Path) -> Path:
    """A program: the small UNet in float32."""
    return torch_repository / "unet" / "1" / "model.pt2"


def feeds_of(graph, rows: int, seed: int = 1) -> Feeds:
    inputs = random_inputs(graph, rows, seed)
    return {spec.name: tensor.numpy() for spec, tensor in zip(graph.inputs, inputs, strict=True)}


def test_the_batch_is_dynamic_and_rows_are_independent(backend, unet) -> None:
    """On a CPU kernels may depend on the number of rows, and so may the last bits: no promise of bytes here."""
    program = backend.torch_program.Program(unet, CPU)
    feeds = feeds_of(UNET, rows=5)
    together = program(feeds)
    for row in range(5):
        alone = program({name: array[row : row + 1] for name, array in feeds.items()})
        np.testing.assert_allclose(alone[0], together[row], atol=1e-5)


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.name)
def test_nothing_of_a_program_stays_behind_on_the_cpu(graph, backend, torch_repository) -> None:
    """A constant left on the CPU would cost a copy a call, and could not be captured. The device "meta" refuses to mix
    with it as a GPU does."""
    module = backend.torch_program.load_module(torch_repository / graph.name / "1" / "model.pt2", torch.device("meta"))
    inputs = [tensor.to("meta") for tensor in random_inputs(graph, 3, seed=0)]
    assert module(*inputs).shape == (3, *graph.output.shape)


def rewritten(source: Path, into: Path, changes: dict[str, bytes]) -> Path:
    """A copy of an archive with some of its members changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(into, "w") as new:
        for info in old.infolist():
            name = info.filename.partition("/")[2]
            new.writestr(info.filename, changes.get(name, old.read(info)))
    return into


class Evil:
    """Whoever unpickles it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.folder,)


def test_a_pickle_in_the_file_is_refused_and_not_run(backend, unet, tmp_path) -> None:
    """torch.export.load tries weights_only=True for the example inputs, and where that refuses, loads them without:
    a file from anywhere could run anything. Ours hold no example inputs."""
    pickled = tmp_path / "pickled"
    evil = rewritten(unet, tmp_path / "model.pt2", {"data/sample_inputs/model.pt": pickle.dumps(Evil(pickled))})
    with pytest.raises(backend.torch_program.ProgramError, match=r"sample_inputs/model\.pt.* may run anything"):
        backend.torch_program.Program(evil, CPU)
    assert not pickled.exists()


@pytest.mark.parametrize("part", ["weights", "constants"])
def test_a_tensor_declared_as_pickled_is_refused(part, backend, unet, tmp_path) -> None:
    config = {"config": {"x": {"path_name": "weight_0", "use_pickle": True}}}
    evil = rewritten(
        unet,
        tmp_path / "model.pt2",
        {f"data/{part}/model_{part}_config.json": json.dumps(config).encode()},
    )
    with pytest.raises(backend.torch_program.ProgramError, match="holds a pickle"):
        backend.torch_program.read_record(evil)


def test_a_file_that_this_torch_cannot_load_names_both_versions(backend, unet, tmp_path) -> None:
    with zipfile.ZipFile(unet) as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        program = json.loads(archive.read(names["models/model.json"]))
        record = json.loads(archive.read(names["extra/record.json"]))
    program["schema_version"]["major"] += 1
    changes = {"models/model.json": program, "extra/record.json": record | {"torch": "9.9.0"}}
    later = rewritten(unet, tmp_path / "model.pt2", {name: json.dumps(v).encode() for name, v in changes.items()})
    both = f"was written by torch 9.9.0, and torch {torch.__version__} here cannot load it"
    with pytest.raises(backend.torch_program.ProgramError, match=re.escape(both)):
        backend.torch_program.Program(later, CPU)


def test_files_of_others_are_told_from_ours(backend, tmp_path) -> None:
    path = tmp_path / "model.pt2"
    with pytest.raises(backend.torch_program.ProgramError, match=r"there is no file .* --torch fp16"):
        backend.torch_program.read_record(path)
    path.write_bytes(b"no archive")
    with pytest.raises(backend.torch_program.ProgramError, match="is no program that"):
        backend.torch_program.read_record(path)


def triton_config(model: str) -> dict[str, Any]:
    """As Triton hands it to the backend."""
    config = parse_config(ROOT / "model_repository" / model / "configs" / "torch.pbtxt")
    without = [tensor for tensor in config.input if tensor.name != "condition"]  # the weights here take no labels
    del config.input[:]
    config.input.extend(without)
    return MessageToDict(config, preserving_proto_field_name=True)


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.name)
def test_the_committed_configs_fit(graph, backend, torch_repository) -> None:
    config = triton_config(graph.name)
    backend.torch_loading.check_tensors(
        config, backend.torch_program.read_record(torch_repository / graph.name / "1" / "model.pt2")
    )
    buckets, channels_last = backend.torch_loading.parameters(config)
    assert buckets == [size for size in (1, 2, 4, 8, 16, 32, 64) if size <= graph.max_batch_size]
    assert channels_last


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"batch_buckets": "1,two"}, "batch_buckets is '1,two' and max_batch_size 64"),
        ({"batch_buckets": "0"}, "batch_buckets is '0'"),
        ({"channels_last": "maybe"}, "channels_last is 'maybe'"),
        ({"batch_bucket": "1"}, r"unknown parameters \['batch_bucket'\]"),
    ],
)
def test_a_wrong_parameter_is_named(parameters, message, backend) -> None:
    values = {key: {"string_value": value} for key, value in parameters.items()}
    with pytest.raises(ValueError, match=message):
        backend.torch_loading.parameters({**triton_config("unet"), "parameters": values})


def test_a_config_that_does_not_fit_is_told(backend, unet) -> None:
    config = triton_config("unet")
    config["output"][0]["dims"] = ["1", "32", "32"]
    with pytest.raises(ValueError, match=r"declares .*\[1, 32, 32\].* and the file has"):
        backend.torch_loading.check_tensors(config, backend.torch_program.read_record(unet))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent": np.zeros((2, 1, 64, 64))}, r"'latent' is float64 .*must be float32"),
        ({"latent": np.zeros((2, 1, 32, 32), np.float32)}, r"'latent' is float32 \[2, 1, 32, 32\]"),
        ({"timesteps": np.zeros((1, 1), np.int32)}, r"\[2, 1\] rows"),
    ],
)
def test_inputs_that_do_not_fit_are_told(change, message, backend, unet) -> None:
    program = backend.torch_program.Program(unet, CPU)
    with pytest.raises(ValueError, match=message):
        program({**feeds_of(UNET, 2), **change})
    with pytest.raises(ValueError, match="'timesteps' is missing"):
        program({"latent": feeds_of(UNET, 2)["latent"]})


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_a_gpu_instance_without_a_gpu_says_what_is_missing(backend, unet) -> None:
    with pytest.raises(backend.torch_program.ProgramError, match="needs a torch with CUDA"):
        backend.torch_program.Program(unet, GPU)


@pytest.fixture
def on_gpu(backend, unet) -> Any:
    return backend.torch_program.Program(unet, GPU, [1, 4, 8])


@pytest.mark.gpu
def test_cuda_graphs_compute_what_the_network_computes(on_gpu, small_snapshot) -> None:
    module = UNET.build(small_snapshot).eval()
    for rows in (1, 3, 8, 11):  # exact, padded, exact, and cut by the largest graph
        feeds = feeds_of(UNET, rows, seed=rows)
        with torch.inference_mode():
            expected = module(*map(torch.from_numpy, feeds.values())).numpy()
        np.testing.assert_allclose(on_gpu(feeds), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.gpu
def test_rows_of_one_graph_are_bitwise_whatever_is_in_the_others(on_gpu) -> None:
    """What is promised on a GPU: the same graph, the same bytes, in every place and beside anything."""
    feeds = feeds_of(UNET, 8)
    together = on_gpu(feeds)
    for start in (0, 3):  # five rows run in the graph of eight, on what an earlier call has left in the rest
        on_gpu(feeds_of(UNET, 8, seed=99))
        part = on_gpu({name: array[start : start + 5] for name, array in feeds.items()})
        assert np.array_equal(part, together[start : start + 5])


@pytest.fixture
def cuda(monkeypatch) -> TorchCuda:
    return TorchCuda(monkeypatch)


@pytest.fixture
def stand_in(backend, unet, cuda, monkeypatch) -> Any:
    """The program on a GPU that is none, with graphs of 1, 2 and 4 rows."""
    load = backend.torch_program.load_module
    monkeypatch.setattr(backend.torch_program, "load_module", lambda path, device: load(path, CPU))
    return backend.torch_program.Program(unet, GPU, [4, 1, 2])


def test_calls_are_padded_to_the_next_graph_and_cut_by_the_largest(stand_in, cuda, backend, unet) -> None:
    eager = backend.torch_program.Program(unet, CPU)
    assert stand_in.buckets == [1, 2, 4]
    for rows, graphs in ((1, [1]), (2, [2]), (3, [4]), (4, [4]), (7, [4, 4]), (9, [4, 4, 1])):
        cuda.forget()
        feeds = feeds_of(UNET, rows, seed=rows)
        np.testing.assert_allclose(stand_in(feeds), eager(feeds), atol=1e-5)
        assert [(4, 2, 1)[number] for number in cuda.replays] == graphs
        assert cuda.waits == len(graphs)


def test_an_answer_outlives_the_next_call(stand_in) -> None:
    first = stand_in(feeds_of(UNET, 2, seed=1))
    kept = first.copy()
    stand_in(feeds_of(UNET, 2, seed=2))
    assert np.array_equal(first, kept)
