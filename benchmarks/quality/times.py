"""Seconds an image for a user: from the client's call to the array, one at a time on an idle server."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness.timing import compare, in_turns
from benchmarks.quality.settings import Plan, Setting
from brats_ldm_client import Client
from server.process import TritonServer

SEED = 1


def times(repository: Path, plan: Plan, rounds: int, report: Callable[[str], object]) -> dict[str, Any]:
    """Of each setting, in turns; those with all steps once. With the digest of the weights that were served."""
    with TritonServer(repository) as server, Client(server.grpc_url, rows_per_request=1) as client:
        server.probe()

        def one(setting: Setting) -> None:
            client.generate([SEED], steps=setting.steps, sampler=setting.sampler)

        one(plan.baseline)  # warm-up: memory is allocated and kernels are chosen
        few = {setting.name: partial(one, setting) for setting in plan.fewer}
        all_steps = {setting.name: partial(one, setting) for setting in (plan.reference, plan.ancestral)}
        taken = in_turns(few, rounds, report=report) | in_turns(all_steps, 1, report=report)
        digest = client.info().model_digest
    return {"baseline": plan.baseline.name, "settings": compare(taken, plan.baseline.name), "digest": digest}
