"""The hand-over of frames from the thread that reads them to the one that uses them."""

from __future__ import annotations

from agent.capture.handover import HandOver
from agent.messages import Frame

_ROOM, _LOW = 4, 1
"""Of a slot that keeps all: a giver that found it full goes on when it is nearly empty, not for every place. It
then reads several frames in a row, and each costs less: it is woken less often, and its caches stay warm."""


class Slot(HandOver[Frame]):
    """Frames on their way from one thread to another, in the order of their capture.

    A live slot holds the newest frame only; one that keeps all makes the giver wait when it is full.
    """

    def __init__(self, *, keeps_all: bool) -> None:
        super().__init__()
        self._keeps_all = keeps_all
        self._room = _ROOM if keeps_all else 1
        self._newest_ns = -1

    def put(self, frame: Frame) -> Frame | None:
        """Hand a frame on, and get the one back that nobody will take: the one before it, or itself.

        It is itself when the slot is closed, or when it was captured before one that was put already: a reader
        that hung and came back must not bring the past.
        """
        with self._changed:
            if self._keeps_all and len(self._items) >= self._room:
                while len(self._items) > _LOW and not self._closed:
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
        if self._keeps_all and len(self._items) == _LOW:
            self._changed.notify()
        return frame
