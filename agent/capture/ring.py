"""The ring between a sound device's callback and the thread that reads: neither ever waits for the other."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from agent.messages import Samples


class _Mark(NamedTuple):
    """How far the writer is: published as one object, so that the reader never sees half of it.

    Attributes:
        written: frames stored since the beginning.
        lost: frames that were not stored, since the beginning.
        at_ns: when the last that was stored was captured, CLOCK_MONOTONIC, ns.
        read_ns: when it was handed to us.
    """

    written: int
    lost: int
    at_ns: int
    read_ns: int


class Heard(NamedTuple):
    """What a reader takes.

    Attributes:
        frames: N×C int16, its own memory, without a gap in it.
        lost: frames missing right after them.
        at_ns, read_ns: when the last of them was captured, and when it was handed to us, CLOCK_MONOTONIC.
    """

    frames: Samples
    lost: int
    at_ns: int
    read_ns: int


class Ring:
    """Frames of C channels for one writer and one reader, without a lock.

    What does not fit is dropped whole and counted, and so is all that follows until the reader has been here:
    there is never more than one gap, and it lies behind everything that is stored.
    """

    def __init__(self, frames: int, channels: int) -> None:
        """Room for so many frames: N×C int16, allocated here and never again."""
        self._memory = np.zeros((frames, channels), np.int16)
        self._mark = _Mark(0, 0, 0, 0)  # set by the writer only
        self._read = self._settled = 0  # set by the reader only

    def write(self, block: Samples, at_ns: int, read_ns: int) -> bool:
        """Store a block, or drop it where there is no room. Never waits, and copies once.

        Args:
            block: N×C int16.
            at_ns: when its last frame was captured, CLOCK_MONOTONIC, ns.
            read_ns: now.
        """
        mark, memory, count = self._mark, self._memory, len(block)
        size = len(memory)
        if mark.lost != self._settled or count > size - (mark.written - self._read):
            self.miss(count)
            return False
        begin = mark.written % size
        first = min(count, size - begin)
        memory[begin : begin + first] = block[:first]
        if first < count:
            memory[: count - first] = block[first:]
        self._mark = _Mark(mark.written + count, mark.lost, at_ns, read_ns)
        return True

    def miss(self, count: int) -> None:
        """So many frames were lost before they came here. For the writer."""
        mark = self._mark
        self._mark = _Mark(mark.written, mark.lost + count, mark.at_ns, mark.read_ns)

    def read(self) -> Heard:
        """Take everything that is there."""
        mark, memory, read = self._mark, self._memory, self._read
        count, size = mark.written - read, len(memory)
        frames = np.empty((count, memory.shape[1]), np.int16)
        begin = read % size
        first = min(count, size - begin)
        frames[:first] = memory[begin : begin + first]
        if first < count:
            frames[first:] = memory[: count - first]
        lost = mark.lost - self._settled
        self._read = mark.written
        self._settled = mark.lost  # last: from here on the writer may store again
        return Heard(frames, lost, mark.at_ns, mark.read_ns)
