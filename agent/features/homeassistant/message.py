"""Home Assistant's discovery message: one retained message that describes a device with all its entities.

The abbreviations that make it a third smaller: https://www.home-assistant.io/integrations/mqtt/#discovery-payload
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from agent.comms.entities import Component, available
from agent.features.homeassistant.discovery import DeviceEntitySource, node
from agent.structs import from_json

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
"""Keys that each platform requires."""
_ENTITIES_MAX = 2000
"""Entities that are read from a retained message: Vedette never announces more."""

_SHORT = {
    "availability": "avty",
    "availability_mode": "avty_mode",
    "command_topic": "cmd_t",
    "content_type": "cont_type",
    "device_class": "dev_cla",
    "entity_category": "ent_cat",
    "event_types": "evt_typ",
    "image_topic": "img_t",
    "json_attributes_template": "json_attr_tpl",
    "json_attributes_topic": "json_attr_t",
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


def topic(prefix: str, device: str) -> str:
    """Return the topic of a device's discovery message."""
    return f"{prefix}/device/{node(device)}/config"


def message(device: DeviceEntitySource, components: Mapping[str, Component], gone: Mapping[str, str]) -> bytes:
    """Return the discovery message of a device.

    `gone` has the platforms of entities to remove: a component with only its platform does that.
    """
    # Removals come first: if a message arrives too soon after another, Home Assistant may ignore what follows a
    # component that it is still busy with.
    removals = {name: {"platform": kind} for name, kind in gone.items()}
    known = {name: {**one, "unique_id": f"{device.identifier}/{name}"} for name, one in components.items()}
    body = {
        "dev": {
            "ids": [device.identifier],
            "name": device.display_name,
            "mf": ORIGIN,
            **({"mdl": device.board} if device.board else {}),
            "sw": device.version,
        },
        "o": {"name": ORIGIN, "sw": device.version},
        "avty": [_short(one) for one in available(device.topics)],
        "cmps": {name: _short(one) for name, one in {**removals, **known}.items()},
    }
    return msgspec.json.encode(body)


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
        alive: platforms by id of the existing entities.
        gone: platforms by id of removed entities that Home Assistant may still have.
        owner: another program that has announced a device of that name; empty: there is none.
    """

    alive: dict[str, str] = {}
    gone: dict[str, str] = {}
    owner: str = ""


def read(body: bytes, device: DeviceEntitySource) -> RetainedEntities:
    """Read a message that the broker retained; anyone may have written it."""
    if not body:
        return RetainedEntities()
    try:
        found = from_json(body, _Message)
    except (msgspec.MsgspecError, RecursionError):
        return RetainedEntities(owner="something that is not a discovery message of Vedette")
    if found.o.name != ORIGIN or found.dev.ids != (device.identifier,):
        return RetainedEntities(
            owner=f"{found.o.name[:60] or 'another program'}, device {', '.join(found.dev.ids)[:60] or '?'}"
        )
    alive, gone = dict[str, str](), dict[str, str]()
    for name, part in list(found.cmps.items())[:_ENTITIES_MAX]:
        if part.p in _NEEDS and len(name) <= 300:
            (alive if part.uniq_id else gone)[name] = part.p
    return RetainedEntities(alive, gone)
