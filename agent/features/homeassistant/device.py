"""Home Assistant's device: what its entities depend on, and the parts of their ids and names.

The entities are in `discovery` beside it, the message is in `message`.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Container, Iterator, Mapping

from msgspec import Struct

from agent.comms.entities import Component, display_name, stream_id
from agent.comms.topics import Topics
from agent.models.findings import Kind

_OTHER = re.compile(r"[^a-z0-9-]+")
_TOPIC = re.compile(r"[^A-Za-z0-9_-]")


def slug(text: str) -> str:
    """Return a unique part of an id for a text, of lower-case letters, digits, `-` and `_`.

    A text that has other characters gets digits of its hash: `traffic light` → `traffic_light_34d739`.
    """
    plain = unicodedata.normalize("NFKD", text.lower()).encode("ascii", "ignore").decode()
    made = _OTHER.sub("_", plain).strip("_")[:40]
    if made and made == text and not _looks_hashed(text):
        return made
    return f"{made}_{_digits(text)}".strip("_")


def node(device: str) -> str:
    """Return the device's name in the topic of its discovery message, where Home Assistant allows ASCII only."""
    return device if not _TOPIC.search(device) else f"{_TOPIC.sub('-', device)}-{_digits(device)}"


def distinct(names: Mapping[str, str]) -> dict[str, str]:
    """Make names unique by adding the stream or the id: `Back yard state (back_yard)`.

    Names are given by id. An id without a dot is of the device itself, and keeps its name.
    """
    unique = dict(names)
    for more in (lambda one: one.partition(".")[0], str):
        count = Counter(name.casefold() for name in unique.values())
        alike = [one for one, name in unique.items() if "." in one and count[name.casefold()] > 1]
        unique |= {one: f"{names[one]} ({more(one)})" for one in alike}
    return unique


def _looks_hashed(text: str) -> bool:
    """Return True if `text` ends like a hashed id: it must be hashed too, or the two could be equal."""
    return bool(re.search(r"(^|_)[0-9a-f]{6}$", text))


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:6]


class ZoneLabel(Struct, frozen=True):
    """A label in a zone.

    Attributes:
        zone: name; empty: the whole picture.
        label: as the model gives it.
    """

    zone: str
    label: str

    @property
    def place(self) -> str:
        return f"zone.{self.zone}." if self.zone else ""


class StreamEntitySource(Struct, frozen=True):
    """A stream, as far as its entities depend on it.

    Attributes:
        name: of the stream.
        kind: what its model finds; None: not known, since the model cannot be opened.
        labels: that the model may find, in its order.
        named: by the configuration: these become entities at once.
        counted: found in this run, in that order.
        zones: names.
        variants: to choose from.
        counts, events: True if these are published.
        commands: True if commands are accepted.
        inspection: True if it judges parts, and has no labels to count.
        unit: of measurements; empty: none.
        attributes: names of what secondary models tell about an object.
        of_features: entities that features give, by id.
        lines: names.
        filters: names of those that have one.
        motion_masks: True if it has any.
    """

    name: str
    kind: Kind | None = None
    labels: tuple[str, ...] = ()
    configured_labels: tuple[ZoneLabel, ...] = ()
    counted_labels: tuple[ZoneLabel, ...] = ()
    zones: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    counts: bool = True
    events: bool = True
    commands: bool = True
    inspection: bool = False
    unit: str = ""
    attributes: tuple[str, ...] = ()
    of_features: dict[str, Component] = {}
    lines: tuple[str, ...] = ()
    filters: tuple[str, ...] = ()
    motion_masks: bool = False

    def id(self, *parts: str) -> str:
        """Return an id of this stream."""
        return stream_id(self.name, *parts)

    def occupancy_id(self, one: ZoneLabel) -> str:
        return self.id(f"{one.place}occupancy", slug(one.label))

    def count_id(self, one: ZoneLabel) -> str:
        return self.id(f"{one.place}count", slug(one.label))

    def select_labels(self, known: Container[str], max_labels: int) -> tuple[list[ZoneLabel], list[str]]:
        """Return the labels that become entities, and those that do not because there would be too many.

        Labels of `known` entities stay. Of labels that the configuration does not name, at most `max_labels` are
        selected.
        """
        selected = dict.fromkeys(self.configured_labels)
        labels: dict[str, None] = {}
        left: dict[str, None] = {}
        for one in (*self._remembered(known), *self.counted_labels):
            if one in selected or one.label not in self.labels:
                continue
            if one.label in labels or len(labels) < max_labels:
                labels[one.label] = None
                selected[one] = None
            else:
                left[one.label] = None
        return list(selected), list(left)

    def _remembered(self, known: Container[str]) -> Iterator[ZoneLabel]:
        for label in self.labels:
            for zone in ("", *self.zones):
                if self.occupancy_id(ZoneLabel(zone, label)) in known:
                    yield ZoneLabel(zone, label)


class DeviceEntitySource(Struct, frozen=True):
    """A device, as far as its entities depend on it.

    Attributes:
        topics: of the device.
        board: model of the board; empty: not known.
        version: of Vedette.
        sensors: what it measures, of `temperature`, `power`, `under_voltage` and `battery`.
        streams: see `StreamEntitySource`.
        fused: names of the fused events.
    """

    topics: Topics
    board: str
    version: str
    sensors: frozenset[str]
    streams: tuple[StreamEntitySource, ...]
    fused: tuple[str, ...] = ()

    @property
    def identifier(self) -> str:
        """Unique id of the device in Home Assistant."""
        return f"{self.topics.prefix}/{self.topics.device}"

    @property
    def display_name(self) -> str:
        """Name for people."""
        return display_name(self.topics.device)
