"""Announce the device to Home Assistant, and remove entities that no longer exist.

The discovery message that the broker retains is read first. It tells what earlier runs have announced, so that
entities that no longer exist are removed, others stay, and another program's device is left alone.
"""

from __future__ import annotations

import logging
import queue
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, replace

from agent import __version__
from agent.board.identity import read_board
from agent.comms.entities import Component, available
from agent.comms.mqtt.inbox import IncomingMessage
from agent.comms.mqtt.publisher import Publisher
from agent.config import HomeAssistantConfig, StreamConfig
from agent.config.servers import MqttConfig
from agent.daemon.parts import DevicePart, EntityPlace
from agent.daemon.parts import entities as entities_of_features
from agent.daemon.runtime import Runtime
from agent.daemon.streams.stream import Stream
from agent.features.homeassistant.discovery import (
    DeviceEntitySource,
    StreamEntitySource,
    ZoneLabel,
    entities,
    node,
)
from agent.models.findings import findings_of
from agent.storage.state import state_path
from agent.structs import from_json
from agent.text import plural

log = logging.getLogger(__name__)

ORIGIN = "Vedette"

PLATFORMS = frozenset(
    ("binary_sensor", "button", "event", "image", "number", "select", "sensor", "switch", "update")
)
"""Platforms of Home Assistant that Vedette uses."""
_ENTITIES_MAX = 2000
"""Entities that are read from a retained message: Vedette never announces more."""

# https://www.home-assistant.io/integrations/mqtt/#discovery-payload; the message is a third smaller so.
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
        if part.p in PLATFORMS and len(name) <= 300:
            (alive if part.uniq_id else gone)[name] = part.p
    return RetainedEntities(alive, gone)


_JITTER_S = 10.0
"""When Home Assistant starts, every device announces itself: spread over this time."""
_RETRY_S = 60.0
"""Interval at which another program's message is read again: it may be gone."""
_PAUSE_S = 5.0
"""Minimum time between two messages: Home Assistant ignores parts of one that arrives while it is busy."""


class Announcer:
    """Announces one device at one broker. For one thread.

    Attributes:
        topic: of the discovery message.
        trouble: why Home Assistant does not find the device; empty if nothing is known against it.
    """

    def __init__(
        self,
        publisher: Publisher,
        config: HomeAssistantConfig,
        device: DeviceEntitySource,
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Ask what is retained. Nothing is published before the answer."""
        self._publisher, self._config, self._clock, self._jitter = publisher, config, clock, jitter
        self.topic, self._status = topic(config.prefix, device.topics.device), f"{config.prefix}/status"
        self.trouble = ""
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._is_answered = self._is_ours = self._has_started = False
        self._device: DeviceEntitySource | None = None
        self._alive: dict[str, str] = {}
        self._gone: dict[str, str] = {}
        self._is_told = False
        self._sent, self._due, self._announce_at = b"", clock(), 0.0
        publisher.ask(self.topic, self._answers.put)

    def update(self, device: DeviceEntitySource) -> None:
        """Publish what is due. Call often: it is cheap when nothing is."""
        if not self._is_answered and not self._read_answer(device):
            return
        if not self._is_ours:
            self._ask_again()
            return
        now = self._clock()
        self._answer_start(now)
        if now >= self._due and device != self._device:
            self._announce(device)
            self._due = now + _PAUSE_S

    def unsubscribe(self) -> None:
        self._publisher.ignore(self._status)

    def withdraw(self) -> None:
        """Delete the discovery message: Home Assistant removes the device."""
        if self._is_answered and self._is_ours:
            self._is_ours = False
            self._publisher.retain(self.topic, b"")
            log.info("%s: deleted, Home Assistant removes this device", self.topic)

    def _ask_again(self) -> None:
        if self.trouble and self._clock() >= self._due:
            self._is_answered = False
            self._publisher.ask(self.topic, self._answers.put)

    def _read_answer(self, device: DeviceEntitySource) -> bool:
        if self._answers.empty():
            return False
        body = self._answers.get()
        found = read(body, device)
        self._is_answered = True
        self._is_ours = not found.owner and (self._config.enabled or bool(body))
        self._alive, self._gone = found.alive, found.gone
        if not self._config.enabled:
            self.withdraw()
        elif found.owner:
            self._report_owner(found)
        else:
            self.trouble = ""
            self._publisher.listen(self._status, self._on_status)
        return True

    def _on_status(self, received: IncomingMessage) -> None:
        if received.payload == b"online" and not received.retained:
            self._has_started = True

    def _report_owner(self, found: RetainedEntities) -> None:
        self._due = self._clock() + _RETRY_S
        trouble = (
            f"{self.topic} belongs to {found.owner}: left alone, and Home Assistant does not find this device; "
            "set another [device] name, or delete that message: mosquitto_pub -r -n -t TOPIC"
        )
        if trouble != self.trouble:
            self.trouble = trouble
            log.warning(trouble)

    def _answer_start(self, now: float) -> None:
        """Announce everything again after a start of Home Assistant, without what it has removed."""
        if self._has_started:
            self._has_started = False
            self._announce_at = self._announce_at or now + self._jitter(1.0, _JITTER_S)
        if self._announce_at and now >= max(self._announce_at, self._due):
            self._announce_at = 0.0
            if self._gone:
                self._gone, self._device = {}, None
            else:
                self._publisher.repeat(self.topic)
                self._due = now + _PAUSE_S

    def _announce(self, device: DeviceEntitySource) -> None:
        components = entities(device, self._alive, self._config.max_labels)
        # What a stream finds is not known while its model cannot be opened: its entities are not removed.
        unknown = tuple(f"{stream.name}." for stream in device.streams if stream.kind is None)
        lost = {name: kind for name, kind in self._alive.items() if name not in components}
        kept = {name: kind for name, kind in lost.items() if name.startswith(unknown)}
        gone = {**self._gone, **{name: kind for name, kind in lost.items() if name not in kept}}
        self._gone = {name: kind for name, kind in gone.items() if name not in components}
        self._alive = {**kept, **{name: one["platform"] for name, one in components.items()}}
        self._device = device
        body = message(device, components, self._gone)
        if body != self._sent:
            self._sent = body
            self._publisher.retain(self.topic, body)
            count = plural(len(components), "entity", "entities")
            # More come one by one, with each label that is first seen.
            level, self._is_told = logging.DEBUG if self._is_told else logging.INFO, True
            log.log(level, "%s: announced %s to Home Assistant", self.topic, count)


_WITH_FILTERS = ("things", "verdicts", "texts")
"""Kinds of findings that filters are for."""


class HomeAssistant(DevicePart):
    """Announces the streams of a runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._board = read_board(Path("/")).model
        self._sources: dict[str, tuple[Any, StreamEntitySource]] = {}  # with what they were made of
        self._announcer: Announcer | None = None
        self._announced_with: tuple[HomeAssistantConfig, MqttConfig] | None = None

    @property
    def trouble(self) -> str:
        """Why Home Assistant does not find the device; empty: no reason is known."""
        return self._announcer.trouble if self._announcer else ""

    def health(self) -> dict[str, Any]:
        return {"homeassistant": self.trouble}

    def poll(self) -> None:
        """Announce what has changed."""
        runtime = self._runtime
        fused = tuple(runtime.config.fusion)
        device = DeviceEntitySource(
            runtime.topics, self._board, __version__, runtime.measured, self._entity_sources(), fused
        )
        used = runtime.config.homeassistant, runtime.config.mqtt
        if self._announcer is None or used != self._announced_with:
            self._start_announcer(used, device)
        assert self._announcer is not None
        self._announcer.update(device)

    def _start_announcer(self, used: tuple[HomeAssistantConfig, MqttConfig], device: DeviceEntitySource) -> None:
        """Replace the announcer: at the start, and after a reload with another broker or `[homeassistant]`."""
        before, old = self._announced_with, self._announcer
        if old is not None and before is not None:
            old.unsubscribe()
            if before[0].prefix != used[0].prefix:
                old.withdraw()
        self._announced_with, self._announcer = used, Announcer(self._runtime.mqtt, used[0], device)

    def _entity_sources(self) -> tuple[StreamEntitySource, ...]:
        streams = self._runtime.streams
        self._sources = {name: known for name, known in self._sources.items() if name in streams}
        return tuple(self._with_state(name, stream) for name, stream in streams.items())

    def _with_state(self, name: str, stream: Stream) -> StreamEntitySource:
        """Return a stream's entity source with what may change while the model stays the same."""
        settings, source = self._runtime.settings.get(name), self._source(name, stream)
        return replace(
            source,
            counted_labels=tuple(ZoneLabel(*pair) for pair in stream.counted_labels),
            variants=settings.variants if settings else (),
            filters=tuple(settings.filters) if settings and source.kind in _WITH_FILTERS else (),
            motion_masks=settings is not None and settings.motion_masks is not None,
        )

    def _source(self, name: str, stream: Stream) -> StreamEntitySource:
        """Return the source of a stream, made anew after a change: manifests and files are read for it."""
        runtime, config = self._runtime, stream.config
        made_of = stream, stream.model is not None, config, runtime.commands, stream.parts.describe()
        if self._sources.get(name, (None,))[0] != made_of:
            source, state = entity_source(name, config), state_path(runtime.config.storage)
            place = EntityPlace(runtime.topics, name, config, source.kind, runtime.commands, state, stream.parts)
            source = replace(source, commands=runtime.commands, of_features=entities_of_features(place))
            self._sources[name] = made_of, source
        return self._sources[name][1]


def entity_source(name: str, config: StreamConfig) -> StreamEntitySource:
    """Describe a stream's entities."""
    return StreamEntitySource(
        name,
        configured_labels=tuple(ZoneLabel(*pair) for pair in config.labels_to_count),
        zones=tuple(zone.name for zone in config.zones),
        lines=tuple(line.name for line in config.lines),
        counts=config.publish.counts,
        events=config.publish.events,
        inspection=config.inspection is not None,
        **asdict(findings_of(config)),
    )


def open_device_part(runtime: Runtime) -> HomeAssistant:
    """Announce the device, or withdraw what an earlier run has announced."""
    return HomeAssistant(runtime)
