"""Keeps a connection to the broker for as long as the daemon lives, in a thread of its own.

Events come from the spool and are settled when the broker has acknowledged them; retained topics are kept in
memory; samples are sent or dropped. Nothing here writes to a disk, and nothing here blocks its callers.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable

from agent.backoff import Backoff
from agent.comms.mqtt import reasons
from agent.comms.mqtt.brokers import RECONNECT_FIRST_S, RECONNECT_MAX_S, BrokerEndpoint, BrokerFailover
from agent.comms.mqtt.cleanup import StaleTopics
from agent.comms.mqtt.connection import Connection, WakeupPipe
from agent.comms.mqtt.endpoint import brokers_of, client_id, problems, remarks
from agent.comms.mqtt.inbox import Answer, Handler, Inbox, RetainedQuery, Subscription
from agent.comms.mqtt.outbox import EventSender, EventSource, ReplyQueue, RetainedTopics, TransientQueue
from agent.comms.mqtt.reasons import RefusedError
from agent.comms.mqtt.retry import Pause
from agent.comms.mqtt.session import ConnectionLoop, DuplicateDevice, LinkLog, LinkState, Stop
from agent.comms.mqtt.tls import CertificateError, Synchronised
from agent.comms.topics import OFFLINE, ONLINE, Topics
from agent.config import MqttConfig
from agent.errors import BrokerError, ConfigError

log = logging.getLogger(__name__)


class Publisher:
    """Publishes, and passes on what arrives. Thread-safe; only `stop` blocks."""

    def __init__(
        self,
        config: MqttConfig,
        topics: Topics,
        outgoing: EventSource,
        synchronised: Synchronised = lambda: None,
        has_stream: Callable[[str], bool] = lambda name: True,
    ) -> None:
        """Check the configuration; nothing is sent before `start`.

        Args:
            config: `[mqtt]`.
            topics: of the device.
            outgoing: the events that wait.
            synchronised: True if the clock is synchronised: certificates are judged by it.
            has_stream: True if there is a stream of that name; the topics of others are deleted.

        Raises:
            ConfigError: the host is not valid, or a file that the configuration names cannot be used.
        """
        for problem in problems(config):
            raise problem
        for remark in remarks(config):
            log.warning(remark)
        self._config, self._topics, self._outgoing = config, topics, outgoing
        self._states, self._samples = RetainedTopics(self), TransientQueue()
        client, will = client_id(topics), (topics.status, OFFLINE)
        brokers = [BrokerEndpoint(one, client, will, synchronised) for one in brokers_of(config)]
        self._stale = [StaleTopics(self._states, topics, has_stream) for _ in brokers]
        self._brokers = BrokerFailover(brokers, config.fallback_after_s)
        longest_s = config.reconnect_max_s or RECONNECT_MAX_S
        self._events = EventSender(outgoing, self, longest_s)
        self._inbox, self._answers, self._inquiry = Inbox(self), ReplyQueue(), RetainedQuery()
        self._outage, self._namesake = LinkLog(self, client), DuplicateDevice(topics.status, ONLINE)
        self._backoff, self._is_away = Backoff(RECONNECT_FIRST_S, longest_s), False
        self._wake, self._stop, self._stopping = WakeupPipe(), Stop(), threading.Event()
        self._pause = Pause(self._stopping, synchronised)
        self._thread: threading.Thread | None = None

    def __str__(self) -> str:
        """The broker that is used or tried, for messages."""
        return str(self._brokers)

    def start(self) -> None:
        """Start to connect, and return at once."""
        self._outgoing.on_stored(self._more)
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        self._thread.start()

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
        """Return the retained topics with their payloads, for the publisher that replaces this one."""
        return self._states.all()

    def ask(self, topic: str, answer: Answer) -> None:
        """Ask what the broker retains under a topic, see `RetainedQuery.ask`."""
        self._inquiry.ask(topic, answer)
        self._wake.set()

    def listen(self, pattern: str, handler: Handler, *, as_published: bool = False) -> None:
        """Subscribe a handler to a pattern, now and on each later connection.

        Args:
            pattern: of topics, with MQTT's wildcards; it must overlap no other.
            handler: called in the connection's thread, so it must return quickly. It gets no payload of more than
                `agent.comms.mqtt.inbox.LARGEST` bytes, and no flood.
            as_published: see `Subscriptions.add`.
        """
        self._inbox.listen(pattern, Subscription(handler, as_published))
        self._wake.set()

    def ignore(self, pattern: str) -> None:
        """Unsubscribe from a pattern."""
        self._inbox.ignore(pattern)
        self._wake.set()

    def answer(self, topic: str, payload: bytes, correlation: bytes = b"") -> None:
        """Send the reply to a request, once at QoS 0; it is dropped when the connection is lost.

        Args:
            topic: the request's response topic.
            payload: of the reply.
            correlation: the request's correlation data.
        """
        if self._outage.connected:
            self._answers.put(topic, payload, correlation)
            self._wake.set()

    def repeat(self, topic: str) -> None:
        """Send a retained topic again, unchanged."""
        if self._states.repeat(topic):
            self._wake.set()

    def listened(self) -> dict[str, Subscription]:
        """Return the subscriptions by pattern, for the publisher that replaces this one."""
        return self._inbox.all()

    def send(self, topic: str, payload: bytes) -> None:
        """Send once at QoS 0; dropped, and counted, while the broker is away or the network is slow."""
        if not self._outage.connected:
            self._samples.drop(1)
            return
        self._samples.put(topic, payload)
        self._wake.set()

    @property
    def state(self) -> LinkState:
        """How the connection to the broker is now."""
        return LinkState(
            self._outage.connected,
            self._outage.detail,
            str(self),
            self._brokers.is_fallback,
            self._outage.connects,
            self._outage.trouble,
            self._events.sent,
            self._events.acknowledged,
            self._samples.dropped,
        )

    def stop(self, timeout_s: float) -> None:
        """Send what waits, publish `stopped`, disconnect. Returns in time even if the broker does not answer.

        Args:
            timeout_s: maximum time. Events that are not acknowledged by then stay in the spool.
        """
        if self._thread is None:
            return
        self._stop.ask(timeout_s)
        self._stopping.set()
        self._wake.set()
        self._thread.join(timeout_s + 0.1)
        self._outgoing.on_stored(None)
        if not self._thread.is_alive():  # else it waits for a name or a handshake, and ends after that
            self._wake.close()

    def _more(self) -> None:
        self._events.more()
        self._wake.set()

    def _run(self) -> None:
        while self._should_retry():
            self._by_clock = self._is_away = False
            try:
                again = self._run_connection()
            except Exception:
                log.exception("mqtt: internal error (please report); reconnecting")
                self._outage.lost("internal error")
                again = False
            if self._stopping.is_set():
                break
            if not again:
                # A broker that refuses us, or throws us out, is left in peace for longer.
                limit_s = self._brokers.reconnect_max_s if self._is_away else math.inf
                self._pause.wait(self._backoff.next_s(limit_s), by_clock=self._by_clock)

    def _should_retry(self) -> bool:
        """Return True if not stopping, or if events wait for one more attempt."""
        return not self._stopping.is_set() or bool(self._outgoing.peek(0, 1))

    def _run_connection(self) -> bool:
        """Run one connection to its end. Return True to open the next without a pause."""
        try:
            connection = self._brokers.open(self._wake, self._stop.left)
        except (ConfigError, BrokerError) as error:
            by_us = isinstance(error, RefusedError | ConfigError | CertificateError)
            self._outage.lost(self._brokers.describe(error), refused=by_us)
            self._is_away = not by_us
            self._by_clock = isinstance(error, CertificateError) and error.by_clock
            return self._brokers.failed(error)
        if self._stop.left() <= 0.0:  # `stop` has not waited for us: nobody may hear of this connection
            connection.farewell(0.1)
            return False
        self._outage.over(self._brokers.how)
        flows = (self._events, self._states, self._samples, self._inbox, self._answers)
        status, stale = self._topics.status, self._stale[self._brokers.number]
        loop = ConnectionLoop(connection, status, flows, stale, self._inquiry, self._outage, self._namesake)
        returns = loop.run(self._stop, self._config.keepalive_s / 4, self._brokers.should_return)
        return self._ended(connection, returns=returns)

    def _ended(self, connection: Connection, *, returns: bool) -> bool:
        if not self._outage.is_flapping:
            self._backoff.reset()
        if self._stopping.is_set():
            self._samples.drop()
            self._outage.leave()
            return False
        if returns:
            return True
        self._samples.drop()
        self._is_away = not connection.lost_code and not self._outage.is_flapping
        self._outage.lost(connection.lost, refused=bool(connection.lost_code))
        if connection.lost_code == reasons.TAKEN_OVER:
            self._backoff.skip(3)  # the other client suffers from each attempt
        return self._brokers.lost()
