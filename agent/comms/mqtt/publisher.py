"""Publishes to a broker from a thread of its own, receives, and connects again after each outage.

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

from agent.backoff import Backoff
from agent.comms.mqtt import endpoint
from agent.comms.mqtt.connection import TIMINGS, Connection, ConnectionTimings, PubAck, WakeupPipe
from agent.comms.mqtt.endpoint import RefusedError, in_words
from agent.comms.mqtt.inbox import Answer, Inbox, IncomingMessage, OnMessage, StaleTopics, StreamConfigs
from agent.comms.mqtt.link import RECONNECT_MAX_S, BrokerEndpoint, LinkLoad, LinkLog, LinkState
from agent.comms.mqtt.outbox import EventSender, EventSource, OnSent, RetainedTopics, TransientQueue
from agent.comms.topics import OFFLINE, ONLINE, STOPPED, Topics
from agent.config.servers import MqttConfig
from agent.errors import BrokerError, ConfigError

log = logging.getLogger(__name__)

_RECONNECT_FIRST_S = 1.0
"""First pause between two attempts to connect, s."""
_MOVE_S = 5.0
"""Time for what is in flight when another broker is to be used; the rest is sent again over its connection."""
_RESERVE_S = 0.3
"""Part of the time for stopping that is kept for publishing `stopped`; a third of it, if that is less."""
_SHUTDOWN_S = 2.0
"""A broker that shuts down has closed the connection by then."""
_PIECE = 4096
"""Bytes of samples and replies that are handed on at once: events wait behind them on a slow network."""


class Publisher:
    """Publishes, and passes on what arrives. Thread-safe; only `stop` blocks.

    Attributes:
        max_packet: largest packet that the broker of the newest connection takes, bytes; 0: it names no limit.
    """

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
        self._topics, self._source, self._streams, self._timings = topics, source, streams, timings
        self._client_id = endpoint.client_id(topics)
        self._events = EventSender(source, self, math.inf)
        self._states, self._transient, self._inbox = RetainedTopics(self), TransientQueue(), Inbox(self)
        self._stale = StaleTopics(self._states.set_if_new, topics, has_stream, streams)
        self._link = LinkLog(self)
        self._status_mid = self._unsent_bytes = self.max_packet = 0
        self._heard_at, self._contradicted_at = 0.0, math.inf
        self._is_leaving = self._is_duplicate_logged = False
        self._deadline, self._reserve_s = math.inf, 0.0  # of a stop
        self._wake, self._interrupt = WakeupPipe(), threading.Event()
        self._configs: deque[MqttConfig] = deque()
        self._configure(config)
        self._thread: threading.Thread | None = None

    def _configure(self, config: MqttConfig) -> None:
        for remark in endpoint.remarks(config):
            log.warning(remark)
        self._broker = BrokerEndpoint(config, self._client_id, (self._topics.status, OFFLINE), self._timings)
        longest_s = config.reconnect_max_s or RECONNECT_MAX_S
        self._backoff = Backoff(_RECONNECT_FIRST_S, longest_s)
        self._events.retry_s = longest_s
        self._link.close("connecting")

    def __str__(self) -> str:
        """The broker, for messages."""
        return self._broker.where

    def start(self) -> None:
        self._source.on_stored(self._on_stored)
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        self._thread.start()

    def _on_stored(self) -> None:
        self._events.more()
        self._wake.set()

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
            patient: wait up to a second to send it with something else, which costs less.
        """
        if self._states.set(topic, payload) and not patient:
            self._wake.set()

    def retained(self) -> dict[str, bytes]:
        return self._states.all()

    def repeat(self, topic: str) -> None:
        if self._states.repeat(topic):
            self._wake.set()

    def ask(self, topic: str, answer: Answer) -> None:
        """Ask what the broker retains under a topic, see `Inbox.ask`."""
        self._inbox.ask(topic, answer)
        self._wake.set()

    def listen(self, pattern: str, on_message: OnMessage, *, as_published: bool = False) -> None:
        """Subscribe a handler to a pattern, now and on each later connection.

        Args:
            pattern: of topics, with MQTT's wildcards; it must overlap no other.
            on_message: called in the connection's thread, so it must return quickly. It gets no payload of more
                than `agent.comms.mqtt.inbox.LARGEST` bytes, and no flood.
            as_published: see `Subscriptions.add`.
        """
        self._inbox.listen(pattern, on_message, as_published=as_published)
        self._wake.set()

    def ignore(self, pattern: str) -> None:
        self._inbox.ignore(pattern)
        self._wake.set()

    def answer(self, topic: str, payload: bytes, correlation: bytes = b"") -> None:
        """Send the reply to a request, once at QoS 0; it is dropped when the connection is lost."""
        if self._link.connected:
            self._transient.reply(topic, payload, correlation)
            self._wake.set()

    def send(self, topic: str, payload: bytes) -> None:
        """Send once at QoS 0; dropped, and counted, while the broker is away or the network is slow."""
        if not self._link.connected:
            self._transient.drop(1)
            return
        self._transient.put(topic, payload)
        self._wake.set()

    def on_sent(self, function: OnSent) -> None:
        """Call `function` with each event that is sent, see `OnSent`."""
        self._events.on_sent = function

    @property
    def state(self) -> LinkState:
        """How the connection to the broker is now."""
        link, events = self._link, self._events
        counts = events.sent, events.acknowledged, self._transient.dropped
        return LinkState(link.connected, link.detail, str(self), link.connects, link.trouble, *counts)

    def load(self) -> LinkLoad:
        """Return how busy the connection to the broker is. Any thread may call this."""
        if not self._link.connected:
            return LinkLoad()
        return LinkLoad(True, self._unsent_bytes, round(self._events.oldest_s, 3))

    def stop(self, timeout_s: float) -> None:
        """Send what waits, publish `stopped`, disconnect. Returns in time even if the broker does not answer.

        Events that are not acknowledged within `timeout_s` stay in the spool.
        """
        if self._thread is None:
            return
        self._reserve_s = min(_RESERVE_S, timeout_s / 3)
        self._deadline = time.monotonic() + timeout_s
        self._interrupt.set()
        self._wake.set()
        self._thread.join(timeout_s + 0.1)
        self._source.on_stored(None)
        if not self._thread.is_alive():  # else it waits for a name or a handshake, and ends after that
            self._wake.close()

    @property
    def _is_stopping(self) -> bool:
        return self._deadline != math.inf

    def _seconds_left(self, reserve_s: float = 0.0) -> float:
        """Return the time left of a stop, s; infinite if none was asked for."""
        return max(0.0, self._deadline - reserve_s - time.monotonic())

    def _run(self) -> None:
        while not self._is_stopping or self._events.has_unsettled:
            self._interrupt.clear()
            while self._configs:
                self._configure(self._configs.popleft())
            try:
                longest_s = self._run_connection()
            except Exception:
                log.exception("mqtt: internal error (please report); reconnecting")
                self._link.lost("internal error")
                longest_s = math.inf
            if self._is_stopping:
                break
            if not self._configs:
                self._interrupt.wait(self._backoff.next_s(longest_s))

    def _run_connection(self) -> float:
        """Run one connection to its end. Return a limit of the pause until the next, s.

        It is short if the broker is away; one that refuses or ends connections is left alone for longer.
        """
        try:
            connection = self._broker.open(self._wake, self._time_to_open)
        except (ConfigError, BrokerError) as error:
            is_hopeless = isinstance(error, RefusedError | ConfigError)
            if not self._configs:
                self._link.lost(self._broker.describe(error), refused=is_hopeless)
            return math.inf if is_hopeless else self._broker.reconnect_max_s
        if self._seconds_left() <= 0.0:  # `stop` has returned: nothing of this connection may show
            connection.farewell(0.1)
            return math.inf
        self._link.accepted(self._broker.how)
        self._serve(connection)
        self._transient.drop()
        self._unsent_bytes = 0
        if not connection.lost:
            self._leave(connection)
        if self._is_stopping or self._configs:
            self._link.close("stopped")
            return math.inf
        self._link.lost(connection.lost, refused=bool(connection.lost_code))
        if self._link.is_flapping:
            return math.inf
        self._backoff.reset()
        return math.inf if connection.lost_code else self._broker.reconnect_max_s

    def _time_to_open(self) -> float:
        return 0.0 if self._configs else self._seconds_left()

    def _serve(self, connection: Connection) -> None:
        """Send and receive to the end of the connection, or until it is to be left."""
        self._restart(connection)
        while not (connection.lost or self._configs or self._is_drained()):
            self._send(connection)
            pause_s = min(self._timings.pause_s, self._events.retry_in(), self._seconds_left(self._reserve_s))
            can_send_more = self._events.is_waiting and connection.window > self._in_flight()
            self._turn(connection, 0.0 if can_send_more else pause_s)
            unsent = connection.unsent_bytes
            self._unsent_bytes = unsent and unsent + self._transient.bytes + self._states.large_bytes
            if not self._stale.is_done:
                self._stale.poll()
            self._link.poll()

    def _restart(self, connection: Connection) -> None:
        self._heard_at, self._contradicted_at = time.monotonic(), math.inf
        self.max_packet, self._is_leaving = connection.max_packet, False
        self._events.restart()
        self._delete_snapshots()
        self._states.restart()
        self._transient.restart()
        self._inbox.restart(connection.subscriptions)  # first: a client that sees `online` may send commands
        self._publish_status(connection, ONLINE)
        connection.subscriptions.add(self._topics.status, self._on_status, qos=1)
        self._stale.restart(connection.subscriptions, str(self))

    def _delete_snapshots(self) -> None:
        """Delete pictures of streams that hide something, or are off, and have published none in this run.

        An earlier run may have left them, without masks. On each connection: every broker has its own.
        """
        for name, config in self._streams().items():
            if config.hides or not config.enabled:
                self._states.set_if_new(self._topics.snapshot(name), b"")

    def _publish_status(self, connection: Connection, status: bytes) -> None:
        self._status_mid = connection.publish(self._topics.status, status, qos=1, retain=True)

    def _on_status(self, received: IncomingMessage) -> None:
        """Notice another device with this name, whose `offline` would count as this one's.

        Two boards from one image are the usual case: their client ids differ, so the broker accepts both. A
        retained status was left by this run or an earlier one.
        """
        if not (self._is_leaving or received.retained or received.payload == ONLINE):
            self._contradicted_at = min(self._contradicted_at, time.monotonic())

    def _correct_status(self, connection: Connection) -> None:
        """Publish `online` again after another client has published something else, and log that once.

        A broker that shuts down publishes this device's own will before it closes the connection: so this waits
        for a moment.
        """
        is_due = time.monotonic() - self._contradicted_at >= _SHUTDOWN_S
        if not is_due or self._status_mid or connection.lost:
            return
        self._contradicted_at = math.inf
        if not self._is_duplicate_logged:
            self._is_duplicate_logged = True
            text = "another client published on %s: does another device have the same name? set [device] name"
            log.warning(text, self._topics.status)
        self._publish_status(connection, ONLINE)

    def _is_drained(self) -> bool:
        if not self._is_stopping:
            return False
        waits = self._events.is_waiting or self._states.is_waiting or self._in_flight()
        return not waits or self._seconds_left(self._reserve_s) <= 0.0

    def _in_flight(self) -> int:
        return self._events.in_flight + self._states.in_flight + bool(self._status_mid)

    def _send(self, connection: Connection) -> None:
        # Before anything is queued here.
        has_room = (self._transient.is_waiting or self._states.wants_large) and connection.has_room
        # First: who sees a topic may answer it at once.
        if self._inbox.is_changed:
            self._inbox.update(connection.subscriptions)
        # States are few and newest-wins; a quarter of the window leaves the rest to the events.
        share = max(1, connection.window // 4) - self._states.in_flight
        self._transient.send(connection, 0)  # replies go first: somebody waits for them
        self._states.send(connection, min(share, connection.window - self._in_flight()))
        self._events.send(connection, connection.window - self._in_flight())
        self._transient.send(connection, _PIECE if has_room else 0)
        can_send_large = not self._events.is_waiting and connection.window > self._in_flight()
        if has_room and can_send_large:
            self._states.send_large(connection)
        connection.wants_room = self._transient.is_waiting or (can_send_large and self._states.wants_large)
        self._correct_status(connection)

    def _turn(self, connection: Connection, timeout_s: float) -> None:
        if not self._in_flight():
            self._heard_at = time.monotonic()
        for acknowledged in connection.turn(timeout_s):
            self._acknowledge(acknowledged)
        self._events.settle()
        if time.monotonic() - self._heard_at > self._timings.silence_s:
            connection.drop(f"no acknowledgement for {self._timings.silence_s:.0f} s")

    def _acknowledge(self, acknowledged: PubAck) -> None:
        self._heard_at = time.monotonic()
        self._link.acknowledged()
        if acknowledged.mid == self._status_mid:
            self._status_mid = 0
            if acknowledged.is_refusal:
                log.warning("the broker refuses %s: %s", self._topics.status, in_words(acknowledged.code))
        elif not self._events.acknowledge(acknowledged):
            self._states.acknowledge(acknowledged)

    def _leave(self, connection: Connection) -> None:
        """Publish `stopped`, and let it, and without a stop what else is in flight, arrive."""
        until = time.monotonic() + _MOVE_S
        self._is_leaving = True
        self._publish_status(connection, STOPPED)
        while (self._status_mid if self._is_stopping else self._in_flight()) and not connection.lost:
            if (left_s := min(self._seconds_left(), until - time.monotonic())) <= 0.0:
                break
            self._turn(connection, min(0.1, left_s))
        connection.farewell(min(0.5, max(0.05, self._seconds_left())))
