"""Select and format messages of the event queue for `vedette events`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import msgspec
from msgspec import Struct

from agent.cli.row import format_event, line
from agent.comms import messages
from agent.storage.spool.history import Past
from agent.text import local_time, plain

COLUMNS = (
    "seq",
    "first_seq",
    "id",
    "acknowledged",
    "captured_at",
    "device",
    "stream",
    "kind",
    "reason",
    "label",
    "track",
    "score",
    "best_score",
    "hits",
    "first_seen",
    "last_seen",
    "x0",
    "y0",
    "x1",
    "y1",
    "zones",
    "latency_ms",
    "model",
    "backend",
    "variant",
    "path",
    "topic",
)
"""Columns of a CSV file; empty where a message has no such value."""


class HistoryQuery(Struct, frozen=True):
    """Which messages.

    Attributes:
        stream, kind, label: only these; empty: all.
        since, until: put into the spool at or after, and before, Unix time, s.
    """

    stream: str = ""
    kind: str = ""
    label: str = ""
    since: float = float("-inf")
    until: float = float("inf")

    def __contains__(self, item: HistoryRow) -> bool:
        """Return True if a message is selected."""
        return (
            self.since <= item.past.stored.put_at < self.until
            and self.stream in ("", item.stream)
            and self.kind in ("", item.kind)
            and (not self.label or self.label in item.labels)
        )


class HistoryRow:
    """One message.

    Attributes:
        past: as the spool has it.
    """

    def __init__(self, past: Past) -> None:
        self.past = past

    @cached_property
    def fields(self) -> dict[str, Any]:
        """Return the payload as delivered, except the waiting time; empty for a damaged row."""
        stored = self.past.stored
        with suppress(msgspec.MsgspecError, ValueError):
            found: dict[str, Any] = msgspec.json.decode(messages.complete_spooled(stored, stored.put_at))
            if found.get("kind") == "heard":  # the word of earlier versions
                found["kind"] = "keyword"
            return found
        return {}

    @property
    def stream(self) -> str:
        """Return the stream's name."""
        return str(self.fields.get("stream", ""))

    @property
    def kind(self) -> str:
        """Return `new`, `update`, `end` or `keyword`; for other messages the last topic level."""
        return str(self.fields.get("kind", self.past.stored.topic.rpartition("/")[2]))

    @property
    def labels(self) -> set[str]:
        """Return the label."""
        things = [self.fields, self._track, *(self.fields.get("detections") or ())]
        return {str(thing["label"]) for thing in things if thing.get("label")}

    @property
    def _track(self) -> dict[str, Any]:
        """Return the track of an event; a clip has only the track's id."""
        track = self.fields.get("track") or {}
        return track if isinstance(track, dict) else {"id": track}

    def json(self) -> str:
        """Return a line of JSON: message, topic, and whether the broker has acknowledged it."""
        told = {"topic": self.past.stored.topic, "acknowledged": self.past.acknowledged, **self.fields}
        return msgspec.json.encode(told).decode(errors="replace")

    def text(self) -> str:
        """Return a line of text."""
        with suppress(msgspec.MsgspecError):
            return line(format_event(msgspec.convert(self.fields, messages.EventMessage, strict=False)))
        at = datetime.fromtimestamp(self.past.stored.put_at, UTC)
        told = f"{local_time(at)}  {self.stream:10}  {self.kind:19}  {', '.join(sorted(self.labels)):14}"
        return plain(f"{told}  {self.fields.get('path', '')}").rstrip()

    def row(self) -> Iterator[str]:
        """Return the cells of a CSV row, see `COLUMNS`."""
        fields, track = self.fields, self._track
        flat = {
            **{name: fields.get(name) for name in COLUMNS},
            **{name: track.get(name) for name in ("score", "best_score", "hits", "first_seen", "last_seen")},
            **dict(zip(("x0", "y0", "x1", "y1"), track.get("box") or (), strict=False)),
            "seq": self.past.stored.seq,
            "acknowledged": str(self.past.acknowledged).lower(),
            "topic": self.past.stored.topic,
            "kind": self.kind,
            "label": " ".join(sorted(self.labels)),
            "track": track.get("id"),
            "zones": " ".join(track.get("zones") or ()),
            "latency_ms": (fields.get("latency_ms") or {}).get("total"),
            "model": (fields.get("model") or {}).get("name"),
        }
        return ("" if flat[name] is None else str(flat[name]) for name in COLUMNS)
