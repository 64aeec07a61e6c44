from __future__ import annotations

from datetime import UTC, datetime

import cv2
import numpy as np
import pytest
from msgspec.structs import replace

from agent.compute.drawing import annotate, jpeg
from agent.errors import BackendError
from agent.types import Attribute, Box, ChannelOrder, Image, Keypoint, Point, Track

pytestmark = pytest.mark.numerics

AT = datetime(2026, 1, 1, tzinfo=UTC)
BOX: Box = (0.25, 0.3, 0.6, 0.9)


def grey(height: int = 480, width: int = 640) -> Image:
    return np.full((height, width, 3), 90, np.uint8)


def track(
    label: str = "person",
    box: Box | None = BOX,
    keypoints: tuple[Keypoint, ...] = (),
    outline: tuple[Point, ...] = (),
) -> Track:
    return Track("front-1", label, 0.87, 0.9, 3, AT, AT, box, keypoints, outline)


def changed(before: Image, after: Image) -> set[tuple[int, int]]:
    rows, columns = np.nonzero((before != after).any(axis=2))
    return set(zip(rows.tolist(), columns.tolist(), strict=True))


def test_the_frame_itself_stays_as_it_is() -> None:
    frame = grey()
    annotate(frame, [track()], order="bgr", title="front")
    assert (frame == 90).all()


def test_nothing_to_draw_gives_a_copy() -> None:
    frame = grey()
    picture = annotate(frame, [], order="bgr")
    assert (picture == frame).all()
    assert not np.shares_memory(picture, frame)


@pytest.mark.parametrize("size", [(480, 640), (1080, 1920), (96, 96), (20, 10)])
def test_the_box_is_drawn_where_it_is_at_every_size(size: tuple[int, int]) -> None:
    frame = grey(*size)
    marks = changed(frame, annotate(frame, [track()], order="bgr"))
    left, top = round(BOX[0] * (size[1] - 1)), round(BOX[1] * (size[0] - 1))
    right, bottom = round(BOX[2] * (size[1] - 1)), round(BOX[3] * (size[0] - 1))
    assert {(top, left), (bottom, left), (bottom, right)} <= marks


@pytest.mark.parametrize("box", [(0.0, 0.0, 1.0, 1.0), (0.9, 0.95, 1.3, 1.4), (-0.2, -0.1, 0.1, 0.1)])
def test_boxes_at_and_over_the_edge_keep_their_label_in_the_picture(box: Box) -> None:
    frame = grey()
    marks = changed(frame, annotate(frame, [track(box=box)], order="bgr"))
    assert len(marks) > 500


def test_a_label_has_the_same_colour_in_every_picture() -> None:
    frame = grey()
    one = annotate(frame, [track()], order="bgr")
    other = annotate(frame, [track("car", (0.7, 0.1, 0.8, 0.2)), track()], order="bgr")
    corner = (round(BOX[3] * 479), round(BOX[0] * 639))
    assert (one[corner] == other[corner]).all()


def test_channel_order_does_not_change_what_is_seen() -> None:
    frame = grey()
    tracks = [track(outline=((0.3, 0.3), (0.5, 0.4), (0.4, 0.8))), track("good", None)]
    bgr = annotate(frame, tracks, order="bgr", title="front")
    rgb = annotate(frame, tracks, order="rgb", title="front")
    assert (bgr == rgb[:, :, ::-1]).all()


def test_verdicts_are_listed_under_the_title() -> None:
    frame = grey()
    title = changed(frame, annotate(frame, [], order="bgr", title="front"))
    listed = changed(frame, annotate(frame, [track("good", None)], order="bgr", title="front"))
    assert max(row for row, _ in listed) > max(row for row, _ in title)


def test_attributes_are_drawn_with_their_track() -> None:
    plain, seen = (
        track(),
        Attribute("AB12", 0.9, box=(0.3, 0.6, 0.5, 0.7), keypoints=(Keypoint("a", 0.4, 0.8, 1.0),)),
    )
    before = annotate(grey(), [plain], order="bgr")
    after = annotate(grey(), [replace(plain, attributes={"plate": seen})], order="bgr")
    marks = changed(before, after)
    assert (round(0.6 * 479), round(0.3 * 639)) in marks
    assert (round(0.8 * 479), round(0.4 * 639)) in marks
    assert any(row < round(BOX[1] * 479) for row, _ in marks), "the caption above the box is longer"


def test_sure_keypoints_are_drawn_and_joined_and_guesses_are_not() -> None:
    frame = grey()
    hip, knee = Keypoint("left_hip", 0.4, 0.5, 0.9), Keypoint("left_knee", 0.4, 0.7, 0.9)
    guess = Keypoint("nose", 0.45, 0.4, 0.1)
    marks = changed(frame, annotate(frame, [track(keypoints=(hip, knee, guess))], order="bgr"))
    assert (round(0.6 * 479), round(0.4 * 639)) in marks
    assert (round(0.4 * 479), round(0.45 * 639)) not in marks


def test_an_outline_is_filled_so_that_the_picture_shows_through() -> None:
    frame = grey()
    outline = ((0.3, 0.4), (0.55, 0.4), (0.55, 0.8), (0.3, 0.8))
    inside = annotate(frame, [track(outline=outline)], order="bgr")[300, 270].astype(int)
    assert 0 < np.abs(inside - 90).max() < 60


@pytest.mark.parametrize(("order", "expected"), [("bgr", (200, 40, 40)), ("rgb", (40, 40, 200))])
def test_a_jpeg_shows_the_colours_of_the_frame(order: ChannelOrder, expected: tuple[int, int, int]) -> None:
    frame = np.full((64, 64, 3), (200, 40, 40), np.uint8)
    decoded = cv2.imdecode(np.frombuffer(jpeg(frame, 95, order), np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    assert np.abs(decoded.astype(int) - expected).max() <= 4


def test_less_quality_is_less_bytes() -> None:
    frame = np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    assert len(jpeg(frame, 20, "bgr")) < len(jpeg(frame, 90, "bgr"))


@pytest.mark.parametrize("order", ["bgr", "rgb"])
def test_a_picture_that_cannot_be_encoded_is_said_so(order: ChannelOrder) -> None:
    with pytest.raises(BackendError, match=r"cannot encode a picture of shape \(0, 0, 3\) as JPEG"):
        jpeg(np.empty((0, 0, 3), np.uint8), 80, order)
