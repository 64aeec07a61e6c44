from __future__ import annotations

import sys
import threading
from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agent.capture.microphone import _HELD_S, _Receiver
from agent.capture.portaudio import Format

TIMES = SimpleNamespace(currentTime=0.0, inputBufferAdcTime=0.0)


def give(receiver: _Receiver, begin: int, count: int, *, overflow: bool = False) -> None:
    """Give frames that show their number, in both channels."""
    numbers = (np.arange(begin, begin + count) % 30000).astype(np.int16)
    data = np.repeat(numbers[:, None], 2, axis=1).tobytes()
    receiver.receive(data, count, TIMES, SimpleNamespace(input_overflow=overflow))


@given(st.lists(st.one_of(st.none(), st.tuples(st.integers(1, 40), st.booleans())), max_size=80))
def test_every_frame_is_taken_or_counted_as_lost_where_it_is_missing(
    steps: list[tuple[int, bool] | None],
) -> None:
    receiver, written, position = _Receiver(Format(64 / _HELD_S, 2, None)), 0, 0  # type: ignore[arg-type]
    for step in [*steps, None, (1, False), *[None] * 80]:
        if step is not None:
            count, overflow = step
            written += count if overflow else 0
            give(receiver, written, count, overflow=overflow)
            written += count
        elif receiver._blocks:
            heard = receiver.take()
            assert heard is not None
            position += heard.lost
            assert (heard.frames[:, 1] == np.arange(position, position + len(heard.frames)) % 30000).all()
            position += len(heard.frames)
    assert position == written


def test_a_writer_and_a_reader_in_two_threads_lose_nothing() -> None:
    receiver, total, position = _Receiver(Format(1000, 2, None)), 60_000, 0
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def write() -> None:
        for begin in range(0, total, 20):
            give(receiver, begin, 20)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while writer.is_alive() or receiver._blocks:
            if (heard := receiver.take()) is not None:
                position += heard.lost
                assert (heard.frames[:, 0] == np.arange(position, position + len(heard.frames)) % 30000).all()
                position += len(heard.frames)
    finally:
        sys.setswitchinterval(before)
        writer.join()
    assert position + receiver._lost == total
