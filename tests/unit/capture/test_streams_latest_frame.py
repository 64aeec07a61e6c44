from __future__ import annotations

import threading
import time
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.capture.source import FrameBufferPool
from agent.capture.streams import LatestFrame
from agent.errors import SourceError
from agent.types import Frame

_IMAGE = np.zeros((2, 2, 3), np.uint8)


def frame(captured_ns: int) -> Frame:
    return Frame(_IMAGE, "s", captured_ns, captured_ns, datetime.now(UTC))


def test_a_live_slot_hands_on_the_newest_only() -> None:
    slot = LatestFrame(lossless=False)
    first, second = frame(1), frame(2)
    assert slot.put(first) is None
    assert slot.put(second) is first
    assert slot.take(0) is second
    assert slot.take(0) is None


def test_a_frame_from_the_past_comes_back_to_its_giver() -> None:
    slot = LatestFrame(lossless=False)
    slot.put(frame(5))
    past = frame(4)
    assert slot.put(past) is past
    taken = slot.take(0)
    assert taken is not None
    assert taken.captured_ns == 5


@given(st.lists(st.one_of(st.none(), st.integers(0, 50)), max_size=60))
def test_no_older_frame_follows_a_newer_one_and_counts_add_up(steps: list[int | None]) -> None:
    slot, put, back, taken = LatestFrame(lossless=False), 0, 0, []
    for step in steps:
        if step is None:
            got = slot.take(0)
            if got is not None:
                taken.append(got.captured_ns)
        else:
            put += 1
            back += slot.put(frame(step)) is not None
    waiting = slot.take(0) is not None
    assert taken == sorted(taken)
    assert put == back + len(taken) + waiting


def test_a_slot_that_keeps_all_makes_the_giver_wait() -> None:
    slot, got = LatestFrame(lossless=True), []
    giver = threading.Thread(target=lambda: [slot.put(frame(number)) for number in range(50)])
    giver.start()
    time.sleep(0.05)
    assert giver.is_alive()
    for _ in range(50):
        taken = slot.take(60.0)
        assert taken is not None
        got.append(taken.seq)
    giver.join(60.0)
    assert got == list(range(50))


def test_closing_wakes_a_giver_that_waits() -> None:
    slot, back = LatestFrame(lossless=True), []
    last = frame(4)
    for number in range(4):
        slot.put(frame(number))
    giver = threading.Thread(target=lambda: back.append(slot.put(last)))
    giver.start()
    slot.close()
    giver.join(60.0)
    assert back == [last]


def test_closing_wakes_a_taker_that_waits() -> None:
    slot = LatestFrame(lossless=False)
    threading.Timer(0.05, slot.close).start()
    began = time.monotonic()
    assert slot.take(60.0) is None
    assert time.monotonic() - began < 50.0


def test_an_error_comes_after_the_last_frame() -> None:
    slot = LatestFrame(lossless=True)
    slot.put(frame(1))
    slot.close(SourceError("broke"))
    assert slot.take(0) is not None
    for _ in range(2):
        with pytest.raises(SourceError, match="broke"):
            slot.take(0)
    assert not slot.drained


def test_a_slot_is_over_when_the_last_frame_was_taken() -> None:
    slot = LatestFrame(lossless=False)
    slot.put(frame(1))
    slot.close()
    assert not slot.drained
    slot.take(0)
    assert slot.drained


def test_a_pool_gives_memory_again_and_does_not_grow() -> None:
    pool = FrameBufferPool()
    assert pool.take() is None
    images = [np.zeros((2, 2, 3), np.uint8) for _ in range(9)]
    for image in images:
        pool.give(image)
    assert sum(pool.take() is not None for _ in range(9)) == 6


def test_frames_that_were_decoded_late_are_not_replaced() -> None:
    slot = LatestFrame(lossless=False)
    late, live, newest = frame(1), frame(2), frame(3)
    assert slot.put(late, keep=True) is None
    assert slot.put(live) is None
    assert slot.put(newest) is live
    assert [slot.take(0) for _ in range(3)] == [late, newest, None]


def test_the_producer_of_late_frames_waits_for_the_consumer() -> None:
    slot = LatestFrame(lossless=False)
    puts: list[Frame | None] = []
    thread = threading.Thread(
        target=lambda: puts.extend(slot.put(frame(at), keep=True) for at in range(8)), daemon=True
    )
    thread.start()
    taken: list[int] = []
    while len(taken) < 8:
        got = slot.take(60.0)
        assert got is not None
        taken.append(got.captured_ns)
    thread.join(60.0)
    assert taken == list(range(8))
    assert puts == [None] * 8


def test_a_consumer_that_hangs_does_not_hold_up_the_producer_of_late_frames(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agent.capture.streams._LATE_S", 0.05)
    slot = LatestFrame(lossless=False)
    frames = [frame(at) for at in range(6)]
    back = [slot.put(one, keep=True) for one in frames]
    assert back == [None, *frames[:5]]
    assert [slot.take(0) for _ in range(2)] == [frames[5], None]
