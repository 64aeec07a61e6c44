"""Describe a device and its streams to Home Assistant: the facts, before they become entities."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from typing import Literal

from msgspec import Struct

from agent.comms.topics import Topics

_OTHER = re.compile(r"[^a-z0-9-]+")
_TOPIC = re.compile(r"[^A-Za-z0-9_-]")


def slug(text: str) -> str:
    """A part of an id: lower case, digits, `-` and `_`; two texts never have the same one.

    A text that had to be changed gets some digits of its hash: `traffic light` → `traffic_light_34d739`.
    """
    plain = unicodedata.normalize("NFKD", text.lower()).encode("ascii", "ignore").decode()
    made = _OTHER.sub("_", plain).strip("_")[:40]
    if made and made == text and not _looks_hashed(text):
        return made
    return f"{made}_{_digits(text)}".strip("_")


def node(device: str) -> str:
    """The device in the topic of its discovery, which Home Assistant wants in ASCII: as it is where it can be."""
    return device if not _TOPIC.search(device) else f"{_TOPIC.sub('-', device)}-{_digits(device)}"


def display_name(*parts: str) -> str:
    """A name of several parts: `front_door`, `Bark` → `Front door bark`."""
    words = " ".join(_in_a_sentence(part) for part in parts if part.strip())
    return words[:1].upper() + words[1:]


def distinct(names: Mapping[str, str]) -> dict[str, str]:
    """Names by id, with what tells them apart behind those that sound alike: `Back yard state (back_yard)`.

    Args:
        names: by id. An id of a stream begins with its name and a dot; one without a dot, of the device itself,
            keeps its name.
    """
    told = dict(names)
    for more in (lambda one: one.partition(".")[0], str):
        count = Counter(name.casefold() for name in told.values())
        alike = [one for one, name in told.items() if "." in one and count[name.casefold()] > 1]
        told |= {one: f"{names[one]} ({more(one)})" for one in alike}
    return told


def _in_a_sentence(part: str) -> str:
    words = " ".join(re.sub(r"[_-]+", " ", part).split())
    is_acronym = words[1:2].isupper()
    return words if is_acronym else words[:1].lower() + words[1:]


def _looks_hashed(text: str) -> bool:
    """Return True if `text` ends like a hashed id: it must be hashed too, or the two could be equal."""
    return bool(re.search(r"(^|_)[0-9a-f]{6}$", text))


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:6]


Kind = Literal["things", "verdicts", "sounds", "words"]
"""Kind of a model's findings: several things, each with a place; verdicts on the whole picture; sounds; words."""


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


class StreamEntitySource(Struct, frozen=True):
    """A stream.

    Attributes:
        name: of the stream.
        kind: what its model finds; None: the model cannot be opened, and what it finds is not known now.
        labels: that may come, in the model's order.
        named: by the configuration: these become entities at once.
        counted: seen in this run, in that order.
        zones: names.
        variants: to choose from.
        counts, snapshot, events: whether these are published.
        commands: whether it takes any.
    """

    name: str
    kind: Kind | None = None
    labels: tuple[str, ...] = ()
    named: tuple[Label, ...] = ()
    counted: tuple[Label, ...] = ()
    zones: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    counts: bool = True
    snapshot: bool = True
    events: bool = True
    commands: bool = True

    def id(self, *parts: str) -> str:
        """An id of this stream: its parts hold no dot, so that no other has the same."""
        return ".".join((self.name, *parts))

    def occupancy_id(self, one: Label) -> str:
        """Return the id of the entity that tells whether something is there."""
        return self.id(f"{one.place}occupancy", slug(one.label))

    def count_id(self, one: Label) -> str:
        """Return the id of the entity that tells how many there are."""
        return self.id(f"{one.place}count", slug(one.label))

    def told(self, known: Container[str], most: int) -> tuple[list[Label], list[str]]:
        """Return the labels that become entities, and those that do not because there would be too many.

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
        streams: see `StreamEntitySource`.
    """

    topics: Topics
    board: str
    version: str
    has_temperature: bool
    streams: tuple[StreamEntitySource, ...]

    @property
    def identifier(self) -> str:
        """The device among all that one Home Assistant knows."""
        return f"{self.topics.prefix}/{self.topics.device}"

    @property
    def spoken(self) -> str:
        """Its name as a person would give it."""
        return display_name(self.topics.device)
