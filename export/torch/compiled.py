"""A program of torch.export to a package of AOTInductor beside it: the same network, compiled for this machine.

Experimental for CUDA: not yet run on a GPU.

The package holds a shared library: code for this machine's processor, GPU and torch. Its metadata names these three and
the program from which it was made. server/backends/torch_export uses the package where all of them fit, else the
program.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import shutil
import sysconfig
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export.passes import move_to_device_pass
from tqdm import tqdm

from export.compare import Parity, require_parity
from export.graphs import Graph, Network, random_inputs
from export.precision import Precision
from export.processor import instructions
from training.files import sha256, whole_file

RECORD = "record"


class CompileError(ValueError):
    """Nothing can be compiled here; the message says what is missing and what to do."""


def compiled_file(program: Path) -> Path:
    """model.compiled.pt2 beside model.pt2."""
    return program.with_suffix(".compiled.pt2")


def check_compiler() -> None:
    """Look for what AOTInductor needs on this machine, before the work starts.

    Raises:
        CompileError: something is missing.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:  # its class has moved between versions
        raise CompileError(
            f"--compile needs a C++ compiler, and torch finds none ({str(error).splitlines()[0]}): "
            "apt-get install g++, or set CXX to one"
        ) from error
    if not torch.cuda.is_available():
        return
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    missing = {
        "the CUDA toolkit (of torch's CUDA version; set CUDA_HOME)": not _has_cuda_headers(),
        "Triton (pip install triton)": importlib.util.find_spec("triton") is None,
        f"{header} (apt-get install python3-dev)": not header.is_file(),
        "a C compiler (apt-get install gcc)": not (shutil.which("gcc") or shutil.which("clang")),
    }
    if names := [name for name, is_missing in missing.items() if is_missing]:
        raise CompileError(f"--compile for a GPU needs {' and '.join(names)}, missing here")


def _has_cuda_headers() -> bool:
    from torch.utils.cpp_extension import include_paths

    try:
        return any(Path(folder, "cuda.h").is_file() for folder in include_paths("cuda"))
    except OSError:  # no CUDA_HOME
        return False


def device_here() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compile_program(graph: Graph, program: Path, precision: Precision) -> Path:
    """Compile the program at `program`, for 1 to `graph.max_batch_size` rows; takes minutes. Returns the new file.

    Raises:
        CompileError: torch or a compiler that it calls has failed.
    """
    device, path = device_here(), compiled_file(program)
    options: dict[str, Any] = {"aot_inductor.metadata": {RECORD: json.dumps(_record(graph, program, precision))}}
    # With a dynamic batch Inductor would leave convolutions in NCHW, and would compile for the number of threads of
    # this process instead of the server's.
    options |= {"force_layout_optimization": True} if device.type == "cuda" else {"cpp.dynamic_threads": True}
    try:
        with whole_file(path) as temporary, temporary.open("w+b") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bounded = _bounded(graph, program, device)
            torch._inductor.aoti_compile_and_package(bounded, package_path=file, inductor_configs=options)
    except OSError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = next((line for line in lines if "error: " in line), next(iter(lines), ""))
        raise CompileError(f"{program} could not be compiled: {type(error).__name__}: {reason}") from error
    return path


def _bounded(graph: Graph, program: Path, device: torch.device) -> torch.export.ExportedProgram:
    """The program on `device`, for the largest batch at most: Inductor then knows which sizes fit 32 bits."""
    module: Any = move_to_device_pass(torch.export.load(program), str(device)).module(check_guards=False)
    if device.type == "cuda":
        module = module.to(memory_format=torch.channels_last)  # else each call would change the layout of the weights
    inputs = tuple(tensor.to(device) for tensor in random_inputs(graph, rows=2, seed=0))
    batch = torch.export.Dim("batch", min=1, max=graph.max_batch_size)
    with torch.no_grad():
        return torch.export.export(module, inputs, dynamic_shapes=[{0: batch} for _ in inputs])


def _record(graph: Graph, program: Path, precision: Precision) -> dict[str, Any]:
    gpu = torch.cuda.is_available()
    return {
        "program_sha256": sha256(program),
        "torch": torch.__version__,
        "device": device_here().type,
        "capability": list(torch.cuda.get_device_capability()) if gpu else None,
        "name": torch.cuda.get_device_name() if gpu else platform.machine(),
        "machine": platform.machine(),
        "instructions": sorted(instructions()),
        "precision": precision,
        "max_batch_size": graph.max_batch_size,
    }


@torch.no_grad()
def compare_compiled(graph: Graph, module: Network, path: Path, precision: Precision) -> Parity:
    """Run `module`, which is float32, and the package at `path` on one, three and the largest batch of random rows.

    Returns the worst of the three results.

    Raises:
        ParityError: one of them differs by more than `precision` allows.
    """
    compiled, inputs = torch._inductor.aoti_load_package(str(path)), random_inputs(graph, graph.max_batch_size, seed=1)
    reference, results = module.eval()(*inputs).numpy(), []
    for rows in (1, 3, graph.max_batch_size):
        answer = compiled(*(tensor[:rows].to(device_here()) for tensor in inputs)).cpu().numpy()
        results.append(require_parity(f"{graph.name}: {path.name}, {rows} rows,", reference[:rows], answer, precision))
    return max(results, key=lambda parity: parity.relative_l2)


def add_compiled(
    graph: Graph, module: Network, folder: Path, precision: Precision, report: Callable[[str], None] = print
) -> dict[str, Any]:
    """Compile 1/model.pt2 of the network below `folder` and compare it with `module`; returns its manifest entry.

    Raises:
        CompileError: it could not be compiled.
        ParityError: it does not compute what `module` does.
    """
    program, started = folder / graph.name / "1" / "model.pt2", time.monotonic()
    report(f"{graph.name}: compiling for {device_here().type}, which takes minutes")
    with _clock(f"{graph.name}: compiling"):
        path = compile_program(graph, program, precision)
    parity = compare_compiled(graph, module, path, precision)
    report(
        f"{graph.name}: {path.name}, {path.stat().st_size / 1e6:.1f} MB after {time.monotonic() - started:.0f} s, "
        f"differs from PyTorch in fp32 by {parity.relative_l2:.1e} (relative L2)"
    )
    record = _record(graph, program, precision)
    return {
        "file": str(path.relative_to(folder)),
        **{key: record[key] for key in ("torch", "device", "name", "precision")},
        "parity": parity.record(),
    }


@contextmanager
def _clock(what: str) -> Iterator[None]:
    """On a terminal, a line with the elapsed time."""
    done = threading.Event()
    with tqdm(desc=what, bar_format="{desc}: {elapsed}", leave=False, disable=None) as line:

        def tick() -> None:
            while not done.wait(1):
                line.refresh()

        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
