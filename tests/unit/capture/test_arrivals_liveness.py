"""When a camera counts as lost, by the packets that came and the pictures that they gave."""

from __future__ import annotations

import itertools

import pytest

from agent.capture.arrivals import Liveness

STALL_S = 10.0


def begun() -> Liveness:
    """A camera that gave its first picture at 0."""
    life = Liveness(STALL_S, 0.0)
    life.add_packet(0.0, keyframe=True, counts=False)
    life.add_step(0.0, gave=True)
    life.add_picture(0.0)
    return life


def test_packets_that_count_are_life() -> None:
    life = begun()
    for second in range(1, 100):
        life.add_packet(float(second), keyframe=False, counts=True)
        assert life.trouble(second + 0.5) == ""


def test_packets_that_do_not_count_are_none() -> None:
    life = begun()
    life.add_packet(9.0, keyframe=False, counts=False)
    assert life.trouble(9.9) == ""
    assert life.trouble(10.0) == "no picture for 10 s"


def test_a_camera_that_is_silent_gave_no_picture() -> None:
    assert begun().trouble(10.0) == "no picture for 10 s"
    assert Liveness(STALL_S, 0.0).trouble(10.0) == "no picture for 10 s"


def test_checks_that_all_fail_for_the_stall_time_end_what_packets_keep_alive() -> None:
    life = begun()
    for second in range(1, 15):
        life.add_packet(float(second), keyframe=second % 4 == 0, counts=True)
        if second % 4 == 0:
            life.add_step(float(second), gave=False, keyframe=True)
        expected = "" if second < 14 else "packets come, but none can be decoded for 10 s"
        assert life.trouble(float(second)) == expected


def test_a_single_check_that_fails_is_a_damaged_packet() -> None:
    life = begun()
    life.add_step(1.0, gave=False)
    for second in range(2, 60):
        life.add_packet(float(second), keyframe=False, counts=True)
        assert life.trouble(float(second)) == ""


def test_a_check_that_succeeds_forgives_those_before() -> None:
    life = begun()
    for second in range(1, 60):
        life.add_packet(float(second), keyframe=True, counts=True)
        life.add_step(float(second), gave=second % 9 == 0)
        assert life.trouble(float(second)) == ""


def test_the_first_key_frame_is_waited_for_and_told() -> None:
    life = Liveness(STALL_S, 0.0)
    for second in range(37):
        life.add_packet(float(second), keyframe=False, counts=False)
        life.add_step(float(second), gave=False)
        assert life.trouble(float(second)) == ""
        assert life.awaits_key_frame(float(second)) == (second >= 3)
    life.add_packet(37.0, keyframe=True, counts=False)
    life.add_step(37.0, gave=False)  # a decoder may hold the first picture back
    assert life.trouble(37.1) == ""
    assert not life.awaits_key_frame(37.1)
    life.add_packet(46.0, keyframe=False, counts=False)
    life.add_step(46.0, gave=False)
    assert life.trouble(47.1) == "no picture for 10 s"


def test_a_camera_that_never_sends_a_key_frame_is_lost_for_that() -> None:
    life = Liveness(STALL_S, 100.0)
    for second in range(60):
        life.add_packet(100.0 + second, keyframe=False, counts=second > 3)
        assert life.trouble(100.0 + second) == ""
    life.add_packet(160.0, keyframe=False, counts=True)
    assert life.trouble(160.0) == "no key frame for 60 s"


def test_sound_keeps_a_camera_alive_that_is_only_heard() -> None:
    life = Liveness(STALL_S, 0.0)
    life.add_sound(50.0)
    assert life.trouble(59.0) == ""
    assert life.trouble(60.0) != ""


def test_who_wants_pictures_of_a_camera_that_was_heard_waits_for_a_key_frame() -> None:
    life = begun()
    life.begin_again(20.0)  # nobody wants pictures
    life.add_sound(299.0)
    assert not life.awaits_key_frame(299.0)
    life.begin_again(300.0)  # somebody wants them
    for second in range(300, 360):
        life.add_packet(float(second), keyframe=False, counts=second < 312)
        life.add_step(float(second), gave=False)
        assert life.trouble(float(second)) == ""
        assert life.awaits_key_frame(float(second)) == (second >= 303)
    assert life.trouble(360.0) == "no key frame for 60 s"


def lost_after(distances: list[float], then_s: float, *, needs_keys: bool = True) -> tuple[float, str] | None:
    """When after its last key frame a camera with key frames so far apart counts as lost, and why."""
    life, at_s = Liveness(STALL_S, 0.0), 0.0
    life.needs_keys = needs_keys
    keys = [0.0, *itertools.accumulate(distances)]
    while at_s <= keys[-1] + then_s:
        is_key = at_s in keys
        life.add_packet(at_s, keyframe=is_key, counts=True)
        if is_key:
            life.add_step(at_s, gave=True, keyframe=True)
            life.add_picture(at_s)
        if why := life.trouble(at_s):
            return at_s - keys[-1], why
        at_s += 1.0
    return None


def test_key_frames_that_stop_are_missed_where_they_alone_are_decoded() -> None:
    assert lost_after([1.0] * 20, 500.0) == (120.0, "no key frame for 120 s")
    assert lost_after([60.0] * 3, 500.0) == (120.0, "no key frame for 120 s")
    assert lost_after([100.0] * 3, 500.0) == (200.0, "no key frame for 200 s")
    assert lost_after([1.0] * 20, 2000.0, needs_keys=False) is None


@pytest.mark.parametrize("usual_s", [1.0, 60.0, 61.0, 110.0])
def test_no_camera_with_regular_key_frames_is_lost_nor_one_that_sends_another_at_once(usual_s: float) -> None:
    assert lost_after([usual_s] * 10, usual_s) is None
    assert lost_after([1.0] + [usual_s] * 10, usual_s) is None


def test_the_packets_after_a_damaged_key_frame_are_no_further_evidence() -> None:
    life = begun()
    for second in range(1, 80):
        life.add_packet(float(second), keyframe=second in (20, 40, 60), counts=True)
        if 20 <= second < 40 or second >= 60:
            life.add_step(float(second), gave=False, keyframe=second in (20, 60))
        elif second == 40:
            life.add_step(40.0, gave=True, keyframe=True)
        assert life.trouble(float(second)) == ""


def test_a_key_frame_that_is_decoded_twice_fails_once() -> None:
    life = begun()
    life.add_packet(1.0, keyframe=True, counts=True)
    life.add_step(1.0, gave=False, keyframe=True)
    for second in range(2, 20):
        life.add_packet(float(second), keyframe=False, counts=True)
        life.add_step(float(second), gave=False, keyframe=True)
        assert life.trouble(float(second)) == ""
    life.add_packet(20.0, keyframe=True, counts=True)
    life.add_step(20.0, gave=False, keyframe=True)
    assert life.trouble(20.0) == "packets come, but none can be decoded for 10 s"


def test_a_camera_with_rare_key_frames_is_blind_after_a_minute_without_a_picture() -> None:
    life = begun()
    for second in range(1, 61):
        life.add_packet(float(second), keyframe=False, counts=True)
        life.add_step(float(second), gave=False)
        assert life.trouble(float(second)) == ""
    life.add_packet(61.0, keyframe=False, counts=True)
    assert life.trouble(61.0) == "packets come, but none can be decoded for 60 s"


@pytest.mark.parametrize(("apart", "lost_at"), [(50, 210), (100, 410), (400, 1610)])
def test_one_damaged_key_frame_is_no_outage_before_the_next_one_should_have_come(
    apart: int, lost_at: int
) -> None:
    life, lost = begun(), list[int]()
    for second in range(1, lost_at + 1):
        is_key, is_damaged = second % apart == 0 and second <= 3 * apart, second >= 3 * apart
        life.add_packet(float(second), keyframe=is_key, counts=True)
        life.add_step(float(second), gave=not is_damaged, keyframe=is_key)
        lost += [second] if life.trouble(float(second)) else []
    assert lost == [lost_at]
