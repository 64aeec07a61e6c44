"""Discovery: the one retained message by which Home Assistant finds a device with all its entities.

It is written with Home Assistant's abbreviations, which make it a third smaller. Source:
https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from agent.comms.entities import Component, available, of_device, of_stream
from agent.comms.naming import distinct, node
from agent.comms.subject import Device

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
    """What is to be announced.

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


def message(
    device: Device, components: Mapping[str, Component], gone: Mapping[str, str], *, alive: bool
) -> bytes:
    """The message.

    Args:
        device: that it is about.
        components: of `entities`.
        gone: platforms by id of entities that are no more; a component without anything else removes one.
        alive: those that are gone are there once more. Only what Home Assistant has discovered since its own
            start can be removed: this makes it discover what was removed while it was away.
    """
    # Those that are gone come first: of a message that comes too soon after another, Home Assistant may leave out
    # what follows a component that it is still busy with.
    buried = {name: _raised(device, name, kind) if alive else {"platform": kind} for name, kind in gone.items()}
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
        "cmps": {name: _short(one) for name, one in {**buried, **told}.items()},
    }
    return msgspec.json.encode(body)


def _unique_id(device: Device, name: str) -> str:
    return f"{device.identifier}/{name}"


def _raised(device: Device, name: str, platform: str) -> Component:
    """An entity that hears and says nothing: enough to be discovered."""
    nowhere = f"{device.identifier}/gone"
    needs = {key: nowhere if key.endswith("topic") else ["-"] for key in _NEEDS[platform]}
    return {"platform": platform, "unique_id": _unique_id(device, name), **needs}


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


class Found(Struct, frozen=True):
    """What the broker retained.

    Attributes:
        alive: platforms by id of the entities that are there.
        gone: of those that have been removed, and may not be forgotten yet.
        owner: who else has announced a device of that name; empty: it is ours, or nothing was there.
        is_former: it is ours, of a time when the device had another identifier.
    """

    alive: dict[str, str] = {}
    gone: dict[str, str] = {}
    owner: str = ""
    is_former: bool = False


def is_of(body: bytes, identifier: str) -> bool:
    """Whether it is a message of ours, about the device with this identifier."""
    try:
        found = msgspec.json.decode(body, type=_Message)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return found.o.name == ORIGIN and found.dev.ids == (identifier,)


def read(body: bytes, device: Device) -> Found:
    """Understand a message that the broker retained: anyone may have written it."""
    if not body:
        return Found()
    try:
        found = msgspec.json.decode(body, type=_Message)
    except (msgspec.MsgspecError, RecursionError):
        return Found(owner="something that is no discovery of ours")
    if found.o.name == ORIGIN and len(found.dev.ids) == 1 and found.dev.ids[0] in device.former:
        return Found(is_former=True)
    if found.o.name != ORIGIN or found.dev.ids != (device.identifier,):
        return Found(owner=f"{found.o.name[:60] or 'somebody'}, device {', '.join(found.dev.ids)[:60] or '?'}")
    alive, gone = dict[str, str](), dict[str, str]()
    for name, part in list(found.cmps.items())[:_MOST]:
        if part.p in _NEEDS and len(name) <= 300:
            (alive if part.uniq_id else gone)[name] = part.p
    return Found(alive, gone)
