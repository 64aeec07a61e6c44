"""The eraser: what this device has left at a broker under a former name, or of streams that are gone, is deleted.

Who renames a device, or changes a prefix, wants the old name to be gone. What was published is remembered with
the broker that it went to, so that this is also done when the broker comes back later. A name that is online
there is another device's by now, and is left alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct

from agent.comms.commands import shown_payload
from agent.comms.homeassistant.discovery import is_of
from agent.comms.mqtt.connection import Connection
from agent.comms.mqtt.outbox import RetainedTopics
from agent.comms.mqtt.subscriptions import IncomingMessage, RetainedSubscription
from agent.comms.topics import ONLINE, Topics
from agent.text import plural

log = logging.getLogger(__name__)

_LOOK_S = 3.0
"""The broker sends what it retains at once after its answer; a slow line takes a little longer."""
_AGAIN_S = 60.0
"""A name that is online may be our own, of a run that was cut off: a broker notices that after a while."""


class FormerName(Struct, frozen=True, forbid_unknown_fields=True):
    """What this device may have left retained under one name.

    Attributes:
        prefix, device: the name.
        streams: that it had; their snapshots are deleted without a look.
        discovery: topic of its discovery message; empty: this is about all its own topics.
    """

    prefix: str
    device: str
    streams: tuple[str, ...] = ()
    discovery: str = ""

    @property
    def topics(self) -> Topics:
        """Its own."""
        return Topics(self.prefix, self.device)


class PublishedNames(Protocol):
    """What runs before have published, and where. For the thread of the line."""

    def has(self, stream: str) -> bool:
        """Whether there is a stream of this name."""
        ...

    def at(self, broker: str) -> Sequence[FormerName]:
        """What is to be erased at a broker; of the name that is in use, streams that are gone."""
        ...

    def erased(self, broker: str, trace: FormerName) -> None:
        """That is done."""
        ...


class _Nothing:
    """Nothing is remembered."""

    def has(self, stream: str) -> bool:
        return True

    def at(self, broker: str) -> Sequence[FormerName]:
        return ()

    def erased(self, broker: str, trace: FormerName) -> None:
        pass


NOTHING: PublishedNames = _Nothing()


class RetainedCleaner:
    """Of one broker; begun anew with each connection, for what is not done yet."""

    def __init__(self, states: RetainedTopics, topics: Topics, memory: PublishedNames, where: str) -> None:
        """Prepare.

        Args:
            states: that are set to nothing.
            topics: of the device now.
            memory: of what there was.
            where: the broker.
        """
        self._states, self._topics, self._memory, self._where = states, topics, memory, where
        self._looks: dict[str, RetainedSubscription] = {}
        self._found: list[IncomingMessage] = []
        self._traces: list[FormerName] = []
        self._erasing: dict[FormerName, list[str]] = {}
        self._until = self._again_at = 0.0
        self._told: set[FormerName] = set()

    def begin(self, connection: Connection) -> None:
        """Look for it, on a new connection."""
        self._connection, self._until, self._again_at = connection, 0.0, 0.0
        self._traces, self._found, self._erasing = [], [], {}
        for trace in self._memory.at(self._where):
            if trace.topics == self._topics and not trace.discovery:
                self._erase(trace, [])
            else:
                self._traces.append(trace)
        patterns = dict.fromkeys(pattern for trace in self._traces for pattern in _patterns(trace))
        self._looks = {pattern: connection.look(pattern) for pattern in patterns}

    def go_on(self) -> None:
        """Look at what has come, and forget what is deleted."""
        now = time.monotonic()
        if self._looks and self._is_all_there(now):
            self._decide()
        elif self._again_at and now >= self._again_at:
            self.begin(self._connection)
        for trace, topics in list(self._erasing.items()):
            if all(self._states.payload(topic) is None for topic in topics):
                del self._erasing[trace]
                self._memory.erased(self._where, trace)

    def _is_all_there(self, now: float) -> bool:
        found = [look.found() for look in self._looks.values()]
        self._found += [one for some in found for one in some or ()]
        if any(some is None for some in found):
            return False
        self._until = self._until or now + _LOOK_S
        return now >= self._until

    def _decide(self) -> None:
        refused = {pattern for pattern, look in self._looks.items() if look.refused}
        for look in self._looks.values():
            look.end()
        self._looks = {}
        for trace in self._traces:
            if refused & set(_patterns(trace)):
                self._tell(
                    trace, "may not be looked for at the broker; delete it there, or give this user the right"
                )
            elif self._is_online(trace):
                self._again_at = time.monotonic() + _AGAIN_S
                self._tell(trace, "is left alone as long as somebody is online there")
            else:
                self._erase(trace, [one.topic for one in self._found if _is_left_by(trace, one)])

    def _is_online(self, trace: FormerName) -> bool:
        return not trace.discovery and any(
            one.topic == trace.topics.status and one.payload == ONLINE for one in self._found
        )

    def _tell(self, trace: FormerName, what: str) -> None:
        if trace not in self._told:
            self._told.add(trace)
            log.warning("%s: what this device has left under its former name %s", _name(trace), what)

    def _erase(self, trace: FormerName, found: list[str]) -> None:
        # Snapshots first, and without a look: nobody is to see what a camera saw under another name.
        topics = [*(trace.topics.snapshot(stream) for stream in trace.streams), *found]
        self._erasing[trace] = [topic for topic in topics if self._states.set_if_new(topic, b"")]
        if found:
            deleted = plural(len(found), "retained topic")
            log.info("%s: this device has left that name: %s deleted", _name(trace), deleted)


def _name(trace: FormerName) -> str:
    return trace.discovery or f"{trace.prefix}/{trace.device}"


def _patterns(trace: FormerName) -> tuple[str, ...]:
    """Of all that is retained, save for snapshots, which are large."""
    topics = trace.topics
    if trace.discovery:
        return (trace.discovery,)
    return topics.status, topics.health, *topics.counts, topics.state("+", "#")


def _is_left_by(trace: FormerName, one: IncomingMessage) -> bool:
    if not one.payload:
        return False
    if trace.discovery:
        return one.topic == trace.discovery and is_of(one.payload, f"{trace.prefix}/{trace.device}")
    return one.topic.startswith(f"{trace.prefix}/{trace.device}/")


# The sweep: what a run before has left at the broker, and nobody keeps any more, is put right.
#
# A process that was killed, or that ended while the broker was away, leaves counts. Once in the life of a
# publisher the broker is asked for all of them which it retains of this device; what no stream of ours has set
# becomes 0. Of a stream that there is no more they are deleted, and before them its snapshot: nobody is to see
# what it saw last. What is left of `state/…` is deleted by `agent.comms.mqtt.conflicts`, and under a former name
# by `agent.comms.mqtt.cleanup`.

_SWEEP_LOOK_S = 3.0
"""The broker sends what it retains at once after its answer; a slow line takes a little longer."""
_MOST, _TOLD = 1000, 20
"""Topics that are put right, at most, and of those told: no device had more, whatever a broker says."""


class StaleCounts:
    """Done once; begun anew with each connection until it is."""

    def __init__(self, states: RetainedTopics, topics: Topics, has: Callable[[str], bool]) -> None:
        """Prepare.

        Args:
            states: what our own streams have set, and what is to be set.
            topics: of the device.
            has: whether there is a stream of this name.
        """
        self._states, self._topics, self._has = states, topics, has
        self._done, self._until = False, 0.0
        self._looks: list[RetainedSubscription] = []
        self._count = 0

    def begin(self, connection: Connection) -> None:
        """Ask, on a new connection."""
        self._until = 0.0
        if not self._done:
            self._looks = [connection.look(pattern) for pattern in self._topics.counts]

    def go_on(self) -> None:
        """Look at what has come."""
        if not self._looks:
            return
        found = [look.found() for look in self._looks]
        for some in found:
            for one in some or ():
                self._put_right(one)
        if any(some is None for some in found):  # the broker has not answered all of it
            return
        now = time.monotonic()
        self._until = self._until or now + _SWEEP_LOOK_S
        if now >= self._until:
            self._done = True
            for look in self._looks:
                look.end()
            self._looks = []

    def _put_right(self, one: IncomingMessage) -> None:
        stream = self._topics.stream_of(one.topic)
        right = b"0" if self._has(stream) else b""
        if one.payload in (b"", right) or self._count >= _MOST:
            return
        if not right:
            self._states.set_if_new(self._topics.snapshot(stream), b"")
        if self._states.set_if_new(one.topic, right):
            self._count += 1
            log.log(
                logging.INFO if self._count <= _TOLD else logging.DEBUG,
                "%.100r: %s, an earlier run left it at %s",
                one.topic,
                f"set to {right.decode()}" if right else f"deleted, since there is no stream {stream:.60}",
                shown_payload(one.payload),
            )
