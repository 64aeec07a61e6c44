"""How pictures of other sizes are brought to a model's input."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.optimise.data.sizes import Size, resized, upright

SIDES = st.integers(1, 5000)
SIZES = st.tuples(SIDES, SIDES)


@pytest.mark.parametrize(
    ("found", "wanted", "verbs"),
    [
        ((32, 32), (32, 32), ()),
        ((64, 64), (32, 32), ("reduced",)),
        ((16, 16), (32, 32), ("enlarged",)),
        ((48, 32), (32, 32), ("reduced", "stretched")),
        ((20, 64), (32, 32), ("reduced", "stretched")),
        ((16, 64), (32, 32), ("stretched",)),
        ((32, 16), (32, 32), ("enlarged", "stretched")),
        ((480, 640), (240, 320), ("reduced",)),
    ],
)
def test_what_is_done_to_a_picture(found: Size, wanted: Size, verbs: tuple[str, ...]) -> None:
    assert resized(found, wanted) == verbs


@given(SIZES, SIZES)
def test_a_picture_that_keeps_its_proportions_is_never_stretched(found: Size, wanted: Size) -> None:
    assert "stretched" not in resized(found, wanted, letterbox=True)


@given(SIZES, SIZES)
def test_a_turned_picture_on_a_turned_input_is_treated_alike(found: Size, wanted: Size) -> None:
    assert resized(found, wanted) == resized(found[::-1], wanted[::-1])


@given(SIZES)
def test_a_picture_is_told_as_its_preview_is_turned(stored: Size) -> None:
    preview = (stored[0] // 8 + 1, stored[1] // 8 + 1)
    assert upright(stored, preview) == stored
    if preview[0] != preview[1]:
        assert upright(stored, preview[::-1]) == stored[::-1]
