"""The denoising of an image as an animated GIF or WebP: the previews of a stream, then the image.

Previews are latents, which have a scale of their own. All previews of an animation have one scale of grey, so that
they can be compared; the image at the end has the window [0, 1]. The same events give the same bytes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ._errors import InvalidRequest
from ._formats.record import core
from ._types import Generation, Progress
from .files import whole_file
from .pictures import NOTICE, SOURCE_TYPE, XMP, latent_picture, latent_scale, sheet, to_display

#: The endings that a file may have.
SUFFIXES = (".gif", ".webp")
_ALL, _LAST = 4000, 2000  # milliseconds of all previews, and of the image
_SLOWEST, _FASTEST = 200, 20  # milliseconds of a preview; viewers slow down what is faster
_IMAGE_DESCRIPTION = 0x010E


def save_animation(events: Iterable[Progress | Generation], path: str | Path) -> Path:
    """Write the events of `client.stream(...)` for one image as an animation.

    Args:
        events: `Progress` with previews, then the `Generation`.
        path: The file, which ends in .gif or .webp.

    Returns:
        The path.

    Raises:
        InvalidRequest: The path has another ending, or the events are not those of one image with previews.
    """
    path = check_path(path)
    events = list(events)
    made = events[-1] if events else None
    if not isinstance(made, Generation) or len(made) != 1:
        raise InvalidRequest("an animation shows one image: pass the events of client.stream(seeds=[42]), to the end")
    progress = [event for event in events if isinstance(event, Progress) and event.previews is not None]
    if not progress:
        raise InvalidRequest("the events have no previews: stream with preview_every=1 or more")
    content = _animation(progress, made, path.suffix.lower())
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_bytes(content)
    return path


def check_path(path: str | Path) -> Path:
    """The path, if its ending is one of `SUFFIXES`."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidRequest(f"{path}: an animation is a .gif or a .webp file")
    return path


def _animation(progress: Sequence[Progress], made: Generation, suffix: str) -> bytes:
    previews = np.stack([event.previews[0] for event in progress if event.previews is not None])
    image = made.images[0]
    scale = latent_scale(previews[-1])
    pictures = [*(latent_picture(preview, image.shape, scale) for preview in previews), to_display(image)]
    steps = [int(event.step[0]) for event in progress]
    captions = [f"step {step} of {progress[0].total}, preview" for step in steps] + [f"seed {int(made.seeds[0])}"]
    frames = [
        Image.fromarray(sheet([[(picture, caption)]], [(NOTICE, 255)]))
        for picture, caption in zip(pictures, captions, strict=True)
    ]
    each = min(max(_ALL // len(previews) // 10 * 10, _FASTEST), _SLOWEST)
    durations = [each] * len(previews) + [_LAST]
    return _file(frames, durations, json.dumps(_provenance(made), sort_keys=True), suffix)


def _provenance(made: Generation) -> dict[str, Any]:
    return {"notice": NOTICE, "digital_source_type": SOURCE_TYPE, **core(made[0].record)}


def _file(frames: Sequence[Image.Image], durations: Sequence[int], provenance: str, suffix: str) -> bytes:
    """The provenance is in a GIF's comment; in a WebP it is the image description of EXIF, beside XMP."""
    first, *others = frames
    buffer = io.BytesIO()
    shared: dict[str, Any] = {"save_all": True, "append_images": others, "duration": list(durations), "loop": 0}
    if suffix == ".gif":
        first.save(buffer, "GIF", comment=provenance.encode(), **shared)
    else:
        exif = Image.Exif()
        exif[_IMAGE_DESCRIPTION] = provenance
        first.save(buffer, "WEBP", quality=80, method=4, exif=exif.tobytes(), xmp=XMP.encode(), **shared)
    return buffer.getvalue()
