"""Prometheus metrics of the sampling loop, at Triton's metrics endpoint."""

import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import triton_python_backend_utils as pb_utils

from .batcher import BATCH_SIZES, Batcher
from .settings import Settings

PERIOD_SECONDS = 0.1
ALIVE_SECONDS = 10.0
COUNTER, GAUGE = "COUNTER", "GAUGE"  # as text: pb_utils has its classes only once the model is loaded
ERRORS = ("invalid", "overloaded", "stopping", "network", "internal", "unsent")
DEPARTURES = ("cancelled", "deadline")
Values = dict[tuple[str, str], float]
"""By name and value of the label, which is empty where there is none."""


@dataclass(frozen=True)
class Family:
    """A metric with the label `model` and at most one more, whose values are known beforehand."""

    kind: str
    meaning: str
    label: str = ""
    values: tuple[str, ...] = ("",)


FAMILIES = {
    "mri_ldm_images_total": Family(COUNTER, "Rows that have done all their steps and, where asked for, were decoded"),
    "mri_ldm_started_rows_total": Family(COUNTER, "Rows that have taken their first step"),
    "mri_ldm_queue_seconds_total": Family(COUNTER, "Seconds from arrival to first step, summed over started rows"),
    "mri_ldm_steps_total": Family(COUNTER, "Denoising steps done, summed over rows"),
    "mri_ldm_unet_calls_total": Family(
        COUNTER, "Calls of unet or unet_steps, by rows in the call", "rows", BATCH_SIZES
    ),
    "mri_ldm_call_steps_total": Family(
        COUNTER, "Steps of those calls, counted once for all rows; divided by calls: steps per call"
    ),
    "mri_ldm_step_seconds_total": Family(
        COUNTER, "Seconds in steps: calls of unet or unet_steps and the work around them, without previews"
    ),
    "mri_ldm_preview_seconds_total": Family(
        COUNTER, "Seconds in which previews were made: calls of vae_decoder_tiny, and handing them over"
    ),
    "mri_ldm_decoder_calls_total": Family(COUNTER, "Calls of vae_decoder, and of vae_decoder_tiny for images"),
    "mri_ldm_decode_seconds_total": Family(COUNTER, "Seconds in those calls"),
    "mri_ldm_lookups_total": Family(
        COUNTER, "Look-ups that came in: requests for the queue or the start noise only; no other metric counts them"
    ),
    "mri_ldm_requests_total": Family(COUNTER, "Requests that came in"),
    "mri_ldm_request_seconds_total": Family(
        COUNTER, "Seconds from arrival to last answer, summed over finished requests"
    ),
    "mri_ldm_cancelled_rows_total": Family(COUNTER, "Unfinished rows of requests that left", "reason", DEPARTURES),
    "mri_ldm_finished_requests_total": Family(COUNTER, "Requests answered with what they asked for"),
    "mri_ldm_errors_total": Family(COUNTER, "Requests answered with an error", "reason", ERRORS),
    "mri_ldm_cancelled_requests_total": Family(
        COUNTER, "Requests that left before they were finished", "reason", DEPARTURES
    ),
    "mri_ldm_rows_in_flight": Family(GAUGE, "Rows with a place in the step loop or at the decoder"),
    "mri_ldm_rows_waiting": Family(GAUGE, "Rows that wait for a place"),
    "mri_ldm_row_steps_left": Family(GAUGE, "Steps still to do, summed over all rows"),
    "mri_ldm_unet_batch_size": Family(GAUGE, "Rows in the last call of unet or unet_steps"),
    "mri_ldm_alive_timestamp_seconds": Family(
        GAUGE, f"Unix time of the last sign of life of the model's process, every {ALIVE_SECONDS:.0f} s"
    ),
    "mri_ldm_rows_in_flight_limit": Family(GAUGE, "The parameter max_rows_in_flight"),
    "mri_ldm_rows_waiting_limit": Family(GAUGE, "The parameter max_rows_waiting"),
    "mri_ldm_row_steps_limit": Family(GAUGE, "The parameter max_row_steps"),
}
"""In the order of publication: work, then requests (the three that count their ends last), then what is there now.

So a scrape that shows the end of a request also shows all its work.
"""


class Metrics:
    """The metrics of one model, at most `PERIOD_SECONDS` old where there is work.

    A separate thread publishes them, because each value costs a round trip to the server, which would slow the step
    loop. So they also stay right while a network hangs. Any thread may count.
    """

    def __init__(self, model: str, batcher: Batcher, settings: Settings) -> None:
        self.model = model
        self._batcher, self._settings = batcher, settings
        # The families are kept because a metric goes when nothing refers to its family.
        self._families = {
            name: pb_utils.MetricFamily(name=name, description=family.meaning, kind=_kind(family))
            for name, family in FAMILIES.items()
        }
        self._metrics = {
            (name, value): self._families[name].Metric(labels=_labels(model, family, value))
            for name, family in FAMILIES.items()
            for value in family.values
        }
        self._published: Values = {}
        self._events: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._lock = threading.Lock()
        self._changed, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def arrived(self) -> None:
        """A request has come in."""
        self._count("mri_ldm_requests_total")

    def looked_up(self) -> None:
        """A look-up has come in."""
        self._count("mri_ldm_lookups_total")

    def finished(self, seconds: float) -> None:
        """A request has had its answer, `seconds` after it came."""
        self._count("mri_ldm_finished_requests_total")
        self._count("mri_ldm_request_seconds_total", amount=seconds)

    def failed(self, reason: str) -> None:
        """A request was answered with an error; reason: one of `ERRORS`."""
        self._count("mri_ldm_errors_total", reason)

    def cancelled(self, reason: str, rows: int) -> None:
        """A request has left with `rows` rows unfinished; reason: one of `DEPARTURES`."""
        self._count("mri_ldm_cancelled_requests_total", reason)
        self._count("mri_ldm_cancelled_rows_total", reason, rows)

    def changed(self) -> None:
        """Something has happened while the batcher was idle, or it has become idle."""
        self._changed.set()

    def stop(self) -> None:
        """Publish once more and end."""
        self._stopping.set()
        self._changed.set()
        self._thread.join()

    def _count(self, name: str, label: str = "", amount: float = 1) -> None:
        with self._lock:
            self._events[name, label] += amount

    def _run(self) -> None:
        self._publish()
        while not self._stopping.is_set():
            self._changed.wait(PERIOD_SECONDS if any(self._batcher.rows) else ALIVE_SECONDS)
            self._changed.clear()
            self._publish()
            self._stopping.wait(PERIOD_SECONDS)
        self._publish()

    def _publish(self) -> None:
        """Publish what has changed, in the order of `FAMILIES`."""
        try:
            values = self._values()
            for key, metric in self._metrics.items():
                old, value = self._published.get(key, 0), values.get(key, 0)
                if value == old:
                    continue
                if FAMILIES[key[0]].kind == COUNTER:
                    metric.increment(value - old)
                else:
                    metric.set(value)
                self._published[key] = value
        except Exception as error:  # the next round may work, and images matter more
            pb_utils.Logger.log_error(f"{self.model}: metrics cannot be published: {error}")

    def _values(self) -> Values:
        """Current values; those that are missing are 0."""
        counters, settings = self._batcher.counters, self._settings
        in_flight, waiting = self._batcher.rows
        with self._lock:
            events = dict(self._events)
        values = {
            "mri_ldm_images_total": counters.images,
            "mri_ldm_started_rows_total": counters.started_rows,
            "mri_ldm_queue_seconds_total": counters.queue_seconds,
            "mri_ldm_steps_total": counters.steps,
            "mri_ldm_call_steps_total": counters.call_steps,
            "mri_ldm_step_seconds_total": counters.step_seconds,
            "mri_ldm_preview_seconds_total": counters.preview_seconds,
            "mri_ldm_decoder_calls_total": counters.decoder_calls,
            "mri_ldm_decode_seconds_total": counters.decode_seconds,
            "mri_ldm_rows_in_flight": in_flight,
            "mri_ldm_rows_waiting": waiting,
            "mri_ldm_row_steps_left": self._batcher.row_steps,
            "mri_ldm_unet_batch_size": counters.last_unet_batch,
            "mri_ldm_alive_timestamp_seconds": time.time(),
            "mri_ldm_rows_in_flight_limit": settings.max_rows_in_flight,
            "mri_ldm_rows_waiting_limit": settings.max_rows_waiting,
            "mri_ldm_row_steps_limit": settings.max_row_steps,
        }
        calls = {
            ("mri_ldm_unet_calls_total", size): n for size, n in zip(BATCH_SIZES, counters.unet_calls, strict=True)
        }
        return {(name, ""): value for name, value in values.items()} | calls | events


def _labels(model: str, family: Family, value: str) -> dict[str, str]:
    return {"model": model} | ({family.label: value} if value else {})


def _kind(family: Family) -> Any:
    return getattr(pb_utils.MetricFamily, family.kind)
