"""One process or many: what torchrun started, what share of the work is this process's, and what they agree on.

An update's global batch has `parts`: `accumulate` batches of each process. Every random number of a part is a function
of (seed, iteration, part), so two processes compute what one does with twice the accumulation, up to the order of sums.
"""

import atexit
import contextlib
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

# The first process may encode a whole data set while the others wait.
TIMEOUT = timedelta(hours=3)


@dataclass(frozen=True)
class Processes:
    """This process among all: `rank` of `world_size`, on `device`."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, validates and shows a progress bar."""
        return self.rank == 0

    def parts(self, accumulate: int) -> range:
        """The parts of an update's global batch that are this process's."""
        return range(self.rank * accumulate, (self.rank + 1) * accumulate)

    def all_parts(self, accumulate: int) -> int:
        """Parts of an update's global batch."""
        return self.world_size * accumulate

    def wrap(self, network: torch.nn.Module) -> torch.nn.Module:
        """`network` as it is called in training: its gradients become the mean over all processes."""
        if self.world_size == 1:
            return network
        devices = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=devices, broadcast_buffers=False)

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Numbers of this process, averaged over all."""
        if self.world_size == 1:
            return values
        tensor = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return dict(zip(values, (tensor / self.world_size).tolist(), strict=True))

    def agree(self, value: float) -> float:
        """The first process's number, everywhere; waits for it."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(tensor, src=0)
        return float(tensor.item())


def joined() -> Processes:
    """This process among those that torchrun has started, or alone; gloo on CPUs, NCCL on GPUs."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if world_size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
        atexit.register(dist.destroy_process_group)
    return Processes(rank, world_size, device)


def synchronised(model: torch.nn.Module, last: bool) -> AbstractContextManager[object]:
    """For forward and backward of one part: only the last one of an update sends gradients to the other processes."""
    if last or not isinstance(model, DistributedDataParallel):
        return contextlib.nullcontext()
    return model.no_sync()
