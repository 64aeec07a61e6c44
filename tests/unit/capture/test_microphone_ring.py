from __future__ import annotations

import random
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.capture.microphone import AudioRing
from agent.types import Samples


def block(begin: int, count: int, channels: int = 1) -> Samples:
    """Frames that show their number, in every channel."""
    numbers = (np.arange(begin, begin + count) % 30000).astype(np.int16)
    return np.repeat(numbers[:, None], channels, axis=1)


def test_what_is_written_is_read_once_and_in_order() -> None:
    ring = AudioRing(100, 2)
    assert ring.write(block(0, 60, 2), 5, 6)
    heard = ring.read()
    assert (heard.frames == block(0, 60, 2)).all()
    assert (heard.lost, heard.at_ns, heard.read_ns) == (0, 5, 6)
    assert len(ring.read().frames) == 0


def test_what_does_not_fit_is_dropped_whole_until_the_reader_has_been_there() -> None:
    ring = AudioRing(100, 1)
    assert ring.write(block(0, 60), 1, 1)
    assert not ring.write(block(60, 60), 2, 2)
    assert not ring.write(block(120, 10), 3, 3)
    heard = ring.read()
    assert (heard.frames == block(0, 60)).all()
    assert (heard.lost, heard.at_ns) == (70, 1)
    assert ring.write(block(130, 100), 4, 4)
    assert (ring.read().frames == block(130, 100)).all()


def test_what_the_system_lost_is_a_gap_too() -> None:
    ring = AudioRing(100, 1)
    ring.write(block(0, 10), 1, 1)
    ring.count_lost(7)
    assert not ring.write(block(17, 10), 2, 2)
    assert ring.read().lost == 17
    assert ring.write(block(27, 10), 3, 3)


@given(st.lists(st.one_of(st.none(), st.integers(1, 40)), max_size=80), st.integers(1, 64))
def test_every_frame_is_read_or_counted_as_lost_where_it_is_missing(steps: list[int | None], size: int) -> None:
    ring, written, position = AudioRing(size, 1), 0, 0
    for step in [*steps, None]:
        if step is not None:
            ring.write(block(written, step), written + step, 0)
            written += step
            continue
        heard = ring.read()
        assert (heard.frames == block(position, len(heard.frames))).all()
        position += len(heard.frames)
        if len(heard.frames):
            assert heard.at_ns == position
        position += heard.lost
    assert position == written


@pytest.mark.parametrize("size", [64, 1000])
def test_a_writer_and_a_reader_in_two_threads_tear_nothing(size: int) -> None:
    ring, total, position = AudioRing(size, 2), 60_000, 0
    chance = random.Random(size)
    counts = [chance.randrange(1, 50) for _ in range(total // 25)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def write() -> None:
        begin = 0
        for number, count in enumerate(counts):
            ring.write(block(begin, count, 2), begin + count, 0)
            begin += count
            if number % 16 == 0:
                time.sleep(0)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        alive = True
        while alive:
            alive = writer.is_alive()
            heard = ring.read()
            assert (heard.frames == block(position, len(heard.frames), 2)).all()
            position += len(heard.frames) + heard.lost
    finally:
        sys.setswitchinterval(before)
        writer.join()
    assert position == sum(counts)
