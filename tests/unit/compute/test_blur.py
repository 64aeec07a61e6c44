"""Which parts of pictures are blurred, from one inference to the next."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.blur import BlurFinder, HiddenBoxes, head_of
from agent.compute.infer.backends import open_session
from agent.config.places import BLUR_VARIANTS, blur_models
from agent.errors import ConfigError
from agent.models.files import ZOO
from agent.models.library import open_model
from agent.types import Box, Image

S = 10**9
BOX = (0.4, 0.3, 0.5, 0.6)


def _contains(outer: Box, inner: Box) -> bool:
    return outer[0] <= inner[0] and outer[1] <= inner[1] and outer[2] >= inner[2] and outer[3] >= inner[3]


def test_what_was_found_is_hidden_with_a_margin() -> None:
    hidden = HiddenBoxes()
    hidden.update([BOX], 0)
    (shown,) = hidden.boxes(0)
    assert _contains(shown, BOX)
    assert shown == pytest.approx((0.38, 0.24, 0.52, 0.66))


def test_what_is_not_found_again_stays_hidden_for_a_while_and_grows() -> None:
    hidden = HiddenBoxes()
    hidden.update([BOX], 0)
    hidden.update([], S)
    (later,) = hidden.boxes(S)
    assert _contains(later, (0.36, 0.2, 0.54, 0.7))
    hidden.update([], 2 * S)
    assert hidden.boxes(2 * S) == []


def test_what_moves_is_hidden_where_it_was_and_where_it_should_be() -> None:
    hidden = HiddenBoxes()
    hidden.update([BOX], 0)
    hidden.update([(0.42, 0.3, 0.52, 0.6)], S // 10)
    (shown,) = hidden.boxes(S // 5)
    assert _contains(shown, (0.42, 0.3, 0.54, 0.6))


@given(
    st.lists(st.tuples(*[st.floats(0.0, 0.4)] * 2, *[st.floats(0.5, 1.0)] * 2), max_size=5),
    st.integers(-S, 3 * S),
)
def test_every_box_found_just_now_is_hidden_and_none_leaves_the_frame(found: list[Box], now_ns: int) -> None:
    hidden = HiddenBoxes()
    hidden.update([BOX], 0)
    hidden.update(found, now_ns)
    shown = hidden.boxes(now_ns)
    assert all(any(_contains(one, box) for one in shown) for box in found)
    assert all(_contains((0.0, 0.0, 1.0, 1.0), one) for one in shown)


def test_a_clock_that_is_set_back_forgets_nothing() -> None:
    hidden = HiddenBoxes()
    hidden.update([BOX], 10 * S)
    hidden.update([], 5 * S)
    assert all(_contains(one, BOX) for one in hidden.boxes(5 * S))
    assert hidden.boxes(5 * S)


def _street() -> Image:
    clip = cv2.VideoCapture(str(ZOO / "walkers.mp4"))
    read, image = clip.read()
    assert read
    return image.astype(np.uint8)


def _finder(*labels: str) -> BlurFinder:
    models = [(open_model(name, BLUR_VARIANTS[name]), some) for name, some in blur_models(labels).items()]
    return BlurFinder(models, labels, open_session, 1)


@pytest.mark.numerics
def test_people_of_a_street_are_found_and_of_faces_only_their_heads() -> None:
    street = _street()
    people, heads = _finder("person"), _finder("face")
    try:
        found, upper = people.find(street, "bgr", S), heads.find(street, "bgr", S)
    finally:
        people.close()
        heads.close()
    assert len(found) >= 3
    area = [sum((one[2] - one[0]) * (one[3] - one[1]) for one in some) for some in (found, upper)]
    assert 0.0 < area[1] < area[0]


def test_a_head_is_the_upper_part_of_a_person() -> None:
    assert head_of(BOX) == pytest.approx((0.4, 0.3, 0.5, 0.42))


def test_a_label_that_no_bundled_model_finds_is_refused() -> None:
    with pytest.raises(ConfigError, match="no bundled model finds 'plate'"):
        _finder("plate")
