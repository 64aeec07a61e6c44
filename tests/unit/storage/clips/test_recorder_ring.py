from __future__ import annotations

import threading
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from agent.storage.clips.recorder import FrameRing
from agent.types import EncodedFrame
from tests.support.clip_pictures import BEGAN, SECOND
from tests.support.publishing import wait_for


def picture(at_s: float, size: int = 10) -> EncodedFrame:
    return EncodedFrame(bytes(size), 64, 48, round(at_s * SECOND), BEGAN)


def times(footage: FrameRing) -> list[float]:
    return [found.captured_ns / SECOND for found in footage.between(-1, 1 << 62)]


STEPS = st.lists(st.tuples(st.integers(-1, 30), st.integers(0, 400), st.integers(0, 9)), max_size=60)


@given(STEPS, st.integers(0, 20), st.integers(100, 2000))
def test_it_never_holds_more_than_it_may(steps: list[tuple[int, int, int]], tenths: int, max_bytes: int) -> None:
    footage, now, held = FrameRing(tenths / 10, max_bytes), 0, None
    for passed, size, what in steps:
        now += passed
        before = footage.between(-1, 1 << 62)
        footage.add(picture(now / 10, size))
        if what == 0:
            held = now / 10
            footage.hold(round(held * SECOND))
        elif what == 1:
            held = None
            footage.hold(None)
        kept = footage.between(-1, 1 << 62)
        assert footage.bytes == sum(len(found.jpeg) for found in kept) <= max_bytes
        assert [found.captured_ns for found in kept] == sorted({found.captured_ns for found in kept})
        # What there is are the newest: nothing is lost from the middle.
        assert kept[:-1] == before[len(before) - len(kept) + 1 :] or kept == before[len(before) - len(kept) :]
        if kept and held is None:
            newest = footage.newest_ns
            assert all(newest - found.captured_ns <= round(tenths / 10 * SECOND) for found in kept)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(0, 50))
def test_with_room_it_holds_exactly_its_seconds(gaps: list[int], tenths: int) -> None:
    footage, now, all_times = FrameRing(tenths / 10, 1 << 20), 0, []
    for gap in gaps:
        now += gap
        all_times.append(now)
        footage.add(picture(now / 10))
    assert times(footage) == [at / 10 for at in all_times if now - at <= tenths]


def test_what_is_still_to_be_written_does_not_become_too_old() -> None:
    footage = FrameRing(1.0, 10_000)
    for at in range(3):
        footage.add(picture(at))
    footage.hold(2 * SECOND)
    for at in range(3, 20):
        footage.add(picture(at))
    assert times(footage) == [float(at) for at in range(2, 20)]
    footage.hold(None)
    assert times(footage) == [18.0, 19.0]
    assert footage.lost == 0


def test_what_was_to_be_written_and_had_to_go_is_counted() -> None:
    footage = FrameRing(1.0, 100)
    footage.add(picture(0))
    footage.hold(0)
    for at in range(1, 15):
        footage.add(picture(at))
    assert len(times(footage)) == 10
    assert footage.lost == 5


def test_a_picture_larger_than_everything_is_not_kept() -> None:
    footage = FrameRing(1.0, 100)
    footage.add(picture(0))
    footage.add(picture(1, 101))
    assert (times(footage), footage.bytes) == ([], 0)


def test_a_replay_waits_for_the_disk() -> None:
    footage = FrameRing(1.0, 100, patient=True)
    footage.add(picture(0))
    footage.hold(0)

    def give() -> None:
        for at in range(1, 20):
            footage.add(picture(at))

    giver = threading.Thread(target=give, daemon=True)
    giver.start()
    wait_for(lambda: len(times(footage)) == 10)
    giver.join(0.2)
    assert giver.is_alive()
    written = -1
    while giver.is_alive():
        written = max([written, *(round(at) for at in times(footage))])
        footage.hold((written + 1) * SECOND)
        giver.join(0.01)
    assert footage.lost == 0
    assert footage.newest_ns == 19 * SECOND


def test_time_goes_on_when_no_picture_comes() -> None:
    footage = FrameRing(1.0, 100)
    assert (footage.now_ns(), footage.newest_ns) == (-1, -1)
    footage.add(picture(5))
    wait_for(lambda: footage.now_ns() > 5.02 * SECOND)
    assert footage.newest_ns == 5 * SECOND


@given(st.lists(st.integers(1, 30), max_size=60), st.integers(1, 50))
def test_thinned_out_it_has_pictures_about_so_far_apart_and_no_long_gap(steps: list[int], every: int) -> None:
    footage, now = FrameRing(1000.0, 1 << 20), 0
    for step in steps:
        now += step
        footage.add(picture(now / 10))
    before = times(footage)
    footage.thin_out(every * SECOND // 10)
    after = times(footage)
    assert set(after) <= set(before)
    assert after[:1] == before[:1]
    assert all(later - earlier >= 0.075 * every - 1e-6 for earlier, later in pairwise(after))
    widest = max((later - earlier for earlier, later in pairwise(before)), default=0.0)
    assert all(later - earlier <= every / 10 + widest for earlier, later in pairwise(after))
    assert footage.bytes == 10 * len(after)
