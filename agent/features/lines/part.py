"""Counts the crossings of a stream's lines, keeps the counts over restarts, and publishes them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from agent.comms.entities import Component, button, display_name, entity, stream_id
from agent.comms.messages import LabelCrossings, LineMessage
from agent.comms.reporter import Reporter
from agent.config import StreamConfig
from agent.config.places import LineConfig
from agent.daemon.parts import Asked, EntityPlace, Parts, Reply, StreamContext, StreamPart
from agent.errors import CommandError, StorageError
from agent.storage.background import BackgroundFile
from agent.structs import from_json
from agent.types import AudioChunk, Crossing, Event, Frame, StreamResult

log = logging.getLogger(__name__)
FOLDER = "lines"
"""Folder of the files, in the state folder."""
_WRITE_S = 60.0
"""Least time between two writes of the counts, s: SD cards wear out. A power cut loses no more than that."""
_CLOSE_S = 5.0
"""Longest wait for the disk when a stream ends, s."""
_LABELS_MAX, _OTHER = 64, "other"


class LineCount(Struct, frozen=True):
    """Crossings of one line.

    Attributes:
        since: UTC from which on they are counted.
        labels: crossings by label, at most 64 labels and `other`.
    """

    since: Annotated[datetime, Meta(tz=True)]
    labels: dict[str, LabelCrossings] = {}

    def plus(self, label: str, crossing: Crossing) -> LineCount:
        """Return the count with one more crossing."""
        name = label if label in self.labels or len(self.labels) < _LABELS_MAX else _OTHER
        one = self.labels.get(name, LabelCrossings())
        more = (
            replace(one, inwards=one.inwards + 1)
            if crossing.direction == "in"
            else replace(one, outwards=one.outwards + 1)
        )
        return replace(self, labels={**self.labels, name: more})

    def message(self, device: str, stream: str, name: str) -> LineMessage:
        """Return what is published about it."""
        every = self.labels.values()
        inwards, outwards = sum(one.inwards for one in every), sum(one.outwards for one in every)
        return LineMessage(device, stream, name, inwards, outwards, self.since, self.labels)


class LineCounters(StreamPart):
    """Counts of all lines of one stream. For the stream's thread; any thread may call `reset`."""

    def __init__(self, stream: str, lines: Iterable[LineConfig], folder: Path | None, reporter: Reporter) -> None:
        """Read the counts of an earlier run, and publish them; a damaged file is set aside, and they begin anew.

        Args:
            stream: its name.
            lines: to count.
            folder: of the files; None: the counts are kept in memory.
            reporter: of the stream.
        """
        self._stream, self._reporter = stream, reporter
        failure = f"stream {stream}: its counts of lines are not written"
        self._file = None
        if folder is not None:
            self._file = BackgroundFile(folder / f"{stream}.json", f"lines-{stream}", failure)
        self._lock = threading.Lock()
        self._counts = self._written = self._read()
        self._tried_s = time.monotonic()
        self._names: tuple[str, ...] = ()
        self.set_lines(lines)

    def process(self, item: Frame | AudioChunk, result: StreamResult) -> None:
        self.idle(result.events, lost=False)

    def idle(self, events: Sequence[Event], *, lost: bool) -> None:
        self.add(events)
        self.store()

    def end(self, events: Sequence[Event], reason: str) -> None:
        self.add(events)

    def configure(self, config: StreamConfig) -> None:
        self.set_lines(config.lines)

    def set_lines(self, lines: Iterable[LineConfig]) -> None:
        """Count other lines. The counts of lines that stay go on; those of lines that are gone are deleted."""
        with self._lock:
            self._names = tuple(line.name for line in lines)
            for name in self._counts.keys() - set(self._names):
                self._reporter.clear(LineMessage, name)
            now = datetime.now(UTC)
            self._counts = {name: self._counts.get(name) or LineCount(now) for name in self._names}
            for name in self._names:
                self._publish(name)

    def add(self, events: Sequence[Event]) -> None:
        """Count the crossings that events tell."""
        for event in events:
            if event.reason == "line" and event.track.crossed:
                crossing = event.track.crossed[-1]
                with self._lock:
                    if (count := self._counts.get(crossing.line)) is not None:
                        self._counts = {**self._counts, crossing.line: count.plus(event.track.label, crossing)}
                        self._publish(crossing.line)

    def reset(self, name: str) -> None:
        """Begin the counts of a line anew; empty: of all. Raises CommandError or StorageError."""
        with self._lock:
            if not self._names:
                raise CommandError(f"stream {self._stream} has no lines")
            if name and name not in self._names:
                raise CommandError(
                    f"stream {self._stream} has no line {name!r}; it has: {', '.join(self._names)}"
                )
            now = datetime.now(UTC)
            chosen = (name,) if name else self._names
            self._counts = {**self._counts, **dict.fromkeys(chosen, LineCount(now))}
            for one in chosen:
                self._publish(one)
        if self._file is not None:
            self._file.store(self._content)

    def store(self) -> None:
        """Write the counts if they have changed, and none were written for a while."""
        if time.monotonic() - self._tried_s < _WRITE_S or self._file is None or not self._is_changed:
            return
        if self._file.begin(self._content):
            self._tried_s = time.monotonic()

    def close(self) -> None:
        """Write what has changed: the stream ends."""
        if self._file is not None and self._is_changed:
            self._file.finish(self._content, _CLOSE_S)

    @property
    def _is_changed(self) -> bool:
        return self._counts != self._written or (self._file is not None and self._file.failed)

    def _publish(self, name: str) -> None:
        device, stream = self._reporter.place
        self._reporter.retain(self._counts[name].message(device, stream, name))

    def _read(self) -> dict[str, LineCount]:
        if self._file is None:
            return {}
        try:
            content = self._file.read()
            return {} if content is None else from_json(content, dict[str, LineCount])
        except (StorageError, msgspec.MsgspecError, ValueError) as error:
            reason = str(error).removeprefix(f"{self._file.path}: ")
            aside = self._file.set_aside()
            text = "stream %s: the counts of lines begin anew: %s: %s; see %s"
            log.warning(text, self._stream, self._file.path, reason, aside)
            return {}

    def _content(self) -> bytes:
        counts = self._written = self._counts
        return msgspec.json.encode(counts) if counts else b""


def open_part(context: StreamContext, _: Parts) -> LineCounters:
    """Count the lines of a stream; one that had lines in an earlier run has them cleared."""
    folder = None if context.state is None else context.state / FOLDER
    return LineCounters(context.name, context.config.lines, folder, context.reporter)


def reset(asked: Asked) -> Reply:
    """Count a line anew; without a name, all lines. Raises CommandError or StorageError."""
    stream, line = asked.stream, asked.command.line
    counters, (state, detail) = stream.parts.get("lines"), stream.status
    if not stream.config.lines:
        raise CommandError(f"stream {stream.name} has no lines")
    if counters is None:
        raise CommandError(f"stream {stream.name} is {state}: it counts nothing{detail and f': {detail}'}")
    counters.reset(line)
    log.info("command: stream %s: crossings of %s count anew", stream.name, line or "all lines")
    return "", {}


def entities(place: EntityPlace) -> Iterator[tuple[str, Component]]:
    """Yield the entities of a stream, by id."""
    if not place.config.publish.counts:
        return
    if place.commands and place.has_pictures:
        press = button(place.topics, place.name, "reset", "reset lines", payload="all", entity_category="config")
        yield stream_id(place.name, "reset"), press
    for line in place.config.lines:
        for direction in ("in", "out"):
            value = f"{{{{ value_json.{direction} if value_json is defined else 'None' }}}}"
            yield (
                stream_id(place.name, "line", line.name, direction),
                entity(
                    "sensor",
                    display_name(place.name, line.name, direction),
                    state_topic=place.topics.line(place.name, line.name),
                    state_class="total_increasing",
                    value_template=value,
                ),
            )
