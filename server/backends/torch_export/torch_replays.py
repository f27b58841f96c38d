"""Steps of the recurrence on a GPU: one CUDA graph a batch size, replayed as often as there are steps.

The results of a step stay on the GPU. So does the step counter, with which the graph finds its timesteps and
coefficients. Between two replays the host only copies noise, which threads draw in the background.

Experimental: not yet run on a GPU.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch_noise import LATENT_SHAPE
from torch_program import Array, Graph, Stage, Tensor, on_device, page_locked
from torch_recurrence import COLUMNS, IDENTITY, STATE, Rows, advance, columns_of, draw_rows

THREADS = 8  # most threads that draw noise
AHEAD = 3  # steps that are drawn ahead: starting fifty at once takes long, and the GPU would wait
FINALS = ("next_latent", "next_estimate", "next_earlier_estimate")
LATENTS = Tensor("latents", "float32", LATENT_SHAPE)


class Memory:
    """Shared by the graphs of all batch sizes: the state, tables for `room` steps, threads for noise.

    Tables of latents, one on the GPU and two in page-locked memory, take 16 KB a step and row. `room` is more than
    WARM_UP_RUNS.
    """

    def __init__(self, rows: int, room: int, device: torch.device, condition: Tensor | None = None) -> None:
        """condition: of a network that takes labels."""
        self.room, self.device = room, device
        self.condition = Stage(condition, rows, device) if condition else None
        self.state = Stage(LATENTS, STATE * rows, device)
        self.timesteps = Stage(Tensor("timesteps", "int32", (1,)), room * rows, device)
        self.columns = Stage(Tensor("columns", "float32", (1,) * len(LATENT_SHAPE)), room * COLUMNS * rows, device)
        self.estimates = Stage(LATENTS, room * rows, device)
        self.noise, self.step_noise = page_locked(LATENTS, room * rows), on_device(LATENTS, rows, device)
        self.noisy = False  # whether step_noise holds anything but zeros
        self.step = on_device(Tensor("step", "int64", ()), 1, device)
        self.workers = min(THREADS, len(os.sched_getaffinity(0)))
        self.threads = ThreadPoolExecutor(self.workers, thread_name_prefix="noise")


class _Table:
    """A stage seen as [steps, ..., rows, ...] without gaps, so that the first steps of it are copied at once."""

    def __init__(self, stage: Stage, *shape: int) -> None:
        self.host, self.device = _seen(stage.host, *shape), _seen(stage.device, *shape)
        self.array = self.host.numpy()


def _seen(memory: torch.Tensor, *shape: int) -> torch.Tensor:
    return memory[: int(np.prod(shape))].view(*shape, *memory.shape[1:])


class Replays:
    """The step of one batch size, captured; called with that many rows or fewer. Not for several threads at once."""

    def __init__(self, module: Any, memory: Memory, rows: int, pool: Any) -> None:
        self._module, self._memory, self._rows = module, memory, rows
        self._state = _Table(memory.state, STATE, rows)
        self._timesteps = _Table(memory.timesteps, memory.room, rows)
        self._columns = _Table(memory.columns, memory.room, COLUMNS, rows)
        self._estimates = _Table(memory.estimates, memory.room, rows)
        self._noise = _seen(memory.noise, memory.room, rows)
        self._noise_array = self._noise.numpy()
        memory.step.zero_()
        self._graph = Graph(self._step, memory.device, pool).graph

    def _step(self) -> torch.Tensor:
        """The captured operations: a step of all rows, and an increment of the step counter."""
        step, state = self._memory.step, self._state.device
        timesteps, columns = (table.device.index_select(0, step)[0] for table in (self._timesteps, self._columns))
        condition = self._memory.condition
        seen = [condition.device[: self._rows]] if condition else []
        eps = self._module(state[0], *seen, timesteps)
        state.copy_(advance(state, eps, self._memory.step_noise[: self._rows], columns))
        self._estimates.device.index_copy_(0, step, state[1:2])
        return step.add_(1)

    def __call__(self, rows: Rows, asked: Collection[str]) -> dict[str, Array]:
        """The outputs in `asked`. The host waits once for every `room` steps."""
        count, room = len(rows), self._memory.room
        finals = [(place, name) for place, name in enumerate(FINALS) if name in asked]
        estimates = np.empty((count, rows.steps, *LATENT_SHAPE), np.float32) if "estimates" in asked else None
        with torch.cuda.device(self._memory.device):
            self._state.array[:, :count] = rows.start.swapaxes(0, 1)
            self._state.device.copy_(self._state.host, non_blocking=True)
            if (condition := self._memory.condition) and rows.condition is not None:
                condition.array[:count] = rows.condition
                condition.device[:count].copy_(condition.host[:count], non_blocking=True)
            for at in range(0, rows.steps, room):
                piece = rows.part(slice(None), slice(at, at + room))
                self._advance(piece)
                if estimates is not None:
                    done = slice(piece.steps)
                    self._estimates.host[done].copy_(self._estimates.device[done], non_blocking=True)
                for place, _ in finals if at + piece.steps == rows.steps else ():
                    self._state.host[place].copy_(self._state.device[place], non_blocking=True)
                # From here on the host's tables may be filled again, and the results are complete.
                torch.cuda.current_stream().synchronize()
                if estimates is not None:
                    estimates[:, at : at + room] = self._estimates.array[done, :count].swapaxes(0, 1)
        answers = {name: self._state.array[place, :count].copy() for place, name in finals}
        return answers | ({} if estimates is None else {"estimates": estimates})

    def _advance(self, rows: Rows) -> None:
        """Queue all operations of the steps of `rows`; at most `room` steps."""
        count, steps = len(rows), rows.steps
        self._timesteps.array[:steps, :count, 0] = rows.timesteps.T
        self._columns.array[:steps, :, :count] = columns_of(rows.coefficients)
        # Padding rows do not change.
        self._timesteps.array[:steps, count:] = 0
        self._columns.array[:steps, :, count:] = columns_of(np.array([[IDENTITY]], np.float32))
        for table in (self._timesteps, self._columns):
            table.device[:steps].copy_(table.host[:steps], non_blocking=True)
        self._memory.step.zero_()
        with closing(self._drawn(rows)) as drawn:
            for step, noise in enumerate(drawn):
                self._bring(noise, step, count)
                self._graph.replay()

    def _drawn(self, rows: Rows) -> Generator[list[Future[None]], None, None]:
        """For each step, the tasks that draw its noise; empty without noise. After `close` no task runs any more."""
        noisy = rows.noisy
        share = -(-len(rows) // self._memory.workers)
        begun: deque[list[Future[None]]] = deque()
        try:
            for ahead in range(rows.steps + AHEAD):
                if ahead < rows.steps:
                    firsts = range(0, len(rows), share) if noisy[:, ahead].any() else ()
                    parts = [slice(at, min(at + share, len(rows))) for at in firsts]
                    begun.append(
                        [self._draw(rows.keys[part, ahead], noisy[part, ahead], ahead, part) for part in parts]
                    )
                if ahead >= AHEAD:
                    yield begun[0]
                    begun.popleft()
        finally:
            wait([future for futures in begun for future in futures if not future.cancel()])

    def _draw(self, keys: Array, noisy: Array, step: int, part: slice) -> Future[None]:
        return self._memory.threads.submit(draw_rows, self._noise_array[step, part], keys, noisy)

    def _bring(self, drawn: list[Future[None]], step: int, count: int) -> None:
        """Queue the copy of a step's noise; zeros for a step without noise, unless zeros are there already."""
        for future in drawn:
            future.result()
        if drawn:
            self._memory.step_noise[:count].copy_(self._noise[step, :count], non_blocking=True)
        elif self._memory.noisy:
            self._memory.step_noise.zero_()
        self._memory.noisy = bool(drawn)
