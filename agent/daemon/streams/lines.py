"""Counts the crossings of a stream's lines, keeps the counts over restarts, and publishes them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from agent.comms.crossings import LabelCrossings, LineMessage
from agent.comms.reporter import Reporter
from agent.config.filters import LineConfig
from agent.errors import CommandError, StorageError
from agent.storage.files import make_folder
from agent.storage.state_file import StateFile
from agent.structs import from_json
from agent.types import Crossing, Event

log = logging.getLogger(__name__)
FOLDER = "lines"
"""Folder of the files, in the state folder."""
_WRITE_S = 60.0
"""Least time between two writes of the counts, s: SD cards wear out. A power cut loses no more than that."""
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


class LineCounters:
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
        self._file = None if folder is None else StateFile(_file(folder, stream))
        self._lock, self._disk = threading.Lock(), threading.Lock()
        self._counts = self._written = self._read()
        self._tried_s, self._failed = time.monotonic(), False
        self._names: tuple[str, ...] = ()
        self._writing: threading.Thread | None = None
        self.configure(lines)

    def configure(self, lines: Iterable[LineConfig]) -> None:
        """Count other lines. The counts of lines that stay go on; those of lines that are gone are deleted."""
        with self._lock:
            self._names = tuple(line.name for line in lines)
            for name in self._counts.keys() - set(self._names):
                self._reporter.clear_line(name)
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
        self._write()

    def store(self) -> None:
        """Write the counts if they have changed, and none were written for a while."""
        if time.monotonic() - self._tried_s < _WRITE_S or self._counts == self._written or self._is_writing:
            return
        self._tried_s = time.monotonic()
        # Another thread: a slow disk must not stop the pictures.
        self._writing = threading.Thread(target=self._write_or_log, name=f"lines-{self._stream}", daemon=True)
        self._writing.start()

    def close(self) -> None:
        """Write what has changed: the stream ends."""
        if self._counts != self._written:
            self._write_or_log()

    @property
    def _is_writing(self) -> bool:
        return self._writing is not None and self._writing.is_alive()

    def _publish(self, name: str) -> None:
        device, stream = self._reporter.place
        self._reporter.line(self._counts[name].message(device, stream, name))

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

    def _write_or_log(self) -> None:
        try:
            self._write()
        except StorageError as error:
            if not self._failed:
                log.warning("stream %s: its counts of lines are not written: %s", self._stream, error)
            self._failed = True
        else:
            self._failed = False

    def _write(self) -> None:
        with self._disk:
            counts = self._counts
            if self._file is not None:
                if counts:
                    make_folder(self._file.path.parent)
                self._file.write(msgspec.json.encode(counts) if counts else b"")
            self._written = counts


def open_lines(
    stream: str, lines: Sequence[LineConfig], state: Path | None, reporter: Reporter
) -> LineCounters | None:
    """Return the counters of a stream's lines; None: it has none, and had none in an earlier run.

    `state` is the folder of the daemon's state; None: the counts are kept in memory.
    """
    folder = None if state is None else state / FOLDER
    if not lines and (folder is None or not _file(folder, stream).exists()):
        return None
    return LineCounters(stream, lines, folder, reporter)


def _file(folder: Path, stream: str) -> Path:
    return folder / f"{stream}.json"
