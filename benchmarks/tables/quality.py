"""Quality against steps: the record of `python -m benchmarks.quality` as tables."""

from __future__ import annotations

from benchmarks.harness.markdown import Lines, Reader, Record, around, cores, formatted, number, table
from benchmarks.quality.settings import SAMPLERS, Setting, preset_name


def quality(read: Reader) -> Lines:
    """The presets."""
    return presets(read("quality"))


def quality_sweep(read: Reader) -> Lines:
    """All samplers on all grids."""
    return sweep(read("quality")["distance"])


def presets(record: Record) -> Lines:
    """Each preset: its images beside the reference's, and as a sample beside real slices; with its time."""
    distance, time = record.get("distance"), record.get("time")
    if distance:
        yield from formatted(
            "setting | preset | PSNR, dB: mean (worst) | SSIM: mean (worst) | Fréchet, same seeds | images"
            " | Fréchet to real | change ± standard error",
            "{title} | {preset} | {psnr} | {ssim} | {same} | {images} | {real} | {change}",
            [_preset(setting, distance["baseline"]) for setting in distance["presets"]],
        )
        yield from ["", _legend(distance)]
    if time:
        yield ""
        rows = [
            [f"`{name}`", f"{number(values['median'])} ({around(values)})", number(_ratio(values))]
            for name, values in time["presets"].items()
        ]
        yield from table(["preset", "s an image (range)", f"times as fast as `{time['baseline']}`"], rows)
        rounds = max(values["n"] for values in time["presets"].values())
        yield ""
        yield f"Medians of {rounds} in turns (`reference`: one image), one image at a time. {_machine(time)}"


def of_presets(distance: Record) -> dict[str, Record]:
    """By preset, the record of its setting."""
    return {name: record for record in distance["presets"] if (name := preset_name(_setting(record)))}


def _ratio(values: Record) -> float:
    return float(values["faster_than_baseline"]["median"])


def _setting(record: Record) -> Setting:
    return Setting(record["sampler"], record["steps"], record["timestep_grid"], record["decoder"])


def _preset(record: Record, baseline: str) -> Record:
    setting, paired, real = _setting(record), record["paired"], record["to_real"]
    name = preset_name(setting)
    row = {"title": setting.title, "preset": f"`{name}`" if name else "", "images": record["images"]}
    row |= dict.fromkeys(("psnr", "ssim", "same", "real", "change"), "")
    if paired:
        row["psnr"] = f"{paired['psnr_mean']:.1f} ({paired['psnr_min']:.1f})"
        row["ssim"] = f"{paired['ssim_mean']:.4f} ({paired['ssim_min']:.4f})"
        row["same"] = _thousands(paired["frechet"])
    if real:
        row["real"] = _thousands(real["frechet"])
        if record["setting"] != baseline:
            row["change"] = f"{_thousands(real['frechet_change'], '+')} ± {_thousands(real['frechet_change_error'])}"
    return row


def _thousands(value: float, sign: str = "") -> str:
    return f"{1000 * value:{sign}.2f}"


def _legend(distance: Record) -> str:
    paired = next(record["paired"] for record in distance["presets"] if record["paired"])
    parts = [f"PSNR, SSIM and Fréchet of the same seeds: {paired['images']} images."]
    if beside := distance["reference"]["beside"]:
        parts.append(
            f"The reference ({_setting(distance['reference']).title}) beside {beside['steps']} steps, "
            f"{beside['images']} images: PSNR {beside['psnr_mean']:.1f} dB (worst {beside['psnr_min']:.1f}), "
            f"SSIM {beside['ssim_mean']:.4f} (worst {beside['ssim_min']:.4f})."
        )
    parts.append(f"Distances are multiplied by 1000. Features: {distance['features']}.")
    if real := distance["real"]:
        halves = _thousands(real["halves"]["frechet"])
        parts.append(f"Real slices: {real['slices']}; one half of them to the other: Fréchet {halves}.")
    return " ".join([*parts, _machine(distance)])


def sweep(distance: Record) -> Lines:
    """PSNR to the reference by sampler and grid, a column for each number of steps."""
    records = distance["sweep"]
    cells = {(each["sampler"], each["timestep_grid"], each["steps"]): each for each in records}
    ways = dict.fromkeys((each["sampler"], each["timestep_grid"]) for each in records)
    steps = list(dict.fromkeys(each["steps"] for each in records))
    rows = [
        [SAMPLERS[sampler], f"`{grid}`", *(_cell(cells.get((sampler, grid, count))) for count in steps)]
        for sampler, grid in ways
    ]
    yield from table(["sampler", "grid", *(f"{count} steps" for count in steps)], rows)
    yield ""
    yield (
        f"PSNR in dB, the mean of {records[0]['images']} images, to the reference's of the same seeds. Bold: not "
        f"behind the best of the column by more than two standard errors of the difference. {_machine(distance)}"
    )


def _cell(record: Record | None) -> str:
    if record is None:
        return ""
    text = f"{record['psnr_mean']:.1f}"
    return f"**{text}**" if record["behind"] <= 2 * record["behind_error"] else text


def _machine(record: Record) -> str:
    return f"{record['machine']['date']}, {cores(record)}, load {record['machine']['load'][0]}."
