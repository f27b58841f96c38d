"""The package of AOTInductor beside a program, if `python -m export repository --compile` wrote one for this machine.

It holds a shared library, code like that of the Python models in the same repository. Compiled for another machine it
may crash the process, so its record is read before anything of it is loaded. On a GPU it is experimental: not yet run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import zipfile
from pathlib import Path
from typing import Any

import torch

LOG = logging.getLogger(__name__)
RECORD = "record"


class Compiled(torch.nn.Module):  # type: ignore[misc]  # mypy does not look into torch
    """A loaded package: tensors in, one tensor out, as the program's module; it holds no parameters that could move."""

    def __init__(self, path: Path, device: torch.device, max_batch_size: int) -> None:
        super().__init__()
        index = -1 if device.index is None else device.index
        # The other way queries events for the end of a run, which is forbidden while a CUDA graph is captured.
        self._run = torch._inductor.aoti_load_package(str(path), run_single_threaded=True, device_index=index)
        self._most = max_batch_size

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Any number of rows; more than it was compiled for in several runs, since the package does not check them."""
        if len(inputs[0]) <= self._most:
            return self._run(*inputs)
        parts = zip(*(tensor.split(self._most) for tensor in inputs), strict=True)
        return torch.cat([self._run(*part) for part in parts])


def compiled_file(program: Path) -> Path:
    """model.compiled.pt2 beside model.pt2."""
    return program.with_suffix(".compiled.pt2")


def load_compiled(program: Path, device: torch.device) -> Compiled | None:
    """The package beside `program`, on `device`; None, with a line in the log, if there is none or it does not fit."""
    path = compiled_file(program)
    if not path.is_file():
        return None
    try:
        record = _read_record(path)
        if (reason := _unfit(record, program, device)) is None:
            compiled = Compiled(path, device, int(record["max_batch_size"]))
            LOG.info("%s is served: compiled for %s by torch %s", path, record["name"], record["torch"])
            return compiled
    except Exception as error:
        reason = f"it cannot be loaded ({type(error).__name__}: {next(iter(str(error).splitlines()), '')})"
    LOG.warning(
        "%s is not used: %s. The program runs operation by operation; to compile it for this machine, here: "
        "python -m export repository SNAPSHOT --torch PRECISION --compile",
        path,
        reason,
    )
    return None


def _read_record(path: Path) -> dict[str, Any]:
    """The record that the export wrote into the package. Raises one of many errors for other files."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith("_metadata.json")]
        record: dict[str, Any] = json.loads(json.loads(archive.read(names[0]))[RECORD])
    return record


def _unfit(record: dict[str, Any], program: Path, device: torch.device) -> str | None:
    """The reason why it must not be loaded here, or None."""
    if hashlib.sha256(program.read_bytes()).hexdigest() != record["program_sha256"]:
        return f"it was compiled from another {program.name}"
    if record["torch"] != torch.__version__:
        return f"it was compiled by torch {record['torch']}, and torch {torch.__version__} serves"
    if record["device"] != device.type:
        return f"it was compiled for {record['device']}, and runs on {device.type}"
    if record["machine"] != platform.machine():
        return f"it was compiled on {record['machine']}, and this is {platform.machine()}"
    if lacking := sorted(set(record["instructions"]) - _processor()):
        return f"it was compiled for a processor that has {', '.join(lacking)}, too"
    if device.type == "cuda" and (here := list(torch.cuda.get_device_capability(device))) != record["capability"]:
        there, here_ = (".".join(map(str, capability)) for capability in (record["capability"], here))
        return f"it was compiled for {record['name']} with compute capability {there}, and this GPU has {here_}"
    return None


def _processor() -> set[str]:
    """The words by which the kernel describes this processor, instruction sets among them."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return set(next((line for line in lines if line.startswith(("flags", "Features"))), "").partition(":")[2].split())
