"""Says when the broker is lost and when it is back: once each, with the length."""

from __future__ import annotations

import logging
import time

from agent.comms.reasons import TAKEN_OVER, in_words

log = logging.getLogger(__name__)

_STABLE_S = 10.0
"""A connection that lasts so long was a real one."""
_FLAPPING = 2
"""So many short ones in a row are one outage, and being back is only believed after `_STABLE_S`."""
_MOST_SAID = 20
"""Reasons in one outage: a broker may give each time another."""
_TAKEN_OVER = in_words(TAKEN_OVER)


class Outage:
    """The state of the line, for the log and for people.

    Attributes:
        connected: whether a broker has accepted us.
        detail: why not, or to whom.
        connects: how often one has.
        trouble: where and why the line was lost last, or why there has been none yet; empty: never.
    """

    def __init__(self, where: object, client_id: str) -> None:
        """Begin without a connection.

        Args:
            where: the broker that is used or tried, for messages.
            client_id: who we are there.
        """
        self._where, self._client_id = where, client_id
        self.connected, self.detail = False, "connecting"
        self.connects, self.trouble = 0, ""
        self._since = time.monotonic()  # of the outage
        self._is_heard = False
        self._connected_at = 0.0
        self._said: set[str] = set()
        self._short, self._is_taken_over = 0, False
        self._unsaid = ""

    @property
    def is_flapping(self) -> bool:
        """Whether connections do not last."""
        return self._short >= _FLAPPING

    def lost(self, reason: str, *, refused: bool = False) -> None:
        """The connection broke, or none came about.

        Args:
            reason: in plain words.
            refused: by the broker: somebody has to do something about it, so it is said also when
                the outage began for another reason.
        """
        said = f"{self._where}: {reason}"
        if self.connected:
            self._ended(reason)
        if self.connected or not self.connects:
            self.trouble = said
        self.connected, self.detail, self._unsaid = False, reason, ""
        is_news = refused and said not in self._said and len(self._said) < _MOST_SAID
        if not self._said or is_news:
            log.warning("broker %s; events wait in the spool, trying again", said)
        if len(self._said) < _MOST_SAID:
            self._said.add(said)

    def _ended(self, reason: str) -> None:
        now = time.monotonic()
        if not self._unsaid:
            self._since = now
        self._short = self._short + 1 if now - self._connected_at < _STABLE_S else 0
        if reason.startswith(_TAKEN_OVER):
            self._short, self._is_taken_over = max(self._short, _FLAPPING), True
        elif self._short == _FLAPPING + 1 and self._is_heard and not self._is_taken_over:
            self._suspect()

    def _suspect(self) -> None:
        log.warning(
            "broker %s: connections end right after they are made; does another device use the client id %s?",
            self._where,
            self._client_id,
        )

    def over(self, how: str) -> None:
        """The broker has accepted us. That it is back is believed, and said, when it acknowledges something.

        Args:
            how: protocol and user.
        """
        self.connected, self.detail, self._connected_at = True, how, time.monotonic()
        self.connects += 1
        self._unsaid, self._is_heard = how, False

    def heard(self) -> None:
        """It has acknowledged something."""
        self._is_heard = True
        if self._unsaid and self._short < _FLAPPING:
            self._say()

    def silent(self, for_s: float) -> None:
        """It has accepted us, and acknowledges nothing.

        Args:
            for_s: since when, s.
        """
        if self._said:
            return  # of one outage with another
        self._since, self._unsaid = time.monotonic() - for_s, self.detail
        self._said.add("silent")
        log.warning(
            "broker %s has acknowledged nothing for %.0f s: it or the network is stuck; events wait in the spool",
            self._where,
            for_s,
        )

    def settled(self) -> None:
        """To be called now and then while the connection lasts."""
        if self._unsaid and self._is_heard and time.monotonic() - self._connected_at >= _STABLE_S:
            self._short = 0
            self._say()

    def _say(self) -> None:
        how, self._unsaid = self._unsaid, ""
        if self._said:
            log.info("broker %s: back after %.1f s, %s", self._where, time.monotonic() - self._since, how)
        else:
            log.info("broker %s: connected, %s", self._where, how)
        self._said, self._is_taken_over = set(), False

    def leave(self) -> None:
        """We left: no outage."""
        self.connected, self.detail = False, "stopped"
