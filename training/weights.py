"""Reads weights that others have saved, and runs no code from their files."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from training.checkpoint import CheckpointError, StateDict
from training.files import utf8_name

WRAPPERS = ("model", "state_dict")
PREFIXES = ("module.", "_orig_mod.")


def read_weights(path: Path) -> StateDict:
    """The state dict in a .safetensors file or, with any other name, in a file of torch.save; on the CPU.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it holds more than tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file: give the path of the weights")
    try:
        if path.suffix == ".safetensors":
            with utf8_name(path) as readable:
                content = load_file(readable)
        else:
            content = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError:
        message = "damaged, or it holds more than tensors and plain values, and to load that would run code from it"
        raise CheckpointError(f"{path}: {message}; save its state_dict() alone, or as .safetensors") from None
    except Exception as error:  # a damaged file can make the parsers fail in any way
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {reason}") from None
    return unwrap(content, str(path))


def unwrap(content: Any, source: str) -> StateDict:
    """The state dict inside the content of a file; `content` does not change.

    Looks inside {"model": ...} and {"state_dict": ...}, and removes the prefixes that DataParallel and torch.compile
    add to all names.

    Raises:
        CheckpointError: there is no dictionary of tensors.
    """
    while isinstance(content, Mapping):
        inner = [content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if len(inner) != 1:
            break
        content = inner[0]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{source} holds no state dict, but {type(content).__name__}")
    others = [str(key) for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if others:
        named = ", ".join([*others[:3], *(["..."] if len(others) > 3 else [])])
        raise CheckpointError(f"{source} holds no state dict: {len(others)} entries are no tensors ({named})")
    state = dict(content)
    while prefix := next((prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in state)), None):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state
