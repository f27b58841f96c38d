"""A machine that looks to `deploy/container.py` like a GPU machine with NVIDIA's image."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from support.common import ROOT
from support.light_repository import copy_light

SCRIPT = ROOT / "deploy" / "container.py"
TRTEXEC = """#!{python}
import pathlib, sys
print("&&&& RUNNING TensorRT.trtexec [TensorRT v" + pathlib.Path(__file__).with_name("version").read_text() + "] [b1]")
options = dict(argument[2:].partition("=")[::2] for argument in sys.argv[1:])
if "saveEngine" in options:
    pathlib.Path(options["saveEngine"]).write_text("plan of " + pathlib.Path(options["onnx"]).read_text())
    with pathlib.Path(__file__).with_name("builds").open("a") as log:
        log.write(options["onnx"].split("/")[-3] + "\\n")
    sys.exit(pathlib.Path(__file__).with_name("fails").exists())
"""


def import_container() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        return importlib.import_module("container")


class Machine:
    """A GPU machine with NVIDIA's image, as far as container.py looks at it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source, self.models = copy_light(folder / "source"), folder / "models"
        self.program("trtexec", TRTEXEC.format(python=sys.executable))
        self.program("tritonserver", '#!/bin/sh\necho tritonserver "$@"\n')
        self.version("101303")
        self.gpu("NVIDIA H100 PCIe", "9.0")

    def program(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def version(self, text: str) -> None:
        (self.folder / "version").write_text(text)

    def gpu(self, name: str, capability: str) -> None:
        self.program("nvidia-smi", f'#!/bin/sh\necho "{name}, {capability}"\n')

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.folder}:/usr/bin:/bin"
        env = {**os.environ, "PATH": path, "TRTEXEC": str(self.folder / "trtexec")}
        env["BRATS_LDM_DRAIN_FOLDER"] = str(self.folder / "drain")  # tests of other processes have their own
        command = [sys.executable, str(SCRIPT), *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)

    def prepare(self) -> list[str]:
        """The networks for which a plan was built."""
        (self.folder / "builds").write_text("")
        result = self.run("prepare", f"--source={self.source}", f"--into={self.models}")
        assert result.returncode == 0, result.stderr
        return (self.folder / "builds").read_text().split()

    def serve(self) -> subprocess.CompletedProcess[str]:
        return self.run("serve", str(self.models), "--", "--log-verbose=1")
