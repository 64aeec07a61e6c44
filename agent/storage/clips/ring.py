"""Ring of the last pictures of a camera, encoded once, bounded in seconds and in bytes."""

from __future__ import annotations

import threading
import time
from collections import deque

from agent.types import EncodedFrame

_PATIENCE_S = 5.0
"""How long a replay waits for the disk before a picture is lost, s."""


class FrameRing:
    """A ring of pictures. Any thread may call every method.

    Attributes:
        bytes: of all pictures in it.
        lost: pictures that were held and had to be dropped.
    """

    def __init__(self, seconds: float, max_bytes: int, *, patient: bool = False) -> None:
        """Start empty.

        Args:
            seconds: age from which pictures are dropped, unless they are held.
            max_bytes: bound; the oldest pictures are dropped for it, held or not.
            patient: `add` waits for held pictures to be written, as a replay can.
        """
        self._kept_ns, self._max_bytes = round(seconds * 1e9), max_bytes
        self._pictures: deque[EncodedFrame] = deque()
        self._patient = patient
        self._lock = threading.Lock()
        self._moved = threading.Condition(self._lock)
        self._held_ns: int | None = None
        self._added_s = time.monotonic()
        self._newest_ns = -1
        self.bytes = 0
        self.lost = 0

    def add(self, picture: EncodedFrame) -> None:
        """Add a picture; one that was captured before the newest is ignored."""
        with self._lock:
            if picture.captured_ns <= self._newest_ns:
                return
            if self._patient and self._held_ns is not None:
                self._moved.wait_for(lambda: self._has_room(len(picture.jpeg)), _PATIENCE_S)
            self._newest_ns, self._added_s = picture.captured_ns, time.monotonic()
            self._pictures.append(picture)
            self.bytes += len(picture.jpeg)
            self._trim()

    def _has_room(self, more: int) -> bool:
        return (
            self._held_ns is None
            or self.bytes + more <= self._max_bytes
            or self._pictures[0].captured_ns < self._held_ns
        )

    def _trim(self) -> None:
        oldest_ns = self._newest_ns - self._kept_ns
        held_ns = oldest_ns if self._held_ns is None else self._held_ns
        while self._pictures:
            first = self._pictures[0]
            if self.bytes > self._max_bytes:
                self.lost += first.captured_ns >= held_ns and self._held_ns is not None
            elif first.captured_ns >= min(oldest_ns, held_ns):
                return
            self._pictures.popleft()
            self.bytes -= len(first.jpeg)

    def hold(self, from_ns: int | None) -> None:
        """Keep pictures captured from `from_ns` on, whatever their age; None: no longer."""
        with self._lock:
            self._held_ns = from_ns
            self._trim()
            self._moved.notify_all()

    def between(self, from_ns: int, until_ns: int) -> list[EncodedFrame]:
        """Return the pictures captured in this time, both ends included, in order."""
        with self._lock:
            return [picture for picture in self._pictures if from_ns <= picture.captured_ns <= until_ns]

    def now_ns(self) -> int:
        """Return the newest capture plus the time since it was added, ns; -1: there was none yet."""
        with self._lock:
            if self._newest_ns < 0:
                return -1
            return self._newest_ns + round((time.monotonic() - self._added_s) * 1e9)

    @property
    def newest_ns(self) -> int:
        """Capture of the newest picture, ns; -1: there was none yet."""
        return self._newest_ns
