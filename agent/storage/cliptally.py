"""The tally of clips: how many were saved and how many not, and whether any can be, told when that changes."""

from __future__ import annotations

import logging
import time

from msgspec import Struct

log = logging.getLogger(__name__)


class ClipStats(Struct, frozen=True):
    """How the clips of a device are doing.

    Attributes:
        saved, failed: since the start; what is being recorded is neither yet.
        deleted: clips that had to go since the start, too old or for room.
        kept, bytes: clips on the disk, as of the last look, and what they take.
        trouble: why none can be saved; empty: as far as is known, they can.
    """

    saved: int
    failed: int
    deleted: int
    kept: int
    bytes: int
    trouble: str


class ClipTally:
    """For the recorder's thread; its attributes may be read by any.

    Attributes:
        saved, failed: since the start.
        trouble: why none can be saved; empty: the last one could.
    """

    def __init__(self) -> None:
        self.saved = self.failed = 0
        self.trouble = ""
        self._began_s, self._failed_before = 0.0, 0

    def lose(self, why: str = "") -> None:
        """A clip is none.

        Args:
            why: by the disk's fault; empty: by another.
        """
        if why:
            self.fail(why)
        self.failed += 1

    def fail(self, why: str) -> None:
        """Clips cannot be saved."""
        if not self.trouble:
            self.trouble, self._began_s, self._failed_before = why, time.monotonic(), self.failed
            log.error("clips cannot be saved, and are dropped until they can: %s", why)

    def save(self) -> None:
        """One is saved: so they can be."""
        self.saved += 1
        if self.trouble:
            self.trouble = ""
            seconds, lost = time.monotonic() - self._began_s, self.failed - self._failed_before
            log.info("clips are saved again after %.0f s; %d were dropped", seconds, lost)
