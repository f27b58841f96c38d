"""Loads a torch.export program and runs it: on a GPU by CUDA graphs of fixed batch sizes, on a CPU as it is.

The part with CUDA graphs is experimental: not yet run on a GPU. Knows nothing of Triton, and none of this project's
networks.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

if __package__:  # benchmarks import this file from the checkout
    from .torch_compiled import load_compiled
else:
    from torch_compiled import load_compiled  # type: ignore[no-redef]

Array = np.ndarray[Any, Any]
RECORD = "record.json"
WARM_UP_RUNS = 3  # NVIDIA's libraries choose kernels and allocate memory on their first runs; that must not be captured


class ProgramError(ValueError):
    """A file that cannot be run here; the message says why and what to do."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of the program; dtype as NumPy names it, shape of one row."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Record:
    """The record inside the file; torch: the version that wrote it, precision: of the network inside."""

    torch: str
    precision: str
    inputs: tuple[Tensor, ...]
    output: Tensor


def read_record(path: Path) -> Record:
    """The record of the file at `path`, once it is clear that loading it unpickles nothing.

    torch.export.load falls back to unrestricted unpickling for whatever a file declares as pickled. Ours hold none, so
    every place that can is refused. That is no sandbox: a program is code. Load it only from trusted sources.

    Raises:
        ProgramError: no such file, not written by this project's export, or with a pickle inside.
    """
    if not path.is_file():
        raise ProgramError(f"there is no file {path}: `python -m export repository SNAPSHOT --torch fp16` writes it")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            if len(members) != len(archive.infolist()):
                raise ProgramError(f"{path} holds two files of one name")
            _refuse_pickles(archive, members, path)
            record = json.loads(archive.read(members[f"extra/{RECORD}"]))
        tensors = [Tensor(entry["name"], entry["dtype"], tuple(entry["shape"])) for entry in record["inputs"]]
        output = Tensor(**{**record["output"], "shape": tuple(record["output"]["shape"])})
        return Record(record["torch"], record["precision"], tuple(tensors), output)
    except (zipfile.BadZipFile, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ProgramError(
            f"{path} is no program that `python -m export repository --torch` wrote: {error!r}"
        ) from error


def _refuse_pickles(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], path: Path) -> None:
    configs = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
    plain = {"models/model.json", "archive_format", "archive_version", "byteorder", f"extra/{RECORD}", *configs}
    for config in configs:
        folder = config.rpartition("/")[0]
        for name, entry in json.loads(archive.read(members[config]))["config"].items():
            file = entry["path_name"]
            if entry["use_pickle"] or not file.startswith(("weight_", "tensor_")):
                raise ProgramError(f"{path} holds a pickle ({name}), which may run anything: not loaded")
            plain.add(f"{folder}/{file}")
    for name, info in members.items():
        if name not in plain and not name.startswith(".data/") and info.file_size > 0:
            raise ProgramError(f"{path} holds {name!r}, which may run anything: not loaded")


def load_module(path: Path, device: torch.device) -> torch.nn.Module:
    """The program at `path`, or the compiled package beside it, as a module on `device`: tensors in, one tensor out.

    Raises:
        ProgramError: this torch cannot load it; both versions are named.
    """
    from torch.export.passes import move_to_device_pass

    record = read_record(path)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ProgramError(f"a GPU instance needs a torch with CUDA, and torch {torch.__version__} sees no GPU")
    if (compiled := load_compiled(path, device)) is not None:
        return compiled
    try:
        exported = torch.export.load(path)
        return cast(torch.nn.Module, move_to_device_pass(exported, str(device)).module())
    except Exception as error:
        raise ProgramError(
            f"{path} was written by torch {record.torch}, and torch {torch.__version__} here cannot load it "
            f"({type(error).__name__}: {error}); files are not promised to load in an older torch: export again with "
            "the torch that serves"
        ) from error


def prepared(path: Path, device: torch.device, *, channels_last: bool) -> Any:
    """The module at `path`, ready to be called on `device`. Raises ProgramError as `load_module` does.

    channels_last: convolutions on [N, H, W, C] in memory, the layout of the GPU's matrix units.
    """
    if device.type == "cuda":
        # Float32 layers stay float32, and a load chooses the same kernels as the one before.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.benchmark = False
    # The types of `to` do not allow a memory format as the only argument.
    module = cast(Any, load_module(path, device))
    return module.to(memory_format=torch.channels_last) if channels_last else module


def checked(specs: Sequence[Tensor], feeds: dict[str, Array]) -> list[Array]:
    """The arrays of `specs`, all of B rows. Raises ValueError for those that are missing or do not fit."""
    for spec in specs:
        if spec.name not in feeds:
            raise ValueError(f"input {spec.name!r} is missing; given are {sorted(feeds)}")
        array = feeds[spec.name]
        if array.dtype != np.dtype(spec.dtype) or array.shape[1:] != spec.shape:
            given = f"{array.dtype} {list(array.shape)}"
            raise ValueError(f"input {spec.name!r} is {given}; it must be {spec.dtype} [B, {str(list(spec.shape))[1:]}")
    arrays = [feeds[spec.name] for spec in specs]
    if any(len(array) != len(arrays[0]) for array in arrays) or len(arrays[0]) == 0:
        raise ValueError(f"inputs have {[len(array) for array in arrays]} rows; all must have the same, one or more")
    return arrays


class Program:
    """A program with its largest batch; called with NumPy arrays by name, the first axis the rows.

    On a GPU: `buckets` are the batch sizes that have a CUDA graph; a call is padded to the next of them, and cut by the
    largest. Padding rows hold values of earlier calls: no operation mixes rows. On a CPU `buckets` have no
    effect. `channels_last`: see `prepared`.
    """

    def __init__(
        self, path: Path, device: torch.device, buckets: Sequence[int] = (1,), *, channels_last: bool = True
    ) -> None:
        self.record = read_record(path)
        self.device = device
        self._module = prepared(path, device, channels_last=channels_last)
        self._graphs: dict[int, Graph] = {}
        if device.type == "cuda":
            self._stage = [Stage(spec, max(buckets), device) for spec in self.record.inputs]
            self._answer = Stage(self.record.output, max(buckets), device)
            pool = torch.cuda.graph_pool_handle()
            # The largest first: the others then fit into its memory.
            for rows in sorted(set(buckets), reverse=True):
                inputs = [stage.device[:rows] for stage in self._stage]
                self._graphs[rows] = Graph(partial(self._module, *inputs), device, pool)

    @property
    def buckets(self) -> list[int]:
        """The batch sizes that have a CUDA graph; none on a CPU."""
        return sorted(self._graphs)

    def run(self, asked: Collection[str], feeds: dict[str, Array]) -> dict[str, Array]:
        """The outputs in `asked`, by name. Raises the errors of a call."""
        name = self.record.output.name
        return {name: self(feeds)} if name in asked else {}

    def __call__(self, feeds: dict[str, Array]) -> Array:
        """The output for arrays [B, ...] by name; any B. Raises ValueError for arrays that do not fit."""
        arrays = checked(self.record.inputs, feeds)
        rows = len(arrays[0])
        if not self._graphs:
            with torch.inference_mode():
                return cast(Array, self._module(*map(torch.from_numpy, map(np.array, arrays))).numpy())
        most = max(self._graphs)
        parts = [self._replay([array[start : start + most] for array in arrays]) for start in range(0, rows, most)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _replay(self, arrays: list[Array]) -> Array:
        rows = len(arrays[0])
        graph = self._graphs[min(bucket for bucket in self._graphs if bucket >= rows)]
        with torch.cuda.device(self.device):
            for stage, array in zip(self._stage, arrays, strict=True):
                stage.array[:rows] = array
                stage.device[:rows].copy_(stage.host[:rows], non_blocking=True)
            graph.graph.replay()
            self._answer.host[:rows].copy_(graph.output[:rows], non_blocking=True)
            torch.cuda.current_stream().synchronize()
        return cast(Array, self._answer.array[:rows].copy())


def page_locked(spec: Tensor, rows: int) -> torch.Tensor:
    """Zeros [rows, ...] in page-locked memory of the host, for asynchronous copies."""
    return torch.zeros((rows, *spec.shape), dtype=_torch_type(spec), pin_memory=True)


def on_device(spec: Tensor, rows: int, device: torch.device) -> torch.Tensor:
    """Zeros [rows, ...] on the GPU."""
    return torch.zeros((rows, *spec.shape), dtype=_torch_type(spec), device=device)


def _torch_type(spec: Tensor) -> torch.dtype:
    return torch.from_numpy(np.empty(0, spec.dtype)).dtype


class Stage:
    """A tensor's place on the GPU, and page-locked memory beside it; `array` is that memory as NumPy sees it."""

    def __init__(self, spec: Tensor, rows: int, device: torch.device) -> None:
        self.host = page_locked(spec, rows)
        self.array = self.host.numpy()
        self.device = on_device(spec, rows, device)


class Graph:
    """What `run` launches, captured. Its inputs stay where they are; `output` is overwritten by every replay."""

    def __init__(self, run: Callable[[], torch.Tensor], device: torch.device, pool: Any) -> None:
        self.graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.device(device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_RUNS):
                    run()
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(self.graph, pool=pool):
                self.output: torch.Tensor = run()
