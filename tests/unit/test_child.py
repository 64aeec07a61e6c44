"""Messages through a pipe, however large, and as late as they may be."""

from __future__ import annotations

import os
import threading
import time
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import child


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    yield reader, writer
    for end in (reader, writer):
        try:
            os.close(end)
        except OSError:
            continue


@settings(deadline=None, max_examples=30)
@given(st.lists(st.one_of(st.binary(max_size=10_000), st.integers(60_000, 300_000).map(bytes)), max_size=8))
def test_messages_arrive_whole_and_in_order(messages: list[bytes]) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    until = time.monotonic() + 60.0

    def send() -> None:
        for message in messages:
            child.send(writer, message, until)

    sender = threading.Thread(target=send)
    sender.start()
    assert [child.receive(reader, until) for _ in messages] == messages
    sender.join()
    os.close(reader)
    os.close(writer)


def test_what_nobody_reads_is_given_up_in_time(ends: tuple[int, int]) -> None:
    with pytest.raises(TimeoutError):
        child.send(ends[1], bytes(1_000_000), time.monotonic() + 0.1)


def test_what_does_not_come_is_given_up_in_time(ends: tuple[int, int]) -> None:
    os.write(ends[1], b"\x08\0\0\0half")
    with pytest.raises(TimeoutError):
        child.receive(ends[0], time.monotonic() + 0.1)


def test_a_closed_end_is_told(ends: tuple[int, int]) -> None:
    os.close(ends[1])
    with pytest.raises(child.ClosedError):
        child.receive(ends[0])


def test_nothing_is_waited_for_when_nothing_will_come(ends: tuple[int, int]) -> None:
    watch, gone = os.pipe()
    os.close(gone)
    child.send(ends[1], b"first")
    until = time.monotonic() + 60.0
    assert child.receive(ends[0], until, watch) == b"first"
    with pytest.raises(child.ClosedError):
        child.receive(ends[0], until, watch)
    os.close(watch)
    assert time.monotonic() < until


def test_a_length_that_no_message_has_is_refused(ends: tuple[int, int]) -> None:
    os.write(ends[1], b"\xff\xff\xff\xff")
    with pytest.raises(child.InvalidMessageError):
        child.receive(ends[0])


def test_nothing_is_allocated_for_a_message_that_is_announced_as_too_large(ends: tuple[int, int]) -> None:
    os.write(ends[1], (1_500_000_000).to_bytes(4, "little"))
    tracemalloc.start()
    with pytest.raises(child.InvalidMessageError, match="1500000000 bytes; expected at most 1048576"):
        child.receive(ends[0], time.monotonic() + 5.0, largest=child.LARGEST_ANSWER)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()
