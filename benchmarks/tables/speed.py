"""How fast: what `make bench` recorded of the bundle's networks, as tables of README and other pages."""

from __future__ import annotations

import math
from collections.abc import Iterator

from benchmarks.harness.markdown import Lines, Reader, Record, cores, table
from benchmarks.serving.names import (
    BF16_LOOP,
    COMPILED_LOOP,
    DIFFUSERS_LOOP,
    LOOP_IN_EXECUTE,
    OPENVINO,
    OURS,
    few_steps,
    litserve,
)

Row = list[str]
FEW_STEPS, IN_BF16, DECODER_IN_BF16 = few_steps(20), f"{OPENVINO} in bf16", f"{OPENVINO}, decoder in bf16"
THE_LOOP = "the bundle's loop"
SCENARIOS = ("single", "offline", "layers", "cost", "mixed", "start")


def headline(read: Reader) -> Lines:
    """README's table."""
    single, offline, start = (_result(read, name) for name in ("single", "offline", "start"))
    one, _ = _serving_tax(read)
    few_steps, _ = _few_steps(read)
    idle, peak = _gigabytes(start)
    rows = [
        ["one image, float32", f"{_faster(single, OURS)} times as fast", "the bundle's PyTorch loop"],
        ["one image, OpenVINO in bf16", f"{_faster(single, IN_BF16)} times as fast", "the bundle's PyTorch loop"],
        [
            "eight images at once, float32",
            f"{_faster(offline, OURS)} times as fast",
            "the bundle's loop, batch of eight",
        ],
        ["20 steps of DPM-Solver++", f"{few_steps:.2f} times as fast", "50 steps of DDIM"],
        ["one image over gRPC", f"{one:.2f} times the time", "the engine in process"],
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
    rows = [*_one_image(read), *_layers(read), *_steps(read), *_rows(read), *_mixed_load(read), *_others(read)]
    yield from table(["target", "reached", "beside it"], rows)


def openvino(read: Reader) -> Lines:
    """One image and eight at once, by profile and precision, beside the bundle's loop."""
    single, offline = _result(read, "single"), _result(read, "offline")
    names = {
        "`cpu`": OURS,
        "`openvino`, float32": OPENVINO,
        "`openvino`, decoder in bf16": DECODER_IN_BF16,
        "`openvino`, bf16": IN_BF16,
    }
    rows = [[profile, _faster(single, name), _faster(offline, name)] for profile, name in names.items()]
    yield from table(["profile", "one image, times as fast", "eight at once"], rows)


def _result(read: Reader, scenario: str, weights: str = "bundle") -> Record:
    result: Record = read(f"serving/{weights}-{scenario}")["result"]
    return result


def _machines(read: Reader) -> str:
    runs = [read(f"serving/bundle-{name}") for name in SCENARIOS]
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


def _verdict(reached: bool, figure: str) -> str:
    return f"{'yes' if reached else 'no'}: {figure}"


def _percent(share: float, sign: str = "") -> str:
    return f"{100 * share:{sign}.0f} %"


def _rivals(result: Record) -> str:
    names = {"torch.compile": COMPILED_LOOP, "diffusers": DIFFUSERS_LOOP, "LitServe": litserve(8)}
    rivals = [f"{name} {_faster(result, contestant)}" for name, contestant in names.items()]
    return ", ".join([*rivals, f"loop in `execute()` {_faster(result, LOOP_IN_EXECUTE)}"])


def _one_image(read: Reader) -> Iterator[Row]:
    single, offline = _result(read, "single"), _result(read, "offline")
    reached = _verdict(_ratio(single, OURS) >= 2.2, _faster(single, OURS))
    why = "[out of reach](/benchmarks/README.md#operations-that-export-writes-for-a-cpu)"
    yield [
        "2.2 times as fast as the bundle's PyTorch loop, ONNX Runtime in float32",
        f"{reached} ({why})",
        _rivals(single),
    ]
    reached = _verdict(_ratio(single, IN_BF16) >= 3.5, _faster(single, IN_BF16))
    beside = (
        f"decoder alone in bf16 {_faster(single, DECODER_IN_BF16)}, OpenVINO in float32 {_faster(single, OPENVINO)}"
    )
    yield ["3.5 times, OpenVINO in bf16", reached, f"{beside}, PyTorch in bf16 {_faster(single, BF16_LOOP)}"]
    reached = f"{_faster(offline, OURS)} times the bundle's loop in batches of eight"
    yield ["eight images at once (no target)", reached, _rivals(offline)]
    beside = f"PyTorch in bf16 {_faster(offline, BF16_LOOP)}; DPM-Solver++ in float32 {_faster(offline, FEW_STEPS)}"
    yield ["eight at once, OpenVINO in bf16 (no target)", f"{_faster(offline, IN_BF16)} times", beside]


def _serving_tax(read: Reader) -> tuple[float, float]:
    """Seconds by gRPC over those of the engine in process: of one image, and of 16 requests at once."""
    layers = _result(read, "layers")["concurrent"]
    one, many = (float(layers[count]["gRPC unary"]["tax"]["median"]) for count in ("1", "16"))
    return one, many


def _layers(read: Reader) -> Iterator[Row]:
    one, many = _serving_tax(read)
    layers = _result(read, "layers")["concurrent"]["1"]
    stream, http = (layers[name]["tax"]["median"] for name in ("gRPC stream", "HTTP"))
    beside = f"a stream with progress {stream:.2f}, HTTP {http:.2f}; all with the same bits"
    yield ["gRPC at most 1.03 times the engine in process, one image", _verdict(one <= 1.03, f"{one:.2f}"), beside]
    yield ["at most 1.05 times, 16 requests at once", _verdict(many <= 1.05, f"{many:.2f}"), "the same bits there too"]


def _few_steps(read: Reader) -> tuple[float, float]:
    """How many times faster 20 steps of DPM-Solver++ are than 50 of DDIM: bundle's networks, and demo weights."""
    runs = [_result(read, "single", weights)["contestants"] for weights in ("bundle", "demo")]
    bundle, demo = (float(run[OURS]["median"] / run[FEW_STEPS]["median"]) for run in runs)
    return bundle, demo


def _steps(read: Reader) -> Iterator[Row]:
    bundle, demo = _few_steps(read)
    seconds = _result(read, "single")["contestants"][FEW_STEPS]["median"]
    decoding = _result(read, "cost")["model"]["decode_s"]["1"] / seconds
    beside = f"decoding is {_percent(decoding)} of the 20-step image; with the demo weights {demo:.2f}"
    yield ["20 steps of DPM-Solver++ twice as fast as 50 of DDIM", _verdict(bundle >= 2, f"{bundle:.3f}"), beside]


def _rows(read: Reader) -> Iterator[Row]:
    cost = _result(read, "cost")
    one, *others = (values["against_median"] - 1 for values in cost["rows"].values())
    base, step = (1e3 * seconds for seconds in (cost["model"]["step_base_s"], cost["rows"]["1"]["step_s"]["median"]))
    reached = (
        f"from 2 rows on {_percent(min(others), '+')} to {_percent(max(others), '+')}; one row {_percent(one, '+')}"
    )
    beside = f"of a step with one row ({step:.0f} ms), {base:.1f} ms do not depend on rows"
    yield ["an image costs the same (±5 %) in requests of 1 to 64 rows", reached, beside]


def _mixed(read: Reader) -> tuple[float, float, float]:
    """Mean latency over that of batching whole requests: on a simulated GPU, here, and here with the demo weights."""

    def ratio(weights: str, where: str) -> float:
        records = _result(read, "mixed", weights)["records"]
        (one,) = (record for record in records if record["where"] == where and record["rival_rows"] == 8)
        return float(one["mean_ratio"])

    served = "tritonserver, this machine"
    return ratio("bundle", "simulated, as a GPU"), ratio("bundle", served), ratio("demo", served)


def _mixed_load(read: Reader) -> Iterator[Row]:
    gpu, here, demo = _mixed(read)
    reached = f"here {_verdict(here <= 0.5, f'{here:.2f}')}; simulated GPU {_verdict(gpu <= 0.5, f'{gpu:.2f}')}"
    yield ["mixed steps at 75 % load: half the mean latency of whole requests", reached, f"demo weights {demo:.2f}"]


def _others(read: Reader) -> Iterator[Row]:
    start = _result(read, "start")
    idle, peak = _gigabytes(start)
    yield ["start to ready and to first image, stated", _start(start), "without the launcher's own checks"]
    yield [
        "memory of all processes, stated",
        f"{idle:.1f} GB after one image",
        f"at most {peak:.1f} GB with 16 at once",
    ]
    yield ["the H200 figures", "not measured", "no GPU was at hand; `make gpu` is ready"]


def _start(start: Record) -> str:
    return f"{start['ready_s']['median']:.2f} s and {start['first_image_s']['median']:.1f} s"


def _gigabytes(start: Record) -> tuple[float, float]:
    """Of all processes: after one image, and the peaks under load."""
    idle, loaded = (start["memory_mb"][state].values() for state in ("idle", "loaded"))
    return sum(process["rss"] for process in idle) / 1e3, sum(process["peak"] for process in loaded) / 1e3
