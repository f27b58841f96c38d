"""Constants and helpers of the tests."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from training.config import Config, load_config

ROOT = Path(__file__).resolve().parents[1]
PHANTOM_SEED = 100


def run_python(*arguments: str, timeout: float = 120, threads: int | None = None) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` in the checkout, as a user types it; `threads` of OpenMP, None = as the environment says."""
    env = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout, check=False)


def write_toml(config: Config, path: Path) -> str:
    """`config` as a file for --config."""
    lines = [f"seed = {config.seed}"]
    for section, values in asdict(config).items():
        if isinstance(values, dict):
            lines += [f"[{section}]", *(f"{name} = {json.dumps(value)}" for name, value in values.items())]
    path.write_text("\n".join(lines))
    assert load_config(str(path)) == config
    return str(path)
