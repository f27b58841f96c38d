"""Quality against steps: the record of `python -m benchmarks.quality` as tables."""

from __future__ import annotations

from benchmarks.harness.markdown import Lines, Reader, Record, around, cores, formatted, number
from benchmarks.quality.settings import Setting


def quality(read: Reader) -> Lines:
    """The recorded run."""
    return lines(read("quality"))


def lines(record: Record) -> Lines:
    """Each image beside the reference's of its seed, with its time; then all images of a setting as a sample."""
    distance, time = record.get("distance"), record.get("time")
    if distance:
        yield from formatted(
            " | preset | PSNR, dB: mean (worst) | SSIM: mean (worst) | s an image (range) | times as fast",
            "{title} | {preset} | {psnr} | {ssim} | {seconds} | {faster}",
            [_paired(setting, time) for setting in distance["settings"]],
        )
        yield ""
    if time:
        rounds = max(values["n"] for values in time["settings"].values())
        yield (
            f"Times: medians of {rounds} in turns (with all steps: one); the last column is beside {time['baseline']}. "
            f"{_machine(time)}"
        )
        yield ""
    if distance:
        yield from formatted(
            " | images | Fréchet, same seeds | Fréchet, other seeds | KID, other seeds | Fréchet to real"
            " | change ± standard error | KID to real",
            "{title} | {images} | {same} | {frechet} | {kid} | {real} | {change} | {real_kid}",
            [_sample(setting) for setting in distance["settings"]],
        )
        yield from ["", _legend(distance)]


def _paired(record: Record, time: Record | None) -> Record:
    from brats_ldm_client import PRESETS  # with NumPy, which --help is spared

    setting = Setting(record["sampler"], record["steps"])
    names = [f"`{name}`" for name, preset in PRESETS.items() if Setting(preset.sampler, preset.steps) == setting]
    row = {
        "title": setting.title,
        "preset": ", ".join(names),
        **dict.fromkeys(("psnr", "ssim", "seconds", "faster"), ""),
    }
    if paired := record["paired"]:
        row["psnr"] = f"{paired['psnr_mean']:.1f} ({paired['psnr_min']:.1f})"
        row["ssim"] = f"{paired['ssim_mean']:.4f} ({paired['ssim_min']:.4f})"
    if time and (values := time["settings"].get(setting.name)):
        row["seconds"] = number(values["median"]) + (f" ({around(values)})" if values["n"] > 1 else "")
        row["faster"] = number(values["faster_than_baseline"]["median"])
    return row


def _sample(record: Record) -> Record:
    paired, real, others = record["paired"], record["to_real"], record["to_reference"]
    row = {key: _thousands(value) for key, value in (others or record["reference_to_itself"]).items()}
    row |= {"title": Setting(record["sampler"], record["steps"]).title, "images": record["images"]}
    row |= {"same": _thousands(paired["frechet"]) if paired else "", "real": "", "change": "", "real_kid": ""}
    if real:
        row |= {"real": _thousands(real["frechet"]), "real_kid": _thousands(real["kid"])}
        change = f"{_thousands(real['frechet_change'], '+')} ± {_thousands(real['frechet_change_error'])}"
        row["change"] = change if others else ""
    return row


def _thousands(value: float, sign: str = "") -> str:
    return f"{1000 * value:{sign}.2f}"


def _both(distance: Record) -> str:
    return f"Fréchet {_thousands(distance['frechet'])}, KID {_thousands(distance['kid'])}."


def _legend(distance: Record) -> str:
    parts = [f"Distances are multiplied by 1000. Features: {distance['features']}."]
    floors = {record["images"]: record["reference_to_itself"] for record in distance["settings"]}
    for images, floor in floors.items():
        parts.append(f"The reference to itself, {images} images in two halves: {_both(floor)}")
    if real := distance["real"]:
        parts.append(f"Real slices: {real['slices']}; one half of them to the other: {_both(real['halves'])}")
    return " ".join([*parts, _machine(distance)])


def _machine(record: Record) -> str:
    return f"{record['machine']['date']}, {cores(record)}, load {record['machine']['load'][0]}."
