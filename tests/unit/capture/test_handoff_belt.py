from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.capture.handoff import AudioQueue
from agent.errors import SourceError
from agent.types import AudioChunk

_RATE = 1000


def chunk(first: int, count: int) -> AudioChunk:
    samples = (np.arange(first, first + count) % 30000).astype(np.int16)
    return AudioChunk(samples, _RATE, "s", first, first + count, datetime.now(UTC))


def test_what_has_come_is_taken_at_once() -> None:
    belt = AudioQueue(_RATE, lossless=False)
    for first in (0, 30, 60):
        assert belt.put(chunk(first, 30)) == 0
    taken = belt.take(0)
    assert taken is not None
    assert (taken.first, taken.end, taken.captured_ns) == (0, 90, 90)
    assert taken.samples.tolist() == list(range(90))
    assert belt.take(0) is None


def test_a_chunk_ends_at_a_gap() -> None:
    belt = AudioQueue(_RATE, lossless=False)
    belt.put(chunk(0, 30))
    belt.put(chunk(50, 30))
    assert [(c.first, c.end) for c in (belt.take(0), belt.take(0)) if c] == [(0, 30), (50, 80)]


def test_a_chunk_has_a_bound() -> None:
    belt = AudioQueue(_RATE, lossless=False)
    for number in range(30):
        belt.put(chunk(100 * number, 100))
    taken = belt.take(0)
    assert taken is not None
    assert len(taken.samples) == _RATE


def test_sound_from_the_past_is_not_taken() -> None:
    belt = AudioQueue(_RATE, lossless=False)
    belt.put(chunk(50, 30))
    assert belt.put(chunk(40, 30)) == 30


@given(st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 3), st.integers(1, 2500))), max_size=40))
def test_every_sample_is_taken_or_counted_as_dropped(steps: list[tuple[int, int] | None]) -> None:
    belt, end, put, dropped = AudioQueue(_RATE, lossless=False), 0, 0, 0
    taken: list[AudioChunk] = []
    for step in [*steps, *[None] * 41]:
        if step is None:
            got = belt.take(0)
            taken += [got] if got else []
            continue
        gap, count = step
        dropped += belt.put(chunk(end + gap, count))
        put, end = put + count, end + gap + count
    for before, after in pairwise(taken):
        assert after.first >= before.end
    for got in taken:
        assert (got.samples == chunk(got.first, len(got.samples)).samples).all()
    assert put == dropped + sum(len(got.samples) for got in taken)


def test_of_too_much_the_oldest_is_dropped() -> None:
    belt = AudioQueue(_RATE, lossless=False)
    assert sum(belt.put(chunk(100 * number, 100)) for number in range(60)) == 1000
    taken = belt.take(0)
    assert taken is not None
    assert taken.first == 1000


def test_a_belt_that_keeps_all_makes_the_giver_wait() -> None:
    belt, got = AudioQueue(_RATE, lossless=True), []
    giver = threading.Thread(target=lambda: [belt.put(chunk(100 * number, 100)) for number in range(50)])
    giver.start()
    time.sleep(0.05)
    assert giver.is_alive()
    for _ in range(50):
        taken = belt.take(1)
        assert taken is not None
        got.append((taken.first, len(taken.samples)))
    giver.join(1)
    assert got == [(100 * number, 100) for number in range(50)]


def test_closing_wakes_a_giver_that_waits() -> None:
    belt = AudioQueue(_RATE, lossless=True)
    giver = threading.Thread(target=lambda: [belt.put(chunk(10 * number, 10)) for number in range(20)])
    giver.start()
    belt.close(SourceError("broke"))
    giver.join(1)
    assert not giver.is_alive()
    while True:
        try:
            assert belt.take(0) is not None
        except SourceError:
            break
    with pytest.raises(SourceError, match="broke"):
        belt.take(0)
