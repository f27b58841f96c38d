"""Processes of a running server, as Linux shows them in /proc."""

from __future__ import annotations

from pathlib import Path


def children(parent: int) -> dict[int, bool]:
    """Process ids of the children of a process, with whether the child is alive (and no zombie)."""
    states = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        state, its_parent, _ = _state(stat)
        if its_parent == parent:
            states[int(stat.parent.name)] = state not in "ZX"
    return states


def group_alive(group: int) -> bool:
    """Whether the process group has a member that is not a zombie."""
    states = (_state(stat) for stat in Path("/proc").glob("[0-9]*/stat"))
    return any(its_group == group and state not in "ZX" for state, _, its_group in states)


def alive(process: int) -> bool:
    """Whether the process exists and is not a zombie."""
    return _state(Path("/proc", str(process), "stat"))[0] not in "ZX"


def _state(stat: Path) -> tuple[str, int, int]:
    """State, parent and process group; state X if the process has just ended."""
    try:
        state, parent, group = stat.read_text().rpartition(")")[2].split()[:3]
    except OSError:
        return "X", 0, 0
    return state, int(parent), int(group)


def model_of(stub: int) -> str:
    """The model instance that a stub process runs, such as unet_0_0; empty if it is unknown."""
    try:
        arguments = Path("/proc", str(stub), "cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    # stub, path of model.py, five of shared memory and parent, handle, name, ...
    is_stub = arguments[0].endswith(b"triton_python_backend_stub") and len(arguments) > 8
    return arguments[8].decode(errors="replace") if is_stub else ""
