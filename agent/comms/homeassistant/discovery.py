"""The entities of a device and of its streams in Home Assistant, and what they read and command.

Keys are in the pages of each platform: https://www.home-assistant.io/integrations/mqtt/. Templates are Jinja, and
must never fail: Home Assistant would log each failure.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

from msgspec import Struct

from agent.comms.homeassistant.device import (
    DeviceEntitySource,
    Kind,
    StreamEntitySource,
    ZoneLabel,
    display_name,
    distinct,
    slug,
)
from agent.comms.topics import Topics

Component = dict[str, Any]

STATES = ("starting", "running", "degraded", "lost", "ended", "failed", "disabled")
"""States of a stream, as `agent.daemon.streams.stream.State`."""
_STATE = "{{ value_json.value if value_json is defined else 'None' }}"
"""A state is unknown where its topic is empty: `None` says so."""
_PROBLEM = "{{ ('ON' if value_json.problems else 'OFF') if value_json is defined else 'None' }}"
_PROBLEMS = "{{ (value_json if value_json is defined else {}) | to_json }}"
"""The topic of a condition is empty where it is not known."""
UNSURE = "unsure"
"""A state's value that is not sure, as `agent.compute.states.UNSURE`."""
VERDICTS = ("ok", "ng", UNSURE)
"""Verdicts on a part, as `agent.types.Verdict`."""
_WATCHING = ("running", "degraded")
"""States in which a count is known; in the others the entities of counts are unavailable."""
_OF_PICTURES = ("things", "verdicts", "numbers", "texts")
"""Kinds of findings in pictures."""
_LONGEST = 255
"""Longest state that Home Assistant takes, characters."""
_FRESH_MS = 60_000
"""Age from which a word triggers nothing: it waited for the broker, and must not switch a lamp on now."""

_ONLINE: Component = {"value_template": "{{ value | replace('stopped', 'offline') }}"}
"""`stopped` counts as offline: Home Assistant ignores a payload that it does not expect."""

_CLASSES: dict[Kind, Component] = {
    "things": {"device_class": "occupancy"},
    "sounds": {"device_class": "sound"},
    "verdicts": {},
}
_IS_BLANK = "this.state in ('unknown', 'unavailable')"
_AS_BEFORE = f"'None' if {_IS_BLANK} else this.state"
"""The state stays as it is. What Home Assistant shows for none must not become a value, which would stay."""
_IS_READ = f"value_json.kind == 'new' or value_json.kind == 'update' and {_IS_BLANK}"
"""A text counts when it appears, and while it is there if Home Assistant has missed that."""
_NEWEST_TEXT = f"{{{{ value_json.track.label[:{_LONGEST}] if {_IS_READ} else {_AS_BEFORE} }}}}"


def available(topics: Topics) -> list[Component]:
    """Return the availability of the device's entities."""
    return [{"topic": topics.status, **_ONLINE}]


def _entity(platform: str, name: str, **more: Any) -> Component:
    return {"platform": platform, "name": name, **more}


def stream_entities(
    topics: Topics, source: StreamEntitySource, labels: list[ZoneLabel]
) -> Iterator[tuple[str, Component]]:
    """Yield the entities of one stream, by id, for the `labels` that become entities."""
    if source.counts and source.inspection:
        yield from _inspection_entities(topics, source)
    elif source.counts and source.kind == "numbers":
        yield from _value_entities(topics, source)
    elif source.counts and source.kind in _CLASSES:
        for one in labels:
            yield from _label_entities(topics, source, one)
    if source.counts:
        yield from _state_entities(topics, source)
        yield from _line_entities(topics, source)
    if source.events:
        yield from _attribute_entities(topics, source)
    if source.events and source.kind == "words" and source.labels:
        yield source.id("keyword"), _keyword_entity(topics, source)
    if source.events and source.kind == "texts":
        yield source.id("text"), _text_entity(topics, source)
    if source.snapshot and source.kind in ("things", "verdicts", "texts"):
        image: Component = {"image_topic": topics.snapshot(source.name), "content_type": "image/jpeg"}
        image |= _unless_disabled(topics, source.name)
        yield source.id("picture"), _entity("image", display_name(source.name, "last event"), **image)
    if source.commands:
        yield from _control_entities(topics, source)
    if source.condition:
        yield source.id("problem"), _problem_entity(topics, source)
    yield from _diagnostic_entities(topics, source)


def _problem_entity(topics: Topics, source: StreamEntitySource) -> Component:
    """Return whether something is wrong with the camera, the microphone or the model; attributes say what."""
    topic, name = topics.condition(source.name), display_name(source.name, "problem")
    return _entity(
        "binary_sensor",
        name,
        state_topic=topic,
        value_template=_PROBLEM,
        device_class="problem",
        entity_category="diagnostic",
        json_attributes_topic=topic,
        json_attributes_template=_PROBLEMS,
    )


def _value_entities(topics: Topics, source: StreamEntitySource) -> Iterator[tuple[str, Component]]:
    """Yield a sensor for each measurement."""
    unit = {"unit_of_measurement": source.unit} if source.unit else {}
    for label in source.labels:
        topic = {"state_topic": topics.value(source.name, label), **_while_watching(topics, source.name)}
        name = display_name(source.name, label)
        yield source.id("value", slug(label)), _entity("sensor", name, state_class="measurement", **unit, **topic)


def _state_entities(topics: Topics, source: StreamEntitySource) -> Iterator[tuple[str, Component]]:
    """Yield a sensor for each state that was taught."""
    for state, values in source.states.items():
        topic = {"state_topic": topics.sensor(source.name, state), **_while_watching(topics, source.name)}
        value = {"device_class": "enum", "options": [*values, UNSURE], "value_template": _STATE}
        yield source.id("sensor", state), _entity("sensor", display_name(source.name, state), **value, **topic)


def _line_entities(topics: Topics, source: StreamEntitySource) -> Iterator[tuple[str, Component]]:
    """Yield two sensors for each line: how many have crossed it in either direction."""
    for line in source.lines:
        for direction in ("in", "out"):
            counter = {"value_template": f"{{{{ value_json.{direction} if value_json is defined else 'None' }}}}"}
            name = display_name(source.name, line, direction)
            yield (
                source.id("line", line, direction),
                _entity(
                    "sensor",
                    name,
                    state_topic=topics.line(source.name, line),
                    state_class="total_increasing",
                    **counter,
                ),
            )


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
        yield source.id("attribute", attribute), _entity("sensor", name, value_template=value, **topic)


def _inspection_entities(topics: Topics, source: StreamEntitySource) -> Iterator[tuple[str, Component]]:
    """Yield the counters of inspected parts, and the newest verdict."""
    topic, name = {"state_topic": topics.inspection(source.name)}, source.name
    for verdict in VERDICTS:
        counter = {"value_template": f"{{{{ value_json.{verdict} }}}}", "state_class": "total_increasing"}
        yield (
            source.id("parts", verdict),
            _entity("sensor", display_name(name, "parts", verdict), **topic, **counter),
        )
    newest = {"device_class": "enum", "options": list(VERDICTS), "value_template": "{{ value_json.last }}"}
    yield source.id("verdict"), _entity("sensor", display_name(name, "verdict"), **topic, **newest)


def _label_entities(
    topics: Topics, source: StreamEntitySource, one: ZoneLabel
) -> Iterator[tuple[str, Component]]:
    assert source.kind is not None
    stream, zone, label = source.name, one.zone, one.label
    topic = topics.zone_count(stream, zone, label) if zone else topics.count(stream, label)
    common = {"state_topic": topic, **_while_watching(topics, stream)}
    occupied = {"value_template": "{{ 'ON' if value | int(0) > 0 else 'OFF' }}", **_CLASSES[source.kind]}
    name = display_name(stream, zone, label)
    yield source.occupancy_id(one), _entity("binary_sensor", name, **occupied, **common)
    if source.kind == "things":  # of a sound or a verdict the count is 0 or 1
        name = display_name(stream, zone, label, "count")
        yield source.count_id(one), _entity("sensor", name, state_class="measurement", **common)


def _while_watching(topics: Topics, stream: str) -> Component:
    return _while(topics, stream, f"in {list(_WATCHING)}")


def _unless_disabled(topics: Topics, stream: str) -> Component:
    """Return the availability of a picture: what Home Assistant shows of a deleted one is empty."""
    return _while(topics, stream, "not in ['disabled', none]")


def _while(topics: Topics, stream: str, condition: str) -> Component:
    """Return the availability of what is known while a condition on the stream's state holds."""
    state = f"value_json.streams.get('{stream}', {{}}).get('state')"
    template = f"{{{{ 'online' if {state} {condition} else 'offline' }}}}"
    watching = {"topic": topics.health, "value_template": template}
    return {"availability": [*available(topics), watching], "availability_mode": "all"}


def _text_entity(topics: Topics, source: StreamEntitySource) -> Component:
    topic = {"state_topic": topics.events(source.name), **_while_watching(topics, source.name)}
    return _entity("sensor", display_name(source.name, "text"), value_template=_NEWEST_TEXT, **topic)


def _keyword_entity(topics: Topics, source: StreamEntitySource) -> Component:
    is_new = (
        f"value_json.kind == 'keyword' and value_json.latency_ms.total < {_FRESH_MS} "
        "and value_json.id != this.attributes.get('id')"
    )
    event = "{'event_type': value_json.track.label, 'score': value_json.track.score, 'id': value_json.id}"
    return _entity(
        "event",
        display_name(source.name, "word heard"),
        state_topic=topics.events(source.name),
        event_types=list(source.labels),
        value_template=f"{{% if {is_new} %}}{{{{ {event} | to_json }}}}{{% endif %}}",
        qos=1,
    )


def _control_entities(topics: Topics, source: StreamEntitySource) -> Iterator[tuple[str, Component]]:
    name, config = source.name, {"entity_category": "config"}
    yield from _switch_entities(topics, source)
    slider = {"min": 0, "max": 1, "step": 0.01, "mode": "slider", **config, **_set_by(topics, name, "threshold")}
    if source.kind != "numbers":  # they have no scores
        yield source.id("threshold"), _entity("number", display_name(name, "threshold"), **slider)
    has_picture = source.kind in _OF_PICTURES
    if len(source.variants) > 1:
        what = display_name(name, "model size" if has_picture else "model depth")
        options = {"options": list(source.variants), **config, **_set_by(topics, name, "variant")}
        yield source.id("variant"), _entity("select", what, **options)
    if has_picture:
        press = {"command_topic": topics.set(name, "snapshot"), "payload_press": "now", "qos": 1}
        watching = _while_watching(topics, name)  # else the command would be refused
        yield source.id("snapshot"), _entity("button", display_name(name, "take picture"), **press, **watching)
        if source.lines and source.counts:
            reset = {**press, "command_topic": topics.set(name, "reset"), "payload_press": "all", **config}
            yield source.id("reset"), _entity("button", display_name(name, "reset lines"), **reset, **watching)
        if source.announced:
            press |= {"command_topic": topics.set(name, "inspect"), "payload_press": ""}
            yield source.id("inspect"), _entity("button", display_name(name, "inspect part"), **press, **watching)
        if source.condition:
            press |= {"command_topic": topics.set(name, "accept"), "payload_press": "now", **config}
            yield source.id("accept"), _entity("button", display_name(name, "accept view"), **press, **watching)


def _switch_entities(topics: Topics, source: StreamEntitySource) -> Iterator[tuple[str, Component]]:
    def switch(what: str, *words: str, **more: str) -> Component:
        payloads = {"payload_on": "on", "payload_off": "off"}
        return _entity("switch", display_name(source.name, *words), **payloads, **more, **_set_by(*place, what))

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
        return _entity("sensor", display_name(source.name, name), **more, **common)

    yield source.id("state"), sensor("state", "state", device_class="enum", options=list(STATES))
    rate = {"state_class": "measurement", "suggested_display_precision": 1}
    yield source.id("fps"), sensor("frames per second", "fps", **rate)


def fused_entities(device: DeviceEntitySource) -> Iterator[tuple[str, Component]]:
    """Yield a sensor for each fused event, by id."""
    for name in device.fused:
        state = {"value_template": "{{ 'ON' if value | int(0) > 0 else 'OFF' }}"}
        topic = {"state_topic": device.topics.count(name, name)}
        yield f"{name}.fused", _entity("binary_sensor", display_name(name), **topic, **state)


def device_entities(device: DeviceEntitySource) -> Iterator[tuple[str, Component]]:
    """Yield the device's own entities, by id."""
    diagnostic = {"entity_category": "diagnostic"}
    yield (
        "connection",
        _entity(
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
            yield key, _entity(platform, name, **state, **diagnostic, **more)


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


class Entities(Struct, frozen=True):
    """List the entities to announce.

    Attributes:
        components: by id.
        left_out: labels by stream that become no entities because there would be too many.
    """

    components: dict[str, Component]
    left_out: dict[str, list[str]]


def entities(device: DeviceEntitySource, known: Container[str], max_labels: int) -> Entities:
    """Return every entity of a device. Those in `known` stay, see `StreamEntitySource.select_labels`."""
    components = dict(device_entities(device)) | dict(fused_entities(device))
    left_out = {}
    for source in device.streams:
        labels, left = source.select_labels(known, max_labels)
        components.update(stream_entities(device.topics, source, labels))
        if left:
            left_out[source.name] = left
    names = distinct({name: one["name"] for name, one in components.items()})
    return Entities({name: {**one, "name": names[name]} for name, one in components.items()}, left_out)
