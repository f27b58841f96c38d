"""The summary page: in a browser, and of a run with very many shards."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np

from brats_ldm_client import Client
from brats_ldm_client.bulk import make_all, model_of, plan_for
from brats_ldm_client.bulk.summary import write_summary
from brats_ldm_client.testing import FakeTransport
from support.browser import Visitor


def test_a_browser_shows_it(visitor: Visitor, tmp_path: Path) -> None:
    """With its pictures and without another machine."""
    with Client(transport=FakeTransport(lambda seed: np.full((4, 4), seed / 10, np.float32))) as client:
        plan = plan_for(model_of(client), 3, "png", shard_size=2)
        make_all(client, plan, tmp_path)
    write_summary(plan, tmp_path)
    page = visitor.open((tmp_path / "summary.html").as_uri())
    assert page.get_by_role("heading", name="3 synthetic slices").is_visible()
    widths = page.locator("img").evaluate_all("pictures => pictures.map(picture => picture.naturalWidth)")
    assert len(widths) > 0
    assert min(widths) > 0


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
