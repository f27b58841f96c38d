"""Bad input at a real tritonserver with toy networks, and at the function that reads requests.

The amounts are small here; `make test-reliability` tries thousands.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mri_ldm.errors import InvalidRequest
from mri_ldm.request import RowParameters, parse_rows
from reliability import bad_requests
from reliability.bad_input import fuzz, judge
from reliability.bad_requests import CHANGES, SEEDS, STREAM, UNARY, Ask, Tensor, bad, good, rows_of
from reliability.bad_wire import PROTOCOLS, Wire
from server.process import TritonServer
from support.toy_pipeline import Reference, write_pipeline

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (folder := tmp_path_factory.mktemp("toy") / "model_repository").mkdir()
    return write_pipeline(folder)


@pytest.fixture(scope="module")
def reference(repository: Path) -> Reference:
    return Reference(repository)


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[TritonServer]:
    with TritonServer(repository) as server:
        server.probe()
        yield server


@pytest.fixture(scope="module")
def wire(server: TritonServer) -> Iterator[Wire]:
    wire = Wire(server.grpc_url, server.http_url)
    yield wire
    wire.close()


# --- one tensor at a time

VALUES = {
    "steps": ("INT32", bad_requests.BAD_STEPS, r"row 1: steps is {}; it must lie in 1..1000"),
    "eta": ("FP32", bad_requests.BAD_ETAS, "row 1: eta is {}; it must lie in 0..1"),
    "sampler": (
        "BYTES",
        bad_requests.BAD_SAMPLERS,
        "row 1: sampler is {}; it must be one of ddim, ddpm, dpmpp_2m, dpmpp_3m, unipc",
    ),
    "timestep_grid": (
        "BYTES",
        bad_requests.BAD_GRIDS,
        "row 1: timestep_grid is {}; it must be one of leading, log_snr, karras, aligned",
    ),
    "decoder": ("BYTES", bad_requests.BAD_DECODERS, "row 1: decoder is {}; it must be one of full, tiny"),
    "preview_every": ("INT32", bad_requests.BAD_INTERVALS, "row 1: preview_every is {}; it must be 0 (none) or more"),
    "preview_decoder": (
        "BYTES",
        bad_requests.BAD_SAMPLERS,
        "row 1: preview_decoder is {}; it must be one of latent, tiny",
    ),
    "latent": ("FP32", bad_requests.BAD_LATENTS, "row 1: latent holds {}"),
    "labels": ("UINT8", bad_requests.BAD_LABELS, "row 1: labels hold {} at [239, 239]; a label is one of 0 background"),
    "guidance": ("FP32", bad_requests.BAD_GUIDANCE, "row 1: guidance is {}; it must lie in 1 (off) to 10"),
}
GOOD_VALUE = {"steps": 2, "eta": 0.0, "sampler": b"ddim", "timestep_grid": b"karras", "decoder": b"tiny",
              "preview_every": 1, "preview_decoder": b"tiny", "latent": 0.5, "labels": 3, "guidance": 1.5}  # fmt: skip


def said(value: object) -> str:
    """How a message names a value."""
    if isinstance(value, bytes):
        return repr(value.decode(errors="replace")[:40])
    return f"{np.float32(value):g}" if isinstance(value, float) else str(value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", VALUES)
def test_a_value_out_of_range_is_named_with_its_row_and_what_is_allowed(wire: Wire, name: str, protocol: str) -> None:
    datatype, values, message = VALUES[name]
    dims = {"latent": [2, 1, 64, 64], "labels": [2, 1, 240, 240]}.get(name, [2, 1])
    size = int(np.prod(dims)) // 2
    for value in values:
        column = [GOOD_VALUE[name]] * (2 * size - 1) + [value]
        tensors = (Tensor("seed", "INT64", [2, 1], [1, 2]), Tensor(name, datatype, dims, column))
        if name == "guidance":
            tensors += (Tensor("labels", "UINT8", [2, 1, 240, 240], [0] * (2 * 240 * 240)),)
        if name != "steps":
            tensors += (Tensor("steps", "INT32", [2, 1], [1, 1]),)
        for model in (UNARY, STREAM):
            if model == STREAM and protocol in ("json", "binary"):
                continue
            reply = wire.send(Ask(model, tensors), protocol)
            if name.startswith("preview") and model == UNARY:
                assert (reply.kind, f"unexpected inference input '{name}'" in reply.text) == ("refusal", True)
                continue
            assert reply.kind == "refusal", (value, reply)
            words = "NaN or infinity" if name == "latent" and not abs(value) < np.inf else said(value).lstrip("-")
            text = reply.text.replace("\\\\", "\\")  # in JSON
            assert message.split("{}")[0] in text, (value, reply)
            assert words in text, (value, reply)
            assert message.split("{}")[1] in text, (value, reply)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_contradicts_the_protocol_is_refused(
    wire: Wire, reference: Reference, change: bad_requests.Change, protocol: str
) -> None:
    for seed in range(8):
        rng = random.Random(seed)
        ask = change(rng, good(rng))
        if ask.model == STREAM and protocol in ("json", "binary"):
            continue
        reply = wire.send(ask, protocol)
        assert reply.kind in ("refusal", "refusal by a parser"), (ask.what, reply)
        assert len(reply.text) > 20
        # Parsers answer with the code of an internal error; only HTTP's is asked for anything that is no message.
        assert reply.kind == "refusal" or protocol in ("json", "binary"), reply


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_seeds_at_the_edges_give_their_images(wire: Wire, reference: Reference, protocol: str) -> None:
    rows = len(SEEDS)
    ask = Ask(UNARY, (Tensor("seed", "INT64", [rows, 1], SEEDS), Tensor("steps", "INT32", [rows, 1], [2] * rows)))
    assert judge(ask, protocol, wire.send(ask, protocol), reference) == ("answered", "")


@pytest.mark.parametrize(
    "text", ["9223372036854775808", "-9223372036854775809", "1.5", "1e3", '"1"', "null", "[[[[1]]]]x"]
)
def test_json_seeds_that_are_no_int64_are_refused(wire: Wire, text: str) -> None:
    body = b'{"inputs":[{"name":"seed","datatype":"INT64","shape":[1,1],"data":[' + text.encode() + b"]}]}"
    reply = wire.post(body, {}, read=False)
    assert reply.kind == "refusal by a parser", reply


# --- any request


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rng=st.randoms(use_true_random=False), protocol=st.sampled_from(PROTOCOLS), right=st.booleans())
def test_any_request_is_refused_in_words_or_answered_right(wire, reference, rng, protocol, right) -> None:
    ask = good(rng) if right else bad(rng, protocol)
    if ask.model == STREAM and protocol in ("json", "binary"):
        protocol = "raw"
    outcome, note = judge(ask, protocol, wire.send(ask, protocol), reference)
    assert not note, f"{outcome}: {note}"


def test_fuzzing_finds_nothing(server: TritonServer, reference: Reference) -> None:
    counts = fuzz(server, reference, amount=600, seed=5)
    assert counts["inputs tried"] == 600
    assert counts["refused"] + counts["answered"] + counts["answered, any bytes"] == 600
    assert min(counts[name] for name in ("refused", "refused by a parser", "answered")) > 20
    assert not any(counts[name] for name in ("images wrong", "internal errors", "hangs", "dead processes"))


def test_fuzzing_would_find_a_wrong_image_and_a_wrong_refusal(
    server: TritonServer, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Reference.rows
    monkeypatch.setattr(Reference, "rows", lambda self, rows: tuple(np.nextafter(a, 9) for a in right(self, rows)))
    with pytest.raises(AssertionError, match=r"images wrong: .* differs"):
        fuzz(server, reference, amount=60, seed=6)
    monkeypatch.undo()
    monkeypatch.setattr(bad_requests, "SAMPLERS", (*bad_requests.SAMPLERS, b"euler"))
    with pytest.raises(AssertionError, match="wrongly refused: "):
        fuzz(server, reference, amount=60, seed=6)


# --- the function that reads requests

DTYPES = {"seed": np.int64, "steps": np.int32, "eta": np.float32, "latent": np.float32, "preview_every": np.int32,
          "labels": np.uint8, "guidance": np.float32}  # fmt: skip
FITTING = {"latent": (1, 64, 64), "labels": (1, 240, 240)}

WORDS = {
    "sampler": [b"ddim", b"ddpm", "dpmpp_2m", b"unipc"],
    "timestep_grid": [b"leading", "log_snr", b"karras", "aligned"],
    "decoder": [b"full", "tiny", b"tiny"],
}


@st.composite
def arrays(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """Tensors as Triton may hand them over: the declared types, any shape and any values."""
    given_ones = draw(st.sets(st.sampled_from([*DTYPES, *WORDS])))
    tensors = {}
    rows = draw(st.integers(1, 3))
    for name in given_ones:
        fit = (rows, *FITTING.get(name, (1,)))
        shape = draw(st.one_of(st.just(fit), st.just(fit), hnp.array_shapes(min_dims=0, max_dims=5, min_side=0)))
        if name in WORDS:
            words = st.one_of(st.sampled_from(WORDS[name]), st.binary(max_size=9))
            tensors[name] = draw(hnp.arrays(np.object_, shape, elements=words))
        else:
            likely = {"steps": st.integers(1, 1000), "eta": st.floats(0, 1, width=32), "preview_every": st.just(0),
                      "labels": st.integers(0, 3), "guidance": st.floats(1, 10, width=32)}  # fmt: skip
            either = [hnp.from_dtype(np.dtype(DTYPES[name])), *([likely[name]] if name in likely else [])]
            tensors[name] = draw(hnp.arrays(DTYPES[name], shape, elements=st.one_of(either), fill=either[-1]))
    return tensors


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(tensors=arrays())
def test_reading_a_request_gives_rows_in_range_or_says_what_is_wrong(reference: Reference, tensors) -> None:
    try:
        rows = parse_rows(tensors, reference.settings)
    except InvalidRequest as error:
        if any(name in str(error) for name in (*DTYPES, *WORDS)):
            return
        raise
    assert len(rows) == len(tensors["seed"])
    for row in rows:
        assert row.table(reference.settings).steps == row.steps
        assert isinstance(row, RowParameters)
        assert np.isfinite(row.start()).all()
        assert "-0.0" not in row.provenance(reference.settings)


def test_the_oracle_agrees_with_the_function_on_values(reference: Reference) -> None:
    """`rows_of` was written from the protocol, `parse_rows` reads it: two thousand good and bad requests."""
    for seed in range(2000):
        rng = random.Random(seed)
        ask = bad_requests._with_bad_value(rng, good(rng)) if seed % 2 else good(rng)
        tensors = {}
        for tensor in ask.tensors:
            kind = np.object_ if tensor.datatype == "BYTES" else bad_requests.NUMPY[tensor.datatype]
            tensors[tensor.name] = np.array(tensor.values, kind).reshape(tensor.shape)
        try:
            rows = parse_rows(tensors, reference.settings)
        except InvalidRequest:
            rows = None
        expected = rows_of(ask)
        assert (rows is None) == (expected is None), ask
        parts = [
            [(row.seed, row.steps, row.sampler, row.eta, row.timestep_grid, row.decoder) for row in row_list or []]
            for row_list in (rows, expected)
        ]
        assert parts[0] == parts[1]
