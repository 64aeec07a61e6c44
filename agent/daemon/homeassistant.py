"""The house as Home Assistant is to know it: what each stream may find and be told, by its model's manifest."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from agent import __version__
from agent.board.identity import read_board
from agent.comms.homeassistant.announcer import Announcer
from agent.comms.homeassistant.device import Device, Kind, Label, StreamEntitySource
from agent.comms.mqtt.publisher import Publisher
from agent.compute.manifest import Manifest
from agent.config.device import HomeAssistantConfig
from agent.config.stream import StreamConfig
from agent.daemon.runtime import Runtime
from agent.daemon.stream import Stream
from agent.errors import ModelError
from agent.models.library import open_manifest

_HOLES = ("", "???")
_OWN_LABELS = {"blazeface": ("face",), "keypoints": ("person",)}
"""By decoder: where the manifest names none."""
_NO_WORDS = ("unknown", "silence")
_VERDICTS = ("classify",)


class HomeAssistant:
    """Announces a house. For the thread that watches it."""

    def __init__(self, house: Runtime) -> None:
        self._house = house
        self._board = read_board(Path("/")).model
        self._known: dict[str, tuple[Stream, bool, StreamEntitySource]] = {}  # whether its model was open then
        self._announcer: Announcer | None = None
        self._of: tuple[HomeAssistantConfig, Publisher] | None = None

    def look(self, *, has_temperature: bool) -> None:
        """Announce what has changed.

        Args:
            has_temperature: whether the board tells one.
        """
        house = self._house
        device = Device(house.topics, self._board, __version__, has_temperature, self._subjects())
        of = (house.config.homeassistant, house.line.publisher)
        if self._announcer is None or self._of is None or of[0] != self._of[0] or of[1] is not self._of[1]:
            self._begin(of, device)
        assert self._announcer is not None
        self._announcer.update(device)

    @property
    def trouble(self) -> str:
        """Why Home Assistant does not find the device; empty: nothing speaks against it."""
        return self._announcer.trouble if self._announcer else ""

    def _begin(self, of: tuple[HomeAssistantConfig, Publisher], device: Device) -> None:
        """Anew, at the start and where another broker or another table is in use since a reload."""
        before, old = self._of, self._announcer
        if old is not None and before is not None:
            old.leave()
            if before[0].prefix != of[0].prefix:
                old.withdraw()
        self._of, self._announcer = of, Announcer(self._house.line, of[0], device)

    def _subjects(self) -> tuple[StreamEntitySource, ...]:
        streams = self._house.streams
        self._known = {name: known for name, known in self._known.items() if streams.get(name) is known[0]}
        for name, stream in streams.items():
            is_open = stream.model is not None
            if name not in self._known or self._known[name][1] is not is_open:
                self._known[name] = stream, is_open, subject_of(name, stream.config)
        return tuple(self._subject(name, stream) for name, stream in streams.items())

    def _subject(self, name: str, stream: Stream) -> StreamEntitySource:
        """What has not changed, and what may have."""
        house, known = self._house, self._known[name][2]
        variants = house.settings[name].variants if name in house.settings else ()
        counted = tuple(Label(*pair) for pair in stream.counted)
        return replace(known, counted=counted, variants=variants, commands=house.commands)


def subject_of(name: str, config: StreamConfig) -> StreamEntitySource:
    """A stream of this configuration. The runtime is not asked about its model: that may take long."""
    publish = config.publish
    known = StreamEntitySource(
        name,
        named=tuple(Label(*pair) for pair in config.named),
        zones=tuple(zone.name for zone in config.zones),
        counts=publish.counts,
        snapshot=publish.snapshot,
        events=publish.events,
    )
    try:
        manifest = open_manifest(config.model, wait_s=0.0)
    except ModelError:
        return known
    kind = _kind(manifest)
    return replace(known, kind=kind, labels=_labels(manifest, config, kind))


def _kind(manifest: Manifest) -> Kind:
    if not manifest.has_tracks:
        return "words"
    if manifest.audio is not None:
        return "sounds"
    return "verdicts" if manifest.output.decoder in _VERDICTS else "things"


def _labels(manifest: Manifest, config: StreamConfig, kind: Kind) -> tuple[str, ...]:
    output = manifest.output
    none = output.options.get("ignore", _NO_WORDS) if kind == "words" else _HOLES
    labels = output.labels or _OWN_LABELS.get(output.decoder, ())
    asked = config.decode.labels
    return tuple(dict.fromkeys(one for one in labels if one not in none and (one in asked or not asked)))
