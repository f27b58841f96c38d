"""Constants and helpers of the tests."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from training.config import Config, Data, load_config

ROOT = Path(__file__).resolve().parents[2]
PHANTOM_SEED = 100
SMALL = Data(size=32, depth=4, workers=2)  # for `dataset`


def run_python(*arguments: str, timeout: float = 120, threads: int | None = None) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` in the checkout, as a user types it; `threads` of OpenMP, None = as the environment says."""
    env = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout, check=False)


def processor_seconds() -> float:
    """Used by the child processes that have ended: the same on a machine that is busy, unlike what the clock says."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def tracked(suffix: str = "") -> list[Path]:
    """Files and links of the repository, tracked or about to be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in names if name.endswith(suffix) and (ROOT / name).exists()]


def with_tools() -> dict[str, str]:
    """The environment of a shell that finds what `make .venv/.tools` has put beside the Python."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def heeding_signals(command: Sequence[str | Path]) -> list[str]:
    """The command so that it can be interrupted, also where this process was told to ignore that.

    A shell starts what runs in the background with SIGINT ignored, and nohup with SIGHUP; children inherit both. Not by
    `preexec_fn`: that makes Python fork, and a fork of a process with gRPC's threads hangs now and then.
    """
    return ["env", "--default-signal=INT,HUP", *map(str, command)]


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """A disk that takes files of `size` bytes: with this limit the kernel refuses the rest, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_toml(config: Config, path: Path) -> str:
    """`config` as a file for --config."""
    lines = [f"seed = {config.seed}"]
    for section, values in asdict(config).items():
        if isinstance(values, dict):
            lines += [f"[{section}]", *(f"{name} = {json.dumps(value)}" for name, value in values.items())]
    path.write_text("\n".join(lines))
    assert load_config(str(path)) == config
    return str(path)


def both_stages(config: Config, **changes: Any) -> Config:
    """`config` with the same changes in both stages."""
    parts = {name: replace(getattr(config, name), **changes) for name in ("autoencoder_training", "diffusion_training")}
    return replace(config, **parts)


def dataset(folder: Path, volumes: dict[str, np.ndarray | bytes] | None = None) -> Path:
    """A Task01_BrainTumour of six sound volumes, [32, 32, 4, 2], of which one is held out, and the given ones."""
    import nibabel as nib  # which a bare GPU machine lacks

    from training.decathlon import TASK

    (folder / TASK / "imagesTr").mkdir(parents=True)
    sound = {f"sound_{i}": blocks(seed=i) for i in range(6)}
    for name, content in {**sound, **(volumes or {})}.items():
        path = folder / TASK / "imagesTr" / f"{name}.nii.gz"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            nib.save(nib.Nifti1Image(content, np.eye(4)), path)
    entries = [{"image": f"imagesTr/{name}.nii.gz", "label": ""} for name in [*sound, *(volumes or {})]]
    keys = ("name", "description", "reference", "licence", "tensorImageSize", "modality", "labels", "numTest")
    index = {**dict.fromkeys(keys, ""), "numTraining": len(entries), "training": entries}
    (folder / TASK / "dataset.json").write_text(json.dumps(index))
    return folder


def blocks(seed: int) -> np.ndarray:
    """A volume [32, 32, 4, 2] of random blocks of 4 x 4: small, and an autoencoder has something to learn from it."""
    coarse = np.random.default_rng(seed).random((8, 8, 4, 2), dtype=np.float32)
    return coarse.repeat(4, axis=0).repeat(4, axis=1)
