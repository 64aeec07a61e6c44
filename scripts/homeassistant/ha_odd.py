"""A device that only speaks: models of every kind, labels of every script, words that come late or twice."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

from ha_scene import Scene
from msgspec.structs import replace

from agent.comms.messages import EventMessage, Latency, ModelId, encode, new_id
from agent.comms.topics import Topics
from agent.features.homeassistant.discovery import DeviceEntitySource, StreamEntitySource, ZoneLabel, entities
from agent.features.homeassistant.part import message, topic
from agent.health import HealthMessage, SpoolHealth, StreamHealth
from agent.types import Attribute, EventKind, Track

_LABELS = (
    "Bark",
    "bark",
    "Smoke detector, smoke alarm",
    "traffic light",
    "Hündchen",
    "犬",
    "{{ 1/0 }}",
    'a"b',
    "a'b",
)
_PLACES = tuple(ZoneLabel(zone, label) for zone in ("", "drive_way") for label in _LABELS)
_WHOLE = StreamEntitySource(
    "Front-Door", "things", _LABELS, _PLACES, zones=("drive_way",), variants=("auto", "416")
)
_TOPICS = Topics("vedette", "Odd_device-1")
DEVICE = DeviceEntitySource(
    _TOPICS,
    "Raspberry Pi 4 Model B Rev 1.4",
    "0.1.0",
    frozenset({"temperature", "power", "under_voltage", "battery"}),
    (
        _WHOLE,
        replace(_WHOLE, name="line_2", kind="verdicts"),
        replace(_WHOLE, name="yard", kind="sounds"),
        replace(_WHOLE, name="kitchen", kind="words"),
        replace(_WHOLE, name="sign", kind="texts", labels=(), configured_labels=(), attributes=("depth",)),
    ),
)


def names_of_every_kind(scene: Scene) -> None:
    """Whatever streams, zones and labels are called, and whatever their model finds."""
    told = entities(DEVICE, (), 16)
    scene.say(topic("homeassistant", _TOPICS.device), message(DEVICE, told, {}), retain=True)
    scene.say(_TOPICS.status, b"online", retain=True)
    scene.say(_TOPICS.health, encode(_health()), retain=True)
    ours = DEVICE.identifier
    scene.comes("each label of each kind is an entity", lambda: set(scene.ha.entities(ours)) == set(told), 30.0)
    scene.proved(
        "none has shared an id", len(set(scene.ha.entities(ours).values())) == len(told), f"{len(told)} entities"
    )
    dropped = scene.dropped_keys(ours)
    scene.proved("Home Assistant keeps every key", not dropped, dropped or "")
    for label in ("Smoke detector, smoke alarm", "犬"):
        scene.say(_TOPICS.count("yard", label), b"1", retain=True)
        _becomes(scene, DEVICE.streams[2].occupancy_id(ZoneLabel("", label)), "on")
    for name, wanted in (("temperature", "61.5"), ("hot", "on"), ("dropped", "3"), ("waiting", "7")):
        _becomes(scene, name, wanted)


def _becomes(scene: Scene, name: str, wanted: str) -> None:
    scene.comes(f"{name} is {wanted}", lambda: _state(scene, name) == wanted)


def an_old_word_is_no_event(scene: Scene) -> None:
    """A word that waited for the broker must not switch a lamp on now, nor one that came twice."""
    _hear(scene, "first", 100.0)
    scene.comes(
        "a word is an event", lambda: _state(scene, "kitchen.keyword") not in ("", "unknown", "unavailable")
    )
    before = _state(scene, "kitchen.keyword")
    _hear(scene, "first", 100.0)
    time.sleep(2.0)
    scene.proved("the same one delivered twice is one", _state(scene, "kitchen.keyword") == before)
    _hear(scene, "late", 61_000.0)
    time.sleep(2.0)
    scene.proved("one of a minute ago is none", _state(scene, "kitchen.keyword") == before)
    _hear(scene, "second", 100.0)
    scene.comes("the next one is", lambda: _state(scene, "kitchen.keyword") != before)


def what_is_told_once_stays(scene: Scene) -> None:
    """Text and attributes are in events alone: what comes while the device is away is no state of theirs."""
    _read(scene, "new", "B 42")
    _becomes(scene, "sign.text", "B 42")
    _becomes(scene, "sign.attribute.depth", "1.5")
    _read(scene, "new", "C 7", told=False)
    _becomes(scene, "sign.text", "C 7")
    scene.proved("an object without the attribute leaves it", _state(scene, "sign.attribute.depth") == "1.5")
    scene.say(_TOPICS.status, b"offline", retain=True)
    _becomes(scene, "sign.text", "unavailable")
    _read(scene, "end", "C 7", told=False)
    scene.say(_TOPICS.status, b"online", retain=True)
    for name in ("sign.text", "sign.attribute.depth"):
        _becomes(scene, name, "unknown")
    _read(scene, "update", "D 1")
    _becomes(scene, "sign.text", "D 1")
    _becomes(scene, "sign.attribute.depth", "1.5")


def _read(scene: Scene, kind: EventKind, text: str, *, told: bool = True) -> None:
    """Tell of a text with a measurement of it."""
    attributes = {"depth": Attribute("depth", 1.0, values=(1.5,))} if told else {}
    scene.say(_TOPICS.events("sign"), encode(_event("sign", kind, text, attributes=attributes)))


def nothing_is_left_of_it(scene: Scene) -> None:
    """An empty message removes a device with all that it has."""
    scene.say(topic("homeassistant", _TOPICS.device), b"", retain=True)
    scene.comes("an empty message removes it", lambda: scene.ha.device(DEVICE.identifier) is None)


def _state(scene: Scene, name: str) -> str:
    entity = scene.ha.entities(DEVICE.identifier).get(name, "")
    return str(scene.ha.states().get(entity, {}).get("state", ""))


def _health() -> HealthMessage:
    streams = {subject.name: StreamHealth("running", fps=9.5) for subject in DEVICE.streams}
    spool = SpoolHealth(7, 1000, 3, "disk")
    return HealthMessage("0.1.0", datetime.now(UTC), 1.0, streams, spool, 90.0, 61.5, hot=True)


def _hear(scene: Scene, name: str, total_ms: float) -> None:
    told = _event("kitchen", "keyword", _LABELS[2], name=name, total_ms=total_ms)
    assert json.loads(encode(told))["latency_ms"]["total"] == total_ms
    scene.say(_TOPICS.events("kitchen"), encode(told))


def _event(
    stream: str,
    kind: EventKind,
    label: str,
    *,
    name: str = "",
    total_ms: float = 100.0,
    attributes: dict[str, Attribute] | None = None,
) -> EventMessage:
    now = datetime.now(UTC)
    track = Track(f"{stream}-1", label, 0.9, 0.9, 1, now, now, attributes=attributes or {})
    latency = Latency(0, 0, 0, 0, 0, 0, total=total_ms)
    model = ModelId("small-speech", "0" * 12)
    return EventMessage(name or new_id(), "odd", stream, kind, "word", track, now, latency, model, "cpu", "12", 1)
