"""The brokers in their order: opens the one that is used, moves on when it is away, and back when it returns."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from agent.comms.broker import Broker
from agent.comms.certificate import CertificateError
from agent.comms.connection import Connection
from agent.comms.eraser import Eraser
from agent.comms.order import Order
from agent.comms.refusal import RefusedError
from agent.comms.scout import Scout
from agent.comms.sweep import Sweep
from agent.comms.wake import Wake
from agent.errors import BrokerError, ConfigError

log = logging.getLogger(__name__)

_SCOUT_S = 30.0
"""A scout that is out when the connection is lost is waited for: two of us would throw each other out."""


class Brokers:
    """For the thread that keeps the line, save for `str` of it, `where` and `is_fallback`."""

    def __init__(self, brokers: Sequence[Broker], patience_s: float) -> None:
        """Begin with the first.

        Args:
            brokers: in their order.
            patience_s: see `Order`.
        """
        self._brokers = brokers
        self._order = Order(len(brokers), patience_s, time.monotonic())
        self._scout: Scout | None = None
        self._better: tuple[int, Connection] | None = None

    def __str__(self) -> str:
        return self._current.where

    @property
    def _current(self) -> Broker:
        return self._brokers[self._order.current]

    @property
    def is_fallback(self) -> bool:
        """Whether the one that is used or tried is not the first."""
        return self._order.current > 0

    @property
    def reconnect_max_s(self) -> float:
        """Longest pause before the next attempt while the current one cannot be reached, s."""
        return self._current.reconnect_max_s

    @property
    def how(self) -> str:
        """How the current one is spoken with, and in place of which."""
        instead = f", in place of {self._brokers[0].where}" if self.is_fallback else ""
        return f"{self._current.how}{instead}"

    @property
    def sweep(self) -> Sweep:
        """Of the current one."""
        return self._current.sweep

    @property
    def eraser(self) -> Eraser:
        """Of the current one."""
        return self._current.eraser

    def open(self, wake: Wake, left: Callable[[], float]) -> Connection:
        """A connection to the current one, or to the better one that has been found.

        Args:
            wake: ends a wait of it.
            left: time for that, s.

        Raises:
            ConfigError: a file that the configuration names cannot be used.
            BrokerError: it cannot be reached, or refuses us.
        """
        if self._better is None:
            connection = self._current.open(wake, left)
            self._order.worked(time.monotonic())
            return connection
        number, connection = self._better
        self._better = None
        connection.wake_by(wake)
        self._order.moved(number, time.monotonic())
        return connection

    def failed(self, error: BrokerError | ConfigError) -> bool:
        """The current one could not be opened; whether to try the next now."""
        hopeless = isinstance(error, RefusedError | CertificateError | ConfigError)
        return self._order.failed(time.monotonic(), at_once=hopeless)

    def said(self, error: BrokerError | ConfigError) -> str:
        """What such an error is to a user."""
        return self._current.said(error)

    def lost(self, connection: Connection) -> bool:
        """The connection to the current one is lost; whether to try another now."""
        self._current.ended(connection)
        return self._order.lost(time.monotonic())

    def is_better_there(self) -> bool:
        """Whether one before the current one is back. Looks for it when it is time to."""
        if self._better is None and self._scout is None and self._order.is_look_due(time.monotonic()):
            self._scout = Scout(self._brokers[: self._order.current])
        if self._scout is not None and self._scout.is_back:
            self._recall(0.0)
        return self._better is not None

    def moves(self, left_s: float) -> bool:
        """Whether a better one takes over now that a connection has ended. Waits for a look that is under way."""
        if self._scout is not None:
            self._recall(min(_SCOUT_S, left_s))
        if self._better is None:
            return False
        log.info("broker %s is back: leaving %s", self._brokers[self._better[0]].where, self)
        return True

    def _recall(self, timeout_s: float) -> None:
        assert self._scout is not None
        self._better, self._scout = self._scout.found(timeout_s), None
        if self._better is None:
            self._order.looked(time.monotonic())

    def close(self) -> None:
        """Leave what has been found and not used."""
        if self._scout is not None:
            self._recall(0.0)
        if self._better is not None:
            wake = Wake()
            self._better[1].wake_by(wake)
            self._better[1].farewell(0.1)
            wake.close()
