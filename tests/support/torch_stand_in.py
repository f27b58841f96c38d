"""A stand-in for torch.cuda where there is no GPU, beside `gpu_stand_in`: what the backend "torch_export" calls, on the
memory of the host, with the rules that a GPU has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

Call = Callable[[], Any]


class TorchCuda:
    """What is queued runs when the host waits for it and no sooner, so that memory is found out which is filled again,
    or read, too early. A graph holds the operations that were captured, and nothing of Python: a replay runs these on
    the memory that they had. What makes the host wait in secret is an error.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.graphs: list[list[Call]] = []
        self.replays: list[int] = []  # numbers of graphs, in the order of their capture
        self.copies: list[tuple[int, ...]] = []  # shapes of what was copied between two replays
        self.waits = 0
        self._queue: list[Call] = []
        self._captured: list[Call] | None = None
        self._at_once = False
        zeros = torch.zeros
        stream = SimpleNamespace(synchronize=self._synchronize, wait_stream=lambda other: None)
        monkeypatch.setattr(torch, "zeros", lambda shape, dtype, **place: zeros(shape, dtype=dtype))
        for name, value in {
            "CUDAGraph": self._new_graph,
            "Stream": lambda: stream,
            "current_stream": lambda: stream,
            "device": lambda device: self._device(),
            "graph": self._capture,
            "graph_pool_handle": lambda: None,
            "stream": lambda stream: self._warm_up(),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def forget(self) -> None:
        """Count from zero again."""
        self.replays.clear()
        self.copies.clear()
        self.waits = 0

    def _new_graph(self) -> Any:
        number = len(self.graphs)
        self.graphs.append([])

        def replay() -> None:
            self.replays.append(number)
            self._queue.extend(self.graphs[number])

        return SimpleNamespace(number=number, replay=replay)

    @contextmanager
    def _device(self) -> Iterator[None]:
        """Operations inside are those of a GPU. Whoever leaves has waited for them."""
        with _Operations(self):
            yield
        assert not self._queue

    @contextmanager
    def _warm_up(self) -> Iterator[None]:
        self._at_once = True
        yield
        self._at_once = False

    @contextmanager
    def _capture(self, graph: Any, pool: Any) -> Iterator[None]:
        self._captured = self.graphs[graph.number]
        yield
        self._captured = None

    def operation(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Runs, captures or queues an operation of PyTorch."""
        name = function._schema.name
        if name == "aten::_local_scalar_dense" and not self._at_once:
            raise RuntimeError("the host would have to wait for this number")
        if self._captured is None and not self._at_once and name in ("aten::copy_", "aten::zero_"):
            if name == "aten::copy_":
                assert all(tensor.is_contiguous() for tensor in args[:2]), "this copy would make the host wait"
                self.copies.append(tuple(args[0].shape))
            self._queue.append(lambda: function(*args, **kwargs))
            return args[0]
        result = function(*args, **kwargs)
        if self._captured is not None:
            self._captured.append(lambda: _put(function(*args, **kwargs), result))
        return result

    def _synchronize(self) -> None:
        self.waits += 1
        with _disable_current_modes(), torch.inference_mode():
            for call in self._queue:
                call()
        self._queue.clear()


class _Operations(TorchDispatchMode):
    def __init__(self, cuda: TorchCuda) -> None:
        super().__init__()
        self.cuda = cuda

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.cuda.operation(function, args, kwargs or {})


def _put(new: Any, old: Any) -> None:
    """What an operation has computed, where it was at the capture."""
    for source, target in zip(tree_leaves(new), tree_leaves(old), strict=True):
        if isinstance(target, torch.Tensor) and source.data_ptr() != target.data_ptr():
            target.copy_(source)
