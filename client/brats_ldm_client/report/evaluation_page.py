"""The part of the report that shows an evaluation: metrics, copies found, nearest pairs."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from .._page import figure, grid, section
from ..viewer import full_window
from .gather import grey
from .nearest import Evaluation, Pair
from .readers import Picture


def nearest(evaluation: Evaluation) -> str:
    """The whole part."""
    counts = ", ".join(f"{count:,} {name}" for name, count in evaluation.slices.items())
    folder = evaluation.folders.get("synthetic", "an unnamed folder")
    words = f"What python -m training.evaluation found in {folder}. Slices: {counts}."
    return section("Evaluation and nearest pairs", words, "\n".join(_parts(evaluation)))


def _parts(evaluation: Evaluation) -> Iterator[str]:
    rows = [(name, f"{a:.4g}", f"{b:.4g}", reading) for name, a, b, reading in evaluation.metrics]
    yield grid(["", "synthetic", "reference", "how to read it"], rows)
    yield "".join(f'<p class="soft">{escape(note)}</p>' for note in evaluation.notes)
    if not evaluation.facts:
        yield "<p>Copies were not looked for: the evaluation had no training slices.</p>"
        return
    yield _copies(evaluation)
    if not evaluation.opened:
        yield f'<p class="soft">{_NOT_OPENED}</p>'
    if any(picture is not None for pair in evaluation.pairs for picture in pair.pictures[1:]):
        yield f'<p class="warn">{_OF_PATIENTS}</p>'
    missing = "not here any more" if evaluation.opened else "not opened"
    yield f'<div class="pairs">{"".join(_pair(pair, missing) for pair in evaluation.pairs)}</div>'


def _copies(evaluation: Evaluation) -> str:
    facts = evaluation.facts
    copies, found, planted, alarms = (
        facts.get(name, 0.0) for name in ("copies", "planted_copies_found", "planted_copies", "held_out_alarms")
    )
    words = (
        f"{'1 copy' if copies == 1 else f'{copies:,.0f} copies'} found: slices with a score above "
        f"{facts.get('threshold', 0):.3g}. As a control, {found:.0f} of {planted:.0f} planted copies were found, and "
        f"{alarms:.0f} held-out slices were called copies. Below are the synthetic slices that are most like a "
        "training slice."
    )
    return f'<h3>Nearest pairs</h3>\n<p class="{"warn" if copies else "soft"}">{escape(words)}</p>'


def _pair(pair: Pair, missing: str) -> str:
    verdict = "Copy" if pair.copy else "No copy"
    roles = ("synthetic", *(f"{role}, {value:.3f}" for role, value in zip(_OTHERS, pair.similarities, strict=True)))
    shown = "".join(
        _slice(picture, f"{role}: {name}", missing, synthetic=role == "synthetic")
        for picture, role, name in zip(pair.pictures, roles, pair.names, strict=True)
    )
    head = f"<b>{verdict}</b>, score {pair.score:.2f}"
    return f'<div class="pair{" copy" if pair.copy else ""}"><p>{head}</p><div>{shown}</div></div>'


_OF_PATIENTS = "Training and held-out slices can be of patients: share this page only as you may share them."
_NOT_OPENED = "With --evaluation the page also has pictures of the training and the held-out slices."
_OTHERS = ("nearest training slice", "nearest held-out slice")


def _slice(picture: Picture | None, caption: str, missing: str, *, synthetic: bool) -> str:
    if picture is None:
        text = escape(caption)
        return f'<figure><div class="gone">{missing}</div><figcaption>{text}</figcaption></figure>'
    return figure(grey(picture, full_window([picture.pixels])), caption, synthetic=synthetic)
