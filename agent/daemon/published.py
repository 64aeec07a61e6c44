"""Published: under which names, and at which brokers, this device has left something retained; outlives restarts.

It is on the disk before anything is published, and is forgotten when a broker has deleted what is there under a
name that is in use no more. See `agent.comms.mqtt.cleanup`.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from agent.comms.homeassistant.discovery import topic
from agent.comms.mqtt.brokers import address
from agent.comms.mqtt.cleanup import FormerName
from agent.comms.mqtt.endpoint import brokers_of
from agent.comms.topics import Topics
from agent.config import Config
from agent.errors import StorageError
from agent.storage.state_file import StateFile

log = logging.getLogger(__name__)

FILE = "published.json"
"""Its name in the state folder."""
_MOST = 50
"""Traces that are kept of a broker, the newest."""


class _File(Struct, frozen=True):
    brokers: dict[str, list[FormerName]] = {}


class RetainedHistory:
    """A `Memory` of the eraser. `note` and `look` are for the daemon's thread, the rest for any."""

    def __init__(self, file: StateFile | None = None) -> None:
        """Read what is known.

        Args:
            file: where it is kept; None: nowhere.
        """
        self._file, self._lock = file, threading.Lock()
        self._erased: queue.SimpleQueue[tuple[str, FormerName]] = queue.SimpleQueue()
        self._now: tuple[FormerName, ...] = ()
        self._brokers: dict[str, list[FormerName]] = {}
        self._kept = b""
        try:
            self._kept = (file.read() if file else None) or b""
            self._brokers = msgspec.json.decode(self._kept, type=_File).brokers if self._kept else {}
        except (StorageError, msgspec.MsgspecError, ValueError, RecursionError) as error:
            log.warning("%s: begun anew: %s", FILE, error)

    def note(self, config: Config, topics: Topics) -> None:
        """This is in use from now on, at every broker of the configuration."""
        self.look()
        name = FormerName(topics.prefix, topics.device, tuple(config.streams))
        discovery = topic(config.homeassistant.prefix, topics.device)
        self._now = name, FormerName(topics.prefix, topics.device, (), discovery)
        with self._lock:
            for broker in map(address, brokers_of(config.mqtt)):
                known = self._brokers.get(broker, [])
                for trace in self._now:
                    known = _with(known, trace)
                self._brokers[broker] = known[-_MOST:]
        self._write()

    def look(self) -> None:
        """Forget what has been erased."""
        if self._erased.empty():
            return
        with self._lock:
            while not self._erased.empty():
                broker, trace = self._erased.get()
                known = self._brokers.get(broker, [])
                self._brokers[broker] = _without(known, trace, self._now[0])
        self._write()

    def write_anew(self) -> None:
        """Write the file again: the state folder was deleted."""
        self._kept = b""
        self._write()

    def _write(self) -> None:
        content = msgspec.json.format(msgspec.json.encode(_File(self._brokers)), indent=1) + b"\n"
        if self._file is None or content == self._kept:
            return
        try:
            self._file.write(content)
            self._kept = content
        except StorageError as error:
            log.warning("what is published under this name cannot be remembered: %s", error)

    def former_identifiers(self) -> tuple[str, ...]:
        """Of the device, see `Device`."""
        with self._lock:
            every = [f"{one.prefix}/{one.device}" for some in self._brokers.values() for one in some]
        return tuple(dict.fromkeys(one for one in every if one != f"{self._now[0].prefix}/{self._now[0].device}"))

    def has(self, stream: str) -> bool:
        """See `Memory`."""
        return stream in self._now[0].streams

    def at(self, broker: str) -> Sequence[FormerName]:
        """See `Memory`."""
        with self._lock:
            known = list(self._brokers.get(broker, ()))
        name, discovery = self._now
        gone = [replace(one, streams=_others(one, name)) for one in known if _is_same(one, name)]
        # What lies where the discovery message is to be now is the announcer's business.
        former = [one for one in known if not _is_same(one, name) and one.discovery != discovery.discovery]
        return [*(one for one in gone if one.streams), *former]

    def erased(self, broker: str, trace: FormerName) -> None:
        """See `Memory`."""
        self._erased.put((broker, trace))


def _is_same(one: FormerName, other: FormerName) -> bool:
    return (one.prefix, one.device, one.discovery) == (other.prefix, other.device, other.discovery)


def _others(one: FormerName, now: FormerName) -> tuple[str, ...]:
    return tuple(stream for stream in one.streams if stream not in now.streams)


def _with(known: list[FormerName], trace: FormerName) -> list[FormerName]:
    """With one more, or with streams more."""
    for number, one in enumerate(known):
        if _is_same(one, trace):
            return [
                *known[:number],
                replace(one, streams=one.streams + _others(trace, one)),
                *known[number + 1 :],
            ]
    return [*known, trace]


def _without(known: list[FormerName], erased: FormerName, now: FormerName) -> list[FormerName]:
    """Without what is erased: a name, or streams of the one that is in use."""
    if _is_same(erased, now):
        left = tuple(stream for stream in erased.streams if stream not in now.streams)
        return [
            replace(one, streams=tuple(s for s in one.streams if s not in left)) if _is_same(one, now) else one
            for one in known
        ]
    return [one for one in known if not _is_same(one, erased)]
