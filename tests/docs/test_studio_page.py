"""docs/studio.md: its script does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from brats_ldm_client import Client
from brats_ldm_client._formats import read
from server.process import TritonServer
from support.common import ROOT

[SCRIPT] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "studio.md").read_text(), re.DOTALL)


@pytest.mark.slow
def test_a_script_does_what_the_page_does(
    small_server: TritonServer, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(SCRIPT.replace("127.0.0.1:8001", small_server.grpc_url), names)
    said = capsys.readouterr().out
    assert said.count("Progress(") >= 10  # images may be at different steps
    assert re.findall(r"(\d+) steps: SSIM 0\.\d{3}", said) == ["10", "20"]
    image = read(tmp_path / "out" / "slices" / "slice_seed000000002.nii.gz")
    np.testing.assert_array_equal(image, client.generate([2]).images[0])
    first = read(tmp_path / "out" / "walk" / "slice_seed000000001.png")
    client.generate([1], preset="fast").save(tmp_path / "seed")
    np.testing.assert_array_equal(first, read(tmp_path / "seed" / "slice_seed000000001.png"))
    assert len(list((tmp_path / "out" / "walk").glob("slice_*.png"))) == 9
