"""Publishes to a broker from a thread of its own, and connects again after each outage.

Events come from the spool and are settled when the broker has acknowledged them. Retained topics are kept in
memory. Samples are dropped if they cannot be sent now. No method but `stop` waits for the network or a disk.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable

from msgspec import Struct

from agent.backoff import Backoff
from agent.comms.mqtt import reasons
from agent.comms.mqtt.brokers import RECONNECT_FIRST_S, RECONNECT_MAX_S, BrokerEndpoint, BrokerFailover
from agent.comms.mqtt.connection import TIMINGS, Connection, ConnectionTimings, WakeupPipe
from agent.comms.mqtt.endpoint import brokers_of, client_id, problems, remarks
from agent.comms.mqtt.inbox import Answer
from agent.comms.mqtt.outbox import EventSource, OnSent
from agent.comms.mqtt.paho_client import OnMessage
from agent.comms.mqtt.reasons import CertificateError, RefusedError, Synchronised
from agent.comms.mqtt.session import BrokerSession, LinkState, Stop
from agent.comms.topics import OFFLINE, STOPPED, Topics
from agent.config.mqtt import MqttConfig
from agent.errors import BrokerError, ConfigError
from agent.types import LinkLoad

log = logging.getLogger(__name__)

_CLOCK_JUMP_S = 2.0
"""A larger change of the clock, s, means that it was set."""
_TAKEN_OVER_PAUSES = 3
"""Steps by which the pause is longer after another client with the same id took the connection over: each attempt
disconnects that client."""


class _Retry(Struct, frozen=True):
    """When to connect again.

    Attributes:
        at_once: connect without a pause.
        is_away: the broker cannot be reached. Pauses are longer for one that refuses or ends the connection.
        by_clock: certificates are not valid at the time that the clock shows: retry when the clock is set.
    """

    at_once: bool = False
    is_away: bool = False
    by_clock: bool = False


class Publisher:
    """Publishes, and passes on what arrives. Thread-safe; only `stop` blocks."""

    def __init__(
        self,
        config: MqttConfig,
        topics: Topics,
        source: EventSource,
        synchronised: Synchronised = lambda: None,
        has_stream: Callable[[str], bool] = lambda name: True,
        timings: ConnectionTimings = TIMINGS,
    ) -> None:
        """Check the configuration; nothing is sent before `start`.

        Args:
            config: `[mqtt]`.
            topics: of the device.
            source: of the events.
            synchronised: True if the clock is synchronised: certificates are judged by it.
            has_stream: True if there is a stream of that name; the topics of others are deleted.
            timings: see `ConnectionTimings`.

        Raises:
            ConfigError: the host is not valid, or a file that the configuration names cannot be used.
        """
        for problem in problems(config):
            raise problem
        self._topics, self._client_id, self._synchronised = topics, client_id(topics), synchronised
        self._source, self._timings = source, timings
        self._session = BrokerSession(topics, source, self, self._client_id, has_stream, timings)
        self._wake, self._stop, self._interrupt = WakeupPipe(), Stop(), threading.Event()
        self._configs: deque[MqttConfig] = deque()
        self._configure(config)
        self._thread: threading.Thread | None = None

    def _configure(self, config: MqttConfig) -> None:
        for remark in remarks(config):
            log.warning(remark)
        self._keepalive_s = config.keepalive_s
        shared = (self._client_id, (self._topics.status, OFFLINE), self._synchronised, self._timings)
        brokers = [BrokerEndpoint(one, *shared) for one in brokers_of(config)]
        self._brokers = BrokerFailover(brokers, config.fallback_after_s, self._timings.return_every_s)
        longest_s = config.reconnect_max_s or RECONNECT_MAX_S
        self._backoff = Backoff(RECONNECT_FIRST_S, longest_s)
        self._session.events.retry_max_s = longest_s
        self._session.link.close("connecting")

    def __str__(self) -> str:
        """The broker that is used or tried, for messages."""
        return str(self._brokers)

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
            self._brokers.is_fallback,
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
                limit_s = self._brokers.current.reconnect_max_s if retry.is_away else math.inf
                self._pause(self._backoff.next_s(limit_s), by_clock=retry.by_clock)

    def _pause(self, seconds: float, *, by_clock: bool) -> None:
        """Wait until the time is over, a stop or a new configuration, or, `by_clock`, the clock is set."""
        if not by_clock:
            self._interrupt.wait(seconds)
            return
        until = time.monotonic() + seconds
        offset, was_synchronised = _clock_offset(), self._synchronised()
        every_s = self._timings.clock_every_s
        while (left := until - time.monotonic()) > 0 and not self._interrupt.wait(min(every_s, left)):
            is_set = abs(_clock_offset() - offset) > _CLOCK_JUMP_S
            if is_set or (not was_synchronised and self._synchronised()):
                return

    def _run_connection(self) -> _Retry:
        """Run one connection to its end."""
        try:
            connection = self._brokers.open(self._wake, self._time_to_open)
        except (ConfigError, BrokerError) as error:
            if self._configs:
                return _Retry(at_once=True)
            by_us = isinstance(error, RefusedError | ConfigError | CertificateError)
            self._session.link.lost(self._brokers.current.describe(error), refused=by_us)
            by_clock = isinstance(error, CertificateError) and error.by_clock
            return _Retry(self._brokers.failed(error), is_away=not by_us, by_clock=by_clock)
        if self._stop.seconds_left() <= 0.0:  # `stop` has returned: nothing of this connection may show
            connection.farewell(0.1)
            return _Retry()
        self._session.link.accepted(self._brokers.how)
        moves = self._session.run(connection, self._stop, self._keepalive_s / 4, self._last_status)
        return self._end(connection, moves=moves)

    def _time_to_open(self) -> float:
        return 0.0 if self._configs else self._stop.seconds_left()

    def _last_status(self) -> bytes:
        """Return the status to publish before the broker is left; empty: stay."""
        if self._configs:
            return STOPPED
        return OFFLINE if self._brokers.should_return() else b""

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
        link.lost(connection.lost, refused=bool(connection.lost_code))
        if connection.lost_code == reasons.TAKEN_OVER:
            self._backoff.skip(_TAKEN_OVER_PAUSES)
        return _Retry(self._brokers.lost(), is_away=not connection.lost_code and not is_flapping)


def _clock_offset() -> float:
    return time.time() - time.monotonic()
