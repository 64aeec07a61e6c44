"""Runs one connection that the broker has accepted, from `online` to its end, and logs outages."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from msgspec import Struct

from agent.comms.mqtt import reasons
from agent.comms.mqtt.cleanup import StaleTopics
from agent.comms.mqtt.connection import Connection, PubAck
from agent.comms.mqtt.inbox import Inbox, RetainedQuery
from agent.comms.mqtt.outbox import EventSender, ReplyQueue, RetainedTopics, TransientQueue
from agent.comms.mqtt.reasons import TAKEN_OVER, in_words
from agent.comms.mqtt.subscriptions import IncomingMessage
from agent.comms.topics import OFFLINE, ONLINE, STOPPED

log = logging.getLogger(__name__)

_STABLE_S = 10.0
"""A connection that lasts so long counts as a real one."""
_FLAPPING = 2
"""So many short connections in a row are one outage, which ends only after `_STABLE_S`."""
_MOST_SAID = 20
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
        """Begin without a connection.

        Args:
            where: the broker that is used or tried, for messages.
            client_id: of this device.
        """
        self._where, self._client_id = where, client_id
        self.connected, self.detail = False, "connecting"
        self.connects, self.trouble = 0, ""
        self._since = time.monotonic()  # of the outage
        self._is_heard = False
        self._connected_at = 0.0
        self._said: set[str] = set()
        self._short, self._is_taken_over = 0, False
        self._unsaid = ""

    @property
    def is_flapping(self) -> bool:
        """True if connections do not last."""
        return self._short >= _FLAPPING

    def lost(self, reason: str, *, refused: bool = False) -> None:
        """Record that the connection broke, or could not be opened.

        Args:
            reason: for the log.
            refused: the broker refuses this device: logged even if the outage began for another reason.
        """
        said = f"{self._where}: {reason}"
        if self.connected:
            self._ended(reason)
        if self.connected or not self.connects:
            self.trouble = said
        self.connected, self.detail, self._unsaid = False, reason, ""
        is_news = refused and said not in self._said and len(self._said) < _MOST_SAID
        if not self._said or is_news:
            log.warning("broker %s; events wait in the spool, trying again", said)
        if len(self._said) < _MOST_SAID:
            self._said.add(said)

    def _ended(self, reason: str) -> None:
        now = time.monotonic()
        if not self._unsaid:
            self._since = now
        self._short = self._short + 1 if now - self._connected_at < _STABLE_S else 0
        if reason.startswith(_TAKEN_OVER):
            self._short, self._is_taken_over = max(self._short, _FLAPPING), True
        elif self._short == _FLAPPING + 1 and self._is_heard and not self._is_taken_over:
            self._warn_client_id()

    def _warn_client_id(self) -> None:
        log.warning(
            "broker %s: connections end right after they are made; does another device use the client id %s?",
            self._where,
            self._client_id,
        )

    def over(self, how: str) -> None:
        """Record that the broker has accepted the connection. It is logged with the first acknowledgement.

        Args:
            how: protocol and user.
        """
        self.connected, self.detail, self._connected_at = True, how, time.monotonic()
        self.connects += 1
        self._unsaid, self._is_heard = how, False

    def acknowledged(self) -> None:
        """Record an acknowledgement."""
        self._is_heard = True
        if self._unsaid and self._short < _FLAPPING:
            self._log_connected()

    def silent(self, for_s: float) -> None:
        """Record that a connected broker acknowledges nothing.

        Args:
            for_s: for how long, s.
        """
        if self._said:
            return  # of one outage with another
        self._since, self._unsaid = time.monotonic() - for_s, self.detail
        self._said.add("silent")
        log.warning(
            "broker %s has acknowledged nothing for %.0f s: it or the network is stuck; events wait in the spool",
            self._where,
            for_s,
        )

    def stable(self) -> None:
        """Check whether the connection has become stable; call now and then while it lasts."""
        if self._unsaid and self._is_heard and time.monotonic() - self._connected_at >= _STABLE_S:
            self._short = 0
            self._log_connected()

    def _log_connected(self) -> None:
        how, self._unsaid = self._unsaid, ""
        if self._said:
            log.info("broker %s: back after %.1f s, %s", self._where, time.monotonic() - self._since, how)
        else:
            log.info("broker %s: connected, %s", self._where, how)
        self._said, self._is_taken_over = set(), False

    def leave(self) -> None:
        """Record that this device has disconnected: that is no outage."""
        self.connected, self.detail = False, "stopped"


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
        """Prepare.

        Args:
            status: topic of this device's status.
            online: payload of the status while this device is connected.
            clock: monotonic, s.
        """
        self._status, self._online, self._clock = status, online, clock
        self._is_contradicted = self._is_logged = self._is_leaving = False
        self._repeated_at = -_REPEAT_ONLINE_S
        self._suspect: tuple[float, bytes] | None = None

    def restart(self, connection: Connection) -> None:
        """Subscribe on a new connection. If the broker refuses that, nothing is noticed."""
        self._is_contradicted, self._is_leaving, self._suspect = False, False, None
        connection.subscriptions.add(self._status, self._on_message, lambda _: None, qos=1)

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


_UNEASY_S, _SILENCE_S = 12.0, 60.0
"""Silence after which a warning is logged (a slow network may need that long for a snapshot), and after which the
connection is dropped, whatever the broker's pings say."""
_PAUSE_S = 1.0
"""Maximum wait for something to do; patient retained topics wait for it."""
_MOVE_S = 5.0
"""Time for what is in flight when the fallback is left; the rest is sent again over the next connection."""
_RESERVE_S = 0.3
"""Part of the time for stopping that is kept for publishing `stopped`; a third of it, if that is less."""


class Stop:
    """A request to stop, with a deadline. Set by one thread, read by another."""

    def __init__(self) -> None:
        self._deadline = math.inf
        self._reserve_s = 0.0

    def ask(self, timeout_s: float) -> None:
        """Ask to stop within `timeout_s`."""
        self._reserve_s = min(_RESERVE_S, timeout_s / 3)
        self._deadline = time.monotonic() + timeout_s

    @property
    def is_asked(self) -> bool:
        """True if a stop was asked for."""
        return self._deadline != math.inf

    def left(self) -> float:
        """Return the seconds left; infinite if no stop was asked for."""
        return max(0.0, self._deadline - time.monotonic())

    def drain_left(self) -> float:
        """Return the seconds left for draining."""
        return max(0.0, self.left() - self._reserve_s)


class ConnectionLoop:
    """Sends and receives over one connection, until it ends."""

    def __init__(
        self,
        connection: Connection,
        status: str,
        flows: tuple[EventSender, RetainedTopics, TransientQueue, Inbox, ReplyQueue],
        stale: StaleTopics,
        query: RetainedQuery,
        outage: LinkLog,
        namesake: DuplicateDevice,
    ) -> None:
        """Prepare.

        Args:
            connection: open.
            status: topic of the device's status.
            flows: queues of what to send, and the subscriptions.
            stale: topics that an earlier run left retained.
            query: questions about what the broker retains.
            outage: logs how the connection is.
            namesake: notices another device of the same name.
        """
        self._connection, self._status, self._outage = connection, status, outage
        self._events, self._states, self._samples, self._inbox, self._answers = flows
        self._stale, self._query, self._duplicate = stale, query, namesake
        self._status_mid = 0
        self._heard_at = time.monotonic()

    def run(self, stop: Stop, longest_pause_s: float, should_return: Callable[[], bool]) -> bool:
        """Send until the connection is lost, until asked to stop, or until the first broker is to be tried.

        Args:
            stop: what is left to send has until its deadline.
            longest_pause_s: longest wait for the network, s.
            should_return: True to leave this broker; what is in flight has a moment to arrive.

        Returns:
            True if `should_return` was.
        """
        self._events.restart()
        self._states.restart()
        self._answers.restart()
        self._inbox.restart(self._connection)  # first: a client that sees `online` may send commands
        self._publish_status(ONLINE)
        self._duplicate.restart(self._connection)
        self._stale.restart(self._connection)
        self._query.restart()
        returns = False
        while not self._connection.lost and not self._is_done(stop) and not (returns := should_return()):
            self._send()
            pause_s = min(longest_pause_s, _PAUSE_S, self._events.retry_in(), stop.drain_left())
            self._turn(0.0 if self._can_send_more() else pause_s)
        if not self._connection.lost:
            self._leave(stop) if stop.is_asked else self._move(stop)
        return returns

    def _publish_status(self, status: bytes) -> None:
        self._status_mid = self._connection.publish(self._status, status, qos=1, retain=True)

    def _is_done(self, stop: Stop) -> bool:
        if not stop.is_asked:
            return False
        left = self._events.is_waiting or self._states.is_waiting or self._in_flight()
        return not left or stop.drain_left() <= 0.0

    def _in_flight(self) -> int:
        return self._events.in_flight + self._states.in_flight + bool(self._status_mid)

    def _room(self) -> int:
        return self._connection.window - self._in_flight()

    def _can_send_more(self) -> bool:
        return self._events.is_waiting and self._room() > 0

    def _send(self) -> None:
        self._answers.send(self._connection)
        self._samples.send(self._connection)
        # States are few and newest-wins; a quarter of the window leaves the rest to the events.
        share = max(1, self._connection.window // 4) - self._states.in_flight
        self._states.send(self._connection, min(share, self._room()))
        self._events.send(self._connection, self._room())
        self._inbox.update(self._connection)
        if not self._status_mid and not self._connection.lost and self._duplicate.is_due():
            self._publish_status(ONLINE)

    def _turn(self, timeout_s: float) -> None:
        if not self._in_flight():
            self._heard_at = time.monotonic()
        for acknowledged in self._connection.turn(timeout_s):
            self._acknowledge(acknowledged)
        self._events.settle()
        self._stale.poll()
        self._query.poll(self._connection)
        self._outage.stable()
        silent_s = time.monotonic() - self._heard_at
        if silent_s > _UNEASY_S:
            self._outage.silent(silent_s)
        if silent_s > _SILENCE_S:
            self._connection.drop(f"no acknowledgement for {_SILENCE_S:.0f} s")

    def _acknowledge(self, acknowledged: PubAck) -> None:
        self._heard_at = time.monotonic()
        self._outage.acknowledged()
        if acknowledged.mid == self._status_mid:
            self._status_mid = 0
            if acknowledged.is_refusal:
                log.warning("the broker refuses %s: %s", self._status, reasons.in_words(acknowledged.code))
        elif not self._events.acknowledge(acknowledged):
            self._states.acknowledge(acknowledged)

    def _move(self, stop: Stop) -> None:
        """Publish `offline`, and let what is in flight arrive."""
        until = time.monotonic() + _MOVE_S
        self._duplicate.end()
        self._publish_status(OFFLINE)
        while self._in_flight() and not self._connection.lost and not stop.is_asked and time.monotonic() < until:
            self._turn(0.1)
        self._connection.farewell(0.5)

    def _leave(self, stop: Stop) -> None:
        self._duplicate.end()
        self._publish_status(STOPPED)
        while self._status_mid and not self._connection.lost and stop.left() > 0.0:
            self._turn(stop.left())
        self._connection.farewell(max(0.05, stop.left()))


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
