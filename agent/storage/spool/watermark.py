"""High-water mark: the highest number that may have been given out, in a small file beside the spool's database.

While the database is sound, it knows the next number, and there are no gaps. When it is corrupt or gone, or when
numbers were given out while it could not be written, the next number is one above this mark: a gap, which
subscribers read as a possible loss, and never a number twice. Such a run moves the mark first. Where it cannot,
its numbers come from the clock, as in a folder without a mark.

The file has a fixed length and is overwritten in place, which works on a full disk.
"""

from __future__ import annotations

import os
import random
import stat
import time
from contextlib import suppress
from pathlib import Path

from agent.errors import StorageError
from agent.storage.files import SAFE, STATE_MODE, check_kind, read_regular

BLOCK = 10_000
"""Numbers that one write reserves, and the largest gap that a repair makes."""

_YEAR_S = 31_536_000.0
_FORMAT = "%020d %s\n"
_STATES = ("disk", "lost", "void")
_LENGTH = len(_FORMAT % (0, "disk"))
CLOCK_SET = 1_700_000_000.0
"""2023, Unix s: a board whose clock shows less has not synchronised it yet."""


def number_from_clock() -> int:
    """Return the time in µs: a number above every count of events that a device has made.

    A clock that is not synchronised shows the same after each start. Then the number is a random time of the year
    after `CLOCK_SET`, and a run may begin below the one before, see `agent.comms.consumer.subscribe`.
    """
    now = time.time()
    return int((now if now > CLOCK_SET else CLOCK_SET + random.uniform(0.0, _YEAR_S)) * 1e6)


class Watermark:
    """The mark and its file.

    Attributes:
        value: no number above it has been given out, as far as known.
        known: False if the file is missing or damaged.
        trusted: True if the database knew every number that was given out when the mark was written.
        stale: True if it did not, and the crash ends in it are of tracks that have ended.
    """

    def __init__(self, path: Path) -> None:
        """Read the file; a missing or damaged one counts as 0."""
        self.path = path
        self.value, self.trusted, self.known, self.stale = 0, True, False, False
        try:
            number, state = read_regular(path, _LENGTH).decode("ascii").split()
            if number.isdecimal() and state in _STATES:
                self.value, self.trusted, self.known = int(number), state == "disk", True
                self.stale = state == "void"
        except (OSError, ValueError, StorageError):
            pass

    @property
    def is_new(self) -> bool:
        """True if the file says that no number has been given out."""
        return self.known and not self.value

    def after(self) -> int:
        """Return a number above every one given out before; without a readable file it comes from the clock."""
        return self.value + 1 if self.known else number_from_clock()

    def reserve(self, seq: int) -> None:
        """Write the mark if numbers up to `seq` and some more are not below it.

        Raises:
            OSError: the disk refuses.
        """
        if self._is_near(seq):
            self._write(seq + BLOCK, self.trusted, stale=self.stale)

    def claim(self, seq: int) -> None:
        """Reserve numbers that the database will not know.

        Raises:
            OSError: the disk refuses.
        """
        if self._is_near(seq) or self.trusted:
            self._write(seq + BLOCK if self._is_near(seq) else self.value, False, stale=self.stale)

    def trust(self, trusted: bool) -> None:
        """Record whether the database knows every number from here on.

        Raises:
            OSError: the disk refuses.
        """
        if trusted != self.trusted or self.stale:
            self._write(self.value, trusted)

    def mark_stale(self) -> None:
        """Record that the database is behind, and that the tracks with crash ends in it have ended.

        Raises:
            OSError: the disk refuses.
        """
        self._write(self.value, False, stale=True)

    def renew(self, given: int) -> None:
        """Write the file again after it was deleted or replaced.

        Args:
            given: highest number that was given out.

        Raises:
            StorageError: something else lies there, such as a link. OSError: the disk refuses.
        """
        with suppress(FileNotFoundError):
            check_kind(self.path.lstat(), stat.S_IFREG, self.path)
        self._write(max(self.value, given + BLOCK), self.trusted, stale=self.stale)

    def _is_near(self, seq: int) -> bool:
        return seq > self.value - BLOCK // 2 or not self.known

    def _write(self, value: int, trusted: bool, *, stale: bool = False) -> None:
        text = (_FORMAT % (value, "disk" if trusted else "void" if stale else "lost")).encode("ascii")
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | SAFE, STATE_MODE)
        try:
            os.pwrite(descriptor, text, 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.value, self.trusted, self.known, self.stale = value, trusted, True, stale
