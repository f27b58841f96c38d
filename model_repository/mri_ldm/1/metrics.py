"""Prometheus metrics of the sampling loop, at Triton's metrics endpoint."""

from typing import Any

import triton_python_backend_utils as pb_utils

from .batcher import Batcher

COUNTERS = {
    "images": ("mri_ldm_images_total", "Rows that have done all their steps and, where asked for, were decoded"),
    "steps": ("mri_ldm_steps_total", "Denoising steps done, summed over rows"),
    "unet_calls": ("mri_ldm_unet_calls_total", "Calls of unet; steps over calls is the mean batch size"),
    "decoder_calls": ("mri_ldm_decoder_calls_total", "Calls of vae_decoder"),
    "cancelled_rows": ("mri_ldm_cancelled_rows_total", "Rows that left because of a cancellation or a deadline"),
}
GAUGES = {
    "rows_in_flight": ("mri_ldm_rows_in_flight", "Rows with a place in the step loop or at the decoder"),
    "rows_waiting": ("mri_ldm_rows_waiting", "Rows that wait for a place"),
    "unet_batch_size": ("mri_ldm_unet_batch_size", "Rows in the last call of unet"),
}


class Metrics:
    """The metrics of one model; `update` copies the batcher's counters to the server."""

    def __init__(self, model: str) -> None:
        # The families are kept because a metric goes when nothing refers to its family.
        self._families: list[Any] = []
        self._counters = self._register(COUNTERS, pb_utils.MetricFamily.COUNTER, model)
        self._gauges = self._register(GAUGES, pb_utils.MetricFamily.GAUGE, model)
        self._reported = dict.fromkeys(COUNTERS, 0)
        self._levels: dict[str, int] = {}

    def _register(self, table: dict[str, tuple[str, str]], kind: Any, model: str) -> dict[str, Any]:
        metrics = {}
        for key, (name, description) in table.items():
            family = pb_utils.MetricFamily(name=name, description=description, kind=kind)
            self._families.append(family)
            metrics[key] = family.Metric(labels={"model": model})
        return metrics

    def update(self, batcher: Batcher) -> None:
        """Report what has changed since the last call; each value costs a round trip to the server."""
        for key, metric in self._counters.items():
            total = getattr(batcher.counters, key)
            if total > self._reported[key]:
                metric.increment(total - self._reported[key])
                self._reported[key] = total
        in_flight, waiting = batcher.rows
        levels = {"rows_in_flight": in_flight, "rows_waiting": waiting}
        for key, level in {**levels, "unet_batch_size": batcher.counters.last_unet_batch}.items():
            if self._levels.get(key) != level:
                self._gauges[key].set(level)
                self._levels[key] = level
