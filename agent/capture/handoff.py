"""The hand-over from the thread that reads to the one that uses: what frames and sound have in common."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from typing import Generic, TypeVar

import numpy as np
from msgspec.structs import replace

from agent.errors import SourceError
from agent.types import AudioChunk, Frame, Image

T = TypeVar("T")


class HandoffQueue(ABC, Generic[T]):
    """Things on their way from one thread to another, in their order, with one end."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._changed = threading.Condition(threading.Lock())
        self._closed = False
        self._error: SourceError | None = None

    @abstractmethod
    def _next(self) -> T:
        """Take from `_items`, which is not empty; called with the lock held."""

    def take(self, timeout_s: float) -> T | None:
        """The next; None when none came in time, or none will come any more.

        Raises:
            SourceError: the one that this was closed with, after the last.
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
        """No more are put. Those that wait can still be taken."""
        with self._changed:
            self._closed, self._error = True, error
            self._changed.notify_all()

    def clear(self) -> None:
        """Nobody takes any more: free what waits."""
        with self._changed:
            self._items.clear()

    @property
    def over(self) -> bool:
        """Whether it was closed without an error and everything was taken."""
        with self._changed:
            return self._closed and not self._items and self._error is None


_HELD_S, _TAKEN_S = 5.0, 1.0
"""Of live sound: held at most, and handed out at once at most."""
_ROOM, _LOW = 8, 2
"""Blocks on a belt that keeps all; see `agent.capture.handoff`."""


class AudioQueue(HandoffQueue[AudioChunk]):
    """Sound on its way from one thread to another.

    A live belt hands out what has come since, up to a gap and up to 1 s, and of more than 5 s drops the oldest.
    One that keeps all hands out block by block, and makes the giver wait when it is full.
    """

    def __init__(self, rate_hz: int, *, keeps_all: bool) -> None:
        super().__init__()
        self._keeps_all = keeps_all
        self._held_max, self._taken_max = round(_HELD_S * rate_hz), round(_TAKEN_S * rate_hz)
        self._held = self._end = 0

    def put(self, chunk: AudioChunk) -> int:
        """Hand sound on; how many samples, of it or of those before, nobody will take.

        It is the chunk itself when the belt is closed, or when it begins before the end of what was put already.
        """
        with self._changed:
            if self._keeps_all and len(self._items) >= _ROOM:
                while len(self._items) > _LOW and not self._closed:
                    self._changed.wait()
            if self._closed or chunk.first < self._end:
                return len(chunk.samples)
            self._end = chunk.end
            self._items.append(chunk)
            self._held += len(chunk.samples)
            self._changed.notify()
            return 0 if self._keeps_all else self._drop()

    def _drop(self) -> int:
        before = self._held
        while self._held > self._held_max and len(self._items) > 1:
            self._held -= len(self._items.popleft().samples)
        return before - self._held

    def _next(self) -> AudioChunk:
        chunk = self._items.popleft()
        if self._keeps_all:
            if len(self._items) == _LOW:
                self._changed.notify()
        elif self._items and self._items[0].first == chunk.end:
            chunk = self._joined(chunk)
        self._held -= len(chunk.samples)
        return chunk

    def _joined(self, chunk: AudioChunk) -> AudioChunk:
        """With what follows without a gap."""
        parts, end = [chunk], chunk.end
        while self._items and self._items[0].first == end and end - chunk.first < self._taken_max:
            parts.append(self._items.popleft())
            end = parts[-1].end
        samples = np.concatenate([part.samples for part in parts])
        return replace(parts[-1], samples=samples, first=chunk.first)


# The pool of picture memory: in steady state no picture is allocated.

_KEPT = 6
"""One being read, up to four handed over at `pace=fast`, one in use."""


class FrameBufferPool:
    """Pictures' memory that is free. Its methods are single operations of a list and need no lock."""

    def __init__(self) -> None:
        self._free: list[Image] = []
        self._room = _KEPT

    def take(self) -> Image | None:
        """Memory of some picture before; None when the reader has to allocate."""
        try:
            return self._free.pop()
        except IndexError:
            return None

    def give(self, image: Image) -> None:
        """Nobody looks at this picture any more."""
        if len(self._free) < self._room:
            self._free.append(image)

    def close(self) -> None:
        """Keep nothing any more: pictures that are given from now on are free for others."""
        self._room = 0
        self._free.clear()


# The hand-over of frames from the thread that reads them to the one that uses them.

_SLOT_ROOM, _SLOT_LOW = 4, 1
"""Of a slot that keeps all: a giver that found it full goes on when it is nearly empty, not for every place. It
then reads several frames in a row, and each costs less: it is woken less often, and its caches stay warm."""


class LatestFrame(HandoffQueue[Frame]):
    """Frames on their way from one thread to another, in the order of their capture.

    A live slot holds the newest frame only; one that keeps all makes the giver wait when it is full.
    """

    def __init__(self, *, keeps_all: bool) -> None:
        super().__init__()
        self._keeps_all = keeps_all
        self._room = _SLOT_ROOM if keeps_all else 1
        self._newest_ns = -1

    def put(self, frame: Frame) -> Frame | None:
        """Hand a frame on, and get the one back that nobody will take: the one before it, or itself.

        It is itself when the slot is closed, or when it was captured before one that was put already: a reader
        that hung and came back must not bring the past.
        """
        with self._changed:
            if self._keeps_all and len(self._items) >= self._room:
                while len(self._items) > _SLOT_LOW and not self._closed:
                    self._changed.wait()
            if self._closed or frame.captured_ns < self._newest_ns:
                return frame
            self._newest_ns = frame.captured_ns
            replaced = self._items.popleft() if len(self._items) >= self._room else None
            self._items.append(frame)
            self._changed.notify()
            return replaced

    def _next(self) -> Frame:
        frame = self._items.popleft()
        if self._keeps_all and len(self._items) == _SLOT_LOW:
            self._changed.notify()
        return frame
