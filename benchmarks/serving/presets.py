"""The scenario "presets": one image by each preset, beside the bundle's own loop, and the operations that it takes."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.harness.operations import gflop
from benchmarks.harness.timing import compare, in_turns
from benchmarks.harness.weights import load_weights
from benchmarks.serving.bench import Bench
from benchmarks.serving.contestants import SEEDS, ready
from benchmarks.serving.names import BASELINE, IN_BF16, OURS, by_preset
from benchmarks.serving.ours import Ours
from brats_ldm_client import PRESETS, InvalidRequest
from export.graphs import graphs_of
from export.rewrite import rewritten
from server.health import DECODERS
from training.checkpoint import Snapshot

TIMED = tuple(name for name in PRESETS if name != "reference")


def presets(bench: Bench) -> dict[str, Any]:
    """Seconds of an image from the call to the array, all in turns; and billions of operations by network."""
    amount = bench.amount
    running, told = ready(bench, 1, only=(BASELINE, OURS, IN_BF16))
    told.setdefault(IN_BF16, {"left_out": "it needs OpenVINO and a CPU that computes bf16"})
    calls = {BASELINE: partial(_loop, bench)}
    servers = {name: contestant for name, contestant in running.items() if isinstance(contestant, Ours)}
    for server, contestant in servers.items():
        for preset in TIMED:
            try:
                contestant.client.generate([SEEDS[0]], preset=preset)  # a warm-up, too
            except InvalidRequest as error:
                told[by_preset(server, preset)] = {"left_out": str(error)}
            else:
                calls[by_preset(server, preset)] = partial(_by_preset, bench, server, preset)
    bench.rest()
    times = in_turns(calls, amount.preset_rounds, amount.budget_s, bench.report)
    # The committed files of the demo keep MONAI's layers.
    weights = load_weights(bench.weights, bench.snapshot)
    counts = operations(weights, amount.steps, rewrites=bench.weights != "demo")
    return {"baseline": BASELINE, "contestants": compare(times, BASELINE), "told": told, "gflop": counts}


def _loop(bench: Bench) -> None:
    with bench.turn(BASELINE) as contestant:
        contestant.generate([SEEDS[0]], bench.amount.steps)


def _by_preset(bench: Bench, server: str, preset: str) -> None:
    with bench.turn(server) as contestant:
        assert isinstance(contestant, Ours)
        contestant.client.generate([SEEDS[0]], preset=preset)


def operations(snapshot: Snapshot, steps: int, rewrites: bool = True) -> dict[str, dict[str, float]]:
    """Billions of operations of an image: of the bundle's loop with MONAI's layers, of a preset with those served.

    rewrites: whether the export of the served files has replaced layers.
    """
    layers, served = {}, {}
    for graph in graphs_of(snapshot):
        module = graph.build(snapshot)
        layers[graph.name] = gflop(graph, module)
        served[graph.name] = gflop(graph, rewritten(module) if rewrites else module)
    counts = {BASELINE: _of_image(layers, steps, "full")}
    for name in TIMED:
        if DECODERS[PRESETS[name].decoder] in served:
            counts[name] = _of_image(served, PRESETS[name].steps, PRESETS[name].decoder)
    return counts


def _of_image(networks: dict[str, float], steps: int, decoder: str) -> dict[str, float]:
    unet, decoding = steps * networks["unet"], networks[DECODERS[decoder]]
    return {"unet": unet, "decoder": decoding, "image": unet + decoding}
