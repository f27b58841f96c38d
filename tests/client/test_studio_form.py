"""What people type into the studio's form."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from brats_ldm_client import PRESETS, InvalidRequest
from brats_ldm_client.studio import form
from brats_ldm_client.studio.comparing import ways
from brats_ldm_client.studio.form import How
from brats_ldm_client.studio.walking import stations


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("42", (42,)),
        ("0-3", (0, 1, 2, 3)),
        (" 0 - 3 ", (0, 1, 2, 3)),
        ("0 to 2", (0, 1, 2)),
        ("7\u20139", (7, 8, 9)),  # an en dash, as word processors make it
        ("1, 5, 9", (1, 5, 9)),
        ("9 5;1", (9, 5, 1)),
        ("1, 4-6, 1", (1, 4, 5, 6, 1)),
        ("-5", (-5,)),
        ("-5--3", (-5, -4, -3)),
        ("9223372036854775807", (2**63 - 1,)),
        ("0-63", tuple(range(64))),
    ],
)
def test_seeds(text: str, seeds: tuple[int, ...]) -> None:
    assert form.seeds_from(text) == seeds


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "No seed"),
        ("abc", "“abc”"),
        ("1.5", "“1.5”"),
        ("9-2", "Type 2-9"),
        ("0-64", "at most 64"),
        ("0-99999999999999", "at most 64"),
        ("0-62, 70, 71", "at most 64"),
        ("9223372036854775808", "64 bits"),
        ("99999999999999999999999", "64 bits"),
        ("9223372036854775800-9223372036854775808", "64 bits"),
    ],
)
def test_no_seeds(text: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        form.seeds_from(text)


def test_steps() -> None:
    assert form.steps_from("10, 20,50 10") == (10, 20, 50)
    for wrong, says in {"": "No number", "0": "from 1 to 1000, not 0", "10, x": "“x”", "1001": "1001"}.items():
        with pytest.raises(InvalidRequest, match=says):
            form.steps_from(wrong)


def test_presets_mean_what_they_mean_for_the_client() -> None:
    for name, preset in PRESETS.items():
        assert form.how(name, "ddpm", None, None, "karras", "tiny") == How(**asdict(preset)) == form.of_preset(name)


@pytest.mark.parametrize(
    ("sampler", "steps", "eta", "says"),
    [
        ("euler", 50, 0, "Choose a sampler: DDIM"),
        ("ddim", None, 0, "“nothing”"),
        ("ddim", 0, 0, "not 0"),
        ("ddim", 50, 1.5, "“1.5”"),
        ("ddim", 50, None, "“nothing”"),
        ("ddim", 50, float("nan"), "“nan”"),
    ],
)
def test_no_such_way(sampler: str, steps: object, eta: object, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        form.how(form.CUSTOM, sampler, steps, eta, "leading", "full")


def test_no_such_grid_and_no_such_decoder() -> None:
    with pytest.raises(InvalidRequest, match="Choose a timestep grid: Leading, Log SNR, Karras, Aligned"):
        form.how(form.CUSTOM, "ddim", 50, 0, "square", "full")
    with pytest.raises(InvalidRequest, match="Choose a decoder: Full decoder, Tiny decoder"):
        form.how(form.CUSTOM, "ddim", 50, 0, "leading", None)


def test_a_way_in_words() -> None:
    assert How("ddim", 1).words == "DDIM, 1 step"
    assert How("ddim", 20, 0.5).words == "DDIM, 20 steps, eta 0.5"
    every = form.how(form.CUSTOM, "unipc", 8, 0, "karras", "tiny")
    assert every == How("unipc", 8, timestep_grid="karras", decoder="tiny")
    assert every.words == "UniPC, 8 steps, Karras grid, tiny decoder"


def test_only_ddim_has_an_eta() -> None:
    assert form.how(form.CUSTOM, "ddim", 20, 0.5, "leading", "full") == How("ddim", 20, 0.5)
    assert form.how(form.CUSTOM, "ddpm", 20, 0.5, "leading", "full") == How("ddpm", 20)


def test_a_comparison_begins_with_its_reference_and_has_nothing_twice() -> None:
    reference = How("ddim", 50)
    assert ways(["dpmpp_2m", "ddim"], [50, 10], reference) == [
        reference,
        How("ddim", 10),
        How("dpmpp_2m", 10),
        How("dpmpp_2m", 50),
    ]
    assert ways(["unipc"], [8], reference, ["karras", "leading"], ["tiny", "full"]) == [
        reference,
        How("unipc", 8),
        How("unipc", 8, decoder="tiny"),
        How("unipc", 8, timestep_grid="karras"),
        How("unipc", 8, timestep_grid="karras", decoder="tiny"),
    ]
    for wrong, says in (([[]], "sampler"), ([["ddim"], []], "timestep grid"), ([["ddim"], ["karras"], []], "decoder")):
        samplers, *others = wrong
        with pytest.raises(InvalidRequest, match=f"at least one {says}"):
            ways(samplers, [10], reference, *others)
    with pytest.raises(InvalidRequest, match="17 images"):
        ways(["ddim"], range(1, 17), reference)


def test_a_walk_has_both_ends() -> None:
    assert stations(3) == [0.0, 0.5, 1.0]
    for wrong in (2, 33):
        with pytest.raises(InvalidRequest, match=f"not {wrong}"):
            stations(wrong)
