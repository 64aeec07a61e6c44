"""The hand-over of sound from the thread that reads it to the one that uses it."""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from agent.capture.handover import HandOver
from agent.messages import AudioChunk

_HELD_S, _TAKEN_S = 5.0, 1.0
"""Of live sound: held at most, and handed out at once at most."""
_ROOM, _LOW = 8, 2
"""Blocks on a belt that keeps all; see `agent.capture.slot`."""


class Belt(HandOver[AudioChunk]):
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
