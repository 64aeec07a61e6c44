"""Sends and receives over a connection that the broker has accepted, from `online` to its end; logs outages."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from agent.comms.mqtt.connection import TIMINGS, Connection, ConnectionTimings, PubAck
from agent.comms.mqtt.endpoint import in_words
from agent.comms.mqtt.inbox import Inbox, IncomingMessage, StaleTopics, StreamConfigs
from agent.comms.mqtt.outbox import EventSender, EventSource, RetainedTopics, TransientQueue
from agent.comms.topics import ONLINE, STOPPED, Topics
from agent.types import LinkLoad

log = logging.getLogger(__name__)

_STABLE_S = 10.0
"""A connection that lasts so long ends an outage of short ones."""
_FLAPPING = 2
"""So many short connections in a row are one outage, which ends only after `_STABLE_S`."""
_MAX_LOGGED = 20
"""Maximum number of reasons logged in one outage: a broker may give another each time."""


class LinkLog:
    """Logs each outage once when it begins and once when it ends, with its length.

    Attributes:
        connected: True if a broker has accepted the connection.
        detail: protocol and user of the connection, or why there is none.
        connects: how often a broker has accepted a connection.
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
        self._logged: set[str] = set()
        self._short = 0

    @property
    def is_flapping(self) -> bool:
        return self._short >= _FLAPPING

    def lost(self, reason: str, *, refused: bool = False, taken_over: bool = False) -> None:
        """Record that the connection broke, or could not be opened.

        A `refused` one is logged even if the outage began for another reason. Connections that are taken over are
        one outage, since the other client comes back as well.
        """
        trouble, now = f"{self._where}: {reason}", time.monotonic()
        if self.connected:
            self._short = self._short + 1 if now - self._connected_at < _STABLE_S else 0
            self._short = max(self._short, _FLAPPING) if taken_over else self._short
            self._since = now if self._is_announced else self._since
        if self.connected or not self.connects:
            self.trouble = trouble
        self.connected, self.detail, self._is_announced = False, reason, False
        if not self._logged or (refused and trouble not in self._logged and len(self._logged) < _MAX_LOGGED):
            log.warning("broker %s; events wait in the spool, trying again", trouble)
        if len(self._logged) < _MAX_LOGGED:
            self._logged.add(trouble)

    def accepted(self, how: str) -> None:
        """Record that the broker has accepted the connection; that is logged with the first acknowledgement."""
        self.connected, self.detail, self._connected_at = True, how, time.monotonic()
        self.connects += 1
        self._is_acknowledged = False

    def acknowledged(self) -> None:
        self._is_acknowledged = True
        if not self._is_announced and not self.is_flapping:
            self._log_connected()

    def stable(self) -> None:
        """Check whether the connection has become stable; call now and then while it lasts."""
        if self._is_announced or not self._is_acknowledged or time.monotonic() - self._connected_at < _STABLE_S:
            return
        self._short = 0
        self._log_connected()

    def _log_connected(self) -> None:
        self._is_announced = True
        if self._logged:
            seconds = time.monotonic() - self._since
            log.info("broker %s: back after %.1f s, %s", self._where, seconds, self.detail)
        else:
            log.info("broker %s: connected, %s", self._where, self.detail)
        self._logged = set()


_SHUTDOWN_S = 2.0
"""A broker that shuts down has closed the connection by then."""


class DuplicateDevice:
    """Notices another device with the same name, whose `offline` would count as this one's, and logs it once.

    Two boards from one image are the usual case: their client ids differ, so the broker accepts both. A broker
    that shuts down publishes this device's own will before it closes the connection: so nothing is done before
    the connection still stands a moment later.
    """

    def __init__(self, status: str, online: bytes, clock: Callable[[], float] = time.monotonic) -> None:
        self._status, self._online, self._clock = status, online, clock
        self._contradicted_at = math.inf
        self._is_logged = self._is_leaving = False

    def restart(self, connection: Connection) -> None:
        """Subscribe on a new connection. If the broker refuses that, nothing is noticed."""
        self._contradicted_at, self._is_leaving = math.inf, False
        connection.subscriptions.add(self._status, self._on_message, qos=1)

    def end(self) -> None:
        """Ignore what is published from now on: this device says that it leaves."""
        self._is_leaving = True

    def is_due(self) -> bool:
        """Return True when `online` is to be published again; the caller does that."""
        if self._clock() - self._contradicted_at < _SHUTDOWN_S:
            return False
        self._contradicted_at = math.inf
        if not self._is_logged:
            self._is_logged = True
            text = "another client published on %s: does another device have the same name? set [device] name"
            log.warning(text, self._status)
        return True

    def _on_message(self, received: IncomingMessage) -> None:
        # A retained status was left by this run or an earlier one.
        if not (self._is_leaving or received.retained or received.payload == self._online):
            self._contradicted_at = min(self._contradicted_at, self._clock())


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
        has_stream: Callable[[str], bool],
        timings: ConnectionTimings = TIMINGS,
        streams: StreamConfigs = dict,
    ) -> None:
        self._status, self._where, self._timings = topics.status, where, timings
        self.events = EventSender(source, where, math.inf)
        self.states, self.transient, self.inbox = RetainedTopics(where), TransientQueue(), Inbox(where)
        self.link = LinkLog(where)
        self._topics, self._streams = topics, streams
        self._stale = StaleTopics(self.states.set_if_new, topics, has_stream, streams)
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
            if not self._stale.is_done:
                self._stale.poll()
            self.link.stable()
        self.unsent_bytes = 0
        if not connection.lost:
            self._leave(connection, stop, last or STOPPED)
        return bool(last)

    def _restart(self, connection: Connection) -> None:
        self._heard_at, self.max_packet = time.monotonic(), connection.max_packet
        self.events.restart()
        self._delete_snapshots()
        self.states.restart()
        self.transient.restart()
        self.inbox.restart(connection.subscriptions)  # first: a client that sees `online` may send commands
        self._publish_status(connection, ONLINE)
        self._duplicate.restart(connection)
        self._stale.restart(connection.subscriptions, str(self._where))

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
        if self.inbox.is_changed:
            self.inbox.update(connection.subscriptions)
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
        if time.monotonic() - self._heard_at > self._timings.silence_s:
            connection.drop(f"no acknowledgement for {self._timings.silence_s:.0f} s")

    def _acknowledge(self, acknowledged: PubAck) -> None:
        self._heard_at = time.monotonic()
        self.link.acknowledged()
        if acknowledged.mid == self._status_mid:
            self._status_mid = 0
            if acknowledged.is_refusal:
                log.warning("the broker refuses %s: %s", self._status, in_words(acknowledged.code))
        elif not self.events.acknowledge(acknowledged):
            self.states.acknowledge(acknowledged)

    def _leave(self, connection: Connection, stop: Stop, status: bytes) -> None:
        """Publish the last status, and let it, and without a stop what else is in flight, arrive."""
        until = time.monotonic() + _MOVE_S
        self._duplicate.end()
        self._publish_status(connection, status)
        while (self._status_mid if stop.is_asked else self._in_flight()) and not connection.lost:
            if (left_s := min(stop.seconds_left(), until - time.monotonic())) <= 0.0:
                break
            self._turn(connection, min(0.1, left_s))
        connection.farewell(min(0.5, max(0.05, stop.seconds_left())))
