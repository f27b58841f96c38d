"""How many operations a network takes."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from export.graphs import Graph, random_inputs


def gflop(graph: Graph, module: Any) -> float:
    """Billions of multiplications and additions of one row: convolutions, matrix products, attention."""
    # The counter does not know the CPU's fused attention, so here it is two matrix products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(*random_inputs(graph, rows=1, seed=0))
    return float(counter.get_total_flops() / 1e9)
