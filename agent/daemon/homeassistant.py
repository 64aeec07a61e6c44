"""Announce the device to Home Assistant, with the entities that each stream's model makes possible."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from agent import __version__
from agent.board.identity import read_board
from agent.comms.homeassistant.announcer import Announcer
from agent.comms.homeassistant.device import DeviceEntitySource, Kind, StreamEntitySource, ZoneLabel
from agent.compute.manifest import Manifest
from agent.config import HomeAssistantConfig, StreamConfig
from agent.config.mqtt import MqttConfig
from agent.daemon.parts import EntityPlace, entities
from agent.daemon.runtime import Runtime
from agent.daemon.streams.stream import Stream
from agent.errors import ModelError
from agent.models.attributes import attribute_names
from agent.models.library import open_manifest
from agent.storage.state_folder import state_path

_NO_LABELS = ("", "???")
"""Labels in published lists that stand for no class."""
_OWN_LABELS = {"blazeface": ("face",), "keypoints": ("person",)}
"""Labels by decoder, where the manifest names none."""
_NO_WORDS = ("unknown", "silence")
_VERDICTS = ("classify",)
_WITH_FILTERS = ("things", "verdicts", "texts")
"""Kinds of findings that filters are for."""


class HomeAssistant:
    """Announces the streams of a runtime. For the daemon's thread."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._board = read_board(Path("/")).model
        self._sources: dict[str, tuple[Stream, bool, StreamEntitySource]] = {}  # True: its model was open then
        self._announcer: Announcer | None = None
        self._announced_with: tuple[HomeAssistantConfig, MqttConfig] | None = None

    def announce(self, sensors: frozenset[str]) -> None:
        """Announce what has changed.

        Args:
            sensors: what the board measures, see `DeviceEntitySource`.
        """
        runtime = self._runtime
        fused = tuple(runtime.config.fusion)
        device = DeviceEntitySource(
            runtime.topics, self._board, __version__, sensors, self._entity_sources(), fused
        )
        used = runtime.config.homeassistant, runtime.config.mqtt
        if self._announcer is None or used != self._announced_with:
            self._start_announcer(used, device)
        assert self._announcer is not None
        self._announcer.update(device)

    @property
    def trouble(self) -> str:
        """Why Home Assistant does not find the device; empty: no reason is known."""
        return self._announcer.trouble if self._announcer else ""

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
        for name, stream in streams.items():
            is_open = stream.model is not None
            if name not in self._sources or self._sources[name][1] is not is_open:
                self._sources[name] = stream, is_open, entity_source(name, stream.config)
        return tuple(self._with_state(name, stream) for name, stream in streams.items())

    def _with_state(self, name: str, stream: Stream) -> StreamEntitySource:
        """Return a stream's entity source with what may change while the model stays the same."""
        runtime, known = self._runtime, self._sources[name][2]
        settings, state = runtime.settings.get(name), state_path(runtime.config.storage)
        counted = tuple(ZoneLabel(*pair) for pair in stream.counted_labels)
        return replace(
            known,
            counted_labels=counted,
            variants=settings.variants if settings else (),
            filters=tuple(settings.filters) if settings and known.kind in _WITH_FILTERS else (),
            motion_masks=settings is not None and settings.motion_masks is not None,
            commands=runtime.commands,
            of_features=entities(
                EntityPlace(
                    runtime.topics, name, stream.config, known.kind, runtime.commands, state, stream.parts
                )
            ),
        )


def entity_source(name: str, config: StreamConfig) -> StreamEntitySource:
    """Describe a stream's entities, without asking the TFLite runtime about its model, which may take long."""
    publish = config.publish
    known = StreamEntitySource(
        name,
        configured_labels=tuple(ZoneLabel(*pair) for pair in config.labels_to_count),
        zones=tuple(zone.name for zone in config.zones),
        lines=tuple(line.name for line in config.lines),
        counts=publish.counts,
        events=publish.events,
        inspection=config.inspection is not None,
    )
    try:
        manifest = open_manifest(config.model, wait_s=0.0)
    except ModelError:
        return known
    kind = _kind(manifest)
    unit = str(manifest.output.options.get("unit", ""))
    told = tuple(attribute_names(config, manifest)) if kind == "things" else ()
    return replace(known, kind=kind, labels=_labels(manifest, config, kind), unit=unit, attributes=told)


def _kind(manifest: Manifest) -> Kind:
    if manifest.gives_numbers:
        return "numbers"
    if manifest.gives_texts:
        return "texts"
    if not manifest.has_tracks:
        return "words"
    if manifest.audio is not None:
        return "sounds"
    return "verdicts" if manifest.output.decoder in _VERDICTS else "things"


def _labels(manifest: Manifest, config: StreamConfig, kind: Kind) -> tuple[str, ...]:
    output = manifest.output
    if kind == "texts":
        return ()
    none = output.options.get("ignore", _NO_WORDS) if kind == "words" else _NO_LABELS
    labels = output.labels or _OWN_LABELS.get(output.decoder, ())
    asked = config.decode.labels
    return tuple(dict.fromkeys(one for one in labels if one not in none and (one in asked or not asked)))
