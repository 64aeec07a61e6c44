"""Entities of Home Assistant: each stream's and the device's own, as the components of a discovery message.

Keys: https://www.home-assistant.io/integrations/mqtt/ and the pages of each platform. Templates are Jinja, and
must never fail: Home Assistant would log each failure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agent.comms.naming import spoken
from agent.comms.subject import Device, Kind, Label, Subject
from agent.comms.topics import Topics

Component = dict[str, Any]

STATES = ("starting", "running", "degraded", "lost", "ended", "failed", "disabled")
"""Of a stream, as `agent.stream.State`."""
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


def of_stream(topics: Topics, subject: Subject, labels: list[Label]) -> Iterator[tuple[str, Component]]:
    """Entities of one stream, by id.

    Args:
        topics: of the device.
        subject: the stream.
        labels: that become entities, see `Subject.told`.
    """
    if subject.counts and subject.kind in _CLASSES:
        for one in labels:
            yield from _of_label(topics, subject, one)
    if subject.events and subject.kind == "words" and subject.labels:
        yield subject.id("heard"), _heard(topics, subject)
    if subject.snapshot and subject.kind in ("things", "verdicts"):
        yield (
            subject.id("picture"),
            {
                "platform": "image",
                "name": spoken(subject.name, "last event"),
                "image_topic": topics.snapshot(subject.name),
                "content_type": "image/jpeg",
            },
        )
    if subject.commands:
        yield from _controls(topics, subject)
    yield from _diagnostics(topics, subject)


def _of_label(topics: Topics, subject: Subject, one: Label) -> Iterator[tuple[str, Component]]:
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
            "name": spoken(subject.name, one.zone, one.label),
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
                "name": spoken(subject.name, one.zone, one.label, "count"),
                "state_class": "measurement",
                **common,
            },
        )


def _while_watching(topics: Topics, stream: str) -> Component:
    state = f"value_json.streams.get('{stream}', {{}}).get('state')"
    template = f"{{{{ 'online' if {state} in {list(_WATCHING)} else 'offline' }}}}"
    watching = {"topic": topics.health, "value_template": template}
    return {"availability": [*available(topics), watching], "availability_mode": "all"}


def _heard(topics: Topics, subject: Subject) -> Component:
    is_news = (
        f"value_json.kind == 'heard' and value_json.latency_ms.total < {_FRESH_MS} "
        "and value_json.id != this.attributes.get('id')"
    )
    told = "{'event_type': value_json.track.label, 'score': value_json.track.score, 'id': value_json.id}"
    return {
        "platform": "event",
        "name": spoken(subject.name, "word heard"),
        "state_topic": topics.events(subject.name),
        "event_types": list(subject.labels),
        "value_template": f"{{% if {is_news} %}}{{{{ {told} | to_json }}}}{{% endif %}}",
        "qos": 1,
    }


def _controls(topics: Topics, subject: Subject) -> Iterator[tuple[str, Component]]:
    name = subject.name
    yield from _switches(topics, subject)
    yield (
        subject.id("threshold"),
        {
            "platform": "number",
            "name": spoken(name, "threshold"),
            "min": 0,
            "max": 1,
            "step": 0.01,
            "mode": "slider",
            "entity_category": "config",
            **_set_by(topics, name, "threshold"),
        },
    )
    if len(subject.rungs) > 1:
        size = "model size" if subject.kind in ("things", "verdicts") else "model depth"
        own = {"name": spoken(name, size), "options": list(subject.rungs), "entity_category": "config"}
        yield subject.id("rung"), {"platform": "select", **own, **_set_by(topics, name, "rung")}
    if subject.kind in ("things", "verdicts"):
        yield (
            subject.id("snapshot"),
            {
                "platform": "button",
                "name": spoken(name, "take picture"),
                "command_topic": topics.set(name, "snapshot"),
                "payload_press": "now",
                "qos": 1,
                **_while_watching(topics, name),  # else it would be refused
            },
        )


def _switches(topics: Topics, subject: Subject) -> Iterator[tuple[str, Component]]:
    name = subject.name
    switch = {"platform": "switch", "payload_on": "on", "payload_off": "off"}
    yield subject.id("enabled"), {**switch, "name": spoken(name, "enabled"), **_set_by(topics, name, "enabled")}
    for zone in subject.zones if subject.kind == "things" else ():
        own = {"name": spoken(name, zone, "zone"), "entity_category": "config"}
        yield subject.id("zone", zone, "enabled"), {**switch, **own, **_set_by(topics, name, f"zone/{zone}")}


def _set_by(topics: Topics, stream: str, what: str) -> Component:
    return {"command_topic": topics.set(stream, what), "state_topic": topics.state(stream, what), "qos": 1}


def _diagnostics(topics: Topics, subject: Subject) -> Iterator[tuple[str, Component]]:
    def told(key: str) -> Component:
        template = f"{{{{ value_json.streams.get('{subject.name}', {{}}).get('{key}') }}}}"
        return {"state_topic": topics.health, "value_template": template, "entity_category": "diagnostic"}

    yield (
        subject.id("state"),
        {
            "platform": "sensor",
            "name": spoken(subject.name, "state"),
            "device_class": "enum",
            "options": list(STATES),
            **told("state"),
        },
    )
    yield (
        subject.id("fps"),
        {
            "platform": "sensor",
            "name": spoken(subject.name, "frames per second"),
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
