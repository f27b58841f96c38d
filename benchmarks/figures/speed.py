"""How fast: what `make bench` and `benchmarks.mixed_load` have recorded, as tables of README and other pages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.mixed_load.__main__ import table as mixed_load_table
from benchmarks.rewrite import table as rewrite_table
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
from benchmarks.serving.table import markdown

Record = dict[str, Any]
Reader = Callable[[str], Record]
"""Gives a record by its path below benchmarks/, without `.json`."""
Row = list[str]

FEW_STEPS = few_steps(20)
RIVALS = {
    "torch.compile": COMPILED_LOOP,
    "diffusers' loop with fused attention": DIFFUSERS_LOOP,
    "LitServe": litserve(8),
}


def how_fast(read: Reader) -> Iterator[str]:
    """README's table of targets, with the machine of the runs."""
    runs = [read(f"serving/bundle-{name}") for name in ("single", "offline", "layers", "cost", "mixed", "start")]
    machines = sorted({_cores(run) for run in runs})
    dates = sorted({run["machine"]["date"][:10] for run in runs})
    yield f"{', '.join(machines)} with {', '.join(runs[0]['machine']['instructions'])}; {' and '.join(dates)}."
    yield ""
    rows = [*_one_image(read), *_layers(read), *_few_steps(read), *_rows(read), *_mixed(read), *_others(read)]
    yield from markdown(["target", "reached", "why, or what it says"], rows)


def openvino(read: Reader) -> Iterator[str]:
    """One image and eight at once, by profile and precision, beside the bundle's loop."""
    single, offline = _result(read, "single"), _result(read, "offline")
    names = {
        "`cpu`": OURS,
        "`openvino`, float32": OPENVINO,
        "`openvino`, decoder in bf16": f"{OPENVINO}, decoder in bf16",
        "`openvino`, bf16": f"{OPENVINO} in bf16",
    }
    rows = [[profile, _faster(single, name), _faster(offline, name)] for profile, name in names.items()]
    yield from markdown(["profile", "one image, times as fast", "eight at once"], rows)


def mixed_load(read: Reader) -> Iterator[str]:
    """Requests of 10, 25 and 50 steps: the real server with both weights, and the simulated GPU."""
    rows = []
    for name, records in (
        ("bundle's networks: ", _result(read, "mixed")["records"]),
        ("demo weights: ", _result(read, "mixed", "demo")["records"]),
        ("", read("mixed_load")["records"]),
    ):
        rows += [record | {"where": name + record["where"]} for record in records]
    yield from mixed_load_table(rows).splitlines()


def rewrite(read: Reader) -> Iterator[str]:
    """What each kind of operation that export writes is worth."""
    record = read("rewrite-bundle")
    yield from rewrite_table(record["networks"]).splitlines()
    yield ""
    yield f"{where_and_when(record)}."


def where_and_when(record: Record) -> str:
    """The machine of a record, and its date."""
    return f"{_cores(record)}, {record['machine']['date'][:10]}"


def _cores(record: Record) -> str:
    return f"{record['machine']['cores']} cores of {record['machine']['processor']}"


def _result(read: Reader, scenario: str, weights: str = "bundle") -> Record:
    result: Record = read(f"serving/{weights}-{scenario}")["result"]
    return result


def _ratio(result: Record, name: str) -> float:
    """How many times faster than the bundle's loop; nan where it was not measured."""
    contestant = result["contestants"].get(name)
    return math.nan if contestant is None else contestant["faster_than_baseline"]["median"]


def _faster(result: Record, name: str) -> str:
    ratio = _ratio(result, name)
    return "not measured" if math.isnan(ratio) else f"{ratio:.2f}"


def _rivals(result: Record) -> str:
    return ", ".join(f"{told} {_faster(result, name)}" for told, name in RIVALS.items())


def _verdict(reached: bool, figure: str) -> str:
    return f"{'yes' if reached else 'no'}: {figure}"


def _percent(share: float, sign: str = "") -> str:
    return f"{100 * share:{sign}.0f} %"


def _one_image(read: Reader) -> Iterator[Row]:
    single, offline = _result(read, "single"), _result(read, "offline")
    quickest = [f"{single['contestants'][name]['min']:.2f}" for name in (LOOP_IN_EXECUTE, OURS)]
    yield [
        "2.2 times as fast as the bundle's PyTorch loop, ONNX Runtime in float32",
        _verdict(_ratio(single, OURS) >= 2.2, _faster(single, OURS)),
        "out of reach in float32 on these cores "
        "([why](benchmarks/README.md#operations-that-export-writes-for-a-cpu)). Beside it "
        f"{_rivals(single)}; a loop in `execute()` {_faster(single, LOOP_IN_EXECUTE)}, which calls the same `unet` as "
        f"often (quickest images {' and '.join(quickest)} s); OpenVINO in float32 {_faster(single, OPENVINO)}",
    ]
    in_bf16 = f"{OPENVINO} in bf16"
    yield [
        "3.5 times, OpenVINO in bf16",
        _verdict(
            _ratio(single, in_bf16) >= 3.5,
            f"{_faster(single, in_bf16)} ({_faster(offline, in_bf16)} for eight images at once)",
        ),
        "bf16 doubles the peak of this CPU, no more; PyTorch in bf16 autocast "
        f"{_faster(single, BF16_LOOP)} ({_faster(offline, BF16_LOOP)}). And weights have to pass the "
        "[gate](docs/openvino.md#the-gate): the demo weights do with bf16 in the decoder alone "
        f"({_faster(single, f'{OPENVINO}, decoder in bf16')}), not in both networks",
    ]


def _layers(read: Reader) -> Iterator[Row]:
    layers = _result(read, "layers")["concurrent"]
    one, stream, http = (layers["1"][name]["tax"]["median"] for name in ("gRPC unary", "gRPC stream", "HTTP"))
    yield [
        "gRPC at most 1.03 times the engine in process, one image",
        _verdict(one <= 1.03, f"{one:.2f}"),
        f"a stream with progress {stream:.2f}, HTTP {http:.2f}; all with the same bits",
    ]
    many = layers["16"]["gRPC unary"]["tax"]["median"]
    yield ["at most 1.05 times, 16 requests at once", _verdict(many <= 1.05, f"{many:.2f}"), "the same bits there too"]


def _few_steps(read: Reader) -> Iterator[Row]:
    medians = [
        [_result(read, "single", weights)["contestants"][name]["median"] for name in (OURS, FEW_STEPS)]
        for weights in ("bundle", "demo")
    ]
    bundle, demo = (all_steps / few_steps for all_steps, few_steps in medians)
    decoding = _result(read, "cost")["model"]["decode_s"]["1"] / medians[0][1]
    yield [
        "20 steps of DPM-Solver++ twice as fast as 50 of DDIM",
        _verdict(bundle >= 2, f"{bundle:.3f}"),
        f"decoding is {_percent(decoding)} of the 20-step image and is not shortened; with the demo weights, which "
        f"decode faster, {demo:.2f}",
    ]


def _rows(read: Reader) -> Iterator[Row]:
    cost = _result(read, "cost")
    one, *others = (values["against_median"] - 1 for values in cost["rows"].values())
    base, step = (1e3 * seconds for seconds in (cost["model"]["step_base_s"], cost["rows"]["1"]["step_s"]["median"]))
    yield [
        "an image costs the same (±5 %) in requests of 1 to 64 rows",
        f"from 2 rows on: {_percent(min(others), '+')} to {_percent(max(others), '+')} of the median; "
        f"one row {_percent(one, '+')}",
        f"a step costs {base:.1f} ms whatever its rows, of {step:.0f} with one: many small operations between the "
        "convolutions",
    ]


def _mixed(read: Reader) -> Iterator[Row]:
    def ratio(records: list[Record], where: str) -> float:
        (found,) = (each["mean_ratio"] for each in records if each["where"] == where and each["rival_rows"] == 8)
        return float(found)

    here, demo = (_result(read, "mixed", weights)["records"] for weights in ("bundle", "demo"))
    gpu = ratio(read("mixed_load")["records"], "simulated, as a GPU")
    served, with_demo = (ratio(records, "tritonserver, this machine") for records in (here, demo))
    yield [
        "10, 25 and 50 steps mixed: half the mean latency of batching whole requests at 75 % load",
        f"on a simulated GPU {_verdict(gpu <= 0.5, f'{gpu:.2f}')}; "
        f"here {_verdict(served <= 0.5, f'{served:.2f}')}, with the demo weights {with_demo:.2f}",
        "a row costs nearly as much in a batch as alone here, so only the order of the rows can win; "
        f"{ratio(here, 'simulated, as this machine'):.2f} in the simulation of this machine",
    ]


def _others(read: Reader) -> Iterator[Row]:
    offline, start = _result(read, "offline"), _result(read, "start")
    yield [
        "eight images at once (no target)",
        f"{_faster(offline, OURS)} times the bundle's loop in batches of eight",
        f"a loop in `execute()` {_faster(offline, LOOP_IN_EXECUTE)}, {_rivals(offline)}; "
        f"DPM-Solver++ {_faster(offline, FEW_STEPS)}",
    ]
    memory = start["memory_mb"]
    idle, peak = (
        sum(process[kind] for process in memory[state].values()) / 1e3
        for state, kind in (("idle", "rss"), ("loaded", "peak"))
    )
    yield [
        "start to first image, and memory, stated",
        f"{start['ready_s']['median']:.2f} s and {start['first_image_s']['median']:.1f} s; {idle:.1f} GB after one "
        f"image, at most {peak:.1f} GB with 16 at once",
        "until ready and until the first image, from tritonserver's start without the launcher's own checks; all "
        "processes together",
    ]
    yield ["the H200 figures", "not measured", "no GPU was at hand; `make gpu` is ready"]
