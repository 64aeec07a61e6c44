"""Masks and blurs on pictures of any size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agent.capture.privacy import MaskPainter, blur, covered_pixels
from agent.config.places import PrivacyMask, polygon_problem
from agent.errors import ConfigError
from agent.types import Image, Point

pytestmark = pytest.mark.numerics

TRIANGLE = ((0.2, 0.1), (0.9, 0.3), (0.4, 0.95))
shares = st.floats(0.0, 1.0, width=32)
polygons = st.lists(st.tuples(shares, shares), min_size=3, max_size=6)
sides = st.integers(1, 41)


def _white(width: int, height: int) -> Image:
    return np.full((height, width, 3), 255, np.uint8)


def _painter(*polygons: Sequence[Point]) -> MaskPainter:
    return MaskPainter([PrivacyMask(f"m{number}", tuple(one)) for number, one in enumerate(polygons)])


def _is_inside(polygon: Sequence[Point], x: float, y: float) -> bool:
    """Even-odd rule: the number of sides right of the point is odd."""
    inside = False
    for (x0, y0), (x1, y1) in zip(polygon, (*polygon[1:], polygon[0]), strict=True):
        if (y0 > y) != (y1 > y) and x < (x1 - x0) * (y - y0) / (y1 - y0) + x0:
            inside = not inside
    return inside


@given(polygons, sides, sides, st.data())
def test_every_pixel_with_a_point_inside_is_covered(
    polygon: list[Point], width: int, height: int, data: st.DataObject
) -> None:
    assume(not polygon_problem(polygon))
    covered = covered_pixels(polygon, width, height)
    x = data.draw(st.floats(0.0, width, exclude_max=True))
    y = data.draw(st.floats(0.0, height, exclude_max=True))
    # A hair inside of the pixel: a point on a border belongs to two.
    x, y = np.floor(x) + np.clip(x % 1.0, 0.01, 0.99), np.floor(y) + np.clip(y % 1.0, 0.01, 0.99)
    if _is_inside([(px * width, py * height) for px, py in polygon], x, y):
        assert covered[int(y), int(x)]


@given(polygons, sides, sides)
def test_nothing_farther_than_a_pixel_from_the_polygon_is_covered(
    polygon: list[Point], width: int, height: int
) -> None:
    assume(not polygon_problem(polygon))
    covered = covered_pixels(polygon, width, height)
    rows, columns = np.nonzero(covered)
    assert len(rows) > 0
    xs, ys = [x * width for x, _ in polygon], [y * height for _, y in polygon]
    assert min(xs) - 1 < columns.min() + 1
    assert columns.max() < max(xs) + 1
    assert min(ys) - 1 < rows.min() + 1
    assert rows.max() < max(ys) + 1


@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 3), (641, 479), (1280, 720), (7, 1000)])
def test_a_painted_picture_is_black_where_the_polygon_is_and_untouched_elsewhere(width: int, height: int) -> None:
    picture = _white(width, height)
    _painter(TRIANGLE).paint(picture, picture)
    covered = covered_pixels(TRIANGLE, width, height)
    assert not picture[covered].any()
    assert (picture[~covered] == 255).all()


def test_a_rectangle_on_borders_of_pixels_is_exact() -> None:
    picture = _white(8, 4)
    _painter(((0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75))).paint(picture, picture)
    assert np.argwhere(picture[..., 0] == 0).tolist() == [[y, x] for y in (1, 2) for x in (2, 3, 4, 5)]


def test_the_whole_picture_can_be_masked() -> None:
    picture = _white(33, 17)
    _painter(((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))).paint(picture, picture)
    assert not picture.any()


def test_masks_that_overlap_cover_both() -> None:
    picture, other = _white(40, 30), ((0.3, 0.0), (0.6, 0.0), (0.6, 1.0), (0.3, 1.0))
    _painter(TRIANGLE, other).paint(picture, picture)
    covered = covered_pixels(TRIANGLE, 40, 30) | covered_pixels(other, 40, 30)
    assert ((picture == 0).all(axis=2) == covered).all()


def test_another_size_is_masked_anew_from_its_first_picture_on() -> None:
    painter = _painter(TRIANGLE)
    for width, height in ((64, 48), (320, 240), (48, 64), (64, 48)):
        picture = _white(width, height)
        painter.paint(picture, picture)
        assert ((picture == 0).all(axis=2) == covered_pixels(TRIANGLE, width, height)).all()


def test_a_part_of_a_larger_memory_is_masked_in_place() -> None:
    memory = _white(100, 100)
    _painter(TRIANGLE).paint(memory[10:58, 20:84], memory[10:58, 20:84])
    assert ((memory[10:58, 20:84] == 0).all(axis=2) == covered_pixels(TRIANGLE, 64, 48)).all()
    assert (memory[58:] == 255).all()


@pytest.mark.parametrize("shape", [(48, 64), (48, 64, 1), (48, 64, 4)])
def test_a_picture_of_another_form_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="H×W×3"):
        _painter(TRIANGLE).paint(np.zeros(shape, np.uint8), np.zeros(shape, np.uint8))


def test_memory_that_cannot_be_written_to_is_refused() -> None:
    picture = _white(64, 48)
    picture.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        _painter(TRIANGLE).paint(_white(64, 48), picture)


def test_a_copy_is_masked_and_the_picture_stays_as_it_is() -> None:
    picture, copy = _white(64, 48), np.zeros((48, 64, 3), np.uint8)
    _painter(TRIANGLE).paint(picture, copy)
    assert (picture == 255).all()
    assert ((copy == 0).all(axis=2) == covered_pixels(TRIANGLE, 64, 48)).all()


def test_a_mask_of_two_points_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 corners"):
        _painter(((0.0, 0.0), (1.0, 1.0)))


def test_a_blurred_part_keeps_no_more_than_sixteen_colours() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (90, 120, 3)).astype(np.uint8)
    before = picture.copy()
    blur(picture, [(0.25, 0.2, 0.75, 0.8)])
    part = picture[18:72, 30:90].reshape(-1, 3)
    assert len(np.unique(part, axis=0)) <= 16
    assert (picture[:18] == before[:18]).all()
    assert (picture[:, 90:] == before[:, 90:]).all()


@given(shares, shares, st.floats(-0.5, 1.5), st.floats(-0.5, 1.5))
def test_a_box_that_reaches_out_of_the_picture_blurs_what_is_in_it(
    x0: float, y0: float, x1: float, y1: float
) -> None:
    picture = _white(31, 21)
    blur(picture, [(x0, y0, x1, y1), (-1.0, -1.0, 0.01, 0.01)])
    assert (picture == 255).all()


def _winding(polygon: Sequence[Point], x: float, y: float) -> int:
    """How often the sides go around a point, by the angles at which it sees them."""
    total = 0.0
    for (x0, y0), (x1, y1) in zip(polygon, (*polygon[1:], polygon[0]), strict=True):
        a, b = (x0 - x, y0 - y), (x1 - x, y1 - y)
        total += math.atan2(a[0] * b[1] - a[1] * b[0], a[0] * b[0] + a[1] * b[1])
    return round(total / math.tau)


@given(polygons, st.integers(1, 3), sides, sides)
def test_every_pixel_that_the_outline_winds_around_is_covered(
    polygon: list[Point], times: int, width: int, height: int
) -> None:
    outline = polygon * times
    covered = covered_pixels(outline, width, height)
    corners = [(x * width, y * height) for x, y in outline]
    for row, column in np.argwhere(~covered):  # no side passes through these: the middle is as good as any point
        assert _winding(corners, column + 0.5, row + 0.5) == 0


@given(polygons, st.data())
def test_an_outline_that_is_traced_twice_is_refused(polygon: list[Point], data: st.DataObject) -> None:
    assert polygon_problem(polygon * 2)
    assume(not polygon_problem(polygon))
    assert polygon_problem([*polygon, data.draw(st.sampled_from(polygon))])
