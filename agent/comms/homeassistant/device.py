"""What Home Assistant is to know: a device and its streams as facts, before they become entities."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Literal

from msgspec import Struct

from agent.comms.naming import slug, spoken
from agent.comms.topics import Topics

Kind = Literal["things", "verdicts", "sounds", "words"]
"""What a model finds: things with a place, several at once; verdicts on the whole picture; sounds; or words."""


class Label(Struct, frozen=True):
    """Something that a stream looks or listens for.

    Attributes:
        zone: where; empty: in the whole picture.
        label: what.
    """

    zone: str
    label: str

    @property
    def place(self) -> str:
        """Its part of an id, between the stream's name and what is told of it."""
        return f"zone.{self.zone}." if self.zone else ""


class Subject(Struct, frozen=True):
    """A stream.

    Attributes:
        name: of the stream.
        kind: what its model finds; None: the model cannot be opened, and what it finds is not known now.
        labels: that may come, in the model's order.
        named: by the configuration: these become entities at once.
        counted: seen in this run, in that order.
        zones: names.
        rungs: to choose from.
        counts, snapshot, events: whether these are published.
        commands: whether it takes any.
    """

    name: str
    kind: Kind | None = None
    labels: tuple[str, ...] = ()
    named: tuple[Label, ...] = ()
    counted: tuple[Label, ...] = ()
    zones: tuple[str, ...] = ()
    rungs: tuple[str, ...] = ()
    counts: bool = True
    snapshot: bool = True
    events: bool = True
    commands: bool = True

    def id(self, *parts: str) -> str:
        """An id of this stream: its parts hold no dot, so that no other has the same."""
        return ".".join((self.name, *parts))

    def occupancy_id(self, one: Label) -> str:
        """Of the entity that tells whether something is there."""
        return self.id(f"{one.place}occupancy", slug(one.label))

    def count_id(self, one: Label) -> str:
        """Of the entity that tells how many there are."""
        return self.id(f"{one.place}count", slug(one.label))

    def told(self, known: Container[str], most: int) -> tuple[list[Label], list[str]]:
        """What becomes entities, and labels that do not because there would be too many.

        Args:
            known: ids of entities that there are: what was once seen stays.
            most: labels that the configuration does not name.
        """
        told = dict.fromkeys(self.named)
        labels: dict[str, None] = {}
        left: dict[str, None] = {}
        for one in (*self._remembered(known), *self.counted):
            if one in told or one.label not in self.labels:
                continue
            if one.label in labels or len(labels) < most:
                labels[one.label] = None
                told[one] = None
            else:
                left[one.label] = None
        return list(told), list(left)

    def _remembered(self, known: Container[str]) -> Iterator[Label]:
        for label in self.labels:
            for zone in ("", *self.zones):
                if self.occupancy_id(Label(zone, label)) in known:
                    yield Label(zone, label)


class Device(Struct, frozen=True):
    """The device.

    Attributes:
        topics: its own.
        board: what it is; empty: not known.
        version: of Vedette.
        has_temperature: whether it has a thermal sensor.
        streams: see `Subject`.
        former: identifiers that it had before.
    """

    topics: Topics
    board: str
    version: str
    has_temperature: bool
    streams: tuple[Subject, ...]
    former: tuple[str, ...] = ()

    @property
    def identifier(self) -> str:
        """The device among all that one Home Assistant knows."""
        return f"{self.topics.prefix}/{self.topics.device}"

    @property
    def spoken(self) -> str:
        """Its name as a person would give it."""
        return spoken(self.topics.device)
