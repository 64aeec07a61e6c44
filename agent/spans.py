"""Record spans of work of any thread, while somebody has asked for a trace.

Every package may record, since a trace shows them side by side. Nothing is recorded unless `active` is set: with
`span` that costs a call, and code that runs for every picture tests the attribute itself:

    recorder = spans.active
    if recorder is not None:
        recorder.add("infer", began_ns, time.monotonic_ns())
"""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import NamedTuple

CAPACITY = 16_000
"""Most spans that are kept, some 3 MB, and as many as fit into one message: one camera with 15 pictures a second
for two minutes, or four for half a minute."""


class Span(NamedTuple):
    """One piece of work of one thread.

    Attributes:
        name: of the work.
        thread: its native id.
        began_ns, ended_ns: CLOCK_MONOTONIC, ns.
        number: of the picture, or of the first sample; -1: it has none.
    """

    name: str
    thread: int
    began_ns: int
    ended_ns: int
    number: int = -1


class SpanRecorder:
    """Keeps the spans of all threads, up to a number; those that come after that are counted.

    Any thread may add: appending to a list is atomic.

    Attributes:
        began_ns: when it was made, CLOCK_MONOTONIC, ns.
        spans: in the order of their ends.
        dropped: spans that found no room.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.began_ns = time.monotonic_ns()
        self.spans: list[Span] = []
        self.dropped = 0
        self._capacity = capacity

    def add(self, name: str, began_ns: int, ended_ns: int, number: int = -1) -> None:
        """Add a span of the calling thread."""
        if len(self.spans) >= self._capacity:
            self.dropped += 1
            return
        self.spans.append(Span(name, threading.get_native_id(), began_ns, ended_ns, number))


active: SpanRecorder | None = None
"""Recorder of the running trace; None: none runs. The daemon sets it."""

_OFF = nullcontext()


class _Recorded:
    def __init__(self, recorder: SpanRecorder, name: str) -> None:
        self._recorder, self._name = recorder, name

    def __enter__(self) -> None:
        self._began_ns = time.monotonic_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._recorder.add(self._name, self._began_ns, time.monotonic_ns())


def span(name: str) -> AbstractContextManager[None]:
    """Return a context that records its duration, if a trace runs when it is entered."""
    return _OFF if active is None else _Recorded(active, name)
