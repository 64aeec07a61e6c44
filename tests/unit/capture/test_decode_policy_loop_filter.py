from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.capture.decode_policy import LoopFilterRule


def seen(*groups: int) -> LoopFilterRule:
    """Key frames, each before the rest of so many pictures; and one more key frame."""
    rule = LoopFilterRule()
    for group in (*groups, 1):
        for number in range(group):
            rule.add(keyframe=number == 0)
    return rule


def test_only_key_frames_are_filtered_where_they_come_often() -> None:
    assert seen(*[30] * 4).filtered(1080) == "keyframes"


@pytest.mark.parametrize("groups", [[], [30] * 3, [121] * 9, [30] * 9 + [250], [30] * 9 + [250] + [30] * 3])
def test_everything_is_filtered_until_key_frames_have_come_often(groups: list[int]) -> None:
    assert seen(*groups).filtered(1080) == "all"


def test_a_group_that_is_long_already_counts_before_its_end() -> None:
    rule = seen(*[30] * 9)
    for _ in range(200):
        rule.add(keyframe=False)
    assert rule.filtered(1080) == "all"


@pytest.mark.parametrize("height", [0, 480])
@pytest.mark.parametrize("alone", [False, True])
def test_small_pictures_and_those_of_unknown_size_are_filtered(height: int, alone: bool) -> None:
    assert seen(*[30] * 9).filtered(height, alone=alone) == "all"


@pytest.mark.parametrize("groups", [[], [250]])
def test_a_key_frame_for_the_gate_alone_needs_no_filter(groups: list[int]) -> None:
    assert seen(*groups).filtered(1080, alone=True) == "none"


def test_a_camera_that_sends_no_key_frame_has_everything_filtered() -> None:
    rule = LoopFilterRule()
    for _ in range(1000):
        rule.add(keyframe=False)
    assert rule.filtered(1080) == "all"


@given(st.lists(st.integers(1, 150), max_size=20))
def test_whatever_came_before_four_short_groups_must_follow_a_long_one(groups: list[int]) -> None:
    short, fair = (len(groups) >= 4 and all(one <= most for one in groups[-4:]) for most in (60, 120))
    has_turn = len(groups) % 2 == 0  # the first key frame has one
    assert (seen(*groups).filtered(720) == "keyframes") == (short or (fair and has_turn))


def test_of_groups_of_eight_seconds_every_second_one_is_filtered() -> None:
    rule, found = LoopFilterRule(), []
    for number in range(120 * 12):
        rule.add(keyframe=number % 120 == 0)
        found += [rule.filtered(1080)] if number % 120 == 0 else []
    assert found == ["all"] * 4 + ["keyframes", "all"] * 4


def test_everything_is_filtered_where_pictures_after_a_key_frame_are_shown_before_it() -> None:
    rule = LoopFilterRule()
    for group in range(9):
        for number, pts in enumerate([3, 1, 2, 6, 4, 5] if group == 7 else [1, 4, 2, 3, 6, 5]):
            rule.add(keyframe=number == 0, pts=10 * group + pts)
    assert rule.filtered(1080) == "all"


def test_pictures_that_are_shown_in_another_order_within_a_group_change_nothing() -> None:
    rule = LoopFilterRule()
    for group in range(9):
        for number, pts in enumerate([1, 4, 2, 3, 6, 5]):
            rule.add(keyframe=number == 0, pts=10 * group + pts)
    assert rule.filtered(1080) == "keyframes"
