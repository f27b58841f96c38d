"""The denoising as a GIF or WebP, read back with Pillow."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from brats_ldm_client import PRESETS, Client, Generation, InvalidRequest, Progress
from brats_ldm_client._cli import main
from brats_ldm_client.animation import save_animation
from brats_ldm_client.pictures import NOTICE, SOURCE_TYPE, to_display
from support.fake_triton import DIGEST, Served

ENDINGS = ("gif", "webp")
FAST = PRESETS["fast"].steps


def disc(size: int) -> np.ndarray:
    """A light disc, to the right of the middle and in front of it."""
    x, y = np.mgrid[:size, :size] / size
    return ((x - 0.6) ** 2 + (y - 0.7) ** 2 < 0.04).astype(np.float32)


def events(sign: float = 1.0, steps: int = 4) -> list[Progress | Generation]:
    """The disc comes out of nothing, in latents with a scale of their own."""
    latent = np.pad(disc(60), 2) * sign * 3 - 7
    progress = [
        Progress(np.array([step], np.int32), steps, (latent * step / steps)[None]) for step in range(1, steps + 1)
    ]
    record = {"seed": 42, "model_name": "mri_ldm", "model_digest": DIGEST, "versions": {"server": "2.51.0"}}
    made = Generation(disc(240)[None], np.array([42]), steps, "ddim", 0.0, (record,), seconds=1.0)
    return [*progress, made]


def frames(path: Path) -> list[np.ndarray]:
    with Image.open(path) as read:
        return [np.asarray(frame.convert("L")) for frame in ImageSequence.Iterator(read)]


def picture(frame: np.ndarray) -> np.ndarray:
    """The part of a frame with the image, which is in the middle."""
    left = (frame.shape[1] - 248) // 2 + 4
    return frame[4:244, left : left + 240]


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("ending", ENDINGS)
def test_previews_lie_where_the_image_does(ending: str, sign: float, tmp_path: Path) -> None:
    *previews, last = map(picture, frames(save_animation(events(sign), tmp_path / f"new/one.{ending}")))
    expected = to_display(disc(240)).astype(int)
    assert len(previews) == 4
    assert np.abs(last - expected).mean() < 2, "WebP is lossy"
    # A latent covers 4 x 4 pixels: the edge of the disc is within one of them.
    assert (np.abs(previews[-1] - expected) > 99).mean() < 0.02, "light where the image is light"


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_image_stays_longer_and_a_long_run_is_as_short_as_a_short_one(ending: str, tmp_path: Path) -> None:
    def durations(steps: int) -> list[int]:
        found = []
        with Image.open(save_animation(events(steps=steps), tmp_path / f"one.{ending}")) as read:
            for frame in ImageSequence.Iterator(read):
                frame.load()
                found.append(int(frame.info["duration"]))
        return found

    assert durations(4) == [200] * 4 + [2000]
    assert durations(50) == [80] * 50 + [2000]


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_file_says_how_it_was_made(ending: str, tmp_path: Path) -> None:
    path, again = (save_animation(events(), tmp_path / f"{name}.{ending}") for name in ("one", "two"))
    assert path.read_bytes() == again.read_bytes()
    with Image.open(path) as read:
        text = read.info["comment"].decode() if ending == "gif" else read.getexif()[0x010E]
        assert ending == "gif" or SOURCE_TYPE.encode() in read.info["xmp"]
    record = json.loads(text)
    assert (record["notice"], record["digital_source_type"]) == (NOTICE, SOURCE_TYPE)
    assert (record["seed"], record["steps"], record["model_digest"]) == (42, 4, DIGEST)
    assert "versions" not in record


def test_other_events_and_other_files_are_refused(tmp_path: Path) -> None:
    *progress, made = events()
    assert isinstance(made, Generation)
    two = Generation(disc(240)[None].repeat(2, 0), np.arange(2), 4, "ddim", 0.0, ({}, {}), seconds=1.0)
    silent = Progress(np.array([1], np.int32), 4, None)
    for bad, words in (
        ([], "to the end"),
        (progress, "to the end"),
        ([*progress, two], "shows one image"),
        ([silent, made], "preview_every=1"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            save_animation(bad, tmp_path / "one.gif")
    with pytest.raises(InvalidRequest, match=r"one\.png: an animation is a \.gif or a \.webp file"):
        save_animation(events(), tmp_path / "one.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_command(ending: str, served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"one.{ending}"
    command = ["animate", "--seed", "5", "--steps", "6", "--every", "2", "--sampler", "ddpm", "--url", served.url]
    assert main([*command, "--out", str(path)]) == 0
    assert capsys.readouterr().out == f"the denoising of synthetic slice 5: {path}\n"
    assert len(frames(path)) == 4
    tensors = served.triton.received[-1]
    assert (tensors["seed"].tolist(), tensors["steps"].tolist(), tensors["sampler"].tolist()) == (
        [[5]],
        [[6]],
        [["ddpm"]],
    )


def test_the_command_refuses_in_one_line(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["animate", "--url", served.url, "--out", "one.png"]) == 1
    assert capsys.readouterr().err == "brats-ldm: one.png: an animation is a .gif or a .webp file\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--every", "0"), "--every is 0: choose 1 to 50, the number of steps"),
        (("--every", "9", "--steps", "4"), "--every is 9: choose 1 to 4, the number of steps"),
        (("--every", f"{FAST + 1}", "--preset", "fast"), f"--every is {FAST + 1}: choose 1 to {FAST}, the number of"),
        (("--every", "9", "--decoder", "tiny", "--steps", "8"), "--every is 9: choose 1 to 8, the number of steps"),
        (("--preset", "fast", "--steps", "4"), "--preset"),
        (("--seed", "x"), "--seed"),
    ],
)
def test_wrong_arguments_of_the_command(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["animate", *arguments])
    assert exit.value.code == 2
    message = capsys.readouterr().err
    assert "usage: brats-ldm" in message
    assert words in message


@pytest.mark.slow
def test_a_real_stream(client: Client, tmp_path: Path) -> None:
    path = save_animation(client.stream(seeds=[7], steps=5), tmp_path / "one.webp")
    *previews, last = map(picture, frames(path))
    assert len(previews) == 5
    made = client.generate(seeds=[7], steps=5)
    assert np.abs(last.astype(int) - to_display(made.images[0])).mean() < 8, "WebP is lossy"
