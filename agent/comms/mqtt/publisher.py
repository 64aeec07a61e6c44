"""Publishes to a broker from a thread of its own, and connects again after each outage, also to another broker.

Events come from the spool and are settled when the broker has acknowledged them. Retained topics are kept in
memory. Samples are dropped if they cannot be sent now. No method but `stop` waits for the network or a disk.
"""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

from msgspec import Struct

from agent.backoff import Backoff
from agent.comms.mqtt import endpoint
from agent.comms.mqtt.connection import TIMINGS, Connection, ConnectionTimings, Protocol, WakeupPipe, Will
from agent.comms.mqtt.endpoint import RefusedError, UnansweredError
from agent.comms.mqtt.inbox import Answer, OnMessage, StreamConfigs
from agent.comms.mqtt.outbox import EventSource, OnSent
from agent.comms.mqtt.session import BrokerSession, Stop
from agent.comms.topics import OFFLINE, STOPPED, Topics
from agent.config.servers import MqttConfig
from agent.config.source_uri import is_local
from agent.errors import BrokerError, ConfigError
from agent.types import LinkLoad

log = logging.getLogger(__name__)

RECONNECT_FIRST_S, RECONNECT_MAX_S, _LOCAL_MAX_S = 1.0, 60.0, 5.0
"""First and longest pauses between two attempts, s; the longest where the configuration does not say."""
_PROBE_S = 2.0
_TAKEN_OVER_PAUSES = 3
"""Steps by which the pause is longer after another client with the same id took the connection over: each attempt
disconnects that client."""
_STABLE_S = 10.0
"""A shorter connection counts as a failure to connect, s."""
_UNANSWERED_MAX = 2
"""Unanswered connections before the other version: an old broker ends them, but so does one that just starts."""


class BrokerEndpoint:
    """One broker, and the version of MQTT that it speaks: 5, else 3.1.1. For one thread at a time.

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
            self._unanswered += _UNANSWERED_MAX if error.silent else 1
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

    def answers(self) -> bool:
        """Return True if the broker accepts a TCP connection."""
        try:
            address = self._config.host, endpoint.port(self._config)
            with socket.create_connection(address, timeout=_PROBE_S):
                return True
        except (OSError, ValueError):
            return False

    def describe(self, error: Exception) -> str:
        if not (isinstance(error, RefusedError) and error.code):
            return str(error)
        user = f"user {self._config.username!r}" if self._config.username else "this client (no user name is set)"
        return f"refuses {user}: {error}"


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


class LinkState(Struct, frozen=True):
    """How the connection to the broker is.

    Attributes:
        connected: True if the broker has accepted the connection.
        detail: protocol and user of the connection, or why there is none.
        broker: `host:port` of the one that is used or tried.
        is_fallback: True if that is not the first.
        connects: how often a broker has accepted a connection, since the start.
        trouble: where and why the connection was lost last; empty: never.
        sent, acknowledged: events, since the start.
        dropped_samples: messages at QoS 0 that were not sent.
    """

    connected: bool
    detail: str
    broker: str
    is_fallback: bool
    connects: int
    trouble: str
    sent: int
    acknowledged: int
    dropped_samples: int


class _Retry(Struct, frozen=True):
    """When to connect again.

    Attributes:
        at_once: connect without a pause.
        is_away: the broker cannot be reached. Pauses are longer for one that refuses or ends the connection.
    """

    at_once: bool = False
    is_away: bool = False


class Publisher:
    """Publishes, and passes on what arrives. Thread-safe; only `stop` blocks."""

    def __init__(
        self,
        config: MqttConfig,
        topics: Topics,
        source: EventSource,
        has_stream: Callable[[str], bool] = lambda name: True,
        streams: StreamConfigs = dict,
        timings: ConnectionTimings = TIMINGS,
    ) -> None:
        """Check the configuration; nothing is sent before `start`.

        Args:
            config: `[mqtt]`.
            topics: of the device.
            source: of the events.
            has_stream: True if there is a stream of that name; the topics of others are deleted.
            streams: returns the streams; what an earlier run published of them and no longer fits is deleted.
            timings: see `ConnectionTimings`.

        Raises:
            ConfigError: the host is not valid, or a file that the configuration names cannot be used.
        """
        for problem in endpoint.problems(config):
            raise problem
        self._topics, self._client_id = topics, endpoint.client_id(topics)
        self._source, self._timings = source, timings
        self._session = BrokerSession(topics, source, self, has_stream, timings, streams)
        self._wake, self._stop, self._interrupt = WakeupPipe(), Stop(), threading.Event()
        self._configs: deque[MqttConfig] = deque()
        self._configure(config)
        self._thread: threading.Thread | None = None

    def _configure(self, config: MqttConfig) -> None:
        for remark in endpoint.remarks(config):
            log.warning(remark)
        self._keepalive_s = config.keepalive_s
        shared = (self._client_id, (self._topics.status, OFFLINE), self._timings)
        self._brokers = [BrokerEndpoint(broker, *shared) for broker in endpoint.brokers_of(config)]
        self._policy = FailoverPolicy(
            len(self._brokers), config.fallback_after_s, time.monotonic(), self._timings.return_every_s
        )
        longest_s = config.reconnect_max_s or RECONNECT_MAX_S
        self._backoff = Backoff(RECONNECT_FIRST_S, longest_s)
        self._session.events.retry_max_s = longest_s
        self._session.link.close("connecting")

    def __str__(self) -> str:
        """The broker that is used or tried, for messages."""
        return self._broker.where

    @property
    def _broker(self) -> BrokerEndpoint:
        return self._brokers[self._policy.current]

    def start(self) -> None:
        self._source.on_stored(self._on_stored)
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        self._thread.start()

    def reconfigure(self, config: MqttConfig) -> None:
        """Leave the current broker, and connect as another configuration says, which has no `problems`.

        Retained topics, handlers, questions without an answer, and events go to the new broker.
        """
        self._configs.append(config)
        self._interrupt.set()
        self._wake.set()

    def retain(self, topic: str, payload: bytes, *, patient: bool = False) -> None:
        """Set a retained topic. Only the newest payload is sent, now or when the broker is back.

        Args:
            topic: of the device.
            payload: an empty one deletes the topic.
            patient: wait up to a second to send it with something else, which costs less; a large payload also
                waits while the network is slow.
        """
        if self._session.states.set(topic, payload, urgent=not patient) and not patient:
            self._wake.set()

    @property
    def quick_bytes(self) -> int:
        """Size up to which a retained topic does not hold up a slow network for long, bytes."""
        return self._session.states.quick_bytes

    def retained(self) -> dict[str, bytes]:
        return self._session.states.all()

    def repeat(self, topic: str) -> None:
        if self._session.states.repeat(topic):
            self._wake.set()

    def ask(self, topic: str, answer: Answer) -> None:
        """Ask what the broker retains under a topic, see `Inbox.ask`."""
        self._session.inbox.ask(topic, answer)
        self._wake.set()

    def listen(self, pattern: str, on_message: OnMessage, *, as_published: bool = False) -> None:
        """Subscribe a handler to a pattern, now and on each later connection.

        Args:
            pattern: of topics, with MQTT's wildcards; it must overlap no other.
            on_message: called in the connection's thread, so it must return quickly. It gets no payload of more
                than `agent.comms.mqtt.inbox.LARGEST` bytes, and no flood.
            as_published: see `Subscriptions.add`.
        """
        self._session.inbox.listen(pattern, on_message, as_published=as_published)
        self._wake.set()

    def ignore(self, pattern: str) -> None:
        self._session.inbox.ignore(pattern)
        self._wake.set()

    def answer(self, topic: str, payload: bytes, correlation: bytes = b"") -> None:
        """Send the reply to a request, once at QoS 0; it is dropped when the connection is lost."""
        if self._session.link.connected:
            self._session.transient.reply(topic, payload, correlation)
            self._wake.set()

    def send(self, topic: str, payload: bytes) -> None:
        """Send once at QoS 0; dropped, and counted, while the broker is away or the network is slow."""
        if not self._session.link.connected:
            self._session.transient.drop(1)
            return
        self._session.transient.put(topic, payload)
        self._wake.set()

    def on_sent(self, function: OnSent) -> None:
        """Call `function` with each event that is sent, see `OnSent`."""
        self._session.events.on_sent = function

    @property
    def max_packet(self) -> int:
        """Size of the largest packet that the broker takes, bytes; 0: it names no limit, or there is none."""
        return self._session.max_packet

    @property
    def state(self) -> LinkState:
        """How the connection to the broker is now."""
        session = self._session
        return LinkState(
            session.link.connected,
            session.link.detail,
            str(self),
            self._policy.current > 0,
            session.link.connects,
            session.link.trouble,
            session.events.sent,
            session.events.acknowledged,
            session.transient.dropped,
        )

    def load(self) -> LinkLoad:
        """Return how busy the connection to the broker is. Any thread may call this."""
        return self._session.load()

    def stop(self, timeout_s: float) -> None:
        """Send what waits, publish `stopped`, disconnect. Returns in time even if the broker does not answer.

        Events that are not acknowledged within `timeout_s` stay in the spool.
        """
        if self._thread is None:
            return
        self._stop.ask(timeout_s)
        self._interrupt.set()
        self._wake.set()
        self._thread.join(timeout_s + 0.1)
        self._source.on_stored(None)
        if not self._thread.is_alive():  # else it waits for a name or a handshake, and ends after that
            self._wake.close()

    def _on_stored(self) -> None:
        self._session.events.more()
        self._wake.set()

    def _run(self) -> None:
        while not self._stop.is_asked or self._session.events.has_unsettled:
            self._interrupt.clear()
            while self._configs:
                self._configure(self._configs.popleft())
            try:
                retry = self._run_connection()
            except Exception:
                log.exception("mqtt: internal error (please report); reconnecting")
                self._session.link.lost("internal error")
                retry = _Retry()
            if self._stop.is_asked:
                break
            if not retry.at_once:
                limit_s = self._broker.reconnect_max_s if retry.is_away else math.inf
                self._interrupt.wait(self._backoff.next_s(limit_s))

    def _run_connection(self) -> _Retry:
        """Run one connection to its end."""
        try:
            connection = self._broker.open(self._wake, self._time_to_open)
        except (ConfigError, BrokerError) as error:
            if self._configs:
                return _Retry(at_once=True)
            is_hopeless = isinstance(error, RefusedError | ConfigError)
            self._session.link.lost(self._broker.describe(error), refused=is_hopeless)
            return _Retry(self._policy.failed(time.monotonic(), at_once=is_hopeless), is_away=not is_hopeless)
        self._policy.connected(time.monotonic())
        if self._stop.seconds_left() <= 0.0:  # `stop` has returned: nothing of this connection may show
            connection.farewell(0.1)
            return _Retry()
        instead = f", in place of {self._brokers[0].where}" if self._policy.current else ""
        self._session.link.accepted(f"{self._broker.how}{instead}")
        moves = self._session.run(connection, self._stop, self._keepalive_s / 4, self._last_status)
        return self._end(connection, moves=moves)

    def _time_to_open(self) -> float:
        return 0.0 if self._configs else self._stop.seconds_left()

    def _last_status(self) -> bytes:
        """Return the status to publish before the broker is left; empty: stay."""
        if self._configs:
            return STOPPED
        return OFFLINE if self._returns_to_first() else b""

    def _returns_to_first(self) -> bool:
        """Return True to leave the fallback for the first broker, which is probed when that is due."""
        if not self._policy.is_return_due(time.monotonic()):
            return False
        if not self._brokers[0].answers():
            self._policy.postpone_return(time.monotonic())
            return False
        log.info("broker %s answers again: leaving %s", self._brokers[0].where, self)
        self._policy.return_to_first()
        return True

    def _end(self, connection: Connection, *, moves: bool) -> _Retry:
        link, is_flapping = self._session.link, self._session.link.is_flapping
        if not is_flapping:
            self._backoff.reset()
        if moves and not self._stop.is_asked:
            return _Retry(at_once=True)
        self._session.transient.drop()
        if self._stop.is_asked:
            link.close("stopped")
            return _Retry()
        taken_over = connection.lost_code == endpoint.TAKEN_OVER
        link.lost(connection.lost, refused=bool(connection.lost_code), taken_over=taken_over)
        if taken_over:
            self._backoff.skip(_TAKEN_OVER_PAUSES)
        at_once = self._policy.lost(time.monotonic())
        return _Retry(at_once, is_away=not connection.lost_code and not is_flapping)
