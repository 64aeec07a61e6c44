"""The brokers in their order: opens the one that is used, moves on when it is away, and back when it returns."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal

from agent.comms.mqtt.connection import Connection, WakeupPipe
from agent.comms.mqtt.endpoint import shown_host
from agent.comms.mqtt.paho_client import Protocol, Will
from agent.comms.mqtt.reasons import UNSUPPORTED_PROTOCOL, RefusedError, UnansweredError
from agent.comms.mqtt.tls import CertificateError, Synchronised, port, uses_tls
from agent.config.device import MqttConfig
from agent.config.source_uri import is_local
from agent.errors import BrokerError, ConfigError

# Which version of MQTT to speak: 5 where the broker does, else 3.1.1.

_PATIENCE = 2
"""An old broker may end the connection without an answer; but so does one that is just starting."""
_ANSWER_S, _FIRST_ANSWER_S = 10.0, 3.0
"""For an answer; the second while 3.1.1 is still to be tried: some old brokers, amqtt for one, keep silent."""


class ProtocolChoice:
    """The version to try next.

    Attributes:
        current: it.
    """

    def __init__(self, configured: Literal["auto", "5", "3.1.1"]) -> None:
        self.current: Protocol = "5" if configured == "auto" else configured
        self._is_open = configured == "auto"
        self._is_proven, self._unanswered = False, 0

    @property
    def patience_s(self) -> float:
        """How long to wait for the broker's answer, s."""
        is_guess = self._is_open and not self._is_proven and self.current == "5"
        return _FIRST_ANSWER_S if is_guess else _ANSWER_S

    def worked(self) -> None:
        """The broker speaks it. From now on only its explicit word changes that."""
        self._is_proven, self._unanswered = True, 0

    def failed(self, error: Exception) -> bool:
        """Learn from a failure; whether to try the other version at once."""
        if not self._is_open:
            return False
        if isinstance(error, RefusedError) and error.code == UNSUPPORTED_PROTOCOL:
            self._switch()
            return self.current == "3.1.1"
        if isinstance(error, UnansweredError) and not self._is_proven:
            self._unanswered += _PATIENCE if error.silent else 1
            if self._unanswered >= _PATIENCE:
                self._switch()
                return self.current == "3.1.1"
        return False

    def _switch(self) -> None:
        self.current = "3.1.1" if self.current == "5" else "5"
        self._is_proven, self._unanswered = False, 0


# One of the brokers: where it is, which MQTT it speaks, how it is reached, and how it is spoken of.

RECONNECT_MAX_S, _LOCAL_MAX_S = 60.0, 5.0
"""Longest pauses between two attempts, s, where the configuration does not say."""


def address(config: MqttConfig) -> str:
    """`host:port`."""
    return f"{shown_host(config.host)}:{port(config)}"


class BrokerEndpoint:
    """It, and what has been learned of it. Used by one thread at a time.

    Attributes:
        where: `host:port`.
    """

    def __init__(
        self,
        config: MqttConfig,
        client_id: str,
        will: Will,
        synchronised: Synchronised,
    ) -> None:
        """Prepare.

        Args:
            config: of this one.
            client_id: who we are.
            will: topic and payload that it retains when we vanish.
            synchronised: see there.
        """
        self.where = address(config)
        self._config, self._client_id, self._will, self._synchronised = config, client_id, will, synchronised
        self._protocol = ProtocolChoice(config.protocol)

    def open(self, wake: WakeupPipe, left: Callable[[], float]) -> Connection:
        """A connection that it has accepted.

        Args:
            wake: ends a wait of it.
            left: time for that, s.

        Raises:
            ConfigError: a file that the configuration names cannot be used.
            BrokerError: it cannot be reached, or refuses us.
        """
        while True:
            current = self._protocol.current
            connection = Connection(self._config, self._client_id, current, self._will)
            try:
                connection.open(wake, left(), self._protocol.patience_s, self._synchronised)
            except BrokerError as error:
                if not self._protocol.failed(error):
                    raise
            else:
                self._protocol.worked()
                return connection

    @property
    def reconnect_max_s(self) -> float:
        """Longest pause between two attempts while it cannot be reached, s.

        As configured; else short for a broker of the local network, which few devices share and which may be back
        any moment.
        """
        if self._config.reconnect_max_s is not None:
            return self._config.reconnect_max_s
        return _LOCAL_MAX_S if is_local(self._config.host) else RECONNECT_MAX_S

    @property
    def how(self) -> str:
        """How it is spoken with."""
        web = " over WebSocket" if self._config.transport == "websockets" else ""
        tls = " and TLS" if uses_tls(self._config) else ""
        user = f" as user {self._config.username!r}" if self._config.username else ""
        return f"MQTT {self._protocol.current}{web}{tls}{user}"

    def said(self, error: Exception) -> str:
        """What an error is to a user."""
        if not isinstance(error, RefusedError):
            return str(error)
        user = f"user {self._config.username!r}" if self._config.username else "us (no user name is set)"
        return f"refuses {user}: {error}"


# Which of several brokers is next: rules without I/O. Times are of a monotonic clock, s.
#
# The first is the one that subscribers expect us at. So it is given a while to come back before the next is
# tried, and from the others a look is taken from time to time whether it is back. One that comes back and does
# not stay is looked for more and more rarely: moving to and fro delays events and helps nobody.

_STABLE_S = 10.0
"""A connection that lasts so long was a real one."""
_PROVEN_S = 600.0
"""A broker that stays so long after it came back is not restless."""
LOOK_FIRST_S, _LOOK_LAST_S = 60.0, 3600.0
"""Between two looks for a better one."""


class FailoverPolicy:
    """The place in the order.

    Attributes:
        current: number of the broker that is used or tried now; 0 is the preferred one.
    """

    def __init__(self, count: int, patience_s: float, now: float) -> None:
        """Begin with the first.

        Args:
            count: of brokers.
            patience_s: for the first, when it cannot be reached.
            now: the time.
        """
        self._count, self._patience_s, self._down_since = count, patience_s, now
        self._connected_at, self._look_s, self._look_at = now, LOOK_FIRST_S, math.inf
        self.current = 0

    def failed(self, now: float, *, at_once: bool = False) -> bool:
        """The current one could not be reached; whether to try another now, else after a pause.

        Args:
            now: the time.
            at_once: waiting for it is no use.
        """
        self._look_at = math.inf
        is_given_time = self.current == 0 and not at_once and now - self._down_since < self._patience_s
        if self._count == 1 or is_given_time:
            return False
        self.current = (self.current + 1) % self._count
        return self.current != 0

    def worked(self, now: float) -> None:
        """The current one has accepted us."""
        self._connected_at = now
        self._look_at = now + self._look_s if self.current else math.inf

    def lost(self, now: float) -> bool:
        """The connection to the current one is lost; whether to try another now, else after a pause."""
        lasted, self._look_at = now - self._connected_at, math.inf
        if self.current == 0 and lasted >= _PROVEN_S:
            self._look_s = LOOK_FIRST_S
        if lasted < _STABLE_S:
            return self.failed(now, at_once=self.current > 0)
        self._down_since = -math.inf if self.current else now
        self.current = 0
        return False

    def is_look_due(self, now: float) -> bool:
        """Whether to look for a better one."""
        return now >= self._look_at

    def looked(self, now: float) -> None:
        """None of the better ones is back."""
        self._look_at = now + self._look_s

    def moved(self, to: int, now: float) -> None:
        """A better one has accepted us. If it goes again soon, it is given more time the next time."""
        self.current = to
        self._look_s = min(_LOOK_LAST_S, self._look_s * 2)
        self.worked(now)


# The scout: looks, while a fallback is in use, whether a broker before it is back. Events go on meanwhile.
#
# It knocks with our own client id, since a broker may let no other in, and its connection is the one that is
# moved to.

log = logging.getLogger(__name__)

_LOOK_S = 15.0
"""For each broker, at most."""


class PreferredBrokerProbe:
    """One look. For the thread that keeps the line; the looking is done in a thread of its own."""

    def __init__(self, brokers: Sequence[BrokerEndpoint]) -> None:
        """Begin to look whether one of these is there; the first that is counts."""
        self._brokers = brokers
        self._found: tuple[int, Connection] | None = None
        self._lock, self._is_given_up = threading.Lock(), False
        self._thread = threading.Thread(target=self._look, name="mqtt-scout", daemon=True)
        self._thread.start()

    @property
    def is_back(self) -> bool:
        """Whether it has looked."""
        return not self._thread.is_alive()

    def found(self, timeout_s: float) -> tuple[int, Connection] | None:
        """Number of the broker that has accepted us, if one has. What is found later, it gives back by itself.

        Args:
            timeout_s: for the look to end, at most.
        """
        self._thread.join(timeout_s)
        with self._lock:
            self._is_given_up = True
            return self._found

    def _look(self) -> None:
        for number, broker in enumerate(self._brokers):
            wake = WakeupPipe()
            try:
                connection = broker.open(wake, lambda: _LOOK_S)
                with self._lock:
                    if not self._is_given_up:
                        self._found = number, connection
                        return
                connection.farewell(1.0)
                return
            except (BrokerError, ConfigError):
                continue
            except Exception:
                log.exception("mqtt: a defect in Vedette; going on without a look at %s", broker.where)
            finally:
                wake.close()


_SCOUT_S = 30.0
"""A scout that is out when the connection is lost is waited for: two of us would throw each other out."""


class BrokerFailover:
    """For the thread that keeps the line, save for `str` of it, `where` and `is_fallback`."""

    def __init__(self, brokers: Sequence[BrokerEndpoint], patience_s: float) -> None:
        """Begin with the first.

        Args:
            brokers: in their order.
            patience_s: see `FailoverPolicy`.
        """
        self._brokers = brokers
        self._order = FailoverPolicy(len(brokers), patience_s, time.monotonic())
        self._scout: PreferredBrokerProbe | None = None
        self._better: tuple[int, Connection] | None = None

    def __str__(self) -> str:
        return self._current.where

    @property
    def _current(self) -> BrokerEndpoint:
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
    def number(self) -> int:
        """Number of the one that is used or tried, from 0."""
        return self._order.current

    def open(self, wake: WakeupPipe, left: Callable[[], float]) -> Connection:
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

    def lost(self) -> bool:
        """The connection to the current one is lost; whether to try another now."""
        return self._order.lost(time.monotonic())

    def is_better_there(self) -> bool:
        """Whether one before the current one is back. Looks for it when it is time to."""
        if self._better is None and self._scout is None and self._order.is_look_due(time.monotonic()):
            self._scout = PreferredBrokerProbe(self._brokers[: self._order.current])
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
            wake = WakeupPipe()
            self._better[1].wake_by(wake)
            self._better[1].farewell(0.1)
            wake.close()
