"""Home Assistant's device: its topic, its name, and the parts of which ids and names are made.

The entities and their names are in `discovery` beside it, the message is in `message`.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct

from agent.comms.topics import Topics

_OTHER = re.compile(r"[^a-z0-9-]+")
_TOPIC = re.compile(r"[^A-Za-z0-9_-]")


Component = dict[str, Any]
_ONLINE: Component = {"value_template": "{{ value | replace('stopped', 'offline') }}"}
"""`stopped` counts as offline: Home Assistant ignores a payload that it does not expect."""
_FRESH_MS = 60_000
"""Age from which a word triggers nothing: it waited for the broker, and must not switch a lamp on now."""
_WATCHING = ("running", "degraded")
"""States in which a count is known; in the others the entities of counts are unavailable."""


def entity(platform: str, name: str, **more: Any) -> Component:
    """Return an entity of a platform of Home Assistant, with its further fields."""
    return {"platform": platform, "name": name, **more}


def button(topics: Topics, stream: str, verb: str, *words: str, payload: str = "now", **more: Any) -> Component:
    """Return a button that gives a command while the stream would execute it."""
    press = {"command_topic": topics.set(stream, verb), "payload_press": payload, "qos": 1, **more}
    return entity("button", display_name(stream, *words), **press, **while_watching(topics, stream))


def keyword_entity(topics: Topics, stream: str, words: Sequence[str]) -> Component:
    """Return the event of a word that was heard."""
    is_new = (
        f"value_json.kind == 'keyword' and value_json.latency_ms.total < {_FRESH_MS} "
        "and value_json.id != this.attributes.get('id')"
    )
    event = "{'event_type': value_json.track.label, 'score': value_json.track.score, 'id': value_json.id}"
    return entity(
        "event",
        display_name(stream, "word heard"),
        state_topic=topics.events(stream),
        event_types=list(words),
        value_template=f"{{% if {is_new} %}}{{{{ {event} | to_json }}}}{{% endif %}}",
        qos=1,
    )


def stream_id(stream: str, *parts: str) -> str:
    """Return the id of an entity of a stream. Its parts have no dot, so that it is unique."""
    return ".".join((stream, *parts))


def available(topics: Topics) -> list[Component]:
    """Return the availability of the device's entities."""
    return [{"topic": topics.status, **_ONLINE}]


def while_watching(topics: Topics, stream: str) -> Component:
    """Return the fields that make an entity unavailable while its stream handles nothing."""
    return _while(topics, stream, f"in {list(_WATCHING)}")


def unless_disabled(topics: Topics, stream: str) -> Component:
    """Return the availability of a picture: what Home Assistant shows of a deleted one is empty."""
    return _while(topics, stream, "not in ['disabled', none]")


def _while(topics: Topics, stream: str, condition: str) -> Component:
    """Return the availability of what is known while a condition on the stream's state holds."""
    state = f"value_json.streams.get('{stream}', {{}}).get('state')"
    template = f"{{{{ 'online' if {state} {condition} else 'offline' }}}}"
    watching = {"topic": topics.health, "value_template": template}
    return {"availability": [*available(topics), watching], "availability_mode": "all"}


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


def display_name(*parts: str) -> str:
    """Join parts to a name: `front_door`, `Bark` → `Front door bark`."""
    words = " ".join(_in_a_sentence(part) for part in parts if part.strip())
    return words[:1].upper() + words[1:]


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


def _in_a_sentence(part: str) -> str:
    words = " ".join(re.sub(r"[_-]+", " ", part).split())
    is_acronym = words[1:2].isupper()
    return words if is_acronym else words[:1].lower() + words[1:]


def _looks_hashed(text: str) -> bool:
    """Return True if `text` ends like a hashed id: it must be hashed too, or the two could be equal."""
    return bool(re.search(r"(^|_)[0-9a-f]{6}$", text))


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:6]


Kind = Literal["things", "verdicts", "sounds", "words", "numbers", "texts"]
"""Kind of findings: things with a place; verdicts on the whole picture; sounds; words; measurements; texts."""


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
        """Return an id of this stream. Its parts have no dot, so that it is unique."""
        return ".".join((self.name, *parts))

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
