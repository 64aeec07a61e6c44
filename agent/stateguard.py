"""Notices that the state folder was deleted or replaced under the daemon, and has it written anew."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from agent.errors import StorageError
from agent.storage.durable import OwnedFolder
from agent.storage.spool import Spool

log = logging.getLogger(__name__)

_RETRY_S, _LONGEST = 2.0, 8
"""Time between the first two attempts to write the folder anew, s. It doubles, up to so many times as long."""


class StateGuard:
    """For the daemon's thread. A look costs a few microseconds.

    Attributes:
        trouble: why nothing may be written to the folder now; empty: it may be written.
    """

    def __init__(self, folder: OwnedFolder, spool: Spool, write_anew: Callable[[], None]) -> None:
        """Prepare.

        Args:
            folder: the state folder.
            spool: in it.
            write_anew: writes all other files of the folder again.
        """
        self._folder, self._spool, self._write_anew = folder, spool, write_anew
        self._since: float | None = None
        self._retry_at, self._pause = 0.0, 1
        self._told = self.trouble = ""

    def look(self) -> str:
        """Look at the folder, and write it anew where it is gone; what is to be told of it, empty: nothing."""
        is_gone = self._folder.is_gone
        if is_gone or self._spool.is_gone:
            if self._since is None:
                self._begin()
            if time.monotonic() >= self._retry_at:
                self._retry_at = time.monotonic() + _RETRY_S * self._pause
                self._pause = min(2 * self._pause, _LONGEST)
                self._mend(is_gone=is_gone)
        elif self._since is not None:
            self._end(time.monotonic() - self._since)
        return self._told

    def _begin(self) -> None:
        self._since = time.monotonic()
        self._told = f"{self._folder.path} was deleted or replaced at {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        log.error(
            "%s was deleted or replaced while Vedette runs; what is known is written anew, and clips that lay "
            "there are gone; to delete the state, stop Vedette first",
            self._folder.path,
        )

    def _mend(self, *, is_gone: bool) -> None:
        try:
            if is_gone:
                self._folder.renew()
        except StorageError as error:
            self._spool.detach()
            self.trouble = str(error)
            self._tell(self.trouble)
        else:
            self.trouble = ""
            self._spool.attach()
            self._write_anew()

    def _tell(self, why: str) -> None:
        """Say once why it cannot be written."""
        if why not in self._told:
            log.error("%s: what is not delivered, and what commands set, is lost at the next restart", why)
            self._told = f"{self._told.partition(';')[0]}; {why}"

    def _end(self, seconds: float) -> None:
        self._since, self._retry_at, self._pause = None, 0.0, 1
        self._told = f"{self._told.partition(';')[0]}; it was written anew"
        log.warning("%s was written anew after %.0f s", self._folder.path, seconds)
