"""Queues from the thread that reads a source to the thread that processes it, and a pool of frame memory.

A live queue never makes the reader wait and drops what is old; a lossless one, of a replay at `pace=fast`, makes
the reader wait.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

import numpy as np
from msgspec.structs import replace

from agent.errors import SourceError
from agent.types import AudioChunk, Frame, Image

T = TypeVar("T")


class HandoffQueue(Generic[T]):
    """A closable queue between two threads."""

    def __init__(self, lossless: tuple[int, int] | None) -> None:
        """Create an empty queue.

        Args:
            lossless: how many items a lossless queue holds, and at how few a waiting producer continues; None for
                a live queue.
        """
        self._lossless = lossless
        self._items: deque[T] = deque()
        self._changed = threading.Condition(threading.Lock())
        self._closed = False
        self._error: SourceError | None = None

    def _wait_for_room(self) -> None:
        """Let the producer of a lossless queue wait. Called with the lock held."""
        if self._lossless and len(self._items) >= self._lossless[0]:
            while len(self._items) > self._lossless[1] and not self._closed:
                self._changed.wait()

    def _next(self) -> T:
        """Take from `_items`, which is not empty. Called with the lock held."""
        item = self._items.popleft()
        if self._lossless and len(self._items) == self._lossless[1]:
            self._changed.notify()
        return item

    def take(self, timeout_s: float) -> T | None:
        """Return the next item; None if none came in time, or the queue is closed and empty.

        Raises:
            SourceError: the one that the queue was closed with, after the last item.
        """
        with self._changed:
            if not self._items and not self._closed:
                self._changed.wait(timeout_s)
            if self._items:
                return self._next()
            if self._error is not None:
                raise self._error
            return None

    def close(self, error: SourceError | None = None) -> None:
        """Refuse further items. Items in the queue can still be taken."""
        with self._changed:
            self._closed, self._error = True, error
            self._changed.notify_all()

    def pop(self) -> T | None:
        """Return an item without waiting; None: there is none."""
        with self._changed:
            return self._items.popleft() if self._items else None

    def clear(self) -> None:
        """Drop the items in the queue."""
        with self._changed:
            self._items.clear()

    @property
    def drained(self) -> bool:
        """True if the queue was closed without an error and everything was taken."""
        with self._changed:
            return self._closed and not self._items and self._error is None


_HELD_S, _TAKEN_S = 5.0, 1.0
"""Longest live audio that is kept, and longest that one `take` returns, s."""
_CHUNKS, _FRAMES = (8, 2), (4, 1)
"""Limits of lossless queues: a producer that found one full continues when it is nearly empty, not at every free
place. It then reads several items in a row at less cost each: fewer wake-ups, and its caches stay warm."""


class AudioQueue(HandoffQueue[AudioChunk]):
    """Audio chunks between two threads.

    A live queue returns all audio that has come since, up to a gap and up to 1 s, and drops the oldest beyond
    5 s. A lossless queue returns chunk by chunk, and makes the producer wait while it is full.
    """

    def __init__(self, rate_hz: int, *, lossless: bool) -> None:
        super().__init__(_CHUNKS if lossless else None)
        self._held_max, self._taken_max = round(_HELD_S * rate_hz), round(_TAKEN_S * rate_hz)
        self._held = self._end = 0

    def put(self, chunk: AudioChunk) -> int:
        """Add a chunk. Return how many samples, of this chunk or of older ones, were dropped.

        The chunk itself is dropped if the queue is closed, or if it begins before the end of an earlier one.
        """
        with self._changed:
            self._wait_for_room()
            if self._closed or chunk.first < self._end:
                return len(chunk.samples)
            self._end = chunk.end
            self._items.append(chunk)
            self._held += len(chunk.samples)
            self._changed.notify()
            return 0 if self._lossless else self._drop()

    def _drop(self) -> int:
        before = self._held
        while self._held > self._held_max and len(self._items) > 1:
            self._held -= len(self._items.popleft().samples)
        return before - self._held

    def _next(self) -> AudioChunk:
        chunk = super()._next()
        if not self._lossless and self._items and self._items[0].first == chunk.end:
            chunk = self._joined(chunk)
        self._held -= len(chunk.samples)
        return chunk

    def _joined(self, chunk: AudioChunk) -> AudioChunk:
        """Join a chunk with those that follow it without a gap."""
        parts, end = [chunk], chunk.end
        while self._items and self._items[0].first == end and end - chunk.first < self._taken_max:
            parts.append(self._items.popleft())
            end = parts[-1].end
        samples = np.concatenate([part.samples for part in parts])
        return replace(parts[-1], samples=samples, first=chunk.first)


_KEPT = 6
"""Buffers kept: one being read, up to four queued at `pace=fast`, one in use."""


class FrameBufferPool:
    """Frame memory to use again, so that no frame is allocated in steady state.

    Each method is a single list operation and needs no lock.
    """

    def __init__(self) -> None:
        self._free: list[Image] = []
        self._room = _KEPT

    def take(self) -> Image | None:
        """Return memory of an earlier frame, or None if the reader has to allocate."""
        try:
            return self._free.pop()
        except IndexError:
            return None

    def give(self, image: Image) -> None:
        """Keep the memory of a frame that is no longer in use, unless it belongs to a decoder."""
        if image.flags.owndata and len(self._free) < self._room:
            self._free.append(image)

    def close(self) -> None:
        """Free the memory, also that of frames that are given back from now on."""
        self._room = 0
        self._free.clear()


_LATE_MAX, _LATE_S = 1, 2.0
"""Most frames that were decoded late in a live queue, each of which may take 6 MB or more, and longest time that
the producer waits for room, s."""


class LatestFrame(HandoffQueue[Frame]):
    """Frames between two threads, in the order of their capture.

    A live queue holds the newest frame only, and those before it that are to be kept; a lossless one makes the
    producer wait while it is full.
    """

    def __init__(self, *, lossless: bool) -> None:
        super().__init__(_FRAMES if lossless else None)
        self._newest_ns = -1
        self._kept = 0

    def put(self, frame: Frame, *, keep: bool = False) -> Frame | None:
        """Add a frame. Return the frame that is dropped for it, if any.

        The frame itself is dropped if the queue is closed, or if it was captured before an earlier one: a reader
        that hung and came back must not deliver old frames.

        Args:
            frame: to add.
            keep: no later frame replaces it in a live queue, whose producer waits for a while if too many are
                kept; if the consumer takes none of them in this time, they are replaced all the same.
        """
        with self._changed:
            self._wait_for_room()
            if keep and not self._lossless:
                self._wait_for_late()
            if self._closed or frame.captured_ns < self._newest_ns:
                return frame
            self._newest_ns = frame.captured_ns
            replaced = None
            if len(self._items) > self._kept and not self._lossless:
                replaced = self._items.pop()
            self._items.append(frame)
            self._kept += keep
            self._changed.notify()
            return replaced

    def _wait_for_late(self) -> None:
        """Wait until there is room for a frame to keep, or the consumer hangs. Called with the lock held."""
        if not self._changed.wait_for(lambda: self._kept < _LATE_MAX or self._closed, _LATE_S):
            self._kept -= 1  # it is replaced

    def _next(self) -> Frame:
        self._kept = max(0, self._kept - 1)
        if not self._lossless:
            self._changed.notify_all()
        return super()._next()

    def pop(self) -> Frame | None:
        self._kept = 0
        return super().pop()
