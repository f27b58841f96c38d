"""`unet_steps`: several steps of a sampler's recurrence in one call, around the program of `unet`.

On a GPU they are replays of CUDA graphs (`torch_replays.py`; experimental: not yet run on a GPU), on a CPU a loop.
Knows nothing of Triton.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from torch_noise import LATENT_SHAPE
from torch_program import Array, Record, Tensor, checked, prepared, read_record
from torch_recurrence import IDENTITY, Rows, advance, columns_of, draw_rows
from torch_replays import FINALS, Memory, Replays

ROOM = 50  # an image of as many steps as by default
LATENT = Tensor("latent", "float32", LATENT_SHAPE)
UNET = ((LATENT, Tensor("timesteps", "int32", (1,))), Tensor("pred", "float32", LATENT_SHAPE))
CONDITION = Tensor("condition", "float32", (4, *LATENT_SHAPE[1:]))
UNET_LABELS = ((LATENT, CONDITION, UNET[0][1]), UNET[1])


def inputs(steps: int, labels: bool = False) -> tuple[Tensor, ...]:
    """The inputs of a call with that many steps, -1 for any; labels: of a program that takes them."""
    return (
        LATENT,
        *((CONDITION,) if labels else ()),
        Tensor("estimate", "float32", LATENT_SHAPE),
        Tensor("earlier_estimate", "float32", LATENT_SHAPE),
        Tensor("timesteps", "int32", (steps,)),
        Tensor("coefficients", "float32", (steps, len(IDENTITY))),
        Tensor("seed", "int64", (1,)),
        Tensor("draw", "int32", (1,)),
    )


def outputs(steps: int) -> tuple[Tensor, ...]:
    """The outputs of a call with that many steps; -1 for any."""
    finals = [Tensor(name, "float32", LATENT_SHAPE) for name in FINALS]
    return (*finals, Tensor("estimates", "float32", (steps, *LATENT_SHAPE)))


def check_program(record: Record) -> None:
    """Raise ValueError for a program that is not `unet`: latent, perhaps condition, and timesteps in, noise out."""
    if (record.inputs, record.output) not in (UNET, UNET_LABELS):
        raise ValueError(
            f"a model with coefficients runs unet's program, from {_words(UNET[0])} to {_words(UNET[1:])}; this file "
            f"goes from {_words(record.inputs)} to {_words([record.output])}: copy unet/1/model.pt2"
        )


def _words(tensors: Sequence[Tensor]) -> str:
    return ", ".join(f"{tensor.name} {tensor.dtype} {list(tensor.shape)}" for tensor in tensors)


class Steps:
    """The program of unet and the recurrence over it; the arguments of `Program`, and `room`: the steps that a GPU's
    tables hold (see `Memory`), by which calls of more are cut. Not for several threads at once."""

    def __init__(
        self,
        path: Path,
        device: torch.device,
        buckets: Sequence[int] = (1,),
        *,
        channels_last: bool = True,
        room: int = ROOM,
    ) -> None:
        self.record = read_record(path)
        self.device = device
        self._labels = CONDITION in self.record.inputs
        self._module = prepared(path, device, channels_last=channels_last)
        self._replays: dict[int, Replays] = {}
        if device.type == "cuda":
            memory = Memory(max(buckets), room, device, CONDITION if self._labels else None)
            pool = torch.cuda.graph_pool_handle()
            for rows in sorted(set(buckets), reverse=True):
                self._replays[rows] = Replays(self._module, memory, rows, pool)

    @property
    def buckets(self) -> list[int]:
        """The batch sizes that have a CUDA graph; none on a CPU."""
        return sorted(self._replays)

    def run(self, asked: Collection[str], feeds: dict[str, Array]) -> dict[str, Array]:
        """The outputs in `asked`, for input arrays [B, ...] by name; any B and any K.

        FINALS: float32 [B, 1, 64, 64], after the last step; estimates: [B, K, 1, 64, 64], after each. Step k of a row
        with d != 0 there takes the noise `standard_normal(seed, draw + k)`.

        Raises:
            ValueError: arrays that do not fit, no step, or a negative draw.
        """
        steps = feeds["timesteps"].shape[-1] if "timesteps" in feeds else 0
        *state, timesteps, coefficients, seed, draw = checked(inputs(steps, self._labels), feeds)
        condition = state.pop(1) if self._labels else None
        if steps == 0:
            raise ValueError("timesteps has no step; there must be one or more")
        if draw.min() < 0:
            raise ValueError(f"draw is {draw.min()}; it must be 0 or more")
        keys = np.stack([np.broadcast_to(seed, timesteps.shape), draw + np.arange(steps)], axis=2)
        rows = Rows(np.stack(state, axis=1), timesteps, coefficients, keys, condition)
        most = max(self._replays, default=len(rows))
        parts = [self._part(rows.part(slice(at, at + most), slice(None)), asked) for at in range(0, len(rows), most)]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _part(self, rows: Rows, asked: Collection[str]) -> dict[str, Array]:
        if not self._replays:
            return self._eager(rows, asked)
        replays = self._replays[min(bucket for bucket in self._replays if bucket >= len(rows))]
        answers: dict[str, Array] = replays(rows, asked)
        return answers

    def _eager(self, rows: Rows, asked: Collection[str]) -> dict[str, Array]:
        columns, noisy = torch.from_numpy(columns_of(rows.coefficients)), rows.noisy
        noise = np.zeros((len(rows), *LATENT_SHAPE), np.float32)
        estimates: list[Array] = []
        with torch.inference_mode():
            state = torch.from_numpy(rows.start).transpose(0, 1).contiguous()
            condition = [] if rows.condition is None else [torch.from_numpy(rows.condition.copy())]
            for step in range(rows.steps):
                eps = self._module(state[0], *condition, torch.from_numpy(rows.timesteps[:, step, None].copy()))
                draw_rows(noise, rows.keys[:, step], noisy[:, step])
                state = advance(state, eps, torch.from_numpy(noise), columns[step])
                if "estimates" in asked:
                    estimates.append(state[1].numpy())
        answers = {name: final for name, final in zip(FINALS, state.numpy(), strict=True) if name in asked}
        return answers | ({"estimates": np.stack(estimates, axis=1)} if estimates else {})
