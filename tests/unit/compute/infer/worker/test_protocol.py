"""Messages through a pipe, however large, and as late as they may be."""

from __future__ import annotations

import fcntl
import os
import threading
import time
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.compute.infer.worker import protocol
from agent.compute.tflite.model import TensorSpec


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
            protocol.send(writer, message, until)

    sender = threading.Thread(target=send)
    sender.start()
    assert [protocol.receive(reader, until) for _ in messages] == messages
    sender.join()
    os.close(reader)
    os.close(writer)


def test_what_nobody_reads_is_given_up_in_time(ends: tuple[int, int]) -> None:
    with pytest.raises(TimeoutError):
        protocol.send(ends[1], bytes(1_000_000), time.monotonic() + 0.1)


def test_what_does_not_come_is_given_up_in_time(ends: tuple[int, int]) -> None:
    os.write(ends[1], b"\x08\0\0\0half")
    with pytest.raises(TimeoutError):
        protocol.receive(ends[0], time.monotonic() + 0.1)


def test_a_closed_end_is_told(ends: tuple[int, int]) -> None:
    os.close(ends[1])
    with pytest.raises(protocol.ClosedError):
        protocol.receive(ends[0])


def test_nothing_is_waited_for_when_nothing_will_come(ends: tuple[int, int]) -> None:
    watch, gone = os.pipe()
    os.close(gone)
    protocol.send(ends[1], b"first")
    until = time.monotonic() + 60.0
    assert protocol.receive(ends[0], until, watch) == b"first"
    with pytest.raises(protocol.ClosedError):
        protocol.receive(ends[0], until, watch)
    os.close(watch)
    assert time.monotonic() < until


def test_a_length_that_no_message_has_is_refused(ends: tuple[int, int]) -> None:
    os.write(ends[1], b"\xff\xff\xff\xff")
    with pytest.raises(protocol.InvalidMessageError):
        protocol.receive(ends[0])


def test_nothing_is_allocated_for_a_message_that_is_announced_as_too_large(ends: tuple[int, int]) -> None:
    os.write(ends[1], (1_500_000_000).to_bytes(4, "little"))
    tracemalloc.start()
    with pytest.raises(protocol.InvalidMessageError, match="1500000000 bytes; expected at most 1048576"):
        protocol.receive(ends[0], time.monotonic() + 5.0, largest=protocol.LARGEST_ANSWER)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_the_size_of_the_shared_memory_cannot_be_changed() -> None:
    memory = protocol.create_shared_memory()
    for size in (0, protocol.TENSORS_BYTES - 4096, protocol.TENSORS_BYTES + 4096):
        with pytest.raises(PermissionError):
            os.ftruncate(memory, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert os.fstat(memory).st_blocks == 0
    os.close(memory)


def test_memory_of_another_kind_is_not_mapped() -> None:
    memory = os.memfd_create("open")
    os.ftruncate(memory, 4096)
    with pytest.raises(protocol.InvalidMessageError, match="not sealed"):
        protocol.map_tensors(memory, protocol.TensorRegion((), (), 0, 4096))
    os.close(memory)


SPEC = TensorSpec("in", (1, 4), "float32")


@pytest.mark.parametrize(
    ("spec", "offset", "size"),
    [
        (SPEC, 0, 1 << 40),
        (SPEC, 0, 1),
        (SPEC, -4096, 4096),
        (SPEC, 1, 4096),
        (SPEC, protocol.TENSORS_BYTES, 4096),
        (replace(SPEC, shape=(1 << 31, 1 << 31, 4)), 0, 4096),
        (replace(SPEC, shape=(-1, 4)), 0, 4096),
        (replace(SPEC, shape=(1,) * 100), 0, 4096),
        (replace(SPEC, dtype="object"), 0, 4096),
        (replace(SPEC, dtype="f8,(10000,10000)f8"), 0, 4096),
    ],
)
def test_tensors_that_do_not_lie_where_it_says_are_refused(spec: TensorSpec, offset: int, size: int) -> None:
    with pytest.raises(protocol.InvalidMessageError):
        protocol.decode_answer(protocol.encode(protocol.TensorRegion((spec,), (), offset, size)))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_bytes_that_are_no_answer_are_refused(data: bytes) -> None:
    with pytest.raises(protocol.InvalidMessageError):
        protocol.decode_answer(data)
