"""Events that go without having been delivered: told once when it begins, and once when it is over."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from agent.storage.batch import Reason

log = logging.getLogger(__name__)

_QUIET_S = 600.0
"""Nothing dropped for so long: it is over."""
_WORDS: dict[Reason, str] = {
    "bytes": "it is full (spool_max_bytes): the oldest events are dropped for each new one",
    "age": "events have waited for longer than spool_max_age_s and are dropped",
}


class Drops:
    """The log's side of it, by the counts as they stand."""

    def __init__(self, known: Mapping[Reason, int]) -> None:
        """Begin with what runs before have dropped."""
        self._known = dict(known)
        self._before: dict[Reason, int] = {}
        self._since: dict[Reason, float] = {}
        self._last: dict[Reason, float] = {}

    def look(self, counts: Mapping[Reason, int], *, final: bool = False) -> None:
        """Tell what has begun or is over.

        Args:
            counts: of drops, ever.
            final: there will be no other look.
        """
        now = time.monotonic()
        for reason, words in _WORDS.items():
            count, known = counts.get(reason, 0), self._known.get(reason, 0)
            if count > known:
                self._known[reason], self._last[reason] = count, now
                if reason not in self._since:
                    self._since[reason], self._before[reason] = now, known
                    log.warning("spool: %s", words)
            if reason in self._since and (final or now - self._last[reason] > _QUIET_S):
                seconds = self._last[reason] - self._since.pop(reason)
                log.warning(
                    "spool: %d events were dropped in %.0f s (%s)", count - self._before[reason], seconds, reason
                )
