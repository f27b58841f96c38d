"""The summary page of a run with very many shards."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np

from brats_ldm_client import Client
from brats_ldm_client.bulk import make_all, model_of, plan_for
from brats_ldm_client.bulk.summary import write_summary
from brats_ldm_client.testing import FakeTransport


def test_its_memory_does_not_grow_with_the_number_of_shards(tmp_path: Path) -> None:
    """A million shards would otherwise need gigabytes for their histograms."""
    few, many = 100, 400  # more than there are pictures on the contact sheet
    peaks = []
    for shards in (few, few, many):  # the first imports
        folder = tmp_path / str(shards)
        with Client(transport=FakeTransport(lambda seed: np.zeros((4, 4), np.float32))) as client:
            plan = plan_for(model_of(client), shards, "png", shard_size=1)
            make_all(client, plan, folder)
        tracemalloc.start()
        try:
            write_summary(plan, folder)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert (peaks[2] - peaks[1]) / (many - few) < 300  # bytes a shard
