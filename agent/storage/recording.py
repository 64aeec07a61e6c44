"""A clip that is being made: from when to when, and how much of that is written."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from agent.clips import Occasion, Picture
from agent.storage.clipfile import ClipFile
from agent.storage.footage import Footage

_PIECE = 1024 * 1024
"""Bytes that are worth a write; fewer wait."""
_WAIT_S = 2.0
"""They wait no longer than this: what is not written is lost in a crash."""
_SYNC_S = 5.0
"""A power cut costs no more than this of a clip."""
_GRACE_NS = 2_000_000_000
"""A picture may come so late."""


class Recording:
    """See the module. Its stream's thread moves its end, the recorder does the rest.

    Attributes:
        path: that it will have.
        occasion: what it is made for.
        footage: that it is made of.
        tracks: ids of the tracks in it that it was made for.
        next_ns: capture of the first picture that is not written yet, at the earliest, ns.
        file: None: nothing is written yet.
        over: nothing more comes into it.
    """

    def __init__(self, path: Path, occasion: Occasion, footage: Footage, from_ns: int, until_ns: int) -> None:
        self.path, self.occasion, self.footage = path, occasion, footage
        self.tracks: tuple[str, ...] = ()
        self.next_ns, self._until_ns = from_ns, until_ns
        self.file: ClipFile | None = None
        self.over = self._ended = False
        self._lock = threading.Lock()
        self._lost_before = footage.lost
        self._wrote_s = self._synced_s = time.monotonic()

    def end(self) -> None:
        """It is over with what there is now."""
        self._ended = True

    def move_end(self, until_ns: int) -> bool:
        """It is over then; False: it was over before that."""
        with self._lock:
            self._until_ns = until_ns
            return not self.over

    def look(self) -> bool:
        """Whether it is over: by its pictures, or when none comes any more, by the time."""
        footage = self.footage
        with self._lock:
            if not self.over:
                late = footage.now_ns() > self._until_ns + _GRACE_NS or (footage.newest_ns < 0 and self._is_stale)
                self.over = self._ended or footage.newest_ns > self._until_ns or late
            return self.over

    @property
    def _is_stale(self) -> bool:
        return time.monotonic() - self._wrote_s > (self._until_ns - self.next_ns + _GRACE_NS) / 1e9

    @property
    def bytes(self) -> int:
        """Written so far."""
        return self.file.bytes if self.file else 0

    @property
    def lost(self) -> int:
        """Pictures that were gone before they could be written."""
        return self.footage.lost - self._lost_before

    def pictures(self) -> list[Picture]:
        """Those that are to be written."""
        return self.footage.between(self.next_ns, self._until_ns)

    def is_due(self, pictures: Sequence[Picture]) -> bool:
        """Whether it is time to write these."""
        waited_s = time.monotonic() - self._wrote_s
        return waited_s >= _WAIT_S or sum(len(picture.jpeg) for picture in pictures) >= _PIECE

    def write(self, file: ClipFile, pictures: Sequence[Picture]) -> bool:
        """Write pictures; False when one is of another size, and the clip over before that.

        Raises:
            OSError: the disk refuses.
        """
        fitting = list(takewhile(file.fits, pictures))
        now = self._wrote_s = time.monotonic()
        file.append(fitting)
        self.next_ns = pictures[-1].captured_ns + 1
        if now - self._synced_s >= _SYNC_S:
            file.sync()
            self._synced_s = time.monotonic()
        return len(fitting) == len(pictures)
