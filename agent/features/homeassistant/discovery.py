"""Home Assistant's device: its entities and those of its streams, and what they read and command.

Keys are in the pages of each platform: https://www.home-assistant.io/integrations/mqtt/. Templates are Jinja, and
must never fail: Home Assistant would log each failure.

To add an entity of the device, add a row to `_HEALTH_ENTITIES`; to add one of a stream, a function here that
`stream_entities` calls, or `entities` in the part of a feature.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from typing import Any, get_args

from msgspec import Struct

from agent.comms.entities import Component, display_name, entity, keyword_entity, stream_id, while_watching
from agent.comms.topics import Topics
from agent.daemon.streams.services import State
from agent.models.findings import IN_PICTURES, Kind

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
        kind: what its model finds; None: not known, since the model cannot be opened.
        labels: that the model may find, in its order.
        configured_labels: named by the configuration: these become entities at once.
        counted_labels: found in this run, in that order.
        counts, events, commands: True if these are published, or accepted.
        inspection: True if it judges parts, and has no labels to count.
        unit: of measurements; empty: none.
        attributes: names of what secondary models tell about an object.
        of_features: entities that features give, by id.
        filters: names of those that have one.
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

    def select_labels(self, known: Container[str], max_labels: int) -> list[ZoneLabel]:
        """Return the labels that become entities.

        Labels of `known` entities stay. Of labels that the configuration does not name, at most `max_labels` are
        selected.
        """
        selected = dict.fromkeys(self.configured_labels)
        labels = set[str]()
        for one in (*self._remembered(known), *self.counted_labels):
            is_new = one not in selected and one.label in self.labels
            if is_new and (one.label in labels or len(labels) < max_labels):
                labels.add(one.label)
                selected[one] = None
        return list(selected)

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


_LONGEST = 255
"""Longest state that Home Assistant takes, characters."""
_CLASSES: dict[Kind, Component] = {
    "things": {"device_class": "occupancy"},
    "sounds": {"device_class": "sound"},
    "verdicts": {},
}
_OCCUPIED = "{{ 'ON' if value | int(0) > 0 else 'OFF' }}"
_IS_BLANK = "this.state in ('unknown', 'unavailable')"
_AS_BEFORE = f"'None' if {_IS_BLANK} else this.state"
"""The state stays as it is. What Home Assistant shows for none must not become a value, which would stay."""
_IS_READ = f"value_json.kind == 'new' or value_json.kind == 'update' and {_IS_BLANK}"
"""A text counts when it appears, and while it is there if Home Assistant has missed that."""
_NEWEST_TEXT = f"{{{{ value_json.track.label[:{_LONGEST}] if {_IS_READ} else {_AS_BEFORE} }}}}"


def stream_entities(
    topics: Topics, source: StreamEntitySource, labels: list[ZoneLabel]
) -> Iterator[tuple[str, Component]]:
    """Yield the entities of one stream, by id, for the `labels` that become entities."""
    counts = source.counts and not source.inspection
    if counts and source.kind == "numbers":
        yield from _value_entities(topics, source)
    elif counts and source.kind in _CLASSES:
        for one in labels:
            yield from _label_entities(topics, source, one)
    if source.events:
        yield from _attribute_entities(topics, source)
    if source.events and source.kind == "words" and source.labels:
        yield source.id("keyword"), keyword_entity(topics, source.name, source.labels)
    if source.events and source.kind == "texts":
        yield source.id("text"), _text_entity(topics, source)
    if source.commands:
        yield from _control_entities(topics, source)
    yield from source.of_features.items()
    yield from _diagnostic_entities(topics, source)


def _value_entities(topics: Topics, source: StreamEntitySource) -> Iterator[tuple[str, Component]]:
    """Yield a sensor for each measurement."""
    unit = {"unit_of_measurement": source.unit} if source.unit else {}
    for label in source.labels:
        topic = {"state_topic": topics.value(source.name, label), **while_watching(topics, source.name)}
        name = display_name(source.name, label)
        yield source.id("value", slug(label)), entity("sensor", name, state_class="measurement", **unit, **topic)


def _attribute_entities(topics: Topics, source: StreamEntitySource) -> Iterator[tuple[str, Component]]:
    """Yield a sensor for the newest value that each secondary model told about an object."""
    topic = {"state_topic": topics.events(source.name), "qos": 1}
    for attribute in source.attributes:
        told = f"value_json.get('track', {{}}).get('attributes', {{}}).get('{attribute}')"
        # Of a measurement `value` is its name: the number is what is asked for.
        newest = (
            f"({told}['values'] | first if {told}.get('values', []) | length == 1 else {told}.value[:{_LONGEST}])"
        )
        value = f"{{{{ {newest} if {told} else {_AS_BEFORE} }}}}"
        name = display_name(source.name, attribute)
        yield source.id("attribute", attribute), entity("sensor", name, value_template=value, **topic)


def _label_entities(
    topics: Topics, source: StreamEntitySource, one: ZoneLabel
) -> Iterator[tuple[str, Component]]:
    assert source.kind is not None
    stream, zone, label = source.name, one.zone, one.label
    topic = topics.zone_count(stream, zone, label) if zone else topics.count(stream, label)
    common = {"state_topic": topic, **while_watching(topics, stream)}
    occupied = {"value_template": _OCCUPIED, **_CLASSES[source.kind]}
    name = display_name(stream, zone, label)
    yield source.occupancy_id(one), entity("binary_sensor", name, **occupied, **common)
    if source.kind == "things":  # of a sound or a verdict the count is 0 or 1
        name = display_name(stream, zone, label, "count")
        yield source.count_id(one), entity("sensor", name, state_class="measurement", **common)


def _text_entity(topics: Topics, source: StreamEntitySource) -> Component:
    topic = {"state_topic": topics.events(source.name), **while_watching(topics, source.name)}
    return entity("sensor", display_name(source.name, "text"), value_template=_NEWEST_TEXT, **topic)


def _control_entities(topics: Topics, source: StreamEntitySource) -> Iterator[tuple[str, Component]]:
    name, config = source.name, {"entity_category": "config"}
    yield from _switch_entities(topics, source)
    slider = {"min": 0, "max": 1, "step": 0.01, "mode": "slider", **config, **_set_by(topics, name, "threshold")}
    if source.kind != "numbers":  # they have no scores
        yield source.id("threshold"), entity("number", display_name(name, "threshold"), **slider)
    has_picture = source.kind in IN_PICTURES
    if len(source.variants) > 1:
        what = display_name(name, "model size" if has_picture else "model depth")
        options = {"options": list(source.variants), **config, **_set_by(topics, name, "variant")}
        yield source.id("variant"), entity("select", what, **options)


def _switch_entities(topics: Topics, source: StreamEntitySource) -> Iterator[tuple[str, Component]]:
    def switch(what: str, *words: str, **more: str) -> Component:
        payloads = {"payload_on": "on", "payload_off": "off"}
        return entity("switch", display_name(source.name, *words), **payloads, **more, **_set_by(*place, what))

    place = topics, source.name
    yield source.id("enabled"), switch("enabled", "enabled")
    places = {"zone": source.zones, "line": source.lines} if source.kind == "things" else {}
    for what, names in {**places, "filter": source.filters}.items():
        for name in names:
            made = switch(f"{what}/{name}", name, what, entity_category="config")
            yield source.id(what, name, "enabled"), made
    if source.kind == "things" and not source.inspection:
        yield source.id("only_moving"), switch("only_moving", "only moving", entity_category="config")
    if source.motion_masks:
        yield source.id("motion_masks"), switch("motion_masks", "motion masks", entity_category="config")


def _set_by(topics: Topics, stream: str, what: str) -> Component:
    return {"command_topic": topics.set(stream, what), "state_topic": topics.state(stream, what), "qos": 1}


def _diagnostic_entities(topics: Topics, source: StreamEntitySource) -> Iterator[tuple[str, Component]]:
    def sensor(name: str, key: str, **more: Any) -> Component:
        template = f"{{{{ value_json.streams.get('{source.name}', {{}}).get('{key}') }}}}"
        common = {"state_topic": topics.health, "value_template": template, "entity_category": "diagnostic"}
        return entity("sensor", display_name(source.name, name), **more, **common)

    yield source.id("state"), sensor("state", "state", device_class="enum", options=list(get_args(State)))
    rate = {"state_class": "measurement", "suggested_display_precision": 1}
    yield source.id("fps"), sensor("frames per second", "fps", **rate)


def device_entities(device: DeviceEntitySource) -> Iterator[tuple[str, Component]]:
    """Yield the device's own entities, and a sensor for each fused event, by id."""
    diagnostic = {"entity_category": "diagnostic"}
    yield (
        "connection",
        entity(
            "binary_sensor",
            "Connection",
            device_class="connectivity",
            state_topic=device.topics.status,
            value_template="{{ 'ON' if value == 'online' else 'OFF' }}",
            **diagnostic,
            availability=[],
        ),
    )
    for key, (platform, name, expression, more) in _HEALTH_ENTITIES.items():
        if key not in _MEASURED or key in device.sensors:
            state = {"value_template": f"{{{{ {expression} }}}}", "state_topic": device.topics.health}
            yield key, entity(platform, name, **state, **diagnostic, **more)
    for name in device.fused:
        state = {"value_template": _OCCUPIED, "state_topic": device.topics.count(name, name)}
        yield f"{name}.fused", entity("binary_sensor", display_name(name), **state)


_HEALTH_ENTITIES: dict[str, tuple[str, str, str, Component]] = {
    "hot": ("binary_sensor", "Too hot", "'ON' if value_json.hot else 'OFF'", {"device_class": "problem"}),
    "temperature": (
        "sensor",
        "Temperature",
        "value_json.temperature_c",
        {"device_class": "temperature", "unit_of_measurement": "°C", "state_class": "measurement"},
    ),
    "power": (
        "sensor",
        "Power",
        "value_json.power_w",
        {"device_class": "power", "unit_of_measurement": "W", "state_class": "measurement"},
    ),
    "under_voltage": (
        "binary_sensor",
        "Under-voltage",
        "('ON' if 'under-voltage' in value_json.supply.now else 'OFF') if value_json.supply else 'None'",
        {"device_class": "problem"},
    ),
    "battery": (
        "sensor",
        "Battery",
        "(value_json.battery or {}).get('percent')",
        {"device_class": "battery", "unit_of_measurement": "%", "state_class": "measurement"},
    ),
    "waiting": ("sensor", "Events waiting", "value_json.spool.waiting", {"state_class": "measurement"}),
    "dropped": ("sensor", "Events lost", "value_json.spool.dropped", {"state_class": "total_increasing"}),
    "version": ("sensor", "Version", "value_json.version", {}),
    # The last contact is of interest while the device is away, so it is always available.
    "seen": ("sensor", "Last seen", "value_json.at", {"device_class": "timestamp", "availability": []}),
    # The device does not know of newer versions: Home Assistant shows the update as unknown.
    "update": (
        "update",
        "Software",
        "{'installed_version': value_json.version} | to_json",
        {"title": "Vedette"},
    ),
}
"""By id: platform, name, template over the health message, and further keys."""
_MEASURED = ("temperature", "power", "under_voltage", "battery")
"""Those that exist only where the board measures them: an estimate of the power is none."""


def entities(device: DeviceEntitySource, known: Container[str], max_labels: int) -> dict[str, Component]:
    """Return every entity of a device, by id. Those in `known` stay, see `StreamEntitySource.select_labels`."""
    components = dict(device_entities(device))
    for source in device.streams:
        labels = source.select_labels(known, max_labels)
        components.update(stream_entities(device.topics, source, labels))
    names = distinct({name: one["name"] for name, one in components.items()})
    return {name: {**one, "name": names[name]} for name, one in components.items()}
