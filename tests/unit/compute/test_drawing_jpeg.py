from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import cv2
import numpy as np
import pytest

from agent.compute.drawing import FrameEncoder
from agent.errors import BackendError
from agent.types import Frame, Image

AT = datetime(2026, 11, 25, tzinfo=UTC)


def frame(image: Image, **fields: Any) -> Frame:
    return Frame(image, "front", 0, 5, AT, **fields)


def red(width: int, height: int) -> Image:
    """In blue-green-red, with a green right half."""
    made = np.zeros((height, width, 3), np.uint8)
    made[:, : width // 2] = 0, 0, 200
    made[:, width // 2 :] = 0, 200, 0
    return made


@pytest.mark.parametrize(
    ("size", "max_width", "made"),
    [
        ((640, 480), 1280, (640, 480)),
        ((1280, 720), 1280, (1280, 720)),
        ((1920, 1080), 1280, (1280, 720)),
        ((2592, 1944), 1280, (1280, 960)),
        ((641, 333), 320, (320, 166)),
        ((2000, 2), 64, (64, 2)),
        ((640, 480), 65, (64, 48)),
    ],
)
def test_a_still_is_no_wider_than_it_may_be(size: tuple[int, int], max_width: int, made: tuple[int, int]) -> None:
    picture = FrameEncoder(max_width, 75).encode(frame(red(*size)))
    shown = cv2.imdecode(np.frombuffer(picture.jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert shown is not None
    assert (picture.width, picture.height) == made == shown.shape[1::-1]
    assert (picture.captured_ns, picture.captured_at) == (5, AT)


@pytest.mark.parametrize("order", ["bgr", "rgb"])
@pytest.mark.parametrize("max_width", [64, 640])
def test_its_colours_are_those_of_the_frame(order: Any, max_width: int) -> None:
    image = red(160, 120) if order == "bgr" else red(160, 120)[..., ::-1].copy()
    before = image.copy()
    picture = FrameEncoder(max_width, 90).encode(frame(image, order=order))
    shown = cv2.imdecode(np.frombuffer(picture.jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert shown is not None
    middle, quarter = picture.height // 2, picture.width // 4
    assert shown[middle, quarter] == pytest.approx((0, 0, 200), abs=12)
    assert shown[middle, 3 * quarter] == pytest.approx((0, 200, 0), abs=12)
    assert (image == before).all()


def test_the_quality_is_that_of_the_configuration() -> None:
    noise = np.random.default_rng(1).integers(0, 255, (120, 160, 3), np.uint8)
    low, high = (len(FrameEncoder(640, quality).encode(frame(noise)).jpeg) for quality in (20, 90))
    assert low * 2 < high


def test_sizes_may_change() -> None:
    stills = FrameEncoder(64, 75)
    assert [stills.encode(frame(red(*size))).height for size in ((640, 480), (640, 360), (640, 480))] == [
        48,
        36,
        48,
    ]


def test_a_picture_that_cannot_be_encoded_is_an_error() -> None:
    with pytest.raises(BackendError, match="cannot encode"):
        FrameEncoder(640, 75).encode(frame(np.zeros((0, 0, 3), np.uint8)))
