"""Sends and receives over a connection that the broker has accepted, from `online` to its end; logs outages."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from msgspec import Struct

from agent.comms.mqtt import reasons
from agent.comms.mqtt.connection import TIMINGS, Connection, ConnectionTimings, PubAck
from agent.comms.mqtt.inbox import Inbox, StaleTopics, StreamConfigs
from agent.comms.mqtt.outbox import EventSender, EventSource, TransientQueue
from agent.comms.mqtt.paho_client import IncomingMessage
from agent.comms.mqtt.reasons import TAKEN_OVER, in_words
from agent.comms.mqtt.retained import RetainedTopics
from agent.comms.topics import ONLINE, STOPPED, Topics
from agent.types import LinkLoad

log = logging.getLogger(__name__)

_STABLE_S = 10.0
"""A connection that lasts so long ends an outage of short ones."""
_FLAPPING = 2
"""So many short connections in a row are one outage, which ends only after `_STABLE_S`."""
_MAX_LOGGED = 20
"""Maximum number of reasons logged in one outage: a broker may give another each time."""
_TAKEN_OVER = in_words(TAKEN_OVER)


class LinkLog:
    """Logs each outage once when it begins and once when it ends, with its length.

    Attributes:
        connected: True if a broker has accepted the connection.
        detail: protocol and user of the connection, or why there is none.
        connects: how often a broker has accepted a connection.
        trouble: where and why the connection was lost last, or why there has been none yet; empty: never.
    """

    def __init__(self, where: object, client_id: str) -> None:
        self._where, self._client_id = where, client_id
        self.connected, self.detail = False, "connecting"
        self.connects, self.trouble = 0, ""
        self._connected_at = 0.0
        self._restart()

    def _restart(self) -> None:
        self._since = time.monotonic()  # of the outage
        self._is_acknowledged = self._is_taken_over = False
        self._logged: set[str] = set()
        self._short, self._unlogged = 0, ""

    @property
    def is_flapping(self) -> bool:
        return self._short >= _FLAPPING

    def lost(self, reason: str, *, refused: bool = False) -> None:
        """Record that the connection broke, or could not be opened.

        A `refused` one is logged even if the outage began for another reason.
        """
        trouble = f"{self._where}: {reason}"
        if self.connected:
            self._ended(reason)
        if self.connected or not self.connects:
            self.trouble = trouble
        self.connected, self.detail, self._unlogged = False, reason, ""
        is_news = refused and trouble not in self._logged and len(self._logged) < _MAX_LOGGED
        if not self._logged or is_news:
            log.warning("broker %s; events wait in the spool, trying again", trouble)
        if len(self._logged) < _MAX_LOGGED:
            self._logged.add(trouble)

    def _ended(self, reason: str) -> None:
        now = time.monotonic()
        if not self._unlogged:
            self._since = now
        self._short = self._short + 1 if now - self._connected_at < _STABLE_S else 0
        if reason.startswith(_TAKEN_OVER):
            self._short, self._is_taken_over = max(self._short, _FLAPPING), True
        elif self._short == _FLAPPING + 1 and self._is_acknowledged and not self._is_taken_over:
            self._warn_client_id()

    def _warn_client_id(self) -> None:
        log.warning(
            "broker %s: connections end right after they are made; does another device use the client id %s?",
            self._where,
            self._client_id,
        )

    def accepted(self, how: str) -> None:
        """Record that the broker has accepted the connection; that is logged with the first acknowledgement."""
        self.connected, self.detail, self._connected_at = True, how, time.monotonic()
        self.connects += 1
        self._unlogged, self._is_acknowledged = how, False

    def acknowledged(self) -> None:
        self._is_acknowledged = True
        if self._unlogged and self._short < _FLAPPING:
            self._log_connected()

    def silent(self, for_s: float) -> None:
        """Record that a connected broker has acknowledged nothing for some time."""
        if self._logged:
            return
        self._since, self._unlogged, self._is_acknowledged = time.monotonic() - for_s, self.detail, False
        self._logged.add("silent")
        log.warning(
            "broker %s has acknowledged nothing for %.0f s: it or the network is stuck; events wait in the spool",
            self._where,
            for_s,
        )

    def stable(self) -> None:
        """Check whether the connection has become stable; call now and then while it lasts."""
        if self._unlogged and self._is_acknowledged and time.monotonic() - self._connected_at >= _STABLE_S:
            self._short = 0
            self._log_connected()

    def _log_connected(self) -> None:
        how, self._unlogged = self._unlogged, ""
        if self._logged:
            log.info("broker %s: back after %.1f s, %s", self._where, time.monotonic() - self._since, how)
        else:
            log.info("broker %s: connected, %s", self._where, how)
        self._logged, self._is_taken_over = set(), False

    def close(self, detail: str) -> None:
        """Record that this device has disconnected by itself, which is not an outage."""
        self.connected, self.detail = False, detail
        self._restart()


_REPEAT_ONLINE_S = 2.0
"""Minimum time between two repetitions of `online`, so that two devices do not flood the broker."""
_SHUTDOWN_S = 2.0
"""A broker that shuts down has closed the connection by then."""


class DuplicateDevice:
    """Notices another device with the same name, whose `offline` would count as this one's, and logs it once.

    Two boards from one image are the usual case: their client ids differ, so the broker accepts both. A broker
    that shuts down publishes this device's own will before it closes the connection: so the other device is
    logged only if the connection still stands a moment later.
    """

    def __init__(self, status: str, online: bytes, clock: Callable[[], float] = time.monotonic) -> None:
        self._status, self._online, self._clock = status, online, clock
        self._is_contradicted = self._is_logged = self._is_leaving = False
        self._repeated_at = -_REPEAT_ONLINE_S
        self._suspect: tuple[float, bytes] | None = None

    def restart(self, connection: Connection) -> None:
        """Subscribe on a new connection. If the broker refuses that, nothing is noticed."""
        self._is_contradicted, self._is_leaving, self._suspect = False, False, None
        connection.subscriptions.add(self._status, self._on_message, qos=1)

    def end(self) -> None:
        """Ignore what is published from now on: this device says that it leaves."""
        self._is_leaving = True

    def is_due(self) -> bool:
        """Return True when `online` is to be published again; the caller does that."""
        self._log_once()
        if not self._is_contradicted or self._clock() - self._repeated_at < _REPEAT_ONLINE_S:
            return False
        self._is_contradicted, self._repeated_at = False, self._clock()
        return True

    def _on_message(self, received: IncomingMessage) -> None:
        # A retained status was left by this run or an earlier one.
        if self._is_leaving or received.retained or received.payload == self._online:
            return
        self._is_contradicted = True
        if self._suspect is None:
            self._suspect = self._clock(), received.payload

    def _log_once(self) -> None:
        if self._is_logged or self._suspect is None or self._clock() - self._suspect[0] < _SHUTDOWN_S:
            return
        self._is_logged = True
        log.warning(
            "another client published %r on %s: does another device have the same name? set [device] name",
            self._suspect[1][:20].decode(errors="replace"),
            self._status,
        )


_MOVE_S = 5.0
"""Time for what is in flight when another broker is to be used; the rest is sent again over its connection."""
_RESERVE_S = 0.3
"""Part of the time for stopping that is kept for publishing `stopped`; a third of it, if that is less."""


class Stop:
    """A request to stop, with a deadline. Set by one thread, read by another."""

    def __init__(self) -> None:
        self._deadline = math.inf
        self._reserve_s = 0.0

    def ask(self, timeout_s: float) -> None:
        self._reserve_s = min(_RESERVE_S, timeout_s / 3)
        self._deadline = time.monotonic() + timeout_s

    @property
    def is_asked(self) -> bool:
        return self._deadline != math.inf

    def seconds_left(self) -> float:
        """Return the seconds left; infinite if no stop was asked for."""
        return max(0.0, self._deadline - time.monotonic())

    def drain_seconds_left(self) -> float:
        return max(0.0, self.seconds_left() - self._reserve_s)


_PIECE = 4096
"""Bytes of samples and replies that are handed on at once: events wait behind them on a slow network."""


class BrokerSession:
    """Sends and receives for the device, over one connection after another.

    Attributes:
        events, states, transient: queues of what to send.
        inbox: handlers of what arrives.
        link: logs how the connection is.
        unsent_bytes: of messages that wait for the network, 0 while it takes all at once.
        max_packet: largest packet that the broker of the newest connection takes, bytes; 0: it names no limit.
    """

    def __init__(
        self,
        topics: Topics,
        source: EventSource,
        where: object,
        client_id: str,
        has_stream: Callable[[str], bool],
        timings: ConnectionTimings = TIMINGS,
        streams: StreamConfigs = dict,
    ) -> None:
        self._status, self._where, self._timings = topics.status, where, timings
        self.events = EventSender(source, where, math.inf)
        self.states, self.transient, self.inbox = RetainedTopics(where), TransientQueue(), Inbox(where)
        self.link = LinkLog(where, client_id)
        self._topics, self._streams = topics, streams
        self._stale = StaleTopics(self.states, topics, has_stream, streams)
        self._duplicate = DuplicateDevice(topics.status, ONLINE)
        self._status_mid = self.unsent_bytes = self.max_packet = 0
        self._heard_at = 0.0

    def load(self) -> LinkLoad:
        """Return how busy the connection is. Any thread may call this."""
        if not self.link.connected:
            return LinkLoad()
        return LinkLoad(True, self.unsent_bytes, round(self.events.oldest_s, 3))

    def run(
        self,
        connection: Connection,
        stop: Stop,
        longest_pause_s: float,
        last_status: Callable[[], bytes],
    ) -> bool:
        """Send and receive to the end of the connection. Return True if another broker is to be used.

        Args:
            connection: that a broker has accepted.
            stop: what is left to send has until its deadline.
            longest_pause_s: longest wait for the network, s.
            last_status: returns the status to publish before another broker is used; empty: stay.
        """
        self._restart(connection)
        last = b""
        while not connection.lost and not self._is_drained(stop) and not (last := last_status()):
            self._send(connection)
            longest_s = min(longest_pause_s, self._timings.pause_s)
            pause_s = min(longest_s, self.events.retry_in(), stop.drain_seconds_left())
            self._turn(connection, 0.0 if self._can_send_more(connection) else pause_s)
            self.unsent_bytes = self._unsent_bytes(connection)
            self._stale.poll()
            self.link.stable()
        self.unsent_bytes = 0
        if not connection.lost:
            self._leave(connection, stop) if stop.is_asked else self._move(connection, stop, last)
        return bool(last)

    def _restart(self, connection: Connection) -> None:
        self._heard_at, self.max_packet = time.monotonic(), connection.max_packet
        self.events.restart()
        self._delete_snapshots()
        self.states.restart()
        self.transient.restart()
        self.inbox.restart(connection)  # first: a client that sees `online` may send commands
        self._publish_status(connection, ONLINE)
        self._duplicate.restart(connection)
        self._stale.restart(connection, str(self._where))

    def _delete_snapshots(self) -> None:
        """Delete pictures of streams that hide something, or are off, and have published none in this run.

        An earlier run may have left them, without masks. On each connection: every broker has its own.
        """
        for name, config in self._streams().items():
            if config.hides or not config.enabled:
                self.states.set_if_new(self._topics.snapshot(name), b"")

    def _publish_status(self, connection: Connection, status: bytes) -> None:
        self._status_mid = connection.publish(self._status, status, qos=1, retain=True)

    def _is_drained(self, stop: Stop) -> bool:
        if not stop.is_asked:
            return False
        waits = self.events.is_waiting or self.states.is_waiting or self._in_flight()
        return not waits or stop.drain_seconds_left() <= 0.0

    def _in_flight(self) -> int:
        return self.events.in_flight + self.states.in_flight + bool(self._status_mid)

    def _can_send_more(self, connection: Connection) -> bool:
        return self.events.is_waiting and connection.window > self._in_flight()

    def _unsent_bytes(self, connection: Connection) -> int:
        unsent = connection.unsent_bytes
        return unsent + self.transient.bytes + self.states.large_bytes if unsent else 0

    def _send(self, connection: Connection) -> None:
        # Before anything is queued here.
        has_room = (self.transient.is_waiting or self.states.wants_large) and connection.has_room
        # Who sees a topic may answer it at once: what was subscribed before it was set is subscribed before it.
        began = time.monotonic()
        self.inbox.update(connection)
        # States are few and newest-wins; a quarter of the window leaves the rest to the events.
        share = max(1, connection.window // 4) - self.states.in_flight
        self.transient.send(connection, 0)  # short replies go first
        self.states.send(connection, min(share, connection.window - self._in_flight()), set_by=began)
        self.events.send(connection, connection.window - self._in_flight())
        self.transient.send(connection, _PIECE if has_room else 0)
        can_send_large = not self.events.is_waiting and connection.window > self._in_flight()
        if has_room and can_send_large:
            self.states.send_large(connection, set_by=began)
        connection.wants_room = self.transient.is_waiting or (can_send_large and self.states.wants_large)
        if not self._status_mid and not connection.lost and self._duplicate.is_due():
            self._publish_status(connection, ONLINE)

    def _turn(self, connection: Connection, timeout_s: float) -> None:
        if not self._in_flight():
            self._heard_at = time.monotonic()
        for acknowledged in connection.turn(timeout_s):
            self._acknowledge(acknowledged)
        self.events.settle()
        silent_s = time.monotonic() - self._heard_at
        if silent_s > self._timings.uneasy_s:
            self.link.silent(silent_s)
        if silent_s > self._timings.silence_s:
            connection.drop(f"no acknowledgement for {self._timings.silence_s:.0f} s")

    def _acknowledge(self, acknowledged: PubAck) -> None:
        self._heard_at = time.monotonic()
        self.link.acknowledged()
        if acknowledged.mid == self._status_mid:
            self._status_mid = 0
            if acknowledged.is_refusal:
                log.warning("the broker refuses %s: %s", self._status, reasons.in_words(acknowledged.code))
        elif not self.events.acknowledge(acknowledged):
            self.states.acknowledge(acknowledged)

    def _move(self, connection: Connection, stop: Stop, status: bytes) -> None:
        """Publish the last status, and let what is in flight arrive."""
        until = time.monotonic() + _MOVE_S
        self._duplicate.end()
        self._publish_status(connection, status)
        while self._in_flight() and not connection.lost and not stop.is_asked and time.monotonic() < until:
            self._turn(connection, 0.1)
        connection.farewell(0.5)

    def _leave(self, connection: Connection, stop: Stop) -> None:
        self._duplicate.end()
        self._publish_status(connection, STOPPED)
        while self._status_mid and not connection.lost and stop.seconds_left() > 0.0:
            self._turn(connection, stop.seconds_left())
        connection.farewell(max(0.05, stop.seconds_left()))


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
