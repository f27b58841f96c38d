"""docs/reference/protocol.md against the models: its tables are those of config.pbtxt, its examples run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from ast import literal_eval
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.message import Message
from PIL.PngImagePlugin import PngImageFile

from brats_ldm_client import Client
from export.configs import STEPS_PER_CALL, STEPS_TEMPLATES, TINY_TEMPLATES, parse_config, write_condition
from mri_ldm.conditioning import LABELS
from mri_ldm.request import (
    DECODERS,
    DEFAULT_DECODER,
    DEFAULT_ETA,
    DEFAULT_PREVIEW_DECODER,
    DEFAULT_SAMPLER,
    DEFAULT_STEPS,
    LARGEST_LATENT,
    MOST_GUIDANCE,
    NO_GUIDANCE,
    PREVIEW_DECODERS,
)
from mri_ldm.samplers import SAMPLERS
from mri_ldm.settings import PARAMETERS
from mri_ldm.timestep_grids import LEADING, TIMESTEP_GRIDS
from server.process import TritonServer
from support.common import ROOT, with_tools

PAGE = (ROOT / "docs" / "reference" / "protocol.md").read_text()
MODELS = ("mri_ldm", "mri_ldm_stream", "unet", "vae_decoder", "vae_decoder_tiny", "unet_steps")
CONFIGS = {name: ROOT / "model_repository" / name / "config.pbtxt" for name in MODELS[:-2]}
CONFIGS["vae_decoder_tiny"] = TINY_TEMPLATES / "config.pbtxt"
CONFIGS["unet_steps"] = STEPS_TEMPLATES / "config.pbtxt"
TYPES = {
    "TYPE_INT64": "INT64",
    "TYPE_INT32": "INT32",
    "TYPE_UINT8": "UINT8",
    "TYPE_FP32": "FP32",
    "TYPE_STRING": "BYTES",
}
FIELDS = re.findall(r"^\| [a-z_, ]+ \| .* \|$", PAGE.split("| field | content |")[1].split("\n\n")[0], re.M)
"""Rows about the fields of `queue`."""
EXAMPLES = re.findall(r"```(bash|python)\n(.*?)```", PAGE, re.DOTALL)


def section(model: str) -> str:
    return PAGE.split(f"\n## {model}\n")[1].split("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The cells of the rows that describe a tensor."""
    return [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| (→ )?`", line)]


def tensors(text: str) -> list[tuple[str, str, str]]:
    """Name, type and shape of each tensor in the tables of a text."""
    return [(cells[0].removeprefix("→ ").strip("`"), cells[1], cells[2]) for cells in rows(text)]


def declared(fields: list[Message], k: str = "K") -> list[tuple[str, str, str]]:
    """The same of a config.pbtxt; `k` is what the page calls the first dimension of unet_steps."""
    types = fields[0].DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    shapes = [str(list(field.dims)).replace(f"[{STEPS_PER_CALL}", f"[{k}").replace("[-1", f"[{k}") for field in fields]
    return [
        (field.name, TYPES[types[field.data_type].name], shape) for field, shape in zip(fields, shapes, strict=True)
    ]


@pytest.mark.parametrize("model", MODELS)
def test_the_tables_are_the_tensors_of_the_model(model: str, tmp_path: Path) -> None:
    config = parse_config(CONFIGS[model])
    text = section(model)
    if model == "unet_steps":
        write_condition(STEPS_TEMPLATES, tmp_path, 4)
        text, torch_inputs = text.split("In profile `torch`")
        config, torch = (parse_config(tmp_path / path) for path in ("config.pbtxt", "configs/torch.pbtxt"))
        assert declared(list(torch.input)) == declared(list(config.input)) + tensors(torch_inputs)
    shown = tensors(text)
    if model == "mri_ldm_stream":
        inputs, outputs = (tensors(part) for part in section("mri_ldm").split("Outputs:"))
        more_inputs, more_outputs = map(tensors, text.split("Outputs:"))
        shown = [*inputs, *more_inputs, *outputs, *more_outputs]
    assert shown == declared([*config.input, *config.output])


def test_ranges_and_defaults_are_those_of_the_code() -> None:
    text = section("mri_ldm").split("Outputs:")[0] + section("mri_ldm_stream").split("Outputs:")[0]
    inputs = {cells[0].strip("`"): cells[3:] for cells in rows(text)}
    optional = {field.name for field in parse_config(CONFIGS["mri_ldm_stream"]).input if field.optional}
    assert {name for name, (_, default) in inputs.items() if default != "required"} == optional
    assert inputs["steps"] == [f"1 to {PARAMETERS['max_steps'].largest}", str(DEFAULT_STEPS)]
    assert re.findall(r"`(\w+)`", inputs["sampler"][0]) == list(SAMPLERS)
    assert re.findall(r"`(\w+)`", inputs["decoder"][0]) == list(DECODERS)
    assert inputs["decoder"][1] == f"`{DEFAULT_DECODER}`"
    assert re.findall(r"`(\w+)`", inputs["preview_decoder"][0]) == list(PREVIEW_DECODERS)
    assert inputs["preview_decoder"][1] == f"`{DEFAULT_PREVIEW_DECODER}`"
    assert re.findall(r"`(\w+)`", inputs["timestep_grid"][0]) == list(TIMESTEP_GRIDS)
    assert inputs["timestep_grid"][1] == f"`{LEADING}`"
    assert inputs["sampler"][1] == f"`{DEFAULT_SAMPLER}`"
    assert inputs["eta"][1] == f"{DEFAULT_ETA:g}"
    assert inputs["labels"][0] == f"0 to {max(LABELS)}"
    assert inputs["guidance"][0].startswith(f"{NO_GUIDANCE:g} to {MOST_GUIDANCE:g}")
    assert inputs["guidance"][1] == f"{NO_GUIDANCE:g}"
    assert inputs["latent"][0].startswith(f"-{LARGEST_LATENT:g} to {LARGEST_LATENT:g}")


@pytest.mark.parametrize("model", ["unet", "vae_decoder", "vae_decoder_tiny", "unet_steps"])
def test_the_largest_batch_is_that_of_the_model(model: str) -> None:
    assert f"At most {parse_config(CONFIGS[model]).max_batch_size} rows." in section(model)


@pytest.mark.slow
def test_the_examples_run(small_server: TritonServer, client: Client, tmp_path: Path) -> None:
    """All of them, in order, in one folder: the Python ones read what the shell ones have written."""
    printed = [run(kind, code, small_server, tmp_path) for kind, code in EXAMPLES]
    expected = client.generate(seeds=[42], sampler="dpmpp_2m", steps=20).images
    one = json.loads((tmp_path / "slice.json").read_text())
    assert np.array_equal(np.array(one["image"], np.float32).reshape(1, 240, 240), expected)
    picture = client.generate(seeds=[42]).save(tmp_path / "clients", "png", contact_sheet=False)[0]
    assert content(tmp_path / "slice.png") == content(picture)
    many = {output["name"]: output for output in json.loads((tmp_path / "slices.json").read_text())["outputs"]}
    assert np.array_equal(np.array(many["image"]["data"], np.float32).reshape(2, 240, 240)[:1], expected)
    assert len(many["provenance"]["data"]) == 2
    standard = client.generate(seeds=[42]).images
    assert np.array_equal(
        np.frombuffer((tmp_path / "slice.bin").read_bytes()[-standard.nbytes :], "<f4"), standard.flat
    )
    steps = [line.split()[0] for text in printed for line in text.splitlines() if "preview" in line or "done" in line]
    assert steps == ["5", "10", "15", "20", "done"]
    sources = [text.splitlines() for text in printed if text.startswith("source:")]
    assert sources == [["source: tiny", "source: tiny", "source: the image itself"]]
    (queue,) = (literal_eval(text.removeprefix("queue: ")) for text in printed if text.startswith("queue:"))
    assert [*queue] == re.findall(r"\w+", " ".join(row.split("|")[1] for row in FIELDS))
    assert any("steps is 0" in text and "HTTP 400" in text for text in printed)
    assert printed[-1] == "(2, 1, 240, 240)\n"


def content(path: Path) -> tuple[bytes, dict[str, str]]:
    """The pixels of a PNG file, and its text."""
    with PngImageFile(path) as image:
        return image.tobytes(), image.text


@pytest.mark.slow
def test_an_error_in_place_of_a_picture_is_shown(small_server: TritonServer, tmp_path: Path) -> None:
    (line,) = (code for _, code in EXAMPLES if "jq" in code)
    with pytest.raises(AssertionError, match=r"\[INVALID row=0\] row 0: steps is 0"):
        run("bash", "set -o pipefail\n" + line.replace('"seed": 42', '"seed": 42, "steps": 0'), small_server, tmp_path)
    assert (tmp_path / "slice.png").read_bytes() == b""


def test_readme_writes_a_picture_with_the_same_line() -> None:
    lines = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert lines == [code for _, code in EXAMPLES if "jq" in code]


def run(kind: str, code: str, server: TritonServer, folder: Path) -> str:
    """What an example prints."""
    code = code.replace("127.0.0.1:8000", server.http_url).replace("127.0.0.1:8001", server.grpc_url)
    command = ["bash", "-ec", code] if kind == "bash" else [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=folder, env=with_tools(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{code}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_what_the_page_says_of_errors_over_http(small_server: TritonServer) -> None:
    """Statuses of mistakes that the page names, and the field that is ignored."""

    def status(path: str, data: dict[str, object]) -> int:
        command = [
            "curl",
            "--silent",
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code}",
            "--data",
            json.dumps(data),
        ]
        url = f"http://{small_server.http_url}/v2/models/{path}"
        return int(subprocess.run([*command, url], capture_output=True, text=True, timeout=60, check=True).stdout)

    assert status("mri_ldm/generate", {"seed": 1, "steps": 1, "nonsense": 1, "timeout": 1}) == 200
    assert status("mri_ldm/generate", {"seed": 1, "steps": 2.5}) == 500
    assert status("mri_ldm/generate", {"steps": 2}) == 400
    assert status("other/generate", {"seed": 1}) == 404
    assert status("mri_ldm_stream/generate", {"seed": 1, "steps": 1}) == 200
    late = {
        "inputs": [{"name": "seed", "datatype": "INT64", "shape": [1, 1], "data": [1]}],
        "parameters": {"timeout": 1},
    }
    assert status("mri_ldm/infer", late) == 400
    assert status("mri_ldm_stream/infer", late) == 501
