from __future__ import annotations

import numpy as np
import pytest

from agent.compute import drawing


@pytest.mark.parametrize("height", [8, 16, 40])
def test_a_line_is_as_high_as_asked_and_has_ink(height: int) -> None:
    mask = drawing.line("person 0.91", height)
    assert (mask.shape[0], mask.dtype.name) == (height, "uint8")
    assert mask.max() > 128
    assert mask.min() == 0


def test_a_longer_text_is_wider() -> None:
    assert drawing.line("abc", 16).shape[1] > drawing.line("ab", 16).shape[1]


def test_no_text_has_no_width() -> None:
    assert drawing.line("", 12).shape == (12, 0)


def test_a_space_has_width_and_no_ink() -> None:
    mask = drawing.line(" ", 16)
    assert mask.shape[1] > 0
    assert not mask.any()


def test_every_printable_letter_is_its_own() -> None:
    letters = {drawing.line(chr(code), 20).tobytes() for code in range(32, 127)}
    assert len(letters) == 95


@pytest.mark.parametrize("text", ["Füße", "tab\there", "猫"])
def test_text_beyond_ascii_is_drawn_too(text: str) -> None:
    mask = drawing.line(text, 18)
    assert mask.shape[0] == 18
    assert mask.any()


def test_ink_mixes_by_the_mask() -> None:
    picture = np.full((4, 6, 3), 100, np.uint8)
    mask = np.array([[255, 0, 128]], np.uint8)
    drawing.ink(picture, mask, 1, 2, (200, 0, 100))
    assert picture[2, 1].tolist() == [200, 0, 100]
    assert picture[2, 2].tolist() == [100, 100, 100]
    assert picture[2, 3].tolist() == [150, 50, 100]
    assert (picture[[0, 1, 3]] == 100).all()


@pytest.mark.parametrize(("x", "y"), [(5, 3), (100, 0), (0, 100)])
def test_what_lies_outside_is_cut_off(x: int, y: int) -> None:
    picture = np.zeros((4, 6, 3), np.uint8)
    drawing.ink(picture, np.full((10, 10), 255, np.uint8), x, y, (9, 9, 9))
    assert int(picture.any(axis=2).sum()) == max(0, 6 - x) * max(0, 4 - y)
