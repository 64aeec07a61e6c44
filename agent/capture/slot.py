"""The hand-over from the thread that reads frames to the one that uses them."""

from __future__ import annotations

import threading
from collections import deque

from agent.errors import SourceError
from agent.messages import Frame

_ROOM, _LOW = 4, 1
"""Of a slot that keeps all: a giver that found it full goes on when it is nearly empty, not for every place. It
then reads several frames in a row, and each costs less: it is woken less often, and its caches stay warm."""


class Slot:
    """Frames on their way from one thread to another, in the order of their capture.

    A live slot holds the newest frame only; one that keeps all makes the giver wait when it is full.
    """

    def __init__(self, *, keeps_all: bool) -> None:
        self._keeps_all = keeps_all
        self._room = _ROOM if keeps_all else 1
        self._frames: deque[Frame] = deque()
        self._changed = threading.Condition(threading.Lock())
        self._newest_ns = -1
        self._closed = False
        self._error: SourceError | None = None

    def put(self, frame: Frame) -> Frame | None:
        """Hand a frame on, and get the one back that nobody will take: the one before it, or itself.

        It is itself when the slot is closed, or when it was captured before one that was put already: a reader
        that hung and came back must not bring the past.
        """
        with self._changed:
            if self._keeps_all and len(self._frames) >= self._room:
                while len(self._frames) > _LOW and not self._closed:
                    self._changed.wait()
            if self._closed or frame.captured_ns < self._newest_ns:
                return frame
            self._newest_ns = frame.captured_ns
            replaced = self._frames.popleft() if len(self._frames) >= self._room else None
            self._frames.append(frame)
            self._changed.notify()
            return replaced

    def take(self, timeout_s: float) -> Frame | None:
        """The next frame; None when none came in time, or none will come any more.

        Raises:
            SourceError: the one that the slot was closed with, after the last frame.
        """
        with self._changed:
            if not self._frames and not self._closed:
                self._changed.wait(timeout_s)
            if self._frames:
                frame = self._frames.popleft()
                if self._keeps_all and len(self._frames) == _LOW:
                    self._changed.notify()
                return frame
            if self._error is not None:
                raise self._error
            return None

    def close(self, error: SourceError | None = None) -> None:
        """No more frames are put. Those that wait can still be taken."""
        with self._changed:
            self._closed, self._error = True, error
            self._changed.notify_all()

    @property
    def over(self) -> bool:
        """Whether it was closed without an error and every frame was taken."""
        with self._changed:
            return self._closed and not self._frames and self._error is None
