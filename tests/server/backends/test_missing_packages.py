"""Each python-based backend where its package is missing: the reason and the remedy are said."""

import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest

from support.common import ROOT


@pytest.mark.parametrize(
    ("backend", "package", "remedy"),
    [
        ("onnxruntime", "onnxruntime", "pip install --group server"),
        ("openvino", "openvino", "pip install --group server-openvino"),
        ("torch_export", "torch", "pip install torch"),
    ],
)
def test_a_missing_package_is_named_with_its_remedy(
    backend: str, package: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton's own exception does not exist yet while the stub imports a model: raising it hid the reason."""
    folder: Path = ROOT / "server" / "backends" / backend
    monkeypatch.syspath_prepend(folder)
    for path in folder.glob("*.py"):
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"has no working {package} \(.*\): {remedy}$"):
        runpy.run_path(str(folder / "model.py"))
