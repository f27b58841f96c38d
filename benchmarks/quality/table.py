"""The recorded figures as a table in a page that people write the rest of. Measures nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.blocks import END, begin, replaced
from benchmarks.quality.plan import Setting
from benchmarks.serving.table import markdown
from brats_ldm_client import PRESETS
from training.files import write_text

Record = dict[str, Any]
COMMAND = "python -m benchmarks.quality"
PAIRED = ("", "preset", "PSNR, dB: mean (worst)", "SSIM: mean (worst)", "s an image (range)", "times as fast")
SAMPLES = (
    *("", "images", "Fréchet, same seeds", "Fréchet, other seeds", "KID, other seeds"),
    *("Fréchet to real", "change ± standard error", "KID to real"),
)


def write_table(page: Path, record: Record) -> None:
    """Replace the block of `COMMAND` in `page`; a page that is not there gets nothing else."""
    text = page.read_text() if page.is_file() else f"{begin(COMMAND)}\n{END}\n"
    write_text(page, replaced(text, COMMAND, lines(record), page))


def lines(record: Record) -> Iterator[str]:
    """Markdown: each image beside the reference's of its seed, with its time; then all of them as a sample."""
    distance, time = record.get("distance"), record.get("time")
    if distance:
        yield from markdown(PAIRED, [_paired(each, time) for each in distance["settings"]])
        yield ""
    if time:
        rounds = max(values["n"] for values in time["settings"].values())
        yield (
            f"Times: medians of {rounds} in turns (with all steps: one); the last column is beside {time['baseline']}. "
            f"{_machine(time['machine'])}"
        )
        yield ""
    if distance:
        yield from markdown(SAMPLES, [_sample(each) for each in distance["settings"]])
        yield ""
        yield _legend(distance)


def _paired(each: Record, time: Record | None) -> list[str]:
    setting, paired = Setting(each["sampler"], each["steps"]), each["paired"]
    names = [f"`{name}`" for name, preset in PRESETS.items() if Setting(preset.sampler, preset.steps) == setting]
    row = [setting.title, ", ".join(names)]
    if paired is None:
        row += ["", ""]
    else:
        row += [f"{paired['psnr_mean']:.1f} ({paired['psnr_min']:.1f})"]
        row += [f"{paired['ssim_mean']:.4f} ({paired['ssim_min']:.4f})"]
    return row + _time(setting.name, time)


def _sample(each: Record) -> list[str]:
    paired, real = each["paired"], each["to_real"]
    reference = each["to_reference"] or each["reference_to_itself"]
    row = [Setting(each["sampler"], each["steps"]).title, str(each["images"])]
    row += ["" if paired is None else _thousands(paired["frechet"])]
    row += [_thousands(reference[name]) for name in ("frechet", "kid")]
    if real is None:
        return [*row, "", "", ""]
    change = f"{_thousands(real['frechet_change'], '+')} ± {_thousands(real['frechet_change_error'])}"
    return [*row, _thousands(real["frechet"]), change if each["to_reference"] else "", _thousands(real["kid"])]


def _time(name: str, time: Record | None) -> list[str]:
    if time is None or name not in time["settings"]:
        return ["", ""]
    values = time["settings"][name]
    spread = f" ({values['min']:.3g} to {values['max']:.3g})" if values["n"] > 1 else ""
    return [f"{values['median']:.3g}{spread}", f"{values['faster_than_baseline']['median']:.3g}"]


def _thousands(value: float, sign: str = "") -> str:
    return f"{1000 * value:{sign}.2f}"


def _legend(distance: Record) -> str:
    text = f"Distances are multiplied by 1000. Features: {distance['features']}."
    floors = {each["images"]: each["reference_to_itself"] for each in distance["settings"]}
    for images, floor in floors.items():
        text += (
            f" The reference to itself, {images} images in two halves: Fréchet {_thousands(floor['frechet'])}, "
            f"KID {_thousands(floor['kid'])}."
        )
    if real := distance["real"]:
        halves = real["halves"]
        text += (
            f" Real slices: {real['slices']}; one half of them to the other: Fréchet {_thousands(halves['frechet'])}, "
            f"KID {_thousands(halves['kid'])}."
        )
    return f"{text} {_machine(distance['machine'])}"


def _machine(machine: Record) -> str:
    return f"{machine['date']}, {machine['cores']} cores of {machine['processor']}, load {machine['load'][0]}."
