"""Discovery: the one retained message by which Home Assistant finds a device with all its entities.

It is written with Home Assistant's abbreviations, which make it a third smaller. Source:
https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from agent.comms.homeassistant.device import Device, Kind, Label, StreamEntitySource, display_name, distinct, node
from agent.comms.topics import Topics

# Entities of Home Assistant: each stream's and the device's own, as the components of a discovery message.
#
# Keys: https://www.home-assistant.io/integrations/mqtt/ and the pages of each platform. Templates are Jinja, and
# must never fail: Home Assistant would log each failure.

Component = dict[str, Any]

STATES = ("starting", "running", "degraded", "lost", "ended", "failed", "disabled")
"""States of a stream, as `agent.daemon.stream.State`."""
_WATCHING = ("running", "degraded")
"""In these it is known what is there: else "nobody" would be a guess, and its entities are unavailable."""
_FRESH_MS = 60_000
"""A word that was heard longer ago waited for the broker: it must not switch a lamp on now."""

_ONLINE: Component = {"value_template": "{{ value | replace('stopped', 'offline') }}"}
"""`stopped` is offline as well; Home Assistant takes no notice of a word that it does not expect."""

_CLASSES: dict[Kind, Component] = {
    "things": {"device_class": "occupancy"},
    "sounds": {"device_class": "sound"},
    "verdicts": {},
}


def available(topics: Topics) -> list[Component]:
    """When the device's entities are available."""
    return [{"topic": topics.status, **_ONLINE}]


def of_stream(
    topics: Topics, subject: StreamEntitySource, labels: list[Label]
) -> Iterator[tuple[str, Component]]:
    """Entities of one stream, by id.

    Args:
        topics: of the device.
        subject: the stream.
        labels: that become entities, see `StreamEntitySource.told`.
    """
    if subject.counts and subject.kind in _CLASSES:
        for one in labels:
            yield from _of_label(topics, subject, one)
    if subject.events and subject.kind == "words" and subject.labels:
        yield subject.id("keyword"), _heard(topics, subject)
    if subject.snapshot and subject.kind in ("things", "verdicts"):
        yield (
            subject.id("picture"),
            {
                "platform": "image",
                "name": display_name(subject.name, "last event"),
                "image_topic": topics.snapshot(subject.name),
                "content_type": "image/jpeg",
            },
        )
    if subject.commands:
        yield from _controls(topics, subject)
    yield from _diagnostics(topics, subject)


def _of_label(topics: Topics, subject: StreamEntitySource, one: Label) -> Iterator[tuple[str, Component]]:
    assert subject.kind is not None
    topic = (
        topics.zone_count(subject.name, one.zone, one.label)
        if one.zone
        else topics.count(subject.name, one.label)
    )
    common = {"state_topic": topic, **_while_watching(topics, subject.name)}
    yield (
        subject.occupancy_id(one),
        {
            "platform": "binary_sensor",
            "name": display_name(subject.name, one.zone, one.label),
            "value_template": "{{ 'ON' if value | int(0) > 0 else 'OFF' }}",
            **_CLASSES[subject.kind],
            **common,
        },
    )
    if subject.kind == "things":  # of a sound, or a verdict on the whole picture, there is one or none
        yield (
            subject.count_id(one),
            {
                "platform": "sensor",
                "name": display_name(subject.name, one.zone, one.label, "count"),
                "state_class": "measurement",
                **common,
            },
        )


def _while_watching(topics: Topics, stream: str) -> Component:
    state = f"value_json.streams.get('{stream}', {{}}).get('state')"
    template = f"{{{{ 'online' if {state} in {list(_WATCHING)} else 'offline' }}}}"
    watching = {"topic": topics.health, "value_template": template}
    return {"availability": [*available(topics), watching], "availability_mode": "all"}


def _heard(topics: Topics, subject: StreamEntitySource) -> Component:
    is_news = (
        f"value_json.kind == 'keyword' and value_json.latency_ms.total < {_FRESH_MS} "
        "and value_json.id != this.attributes.get('id')"
    )
    told = "{'event_type': value_json.track.label, 'score': value_json.track.score, 'id': value_json.id}"
    return {
        "platform": "event",
        "name": display_name(subject.name, "word heard"),
        "state_topic": topics.events(subject.name),
        "event_types": list(subject.labels),
        "value_template": f"{{% if {is_news} %}}{{{{ {told} | to_json }}}}{{% endif %}}",
        "qos": 1,
    }


def _controls(topics: Topics, subject: StreamEntitySource) -> Iterator[tuple[str, Component]]:
    name = subject.name
    yield from _switches(topics, subject)
    yield (
        subject.id("threshold"),
        {
            "platform": "number",
            "name": display_name(name, "threshold"),
            "min": 0,
            "max": 1,
            "step": 0.01,
            "mode": "slider",
            "entity_category": "config",
            **_set_by(topics, name, "threshold"),
        },
    )
    if len(subject.variants) > 1:
        size = "model size" if subject.kind in ("things", "verdicts") else "model depth"
        own = {"name": display_name(name, size), "options": list(subject.variants), "entity_category": "config"}
        yield subject.id("variant"), {"platform": "select", **own, **_set_by(topics, name, "variant")}
    if subject.kind in ("things", "verdicts"):
        yield (
            subject.id("snapshot"),
            {
                "platform": "button",
                "name": display_name(name, "take picture"),
                "command_topic": topics.set(name, "snapshot"),
                "payload_press": "now",
                "qos": 1,
                **_while_watching(topics, name),  # else it would be refused
            },
        )


def _switches(topics: Topics, subject: StreamEntitySource) -> Iterator[tuple[str, Component]]:
    name = subject.name
    switch = {"platform": "switch", "payload_on": "on", "payload_off": "off"}
    yield (
        subject.id("enabled"),
        {**switch, "name": display_name(name, "enabled"), **_set_by(topics, name, "enabled")},
    )
    for zone in subject.zones if subject.kind == "things" else ():
        own = {"name": display_name(name, zone, "zone"), "entity_category": "config"}
        yield subject.id("zone", zone, "enabled"), {**switch, **own, **_set_by(topics, name, f"zone/{zone}")}


def _set_by(topics: Topics, stream: str, what: str) -> Component:
    return {"command_topic": topics.set(stream, what), "state_topic": topics.state(stream, what), "qos": 1}


def _diagnostics(topics: Topics, subject: StreamEntitySource) -> Iterator[tuple[str, Component]]:
    def told(key: str) -> Component:
        template = f"{{{{ value_json.streams.get('{subject.name}', {{}}).get('{key}') }}}}"
        return {"state_topic": topics.health, "value_template": template, "entity_category": "diagnostic"}

    yield (
        subject.id("state"),
        {
            "platform": "sensor",
            "name": display_name(subject.name, "state"),
            "device_class": "enum",
            "options": list(STATES),
            **told("state"),
        },
    )
    yield (
        subject.id("fps"),
        {
            "platform": "sensor",
            "name": display_name(subject.name, "frames per second"),
            "state_class": "measurement",
            "suggested_display_precision": 1,
            **told("fps"),
        },
    )


def of_device(device: Device) -> Iterator[tuple[str, Component]]:
    """The device's own entities, by id."""
    yield (
        "connection",
        {
            "platform": "binary_sensor",
            "name": "Connection",
            "device_class": "connectivity",
            "state_topic": device.topics.status,
            "value_template": "{{ 'ON' if value == 'online' else 'OFF' }}",
            "entity_category": "diagnostic",
            "availability": [],
        },
    )
    for name, (platform, spoken_name, expression, more) in _OF_HEALTH.items():
        if name != "temperature" or device.has_temperature:
            told = {"platform": platform, "name": spoken_name, "value_template": f"{{{{ {expression} }}}}"}
            yield name, {**told, "state_topic": device.topics.health, "entity_category": "diagnostic", **more}


_OF_HEALTH: dict[str, tuple[str, str, str, Component]] = {
    "hot": ("binary_sensor", "Too hot", "'ON' if value_json.hot else 'OFF'", {"device_class": "problem"}),
    "temperature": (
        "sensor",
        "Temperature",
        "value_json.temperature_c",
        {"device_class": "temperature", "unit_of_measurement": "°C", "state_class": "measurement"},
    ),
    "waiting": ("sensor", "Events waiting", "value_json.spool.waiting", {"state_class": "measurement"}),
    "dropped": ("sensor", "Events lost", "value_json.spool.dropped", {"state_class": "total_increasing"}),
    "version": ("sensor", "Version", "value_json.version", {}),
    # When it was seen last is worth most while it is away.
    "seen": ("sensor", "Last seen", "value_json.at", {"device_class": "timestamp", "availability": []}),
    # Nobody tells the device of a newer version yet, so Home Assistant shows the update as unknown, which it is.
    "update": (
        "update",
        "Software",
        "{'installed_version': value_json.version} | to_json",
        {"title": "Vedette"},
    ),
}
"""By id: platform, name, template over the health message, and what else there is."""


ORIGIN = "Vedette"

_NEEDS: Mapping[str, tuple[str, ...]] = {
    "binary_sensor": ("state_topic",),
    "button": ("command_topic",),
    "event": ("state_topic", "event_types"),
    "image": ("image_topic",),
    "number": ("command_topic",),
    "select": ("command_topic", "options"),
    "sensor": ("state_topic",),
    "switch": ("command_topic",),
    "update": ("state_topic",),
}
"""The least that each platform takes."""
_MOST = 2000
"""Entities that are believed of a message found at the broker: more are none of ours."""

_SHORT = {
    "availability": "avty",
    "availability_mode": "avty_mode",
    "command_topic": "cmd_t",
    "content_type": "cont_type",
    "device_class": "dev_cla",
    "entity_category": "ent_cat",
    "event_types": "evt_typ",
    "image_topic": "img_t",
    "options": "ops",
    "payload_off": "pl_off",
    "payload_on": "pl_on",
    "payload_press": "pl_prs",
    "platform": "p",
    "state_class": "stat_cla",
    "state_topic": "stat_t",
    "suggested_display_precision": "sug_dsp_prc",
    "topic": "t",
    "unique_id": "uniq_id",
    "unit_of_measurement": "unit_of_meas",
    "value_template": "val_tpl",
}


class Entities(Struct, frozen=True):
    """List the entities to announce.

    Attributes:
        components: by id.
        left_out: labels by stream that become no entities because there would be too many.
    """

    components: dict[str, Component]
    left_out: dict[str, list[str]]


def entities(device: Device, known: Container[str], max_labels: int) -> Entities:
    """Every entity of a device.

    Args:
        device: as it is now.
        known: ids of entities that Home Assistant has: what was once seen stays.
        max_labels: of a stream, that the configuration does not name.
    """
    components = dict(of_device(device))
    left_out = {}
    for subject in device.streams:
        labels, left = subject.told(known, max_labels)
        components.update(of_stream(device.topics, subject, labels))
        if left:
            left_out[subject.name] = left
    names = distinct({name: one["name"] for name, one in components.items()})
    return Entities({name: {**one, "name": names[name]} for name, one in components.items()}, left_out)


def topic(prefix: str, device: str) -> str:
    """Where the message is retained.

    Args:
        prefix: of Home Assistant.
        device: its name.
    """
    return f"{prefix}/device/{node(device)}/config"


def message(device: Device, components: Mapping[str, Component], gone: Mapping[str, str]) -> bytes:
    """Return the discovery message of a device.

    Args:
        device: that is announced.
        components: of `entities`.
        gone: platforms by id of entities to remove: a component with nothing but its platform does that.
    """
    # Removals come first: of a message that comes too soon after another, Home Assistant may leave out what
    # follows a component that it is still busy with.
    removals = {name: {"platform": kind} for name, kind in gone.items()}
    told = {name: {**one, "unique_id": _unique_id(device, name)} for name, one in components.items()}
    body = {
        "dev": {
            "ids": [device.identifier],
            "name": device.spoken,
            "mf": ORIGIN,
            **({"mdl": device.board} if device.board else {}),
            "sw": device.version,
        },
        "o": {"name": ORIGIN, "sw": device.version},
        "avty": [_short(one) for one in available(device.topics)],
        "cmps": {name: _short(one) for name, one in {**removals, **told}.items()},
    }
    return msgspec.json.encode(body)


def _unique_id(device: Device, name: str) -> str:
    return f"{device.identifier}/{name}"


def _short(component: Component) -> Component:
    return {_SHORT.get(key, key): _shortened(value) for key, value in component.items()}


def _shortened(value: Any) -> Any:
    return [_short(one) if isinstance(one, dict) else one for one in value] if isinstance(value, list) else value


class _Origin(Struct, frozen=True):
    name: str = ""


class _Identity(Struct, frozen=True):
    ids: tuple[str, ...] = ()


class _Part(Struct, frozen=True):
    p: str = ""
    uniq_id: str = ""


class _Message(Struct, frozen=True):
    o: _Origin = _Origin()
    dev: _Identity = _Identity()
    cmps: dict[str, _Part] = {}


class RetainedEntities(Struct, frozen=True):
    """Describe the discovery message that the broker retained.

    Attributes:
        alive: platforms by id of the entities that are there.
        gone: of those that have been removed, and may not be forgotten yet.
        owner: who else has announced a device of that name; empty: it is ours, or nothing was there.
    """

    alive: dict[str, str] = {}
    gone: dict[str, str] = {}
    owner: str = ""


def is_of(body: bytes, identifier: str) -> bool:
    """Return True if `body` is a message of ours, about the device with this identifier."""
    try:
        found = msgspec.json.decode(body, type=_Message)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return found.o.name == ORIGIN and found.dev.ids == (identifier,)


def entity_ids(body: bytes) -> tuple[str, ...]:
    """Return the unique ids of the entities in a message.

    Raises:
        ValueError: it is not a discovery message.
    """
    found = msgspec.json.decode(body, type=_Message)
    return tuple(part.uniq_id for part in found.cmps.values() if part.uniq_id)


def read(body: bytes, device: Device) -> RetainedEntities:
    """Understand a message that the broker retained: anyone may have written it."""
    if not body:
        return RetainedEntities()
    try:
        found = msgspec.json.decode(body, type=_Message)
    except (msgspec.MsgspecError, RecursionError):
        return RetainedEntities(owner="something that is no discovery of ours")
    if found.o.name != ORIGIN or found.dev.ids != (device.identifier,):
        return RetainedEntities(
            owner=f"{found.o.name[:60] or 'somebody'}, device {', '.join(found.dev.ids)[:60] or '?'}"
        )
    alive, gone = dict[str, str](), dict[str, str]()
    for name, part in list(found.cmps.items())[:_MOST]:
        if part.p in _NEEDS and len(name) <= 300:
            (alive if part.uniq_id else gone)[name] = part.p
    return RetainedEntities(alive, gone)
