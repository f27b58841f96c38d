"""Requests to `unet_steps` as Triton's stub hands them to the backend "torch_export": merged, answered, refused."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf.json_format import MessageToDict

from export.configs import parse_config
from support.sampler_steps import ALL, FINALS, SAMPLERS, Feeds, assert_same_bits, feeds_of, some_rows

pytestmark = pytest.mark.slow


class Request:
    """A request as the stub hands it over."""

    def __init__(self, feeds: Feeds, *outputs: str) -> None:
        self.feeds, self.outputs = feeds, outputs

    def inputs(self) -> list[Any]:
        return [SimpleNamespace(name=lambda n=n: n, as_numpy=lambda a=a: a) for n, a in self.feeds.items()]

    def requested_output_names(self) -> tuple[str, ...]:
        return self.outputs


@pytest.fixture
def model(torch_backend: SimpleNamespace, steps_repository: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model of the backend, with what stands in for Triton's stub."""
    stub = SimpleNamespace(
        Tensor=lambda name, array: (name, array),
        InferenceResponse=lambda tensors, error=None: error or dict(tensors),
        TritonError=type("TritonError", (Exception,), {"INTERNAL": 13, "INVALID_ARG": 3}),
        TritonModelException=RuntimeError,
        Logger=SimpleNamespace(log_info=lambda text: None),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stub)
    monkeypatch.syspath_prepend(Path(torch_backend.torch_steps.__file__).parent)
    monkeypatch.delitem(sys.modules, "model", raising=False)
    monkeypatch.setattr(logging.getLogger("torch_compiled"), "handlers", [])  # the one it adds speaks to this stub
    model = importlib.import_module("model").TritonPythonModel()
    monkeypatch.delitem(sys.modules, "model")
    folder = steps_repository / "unet_steps"
    config = MessageToDict(parse_config(folder / "configs" / "torch.pbtxt"), preserving_proto_field_name=True)
    instance = {"model_repository": str(folder), "model_version": "1", "model_instance_kind": "CPU"}
    model.initialize({**instance, "model_config": json.dumps(config)})
    return model


def test_requests_share_a_call_and_get_their_own_rows_and_outputs(model, torch_backend, steps_repository) -> None:
    feeds = feeds_of(*SAMPLERS, "ddim", count=2)
    parts, asked = [slice(0, 2), slice(2, 3), slice(3, 4)], [("next_latent",), (), ALL]
    path = steps_repository / "unet" / "1" / "model.pt2"
    expected = torch_backend.torch_steps.Steps(path, torch.device("cpu")).run(ALL, feeds)
    answers = model.execute([Request(some_rows(feeds, part), *names) for part, names in zip(parts, asked, strict=True)])
    for answer, part, names in zip(answers, parts, asked, strict=True):
        assert_same_bits(answer, {name: expected[name][part] for name in names})


def test_what_is_wrong_with_one_request_does_not_fail_the_others(model) -> None:
    feeds = feeds_of("ddim", count=2)
    bad = {**feeds, "draw": np.array([[-1]], np.int32)}
    requests = [Request(tensors, *FINALS) for tensors in (bad, feeds, bad)]
    first, second, third = model.execute(requests)
    assert first.args == third.args == ("draw is -1; it must be 0 or more", 3)
    assert set(second) == set(FINALS)


def test_requests_that_fail_together_get_errors_of_their_own(model, monkeypatch) -> None:
    """Triton frees an error's memory with each response that has it: one that two share has ended servers."""

    def fail(asked: Any, feeds: Any) -> None:
        raise RuntimeError("the GPU is gone")

    monkeypatch.setattr(model.program, "run", fail)
    first, second = model.execute([Request(feeds_of("ddim", count=2), *FINALS)] * 2)
    assert first.args == second.args == ("the GPU is gone", 13)
    assert first is not second
