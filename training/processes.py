"""One process or several that torchrun has started: the share of the work of this process, and what all agree on.

The global batch of an update has `parts`: `accumulate` batches for each process. The random numbers of a part depend on
(seed, iteration, part) alone. So two processes compute the same as one process with twice the accumulation, except for
the order of sums.
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
    """This process: number `rank` of `world_size`, on `device`."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, validates and shows a progress bar."""
        return self.rank == 0

    def parts(self, accumulate: int) -> range:
        """The parts of the global batch that this process computes."""
        return range(self.rank * accumulate, (self.rank + 1) * accumulate)

    def all_parts(self, accumulate: int) -> int:
        """The number of parts of the global batch."""
        return self.world_size * accumulate

    def wrap(self, network: torch.nn.Module) -> torch.nn.Module:
        """`network` for calls in training: its gradients become the mean over all processes."""
        if self.world_size == 1:
            return network
        devices = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=devices, broadcast_buffers=False)

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """The numbers, averaged over all processes."""
        if self.world_size == 1:
            return values
        tensor = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return dict(zip(values, (tensor / self.world_size).tolist(), strict=True))

    def agree(self, value: float) -> float:
        """The number of the first process, in all processes; waits for it."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(tensor, src=0)
        return float(tensor.item())


def joined() -> Processes:
    """Join the processes that torchrun has started, if any: with gloo on CPUs, with NCCL on GPUs."""
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
    """Context of forward and backward of one part. Processes exchange gradients only in the last part of an update."""
    if last or not isinstance(model, DistributedDataParallel):
        return contextlib.nullcontext()
    return model.no_sync()
