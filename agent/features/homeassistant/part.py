"""Announce the device to Home Assistant, with the entities that each stream's model makes possible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec.structs import asdict, replace

from agent import __version__
from agent.board.identity import read_board
from agent.comms.entities import Component
from agent.config import HomeAssistantConfig, StreamConfig
from agent.config.mqtt import MqttConfig
from agent.daemon.parts import DevicePart, EntityPlace, entities
from agent.daemon.runtime import Runtime
from agent.daemon.streams.stream import Stream
from agent.features.homeassistant.announcer import Announcer
from agent.features.homeassistant.device import DeviceEntitySource, StreamEntitySource, ZoneLabel
from agent.models.findings import Kind, findings_of
from agent.storage.state import state_path

_WITH_FILTERS = ("things", "verdicts", "texts")
"""Kinds of findings that filters are for."""


class HomeAssistant(DevicePart):
    """Announces the streams of a runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._board = read_board(Path("/")).model
        self._sources: dict[str, tuple[Stream, bool, StreamEntitySource]] = {}  # True: its model was open then
        self._of_features: dict[str, tuple[Any, dict[str, Component]]] = {}  # and what they were made of
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
        self._sources = {name: known for name, known in self._sources.items() if streams.get(name) is known[0]}
        self._of_features = {name: known for name, known in self._of_features.items() if name in streams}
        for name, stream in streams.items():
            is_open = stream.model is not None
            if name not in self._sources or self._sources[name][1] is not is_open:
                self._sources[name] = stream, is_open, entity_source(name, stream.config)
        return tuple(self._with_state(name, stream) for name, stream in streams.items())

    def _with_state(self, name: str, stream: Stream) -> StreamEntitySource:
        """Return a stream's entity source with what may change while the model stays the same."""
        runtime, known = self._runtime, self._sources[name][2]
        settings = runtime.settings.get(name)
        counted = tuple(ZoneLabel(*pair) for pair in stream.counted_labels)
        return replace(
            known,
            counted_labels=counted,
            variants=settings.variants if settings else (),
            filters=tuple(settings.filters) if settings and known.kind in _WITH_FILTERS else (),
            motion_masks=settings is not None and settings.motion_masks is not None,
            commands=runtime.commands,
            of_features=self._entities_of_features(name, stream, known.kind),
        )

    def _entities_of_features(self, name: str, stream: Stream, kind: Kind | None) -> dict[str, Component]:
        """Return what a stream's features give, made anew after a change: some read files for it."""
        runtime = self._runtime
        made_of = stream, stream.config, kind, runtime.commands, stream.parts.describe()
        if self._of_features.get(name, (None, {}))[0] != made_of:
            state = state_path(runtime.config.storage)
            place = EntityPlace(runtime.topics, name, stream.config, kind, runtime.commands, state, stream.parts)
            self._of_features[name] = made_of, entities(place)
        return self._of_features[name][1]


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
