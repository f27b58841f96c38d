"""How fast: what `make bench` recorded of the bundle's networks, as tables of README and other pages."""

from __future__ import annotations

import math
from collections.abc import Iterator

from benchmarks.harness.markdown import Lines, Reader, Record, cores, table
from benchmarks.serving.names import (
    BF16_LOOP,
    COMPILED_LOOP,
    DECODER_IN_BF16,
    DIFFUSERS_LOOP,
    IN_BF16,
    LOOP_IN_EXECUTE,
    OPENVINO,
    OURS,
    few_steps,
    litserve,
)

FEW_STEPS = few_steps(20)
BUNDLE = "the bundle's"
WHY = "[out of reach](/benchmarks/README.md#operations-that-export-writes-for-a-cpu)"


def headline(read: Reader) -> Lines:
    """README's table."""
    single, offline, start = (_result(read, name) for name in ("single", "offline", "start"))
    idle, peak = _gigabytes(start)
    loop = f"{BUNDLE} PyTorch loop"
    rows = [
        ["one image, float32", f"{_faster(single, OURS)} times as fast", loop],
        ["one image, OpenVINO in bf16", f"{_faster(single, IN_BF16)} times as fast", loop],
        [
            "eight images at once, float32",
            f"{_faster(offline, OURS)} times as fast",
            "the bundle's loop, batch of eight",
        ],
        ["20 steps of DPM-Solver++", f"{_few_steps(single):.2f} times as fast", "50 steps of DDIM"],
        ["one image over gRPC", f"{_tax(read, '1', 'gRPC unary'):.2f} times the time", "the engine in process"],
        ["start, and first image", _start(start), "no comparison"],
        ["memory: one image, 16 at once", f"{idle:.1f} GB and {peak:.1f} GB", "no comparison"],
    ]
    yield from table(["what", "figure", "compared with"], rows)
    yield ""
    yield _machines(read)


def targets(read: Reader) -> Lines:
    """All targets with what was reached, and the machine of the runs."""
    yield _machines(read)
    yield ""
    yield from table(["target", "reached", "beside it"], [*_speed(read), *_serving(read), *_steps_and_rows(read)])


def openvino(read: Reader) -> Lines:
    """One image and eight at once, by profile and precision, beside the bundle's loop."""
    single, offline = _result(read, "single"), _result(read, "offline")
    names = {"`cpu`": OURS, "`openvino`, float32": OPENVINO}
    names |= {"`openvino`, decoder in bf16": DECODER_IN_BF16, "`openvino`, bf16": IN_BF16}
    rows = [[profile, _faster(single, name), _faster(offline, name)] for profile, name in names.items()]
    yield from table(["profile", "one image, times as fast", "eight at once"], rows)


def _speed(read: Reader) -> Iterator[list[str]]:
    single, offline = _result(read, "single"), _result(read, "offline")
    bf16 = f"decoder alone in bf16 {_faster(single, DECODER_IN_BF16)}, OpenVINO in float32 {_faster(single, OPENVINO)}"
    loop = "times as fast as the bundle's PyTorch loop, ONNX Runtime in float32"
    yield [f"2.2 {loop}", f"{_verdict(_ratio(single, OURS), 2.2)} ({WHY})", _rivals(single)]
    beside = f"{bf16}, PyTorch in bf16 {_faster(single, BF16_LOOP)}"
    yield ["3.5 times, OpenVINO in bf16", _verdict(_ratio(single, IN_BF16), 3.5), beside]
    eight = f"{_faster(offline, OURS)} times the bundle's loop in batches of eight"
    yield ["eight images at once (no target)", eight, _rivals(offline)]
    beside = f"PyTorch in bf16 {_faster(offline, BF16_LOOP)}; DPM-Solver++ in float32 {_faster(offline, FEW_STEPS)}"
    yield ["eight at once, OpenVINO in bf16 (no target)", f"{_faster(offline, IN_BF16)} times", beside]


def _serving(read: Reader) -> Iterator[list[str]]:
    one, many = (_tax(read, count, "gRPC unary") for count in ("1", "16"))
    stream, http = (_tax(read, "1", name) for name in ("gRPC stream", "HTTP"))
    beside = f"a stream with progress {stream:.2f}, HTTP {http:.2f}; all with the same bits"
    yield ["gRPC at most 1.03 times the engine in process, one image", _verdict(-one, -1.03), beside]
    yield ["at most 1.05 times, 16 requests at once", _verdict(-many, -1.05), "the same bits there too"]
    gpu, here = (_mixed(read, "bundle", where) for where in ("simulated, as a GPU", "tritonserver, this machine"))
    mixed = f"here {_verdict(-here, -0.5)}; simulated GPU {_verdict(-gpu, -0.5)}"
    demo = f"demo weights {_mixed(read, 'demo', 'tritonserver, this machine'):.2f}"
    yield ["mixed steps at 75 % load: half the mean latency of whole requests", mixed, demo]
    start = _result(read, "start")
    idle, peak = _gigabytes(start)
    yield ["start to ready and to first image, stated", _start(start), "without the launcher's own checks"]
    memory = f"{idle:.1f} GB after one image"
    yield ["memory of all processes, stated", memory, f"at most {peak:.1f} GB with 16 at once"]


def _steps_and_rows(read: Reader) -> Iterator[list[str]]:
    single, cost = _result(read, "single"), _result(read, "cost")
    decoding = cost["model"]["decode_s"]["1"] / single["contestants"][FEW_STEPS]["median"]
    demo = f"with the demo weights {_few_steps(_result(read, 'single', 'demo')):.2f}"
    beside = f"decoding is {100 * decoding:.0f} % of the 20-step image; {demo}"
    yield ["20 steps of DPM-Solver++ twice as fast as 50 of DDIM", _verdict(_few_steps(single), 2, 3), beside]
    one, *others = (100 * (values["against_median"] - 1) for values in cost["rows"].values())
    rows = f"from 2 rows on {min(others):+.0f} % to {max(others):+.0f} %; one row {one:+.0f} %"
    base, step = 1e3 * cost["model"]["step_base_s"], 1e3 * cost["rows"]["1"]["step_s"]["median"]
    beside = f"of a step with one row ({step:.0f} ms), {base:.1f} ms do not depend on rows"
    yield ["an image costs the same (±5 %) in requests of 1 to 64 rows", rows, beside]
    yield ["the H200 figures", "not measured", "no GPU was at hand; `make gpu` is ready"]


def _result(read: Reader, scenario: str, weights: str = "bundle") -> Record:
    result: Record = read(f"serving/{weights}-{scenario}")["result"]
    return result


def _machines(read: Reader) -> str:
    runs = [read(f"serving/bundle-{name}") for name in ("single", "offline", "layers", "cost", "mixed", "start")]
    dates = sorted({run["machine"]["date"][:10] for run in runs})
    instructions = ", ".join(runs[0]["machine"]["instructions"])
    return f"{', '.join(sorted({cores(run) for run in runs}))} with {instructions}; {' and '.join(dates)}."


def _ratio(result: Record, name: str) -> float:
    """How many times faster than the bundle's loop; nan where it was not measured."""
    contestant = result["contestants"].get(name)
    return math.nan if contestant is None else float(contestant["faster_than_baseline"]["median"])


def _faster(result: Record, name: str) -> str:
    ratio = _ratio(result, name)
    return "not measured" if math.isnan(ratio) else f"{ratio:.2f}"


def _rivals(result: Record) -> str:
    names = {"torch.compile": COMPILED_LOOP, "diffusers": DIFFUSERS_LOOP, "LitServe": litserve(8)}
    names["loop in `execute()`"] = LOOP_IN_EXECUTE
    return ", ".join(f"{name} {_faster(result, contestant)}" for name, contestant in names.items())


def _verdict(value: float, target: float, digits: int = 2) -> str:
    """Whether `value` is `target` or more. Both are negative where less is better."""
    return f"{'yes' if value >= target else 'no'}: {abs(value):.{digits}f}"


def _tax(read: Reader, concurrent: str, layer: str) -> float:
    """Seconds of a layer over those of the engine in process, with so many requests at once."""
    return float(_result(read, "layers")["concurrent"][concurrent][layer]["tax"]["median"])


def _few_steps(single: Record) -> float:
    """How many times faster 20 steps of DPM-Solver++ are than 50 of DDIM."""
    return float(single["contestants"][OURS]["median"] / single["contestants"][FEW_STEPS]["median"])


def _mixed(read: Reader, weights: str, where: str) -> float:
    """Mean latency over that of batching whole requests, eight rows at most."""
    records = _result(read, "mixed", weights)["records"]
    (one,) = (record for record in records if record["where"] == where and record["rival_rows"] == 8)
    return float(one["mean_ratio"])


def _start(start: Record) -> str:
    return f"{start['ready_s']['median']:.2f} s and {start['first_image_s']['median']:.1f} s"


def _gigabytes(start: Record) -> tuple[float, float]:
    """Of all processes: after one image, and the peaks under load."""
    idle, loaded = (start["memory_mb"][state].values() for state in ("idle", "loaded"))
    return sum(process["rss"] for process in idle) / 1e3, sum(process["peak"] for process in loaded) / 1e3
