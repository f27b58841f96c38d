"""The tab Compare, without its layout: one seed by several samplers and numbers of steps, beside a reference."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from itertools import product

from .._errors import InvalidRequest
from .._extras import need
from .._presets import DECODER, GRID
from .._types import Generation
from ..compare import ssim
from ..pictures import difference_picture
from .figures import Album, empty, figure
from .form import DECODERS, GRIDS, SAMPLERS, How
from .runs import Asked, State
from .sessions import Session, Studio
from .views import View, run_views

KIND = "compare"
MOST = 16  # cells
GAIN = 4.0


def ways(
    samplers: Collection[str],
    steps: Collection[int],
    reference: How,
    grids: Collection[str] = (GRID,),
    decoders: Collection[str] = (DECODER,),
) -> list[How]:
    """The reference, then each sampler with each number of steps, on each grid, by each decoder.

    Raises:
        InvalidRequest: there is nothing to compare, or too much.
    """
    chosen = []
    for name, wanted, known in (
        ("sampler", samplers, SAMPLERS),
        ("timestep grid", grids, GRIDS),
        ("decoder", decoders, DECODERS),
    ):
        chosen.append([each for each in known if each in wanted])
        if not chosen[-1]:
            raise InvalidRequest(f"Choose at least one {name} to compare.")
    found = [
        How(sampler, count, timestep_grid=grid, decoder=decoder)
        for sampler, grid, decoder, count in product(*chosen, sorted(steps))
    ]
    every = list(dict.fromkeys([reference, *found]))
    if len(every) > MOST:
        raise InvalidRequest(f"These are {len(every)} images with the reference. The page compares at most {MOST}.")
    return every


def compare(studio: Studio, session: Session, seed: int, every: Sequence[How]) -> AsyncGenerator[View, None]:
    """The views of a run that makes the image of one seed in each way; the first is the reference.

    Raises:
        MissingPackage: scikit-image is not installed.
    """
    need("skimage.metrics", "scikit-image")
    return run_views(studio, session, KIND, [Asked((seed,), how) for how in every], draw)


def draw(album: Album, states: Sequence[State]) -> str:
    cells = [_cell(album, place, state, states[0]) for place, state in enumerate(states)]
    fresh = any(state.asked.how.sampler == "ddpm" for state in states)
    return f'<div class="cells">{"".join(cells)}</div>{_legend(fresh)}'


def _legend(fresh_noise: bool) -> str:
    ddpm = " DDPM draws fresh noise in each step, so it ends at another image of the same seed." if fresh_noise else ""
    return (
        f'<p class="legend">Right of each image: its difference from the reference, {GAIN:g} times enlarged; grey is '
        "equal, light is brighter, dark is darker. SSIM is 1 for equal images. Seconds are those of requests that "
        f"share the server with all others here.{ddpm}</p>"
    )


def _cell(album: Album, place: int, state: State, reference: State) -> str:
    how, made, other = state.asked.how, state.generation, reference.generation
    picture = album.row((place, "image"), state, 0, name=how.words)
    if made is None or other is None:
        blank = empty(_waiting(state), {"kind": "waiting", **_data(how)})
        return _article(how, picture, blank, place == 0)
    likeness = album.get((place, "ssim"), True, lambda: f"{ssim(made.images[0], other.images[0]):.6f}")
    same = "the reference" if place == 0 else f"SSIM {float(likeness):.3f}"
    caption = f"{same} <span>· {made.seconds:.1f} s</span>"
    difference = album.get(
        (place, "difference"), True, lambda: _difference(made, other, how, reference.asked.how, likeness, caption)
    )
    return _article(how, picture, difference, place == 0, likeness)


def _article(how: How, picture: str, difference: str, first: bool, likeness: str = "") -> str:
    data = " ".join(f'data-{name}="{value}"' for name, value in {**_data(how), "ssim": likeness}.items())
    return f'<article class="{"cell reference" if first else "cell"}" {data}>{picture}{difference}</article>'


def _data(how: How) -> dict[str, object]:
    return {"sampler": how.sampler, "steps": how.steps, "grid": how.timestep_grid, "decoder": how.decoder}


def _waiting(state: State) -> str:
    words = {"failed": "failed", "stopped": "stopped", "busy": "waits for room", "done": "waits for the reference"}
    return words.get(state.phase, "running")


def _difference(made: Generation, reference: Generation, how: How, other: How, likeness: str, caption: str) -> str:
    pixels = difference_picture(made.images[0], reference.images[0], GAIN)
    seed = int(made.seeds[0])
    data = {"seed": seed, "step": how.steps, "kind": "difference", "source": "decoder"}
    more = {**_data(how), "ssim": likeness}
    record = {"seed": seed, "difference": f"{how.words} minus {other.words}, {GAIN:g} times enlarged"}
    return figure(pixels, caption, f"Difference of {how.words} from the reference", {**data, **more}, record)
