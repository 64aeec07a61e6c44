"""The broker as the publisher uses it: the version of MQTT that it speaks, and outages, which are logged."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from msgspec import Struct

from agent.comms.mqtt import endpoint
from agent.comms.mqtt.connection import TIMINGS, Connection, ConnectionTimings, Protocol, WakeupPipe, Will
from agent.comms.mqtt.endpoint import RefusedError, UnansweredError
from agent.config.servers import MqttConfig
from agent.config.source_uri import is_local
from agent.errors import BrokerError

log = logging.getLogger(__name__)

RECONNECT_MAX_S, _LOCAL_MAX_S = 60.0, 5.0
"""Longest pauses between two attempts, where the configuration does not say, s: the second while a broker of the
local network is away."""
_UNANSWERED_MAX = 2
"""Unanswered connections before the other version: of an old broker, but also of one that just starts."""


class BrokerEndpoint:
    """A broker, and the version of MQTT that it speaks: 5, else 3.1.1. For one thread at a time.

    Attributes:
        where: `host:port`.
        protocol: version that is tried next; from the first that worked, only an explicit refusal changes it.
    """

    def __init__(
        self, config: MqttConfig, client_id: str, will: Will, timings: ConnectionTimings = TIMINGS
    ) -> None:
        self.where = endpoint.address(config)
        self._config, self._client_id, self._will, self._timings = config, client_id, will, timings
        self.protocol: Protocol = "5" if config.protocol == "auto" else config.protocol
        self._is_proven, self._unanswered = config.protocol != "auto", 0

    def open(self, wake: WakeupPipe, left: Callable[[], float]) -> Connection:
        """Return a connection that the broker has accepted. `wake` and `left` are as in `Connection.open`.

        Raises:
            ConfigError: a file that the configuration names cannot be used.
            BrokerError: the broker cannot be reached, or refuses the connection.
        """
        while True:
            is_guess = self.protocol == "5" and not self._is_proven
            connection = Connection(self._config, self._client_id, self.protocol, self._will, self._timings)
            try:
                connection.open(wake, left, self._timings.first_answer_s if is_guess else self._timings.answer_s)
            except BrokerError as error:
                if not self.speaks_another(error) or self.protocol == "5":
                    raise
            else:
                self._is_proven, self._unanswered = True, 0
                return connection

    def speaks_another(self, error: BrokerError) -> bool:
        """Record a failure. Return True if the other version of MQTT is the one to try now."""
        if isinstance(error, UnansweredError) and not self._is_proven:
            self._unanswered += 1
        is_refused = isinstance(error, RefusedError) and error.code == endpoint.UNSUPPORTED_PROTOCOL
        if self._config.protocol != "auto" or not (is_refused or self._unanswered >= _UNANSWERED_MAX):
            return False
        self.protocol = "3.1.1" if self.protocol == "5" else "5"
        self._is_proven, self._unanswered = False, 0
        return True

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
        tls = " and TLS" if endpoint.uses_tls(self._config) else ""
        user = f" as user {self._config.username!r}" if self._config.username else ""
        return f"MQTT {self.protocol}{web}{tls}{user}"

    def describe(self, error: Exception) -> str:
        """Return why the broker cannot be used, with the user that it refuses."""
        if not (isinstance(error, RefusedError) and error.code):
            return str(error)
        user = f"user {self._config.username!r}" if self._config.username else "this client (no user name is set)"
        return f"refuses {user}: {error}"


_STABLE_S = 10.0
"""A connection that lasts so long ends an outage of shorter ones."""
_FLAPPING = 2
"""So many short connections in a row are one outage; one that the broker ends with a reason counts twice."""


class LinkLoad(Struct, frozen=True, gc=False):
    """How busy the connection to the broker is.

    Attributes:
        connected: whether there is one.
        unsent_bytes: of messages that wait for the network, 0 while it takes all at once.
        oldest_s: age of the oldest event that was sent and is not acknowledged, s.
    """

    connected: bool = False
    unsent_bytes: int = 0
    oldest_s: float = 0.0


class LinkState(Struct, frozen=True):
    """How the connection to the broker is.

    Attributes:
        connected: True if the broker has accepted the connection.
        detail: protocol and user of the connection, or why there is none.
        broker: its `host:port`.
        connects: how often the broker has accepted a connection, since the start.
        trouble: where and why the connection was lost last; empty: never.
        sent, acknowledged: events, since the start.
        dropped_samples: messages at QoS 0 that were not sent.
    """

    connected: bool
    detail: str
    broker: str
    connects: int
    trouble: str
    sent: int
    acknowledged: int
    dropped_samples: int


class LinkLog:
    """Logs each outage once when it begins and once when it ends, with its length.

    Attributes:
        connected: True if the broker has accepted the connection.
        detail: protocol and user of the connection, or why there is none.
        connects: how often the broker has accepted a connection.
        trouble: where and why the connection was lost last, or why there has been none yet; empty: never.
    """

    def __init__(self, where: object) -> None:
        self._where = where
        self.connects, self.trouble = 0, ""
        self._connected_at = 0.0
        self.close("connecting")

    def close(self, detail: str) -> None:
        """Record that this device has disconnected by itself, which is not an outage."""
        self.connected, self.detail = False, detail
        self._since = time.monotonic()  # of the outage
        self._is_acknowledged = self._is_announced = False
        self._logged, self._short = "", 0

    @property
    def is_flapping(self) -> bool:
        """True if connections do not last: the outage ends when one has lasted for some seconds."""
        return self._short >= _FLAPPING

    def lost(self, reason: str, *, refused: bool = False) -> None:
        """Record that the connection broke, or could not be opened.

        A `refused` one is logged even if the outage began for another reason.
        """
        trouble, now = f"{self._where}: {reason}", time.monotonic()
        if self.connected:
            is_short = now - self._connected_at < _STABLE_S
            self._short = self._short + 1 + refused if is_short else 0
            self._since = now if self._is_announced else self._since
        if self.connected or not self.connects:
            self.trouble = trouble
        self.connected, self.detail, self._is_announced = False, reason, False
        if not self._logged or (refused and trouble != self._logged):
            log.warning("broker %s; events wait in the spool, trying again", trouble)
            self._logged = trouble

    def accepted(self, how: str) -> None:
        """Record that the broker has accepted the connection; that is logged with the first acknowledgement."""
        self.connected, self.detail, self._connected_at = True, how, time.monotonic()
        self.connects += 1
        self._is_acknowledged = False

    def acknowledged(self) -> None:
        """Record an acknowledgement."""
        self._is_acknowledged = True
        self.poll()

    def poll(self) -> None:
        """Log that the broker is back when that is certain; call now and then while a connection lasts."""
        if self._is_announced or not self._is_acknowledged:
            return
        if self.is_flapping and time.monotonic() - self._connected_at < _STABLE_S:
            return
        self._is_announced = True
        self._short = 0 if self.is_flapping else self._short
        if self._logged:
            seconds = time.monotonic() - self._since
            log.info("broker %s: back after %.1f s, %s", self._where, seconds, self.detail)
        else:
            log.info("broker %s: connected, %s", self._where, self.detail)
        self._logged = ""
