"""Quality against steps: the record of `python -m benchmarks.quality` as tables."""

from __future__ import annotations

from benchmarks.harness.markdown import Lines, Reader, Record, around, cores, number, table
from benchmarks.quality.settings import Setting

PAIRED = ("", "preset", "PSNR, dB: mean (worst)", "SSIM: mean (worst)", "s an image (range)", "times as fast")
SAMPLES = (
    *("", "images", "Fréchet, same seeds", "Fréchet, other seeds", "KID, other seeds"),
    *("Fréchet to real", "change ± standard error", "KID to real"),
)


def quality(read: Reader) -> Lines:
    """The recorded run."""
    return lines(read("quality"))


def lines(record: Record) -> Lines:
    """Each image beside the reference's of its seed, with its time; then all images of a setting as a sample."""
    distance, time = record.get("distance"), record.get("time")
    if distance:
        yield from table(PAIRED, [_paired(record, time) for record in distance["settings"]])
        yield ""
    if time:
        rounds = max(values["n"] for values in time["settings"].values())
        yield (
            f"Times: medians of {rounds} in turns (with all steps: one); the last column is beside {time['baseline']}. "
            f"{_machine(time)}"
        )
        yield ""
    if distance:
        yield from table(SAMPLES, [_sample(record) for record in distance["settings"]])
        yield ""
        yield _legend(distance)


def _paired(record: Record, time: Record | None) -> list[str]:
    from brats_ldm_client import PRESETS  # with NumPy, which --help is spared

    setting, paired = Setting(record["sampler"], record["steps"]), record["paired"]
    names = [f"`{name}`" for name, preset in PRESETS.items() if Setting(preset.sampler, preset.steps) == setting]
    row = [setting.title, ", ".join(names)]
    if paired is None:
        row += ["", ""]
    else:
        row += [f"{paired['psnr_mean']:.1f} ({paired['psnr_min']:.1f})"]
        row += [f"{paired['ssim_mean']:.4f} ({paired['ssim_min']:.4f})"]
    return row + _time(setting.name, time)


def _sample(record: Record) -> list[str]:
    paired, real = record["paired"], record["to_real"]
    reference = record["to_reference"] or record["reference_to_itself"]
    row = [Setting(record["sampler"], record["steps"]).title, str(record["images"])]
    row += ["" if paired is None else _thousands(paired["frechet"])]
    row += [_thousands(reference[name]) for name in ("frechet", "kid")]
    if real is None:
        return [*row, "", "", ""]
    change = f"{_thousands(real['frechet_change'], '+')} ± {_thousands(real['frechet_change_error'])}"
    return [*row, _thousands(real["frechet"]), change if record["to_reference"] else "", _thousands(real["kid"])]


def _time(name: str, time: Record | None) -> list[str]:
    if time is None or name not in time["settings"]:
        return ["", ""]
    values = time["settings"][name]
    spread = f" ({around(values)})" if values["n"] > 1 else ""
    return [f"{number(values['median'])}{spread}", number(values["faster_than_baseline"]["median"])]


def _thousands(value: float, sign: str = "") -> str:
    return f"{1000 * value:{sign}.2f}"


def _legend(distance: Record) -> str:
    text = f"Distances are multiplied by 1000. Features: {distance['features']}."
    floors = {record["images"]: record["reference_to_itself"] for record in distance["settings"]}
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
    return f"{text} {_machine(distance)}"


def _machine(record: Record) -> str:
    return f"{record['machine']['date']}, {cores(record)}, load {record['machine']['load'][0]}."
