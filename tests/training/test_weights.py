"""Files of weights that others have saved: read as tensors alone."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from training.checkpoint import CheckpointError
from training.weights import read_weights


class Code(str):
    """A path whose pickle makes a folder there when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self),)


def test_files_that_are_more_or_less_than_tensors_are_refused(tmp_path: Path) -> None:
    path, trace = tmp_path / "model.pt", Code(tmp_path / "the code ran")

    def refused(message: str, path: Path = path) -> None:
        with pytest.raises(CheckpointError, match=message) as error:
            read_weights(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)

    torch.save({"conv_in.conv.weight": torch.zeros(1), "payload": trace}, path)
    refused("would run code")
    path.write_bytes(pickle.dumps(trace, protocol=2))
    refused("would run code")
    assert not Path(trace).exists()
    torch.save({"a": torch.arange(2000.0)}, path)
    whole = path.read_bytes()
    for damaged in (b"", b"not a checkpoint", whole[:3000], whole[:-30]):
        path.write_bytes(damaged)
        refused("damaged|cannot be read")
    torch.save([torch.zeros(1)], path)
    refused("holds no state dict, but list")
    torch.save({"epoch": 3, "weights": {"a": torch.zeros(1)}}, path)
    refused(r"2 entries are no tensors \(epoch, weights\)")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\xff" * 100)
    refused("cannot be read", broken)
    for absent in (tmp_path, tmp_path / "absent.pth"):
        refused("is not a file", absent)


def test_both_kinds_of_file_give_the_same_tensors(tmp_path: Path) -> None:
    state = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(1, dtype=torch.int64)}
    torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}, tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        read = read_weights(tmp_path / name)
        assert read.keys() == state.keys()
        assert all(torch.equal(read[key], tensor) for key, tensor in state.items())
