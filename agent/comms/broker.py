"""One of the brokers: where it is, which MQTT it speaks, how it is reached, and how it is spoken of."""

from __future__ import annotations

from collections.abc import Callable

from agent.comms import reasons
from agent.comms.address import shown_host
from agent.comms.certificate import Synchronised
from agent.comms.client import Will
from agent.comms.connection import Connection
from agent.comms.credentials import port, uses_tls
from agent.comms.eraser import Eraser, Memory
from agent.comms.protocol import ProtocolChoice
from agent.comms.refusal import RefusedError
from agent.comms.states import States
from agent.comms.sweep import Sweep
from agent.comms.topics import Topics
from agent.comms.wake import Wake
from agent.config import MqttConfig
from agent.errors import BrokerError
from agent.hosts import is_local

RECONNECT_MAX_S, _LOCAL_MAX_S = 60.0, 5.0
"""Longest pauses between two attempts, s, where the configuration does not say."""


def address(config: MqttConfig) -> str:
    """`host:port`."""
    return f"{shown_host(config.host)}:{port(config)}"


class Broker:
    """It, and what has been learned of it. Used by one thread at a time.

    Attributes:
        where: `host:port`.
        sweep, eraser: of what runs before have left there.
    """

    sweep: Sweep
    eraser: Eraser

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
        self._protocol, self._aliases = ProtocolChoice(config.protocol), True

    def clean(self, states: States, topics: Topics, memory: Memory) -> None:
        """Prepare to put right what runs before have left there.

        Args:
            states: of ours.
            topics: of the device.
            memory: of what runs before have published.
        """
        self.sweep = Sweep(states, topics, memory.has)
        self.eraser = Eraser(states, topics, memory, self.where)

    def open(self, wake: Wake, left: Callable[[], float]) -> Connection:
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
            connection = Connection(self._config, self._client_id, current, self._will, aliases=self._aliases)
            try:
                connection.open(wake, left(), self._protocol.patience_s, self._synchronised)
            except BrokerError as error:
                if not self._protocol.failed(error):
                    raise
            else:
                self._protocol.worked()
                return connection

    def ended(self, connection: Connection) -> None:
        """Learn from how a connection to it ended."""
        if connection.lost_code == reasons.ALIAS_INVALID:
            self._aliases = False  # it said that it takes them

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
