"""A collector of OpenTelemetry traces: what Triton posts in mode `opentelemetry`, as spans."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

EXPORT_MILLISECONDS = 200


@dataclass(frozen=True)
class Span:
    trace: str
    id: str
    parent: str
    name: str
    attributes: dict[str, Any]
    begin: int  # nanoseconds since 1970
    end: int


class Collector:
    """Listens on a free port of the loopback; a context manager."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                spans.extend(_spans(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> Collector:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def flags(self, rate: int) -> list[str]:
        """What tells tritonserver to trace one request in `rate` and to send the spans here."""
        host, port = self._server.server_address[:2]
        return [
            "--trace-config=mode=opentelemetry",
            f"--trace-config=rate={rate}",
            "--trace-config=level=TIMESTAMPS",
            f"--trace-config=opentelemetry,url={host}:{port}/v1/traces",
            f"--trace-config=opentelemetry,bsp_schedule_delay={EXPORT_MILLISECONDS}",
        ]

    def wait_for(self, wanted: Callable[[list[Span]], bool], seconds: float = 10) -> list[Span]:
        """The spans, once they are as `wanted`."""
        deadline = time.monotonic() + seconds
        while not wanted(self.spans):
            assert time.monotonic() < deadline, Counter(span.name for span in self.spans)
            time.sleep(0.02)
        return list(self.spans)

    def of_request(self, request_id: str) -> list[Span]:
        """The span of the front model for that request, and its children: the calls of the networks."""

        def fronts(spans: list[Span]) -> list[Span]:
            return [span for span in spans if span.attributes.get("triton.request_id") == request_id]

        spans = self.wait_for(lambda spans: bool(fronts(spans)))
        (front,) = fronts(spans)
        return [front, *(span for span in spans if span.parent == front.id and span.name != "compute")]


def _spans(body: dict[str, Any]) -> list[Span]:
    return [
        Span(
            trace=span["traceId"],
            id=span["spanId"],
            parent=span.get("parentSpanId", ""),
            name=span["name"],
            attributes={
                attribute["key"]: next(iter(attribute["value"].values())) for attribute in span.get("attributes", [])
            },
            begin=int(span["startTimeUnixNano"]),
            end=int(span["endTimeUnixNano"]),
        )
        for resource in body["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
