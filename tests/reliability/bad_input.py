"""Random input: a bad request is refused with a message, a good one gives the right image, bit for bit."""

from __future__ import annotations

import base64
import io
import json
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from brats_ldm_client.pictures import to_display
from reliability.bad_requests import STREAM, UNARY, Ask, bad, good, rows_of
from reliability.bad_wire import PROTOCOLS, Reply, Wire, message_of
from server.process import TritonServer
from support.toy_pipeline import Reference

SHARE_OF_GOOD = 0.15
SHARE_OF_JUNK = 0.15
THREADS = 4
GOOD = ("refused", "refused by a parser", "answered", "answered, any bytes")
FAULTS = {
    "wrong": "images wrong", "answered": "wrongly answered", "refused": "wrongly refused", "wordless": "without a word",
    "internal error": "internal errors", "hang": "hangs", "busy": "busy", "no connection": "connections lost",
    "dead": "dead processes",
}  # fmt: skip
"""Outcomes that must not happen, and the names of their counts."""
JSON_JUNK = (
    b"", b"{", b"[]", b"null", b'"x"', b"5", b"{}", b'{"inputs":null}', b'{"inputs":{}}', b'{"inputs":[]}',
    b'{"inputs":[null]}', b'{"inputs":[1]}', b'{"inputs":[{}]}', b"\xff\xfe\x00", b"[" * 1000, b'{"a":' * 1000,
)  # fmt: skip
JSON_VALUES = (b"null", b"true", b"{}", b"[]", b'"x"', b"-1", b"1.5", b"1e400", b"99999999999999999999", b"NaN", b"")


def fuzz(server: TritonServer, reference: Reference, amount: int, seed: int = 0) -> dict[str, int]:
    """`amount` random requests to a server of `toy_pipeline.write_pipeline`; the same for the same seed.

    Returns how many were tried, refused and answered, and what must all be 0: images wrong, inputs wrongly answered or
    refused, internal errors, hangs, lost connections, dead processes. `refused by a parser` is part of refused: what
    Triton's reader of JSON and gRPC's of protobuf say, with status 500 and INTERNAL, of what is neither.

    Raises:
        AssertionError: something that must be 0 is not; with the first requests of that kind.
    """
    rng = random.Random(seed)
    stubs = server.stubs()
    wire = Wire(server.grpc_url, server.http_url)
    counts = Counter(dict.fromkeys(("inputs tried", *GOOD, *FAULTS.values()), 0))
    faults: list[str] = []
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            for outcome, note in pool.map(lambda trial: trial(), _trials(rng, amount, wire, reference)):
                counts[outcome] += 1
                counts["inputs tried"] += 1
                counts["refused"] += outcome == "refused by a parser"
                if note:
                    faults.append(f"{outcome}: {note}")
    finally:
        wire.close()
    counts[FAULTS["dead"]] = len(set(stubs) - set(server.stubs()))
    server.probe(20)
    assert not faults, f"{len(faults)} of {amount} requests (seed {seed}):\n" + "\n".join(faults[:10])
    assert not counts[FAULTS["dead"]], f"of {stubs} there are left {server.stubs()}"
    return dict(counts)


Trial = Callable[[], tuple[str, str]]
"""Sends a request; returns the name of the outcome to count, and what is to be said of it where it is a fault."""


def _trials(rng: random.Random, amount: int, wire: Wire, reference: Reference) -> list[Trial]:
    trials: list[Trial] = []
    for _ in range(amount):
        kind = rng.random()
        if kind < SHARE_OF_JUNK:
            trials.append(_junk_json(rng, wire) if rng.random() < 0.5 else _junk_message(rng, wire))
            continue
        protocol = rng.choice(PROTOCOLS)
        ask = good(rng) if kind < SHARE_OF_JUNK + SHARE_OF_GOOD else bad(rng, protocol)
        if ask.model == STREAM and protocol in ("json", "binary"):
            protocol = "raw"  # HTTP serves it as events only
        trials.append(lambda ask=ask, protocol=protocol: judge(ask, protocol, wire.send(ask, protocol), reference))
    return trials


def judge(ask: Ask, protocol: str, reply: Reply, reference: Reference) -> tuple[str, str]:
    """The outcome to count, and a description if it is a fault."""
    described = f"{ask.what} ({ask.model}, {protocol}) got {reply.kind} {reply.text[:300]}"
    if reply.kind not in ("answer", "refusal", "refusal by a parser"):
        return FAULTS[reply.kind], described
    rows = rows_of(ask) if ask.verdict != "refusal" else None
    if reply.kind == "answer":
        if rows is None:
            return FAULTS["answered"], described
        wrong = _difference(ask, reply, reference)
        return (FAULTS["wrong"], f"{described}: {wrong}") if wrong else ("answered", "")
    if rows is not None and ask.verdict == "values":
        return FAULTS["refused"], described
    if not reply.text.strip():
        return FAULTS["wordless"], described
    return ("refused by a parser", "") if reply.kind == "refusal by a parser" else ("refused", "")


def _difference(ask: Ask, reply: Reply, reference: Reference) -> str:
    """What is wrong with the answer; empty if nothing is."""
    rows = rows_of(ask)
    assert rows is not None
    if set(reply.outputs) != set(ask.outputs):
        return f"outputs {sorted(reply.outputs)} instead of {sorted(ask.outputs)}"
    latents, images = reference.rows(rows)
    for name, right in (("final_latent", latents), ("image", images)):
        if name in reply.outputs and not np.array_equal(reply.outputs[name], right):
            return f"{name} of shape {reply.outputs[name].shape} differs"
    if "provenance" in reply.outputs:
        records = [json.loads(cell) for cell in reply.outputs["provenance"][:, 0]]
        recorded = [(record["seed"], record["steps"], record["sampler"]) for record in records]
        if recorded != [(row.seed, row.steps, row.sampler) for row in rows]:
            return f"provenance tells of {recorded}"
    if "png" in reply.outputs:
        shown = [_pixels(cell) for cell in reply.outputs["png"][:, 0]]
        if not np.array_equal(shown, [to_display(image[0]) for image in images]):
            return "png shows other images"
    return ""


def _pixels(text: bytes) -> np.ndarray:
    """The grey levels of an output `png`."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def _junk_message(rng: random.Random, wire: Wire) -> Trial:
    """A gRPC message with some of its bytes changed, cut or put in."""
    content = bytearray(message_of(_good_unary(rng), raw=rng.random() < 0.5).SerializeToString())
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(content))
        content[place : place + rng.choice((0, 1, 1, 5))] = rng.randbytes(rng.choice((0, 1, 1, 3)))
        content = content or bytearray(1)
    return lambda: _any_words(wire.call_bytes(bytes(content)), f"message {bytes(content)[:400]!r}")


def _good_unary(rng: random.Random) -> Ask:
    ask = good(rng)
    return _good_unary(rng) if ask.model != UNARY else ask


def _junk_json(rng: random.Random, wire: Wire) -> Trial:
    """Text that is not JSON, or JSON with a value of another kind somewhere."""
    if rng.random() < 0.3:
        body = rng.choice(JSON_JUNK)
    else:
        record = b'{"inputs":[{"name":"seed","datatype":"INT64","shape":[1,1],"data":[1]},'
        record += b'{"name":"steps","datatype":"INT32","shape":[1,1],"data":[2]}],"outputs":[{"name":"final_latent",'
        record += b'"parameters":{"binary_data":true}}],"id":"x","parameters":{"priority":0}}'
        tokens = (b'"seed"', b'"INT64"', b"[1,1]", b"[1]", b'"final_latent"', b"true", b'"x"', b"0}")
        token = rng.choice((*tokens, b'{"binary_data":true}'))
        new = rng.choice(JSON_VALUES) + (b"}" if token == b"0}" else b"")
        body = record.replace(token, new, 1) if rng.random() < 0.8 else record[: rng.randrange(len(record))]
    return lambda: _any_words(wire.post(body, {"Content-Type": "application/json"}, read=False), f"JSON {body[:300]!r}")


def _any_words(reply: Reply, sent: str) -> tuple[str, str]:
    """For a request that may still be good by chance."""
    known = {"answer": "answered, any bytes", "refusal": "refused", "refusal by a parser": "refused by a parser"}
    if reply.kind in known:
        return known[reply.kind], ""
    return FAULTS[reply.kind], f"{sent} got {reply.kind} {reply.text[:300]}"
