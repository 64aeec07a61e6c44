"""The configured brokers: which MQTT each speaks, when to use the next, and when to return to the first."""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import Callable, Sequence
from typing import Literal

from agent.comms.mqtt.connection import TIMINGS, Connection, ConnectionTimings, WakeupPipe
from agent.comms.mqtt.endpoint import port, shown_host, uses_tls
from agent.comms.mqtt.paho_client import Protocol, Will
from agent.comms.mqtt.reasons import (
    UNSUPPORTED_PROTOCOL,
    CertificateError,
    RefusedError,
    Synchronised,
    UnansweredError,
)
from agent.config.mqtt import MqttConfig
from agent.config.source_uri import is_local
from agent.errors import BrokerError, ConfigError

log = logging.getLogger(__name__)

_UNANSWERED_MAX = 2
"""Unanswered connections before the other version: an old broker ends them, but so does one that just starts."""


class ProtocolChoice:
    """Chooses the version of MQTT: 5 if the broker speaks it, else 3.1.1.

    Attributes:
        current: version to try next.
    """

    def __init__(self, configured: Literal["auto", "5", "3.1.1"], timings: ConnectionTimings = TIMINGS) -> None:
        self.current: Protocol = "5" if configured == "auto" else configured
        self._is_open, self._timings = configured == "auto", timings
        self._is_proven, self._unanswered = False, 0

    @property
    def patience_s(self) -> float:
        is_guess = self._is_open and not self._is_proven and self.current == "5"
        return self._timings.first_answer_s if is_guess else self._timings.answer_s

    def worked(self) -> None:
        """Record that the broker speaks the version. From now on only an explicit refusal changes it."""
        self._is_proven, self._unanswered = True, 0

    def failed(self, error: Exception) -> bool:
        """Record a failure. Return True to try the other version at once."""
        if not self._is_open:
            return False
        if isinstance(error, RefusedError) and error.code == UNSUPPORTED_PROTOCOL:
            self._switch()
            return self.current == "3.1.1"
        if isinstance(error, UnansweredError) and not self._is_proven:
            self._unanswered += _UNANSWERED_MAX if error.silent else 1
            if self._unanswered >= _UNANSWERED_MAX:
                self._switch()
                return self.current == "3.1.1"
        return False

    def _switch(self) -> None:
        self.current = "3.1.1" if self.current == "5" else "5"
        self._is_proven, self._unanswered = False, 0


RECONNECT_FIRST_S, RECONNECT_MAX_S, _LOCAL_MAX_S = 1.0, 60.0, 5.0
"""First and longest pauses between two attempts, s; the longest where the configuration does not say."""
_PROBE_S = 2.0


def address(config: MqttConfig) -> str:
    """Return `host:port`."""
    return f"{shown_host(config.host)}:{port(config)}"


class BrokerEndpoint:
    """One broker, and the version of MQTT that it speaks. For one thread at a time.

    Attributes:
        where: `host:port`.
    """

    def __init__(
        self,
        config: MqttConfig,
        client_id: str,
        will: Will,
        synchronised: Synchronised,
        timings: ConnectionTimings = TIMINGS,
    ) -> None:
        self.where = address(config)
        self._config, self._client_id, self._will = config, client_id, will
        self._synchronised, self._timings = synchronised, timings
        self._protocol = ProtocolChoice(config.protocol, timings)

    def open(self, wake: WakeupPipe, left: Callable[[], float]) -> Connection:
        """Return a connection that the broker has accepted. `wake` and `left` are as in `Connection.open`.

        Raises:
            ConfigError: a file that the configuration names cannot be used.
            BrokerError: the broker cannot be reached, or refuses the connection.
        """
        while True:
            current = self._protocol.current
            connection = Connection(self._config, self._client_id, current, self._will, self._timings)
            try:
                connection.open(wake, left, self._protocol.patience_s, self._synchronised)
            except BrokerError as error:
                if not self._protocol.failed(error):
                    raise
            else:
                self._protocol.worked()
                return connection

    @property
    def reconnect_max_s(self) -> float:
        """Longest pause between two attempts while the broker cannot be reached, s.

        If it is not configured, it is short for a broker of the local network, which few devices share and which
        may be back any moment.
        """
        if self._config.reconnect_max_s is not None:
            return self._config.reconnect_max_s
        return _LOCAL_MAX_S if is_local(self._config.host) else RECONNECT_MAX_S

    @property
    def how(self) -> str:
        """Protocol, encryption and user."""
        web = " over WebSocket" if self._config.transport == "websockets" else ""
        tls = " and TLS" if uses_tls(self._config) else ""
        user = f" as user {self._config.username!r}" if self._config.username else ""
        return f"MQTT {self._protocol.current}{web}{tls}{user}"

    def answers(self) -> bool:
        """Return True if the broker accepts a TCP connection."""
        try:
            with socket.create_connection((self._config.host, port(self._config)), timeout=_PROBE_S):
                return True
        except (OSError, ValueError):
            return False

    def describe(self, error: Exception) -> str:
        if not isinstance(error, RefusedError):
            return str(error)
        user = f"user {self._config.username!r}" if self._config.username else "this client (no user name is set)"
        return f"refuses {user}: {error}"


_STABLE_S = 10.0
"""A shorter connection counts as a failure to connect, s."""


class FailoverPolicy:
    """Decides which of several brokers is next, without I/O. Times are of a monotonic clock, s.

    Subscribers expect the device at the first broker. So the first is given a while to come back before the next
    is tried, and it is tried again at each reconnect and at intervals.

    Attributes:
        current: number of the broker that is used or tried; 0 is the first.
    """

    def __init__(
        self, count: int, patience_s: float, now: float, return_every_s: float = TIMINGS.return_every_s
    ) -> None:
        self._count, self._patience_s, self._return_every_s = count, patience_s, return_every_s
        self._down_since = now
        self._connected_at, self._return_at = now, math.inf
        self.current = 0

    def failed(self, now: float, *, at_once: bool = False) -> bool:
        """Record that the current broker could not be reached. Return True to try another without a pause.

        With `at_once`, do not wait for the first broker to come back: it refuses this device.
        """
        self._return_at = math.inf
        waits_for_first = self.current == 0 and not at_once and now - self._down_since < self._patience_s
        if self._count == 1 or waits_for_first:
            return False
        self.current = (self.current + 1) % self._count
        return self.current != 0

    def connected(self, now: float) -> None:
        self._connected_at = now
        self.postpone_return(now)

    def lost(self, now: float) -> bool:
        """Record that the connection is lost. Return as `failed` does."""
        if now - self._connected_at < _STABLE_S:
            return self.failed(now, at_once=self.current > 0)
        self._down_since = -math.inf if self.current else now
        self.current, self._return_at = 0, math.inf
        return False

    def is_return_due(self, now: float) -> bool:
        """Return True if the first broker is to be tried although a fallback is connected."""
        return now >= self._return_at

    def postpone_return(self, now: float) -> None:
        """Try the first broker an interval later."""
        self._return_at = now + self._return_every_s if self.current else math.inf

    def return_to_first(self) -> None:
        """Make the first broker the current one; if it fails, the next is tried without patience."""
        self.current, self._down_since, self._return_at = 0, -math.inf, math.inf


class BrokerFailover:
    """The brokers in their order. For the connection's thread, except `str` and `is_fallback`."""

    def __init__(
        self,
        brokers: Sequence[BrokerEndpoint],
        patience_s: float,
        return_every_s: float = TIMINGS.return_every_s,
    ) -> None:
        self._brokers = brokers
        self._policy = FailoverPolicy(len(brokers), patience_s, time.monotonic(), return_every_s)

    def __str__(self) -> str:
        return self.current.where

    @property
    def current(self) -> BrokerEndpoint:
        """Broker that is used or tried."""
        return self._brokers[self._policy.current]

    @property
    def is_fallback(self) -> bool:
        return self._policy.current > 0

    @property
    def how(self) -> str:
        """Protocol, encryption and user of the current broker, and in place of which it is used."""
        instead = f", in place of {self._brokers[0].where}" if self.is_fallback else ""
        return f"{self.current.how}{instead}"

    def open(self, wake: WakeupPipe, left: Callable[[], float]) -> Connection:
        connection = self.current.open(wake, left)
        self._policy.connected(time.monotonic())
        return connection

    def failed(self, error: BrokerError | ConfigError) -> bool:
        """Record that the current broker could not be opened. Return True to try the next now."""
        hopeless = isinstance(error, RefusedError | CertificateError | ConfigError)
        return self._policy.failed(time.monotonic(), at_once=hopeless)

    def lost(self) -> bool:
        """Record that the connection to the current broker is lost. Return True to try another now."""
        return self._policy.lost(time.monotonic())

    def should_return(self) -> bool:
        """Return True to leave the fallback for the first broker, which is probed when that is due."""
        if not self._policy.is_return_due(time.monotonic()):
            return False
        if self._brokers[0].answers():
            log.info("broker %s answers again: leaving %s", self._brokers[0].where, self)
            self._policy.return_to_first()
            return True
        self._policy.postpone_return(time.monotonic())
        return False
