"""The line at the top of the page: one sentence about the server, as HTML."""

from __future__ import annotations

from html import escape

from .._types import ServerInfo
from .server import ServerState
from .words import about, detail, sentence


def server_line(state: ServerState) -> str:
    """Which server, which weights and how much it has to do; or what is wrong and what to do about it."""
    if not state.seen:
        return _line("wait", ["Looking for the server …", *_address(state)])
    if state.error is not None:
        return _line("bad", [escape(sentence(state.error)), *_address(state)], title=detail(state.error))
    if state.draining:
        return _line("wait", ["The server is stopping and takes no new requests.", *_facts(state.info)])
    return _line("good", ["<strong>Ready</strong>", *_facts(state.info), *_queue(state)])


def _line(tone: str, parts: list[str], title: str = "") -> str:
    spans = "".join(f"<span>{part}</span>" for part in parts)
    return f'<div class="server {tone}" role="status" title="{escape(title)}"><i></i>{spans}</div>'


def _address(state: ServerState) -> list[str]:
    return [escape(state.address)] if state.address else []


def _facts(info: ServerInfo | None) -> list[str]:
    if info is None:
        return []
    name = str(info.provenance.get("model_name", ""))
    facts = [escape(info.url), f"Triton {escape(info.version)}", escape(name)]
    if info.model_digest:
        digest = escape(info.model_digest)
        kind, _, number = digest.partition(":")
        facts.append(
            f'weights <button class="digest" type="button" title="{digest} (click to copy)" data-copy="{digest}">'
            f"{kind}:{number[:8]}…</button>"
        )
    return [fact for fact in facts if fact]


def _queue(state: ServerState) -> list[str]:
    if not state.queue:
        return []
    in_flight, waiting = (
        sum(getattr(model, name) for model in state.queue) for name in ("rows_in_flight", "rows_waiting")
    )
    if not in_flight and not waiting:
        return ["queue: empty"]
    seconds = max((model.seconds_left or 0.0 for model in state.queue), default=0.0)
    left = f", {about(seconds)}" if seconds else ""
    return [f"queue: {in_flight} in progress, {waiting} waiting{left}"]
