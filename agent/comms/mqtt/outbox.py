"""Events on their way: taken in order, sent at QoS 1, settled when they are acknowledged.

Order is kept per device: after a lost connection everything that was not acknowledged is sent again, oldest
first. Events of a topic that the broker refuses wait, those of other topics go on; from time to time the oldest
of them alone tries whether the refusal lasts, so that none overtakes it. (Of several that were on their way when
the broker began to refuse, it may have taken the later ones.)
"""

from __future__ import annotations

import logging
import time
from collections import deque

import msgspec

from agent.comms import reasons
from agent.comms.backoff import Backoff
from agent.comms.connection import Acknowledged, Connection
from agent.comms.outgoing import Outgoing
from agent.comms.payload import finish
from agent.messages import Stored

log = logging.getLogger(__name__)

_AHEAD = 256
"""Events read at once."""
_SCAN = 2000
"""Events looked at in one go for one that can be sent: the network must not wait for a search."""
_LOOK_S = 60.0
"""Between two looks for older events: after an outage of the disk they come back late."""


class _Hold:
    """A topic that the broker refuses.

    Attributes:
        since, until: from its first refusal to the next attempt, s of the monotonic clock; `until` is 0 when
            an attempt is due.
        trying: the event of that attempt is on its way.
    """

    def __init__(self, max_s: float) -> None:
        self.backoff, self.since, self.until, self.trying = Backoff(max_s), time.monotonic(), 0.0, False

    @property
    def lets_through(self) -> bool:
        """Whether an event may be sent to see if the refusal lasts."""
        return not self.until and not self.trying


class Events:
    """The flow of events over one connection after another. Used by one thread, save for `more`.

    Attributes:
        sent, acknowledged: counts since the start.
    """

    def __init__(self, outgoing: Outgoing, where: object, retry_max_s: float) -> None:
        """Take events from a source.

        Args:
            outgoing: the source.
            where: the broker, for messages.
            retry_max_s: longest pause before a refused topic is tried again, s.
        """
        self._outgoing, self._where, self._retry_max_s = outgoing, where, retry_max_s
        self.sent = self.acknowledged = 0
        self._flight: dict[int, Stored] = {}
        self._flying: set[int] = set()
        self._settled: list[int] = []
        self._holds: dict[str, _Hold] = {}
        self.restart()

    def restart(self) -> None:
        """Begin on a new connection: everything that has not been acknowledged is sent again."""
        self._flight.clear()
        self._flying.clear()
        for hold in self._holds.values():
            hold.trying = False
        self._rewind()

    def _rewind(self) -> None:
        self.settle()  # what is done with must not be found again
        self._ahead: deque[Stored] = deque()
        self._after, self._more = 0, True
        self._look_at = time.monotonic() + _LOOK_S

    def more(self) -> None:
        """There is more to peek. May be called from any thread."""
        self._more = True

    @property
    def in_flight(self) -> int:
        """Events sent and not acknowledged."""
        return len(self._flight)

    @property
    def is_waiting(self) -> bool:
        """Whether there is something that could be sent now."""
        return bool(self._ahead) or self._more

    def retry_in(self) -> float:
        """Seconds until a refused topic is tried again."""
        now = time.monotonic()
        waits = (hold.until - now for hold in self._holds.values() if hold.until)
        return max(0.0, min(waits, default=_LOOK_S))

    def send(self, connection: Connection, room: int) -> None:
        """Send at most `room` events."""
        self._look_again()
        while room > 0 and (stored := self._next()) is not None:
            try:
                body = finish(stored)
                if not connection.fits(stored.topic, body):
                    raise ValueError(f"{len(body)} bytes, the broker takes {connection.max_packet}")
                mid = connection.publish(stored.topic, body, qos=1, kind="event")
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                # It can never be sent; kept, it would stand in the way for ever.
                log.error("event %d on %s cannot be sent and is dropped: %s", stored.seq, stored.topic, error)
                self._outgoing.drop(stored.seq)
                continue
            self._flight[mid] = stored
            self._flying.add(stored.seq)
            if self._holds and (hold := self._holds.get(stored.topic)) is not None:
                hold.trying = True
            self.sent += 1
            room -= 1

    def _look_again(self) -> None:
        now = time.monotonic()
        due = [hold for hold in self._holds.values() if 0 < hold.until <= now]
        for hold in due:
            hold.until = 0.0
        if due or (not self._flight and now >= self._look_at):
            self._rewind()

    def _next(self) -> Stored | None:
        """The next event that may be sent, if there is one."""
        for _ in range(_SCAN):
            if not self._ahead and not self._read():
                return None
            stored = self._ahead.popleft()
            hold = self._holds.get(stored.topic)
            if stored.seq not in self._flying and (hold is None or hold.lets_through):
                return stored
        return None

    def _read(self) -> bool:
        if not self._more:
            return False
        self._more = False  # before the look: what comes during it sets it again
        rows = self._outgoing.peek(self._after, _AHEAD)
        if len(rows) == _AHEAD:
            self._more = True
        if rows:
            self._after = rows[-1].seq
            self._ahead.extend(rows)
        return bool(rows)

    def take(self, acknowledged: Acknowledged) -> bool:
        """Take note of an acknowledgement; whether it was about an event."""
        stored = self._flight.pop(acknowledged.mid, None)
        if stored is None:
            return False
        self._flying.discard(stored.seq)
        if acknowledged.is_refusal:
            self._refused(stored.topic, acknowledged.code)
            return True
        self._settled.append(stored.seq)
        self.acknowledged += 1
        if self._holds and (hold := self._holds.pop(stored.topic, None)) is not None:
            self._rewind()  # those that waited lie behind
            seconds = time.monotonic() - hold.since
            log.info("broker %s takes %s again after %.0f s", self._where, stored.topic, seconds)
        return True

    def _refused(self, topic: str, code: int) -> None:
        hold = self._holds.get(topic)
        if hold is None:
            hold = self._holds[topic] = _Hold(self._retry_max_s)
            log.warning(
                "broker %s refuses %s: %s; its events are kept and tried again",
                self._where,
                topic,
                reasons.in_words(code),
            )
        hold.trying = False
        if not hold.until:  # all that were in flight together are one refusal
            hold.until = time.monotonic() + hold.backoff.next_s()

    def settle(self) -> None:
        """Hand the acknowledged ones on, all at once."""
        if self._settled:
            settled, self._settled = self._settled, []
            self._outgoing.settle(settled)
