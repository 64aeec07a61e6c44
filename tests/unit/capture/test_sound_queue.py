from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.capture.sound import AudioQueue
from agent.errors import SourceError
from agent.types import AudioChunk

_RATE = 1000


def chunk(first: int, count: int) -> AudioChunk:
    samples = (np.arange(first, first + count) % 30000).astype(np.int16)
    return AudioChunk(samples, _RATE, "s", first, first + count, datetime.now(UTC))


def test_what_has_come_is_taken_at_once() -> None:
    queue = AudioQueue(_RATE, lossless=False)
    for first in (0, 30, 60):
        assert queue.put(chunk(first, 30)) == 0
    taken = queue.take(0)
    assert taken is not None
    assert (taken.first, taken.end, taken.captured_ns) == (0, 90, 90)
    assert taken.samples.tolist() == list(range(90))
    assert queue.take(0) is None


def test_a_chunk_ends_at_a_gap() -> None:
    queue = AudioQueue(_RATE, lossless=False)
    queue.put(chunk(0, 30))
    queue.put(chunk(50, 30))
    assert [(c.first, c.end) for c in (queue.take(0), queue.take(0)) if c] == [(0, 30), (50, 80)]


def test_a_chunk_has_a_bound() -> None:
    queue = AudioQueue(_RATE, lossless=False)
    for number in range(30):
        queue.put(chunk(100 * number, 100))
    taken = queue.take(0)
    assert taken is not None
    assert len(taken.samples) == _RATE


def test_sound_from_the_past_is_not_taken() -> None:
    queue = AudioQueue(_RATE, lossless=False)
    queue.put(chunk(50, 30))
    assert queue.put(chunk(40, 30)) == 30


@given(st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 3), st.integers(1, 2500))), max_size=40))
def test_every_sample_is_taken_or_counted_as_dropped(steps: list[tuple[int, int] | None]) -> None:
    queue, end, put, dropped = AudioQueue(_RATE, lossless=False), 0, 0, 0
    taken: list[AudioChunk] = []
    for step in [*steps, *[None] * 41]:
        if step is None:
            got = queue.take(0)
            taken += [got] if got else []
            continue
        gap, count = step
        dropped += queue.put(chunk(end + gap, count))
        put, end = put + count, end + gap + count
    for before, after in pairwise(taken):
        assert after.first >= before.end
    for got in taken:
        assert (got.samples == chunk(got.first, len(got.samples)).samples).all()
    assert put == dropped + sum(len(got.samples) for got in taken)


def test_of_too_much_the_oldest_is_dropped() -> None:
    queue = AudioQueue(_RATE, lossless=False)
    assert sum(queue.put(chunk(100 * number, 100)) for number in range(60)) == 1000
    taken = queue.take(0)
    assert taken is not None
    assert taken.first == 1000


def test_a_lossless_queue_makes_the_producer_wait() -> None:
    queue, got = AudioQueue(_RATE, lossless=True), []
    producer = threading.Thread(target=lambda: [queue.put(chunk(100 * number, 100)) for number in range(50)])
    producer.start()
    time.sleep(0.05)
    assert producer.is_alive()
    for _ in range(50):
        taken = queue.take(60.0)
        assert taken is not None
        got.append((taken.first, len(taken.samples)))
    producer.join(60.0)
    assert got == [(100 * number, 100) for number in range(50)]


def test_closing_wakes_a_giver_that_waits() -> None:
    queue = AudioQueue(_RATE, lossless=True)
    producer = threading.Thread(target=lambda: [queue.put(chunk(10 * number, 10)) for number in range(20)])
    producer.start()
    queue.close(SourceError("broke"))
    producer.join(60.0)
    assert not producer.is_alive()
    while True:
        try:
            assert queue.take(0) is not None
        except SourceError:
            break
    with pytest.raises(SourceError, match="broke"):
        queue.take(0)
