"""Parts of a stream and of the device, which features give, and how the core joins them.

The core calls parts and names no feature: those are rows of `agent.features.FEATURES`. A feature's modules are
imported when they are first used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from agent.capture.source import DecodeMode, Demand
from agent.config import Config, StreamConfig
from agent.config.features import Problem, StreamBudget
from agent.daemon.streams.services import StreamServices
from agent.errors import ConfigError, VedetteError, about
from agent.features import FEATURES
from agent.models.findings import IN_PICTURES, Kind, ModelReader
from agent.structs import Keys
from agent.types import AudioChunk, Event, Frame, MediaPacket, StreamResult, Track

if TYPE_CHECKING:
    from agent.comms.commands import Command
    from agent.comms.reporter import Reporter
    from agent.comms.topics import Topics
    from agent.compute.hearing import AudioPerception
    from agent.compute.listening import UtterancePerception
    from agent.compute.manifest import Model
    from agent.compute.vision import VideoPerception

NO_DEMAND = Demand(DecodeMode.NOTHING)


class StreamPart:
    """Part of a stream besides its core, from the opening of its source to its end.

    All methods are for the stream's thread, in the order of `FEATURES`, unless they say otherwise.
    """

    @property
    def trouble(self) -> str:
        """Fault for a line of health; empty: there is none. Any thread may read it."""
        return ""

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Problems of the inputs; a change is published at once. Any thread may read it."""
        return ()

    @property
    def shown(self) -> Sequence[Track]:
        """Tracks of its own that snapshots draw."""
        return ()

    @property
    def encodes(self) -> bool:
        """True if it encodes pictures, fewer of which a budget asks for."""
        return False

    @property
    def pins_variant(self) -> bool:
        """True if the model's variant must stay as it is."""
        return False

    @property
    def on_packet(self) -> Callable[[MediaPacket], None] | None:
        """Called with each packet of an encoded camera, in the thread that reads it; None: it needs none."""
        return None

    @property
    def wait_s(self) -> float:
        """Longest wait for the next input, s."""
        return math.inf

    def perceive(self, perception: Any) -> Any:
        """Return what makes results of inputs: the perception itself, or something around it."""
        return perception

    def process(self, item: Any, result: StreamResult) -> None:
        """Process an input after it was reported. A frame is read-only here, and `keep` is for who reads on."""

    def idle(self, events: Sequence[Event], *, lost: bool) -> None:
        """No input came in time; `events` came without one, and the source may be `lost`."""

    def end(self, events: Sequence[Event], reason: str) -> None:
        """The run ends for that reason, with the last events."""

    def configure(self, config: StreamConfig) -> None:
        """Use other live settings from now on."""

    def set_budget(self, budget: StreamBudget) -> None:
        """Use no more than this from now on."""

    def demand(self) -> Demand:
        """Return the least that it needs of an encoded camera."""
        return NO_DEMAND

    def request_picture(self) -> bool:
        """Publish the next picture; return False if it publishes none. Any thread may call this."""
        return False

    def describe(self) -> dict[str, Any]:
        """Return fields for the answer to `status`. Any thread may call this."""
        return {}

    def abandon(self) -> None:
        """Publish and write nothing more: the stream's thread hangs. Any thread may call this."""

    def close(self) -> None:
        """Release everything; the source was closed before."""


class DevicePart:
    """Part of a device besides its core. For the daemon's thread, unless a method says otherwise."""

    @property
    def trouble(self) -> str:
        """Fault for a line of health; a change is published at once."""
        return ""

    @property
    def behind_s(self) -> float:
        """Age of the oldest thing that it has not written yet, s."""
        return 0.0

    def start(self) -> None:
        """Begin: the connection to the broker has been started, the streams have not."""

    def poll(self) -> None:
        """Do what is due, twice a second and after each command."""

    def configure(self, config: Config) -> None:
        """Use a configuration that was read again."""

    def health(self) -> dict[str, Any]:
        """Return fields of `HealthMessage`."""
        return {}

    def report(self, stream: str = "") -> dict[str, Any]:
        """Return fields of `StreamReport` of health.json; without a stream, of `DaemonHealth`."""
        return {}

    def stop(self) -> None:
        """Leave the streams alone from now on: they are stopped next."""

    def close(self, seconds: float) -> None:
        """Stop within this time; the streams have stopped before."""


class StreamContext(Struct, frozen=True):
    """Everything that a part of a stream may use.

    Attributes:
        name, config: of the stream.
        perception: open.
        reporter: publishes.
        services: that all streams share.
        state: folder of the daemon's state; None: nothing is kept.
    """

    name: str
    config: StreamConfig
    perception: VideoPerception | AudioPerception | UtterancePerception
    reporter: Reporter
    services: StreamServices
    state: Path | None = None

    @property
    def has_sound(self) -> bool:
        return self.perception.model.manifest.audio is not None


class Asked(Struct, frozen=True):
    """A command of a feature.

    Attributes:
        command: as it came.
        stream: that it is for, a `Stream`; None: it is for the device.
        device: parts of the device; None: there are none.
        topics: of the device.
        answer: answers later, with a result or with None and the reason; then the function returns None.
    """

    command: Command
    stream: Any
    topics: Topics
    answer: Callable[[dict[str, Any] | None, str], None]
    device: DeviceParts | None = None


Reply = tuple[str, dict[str, Any]]
"""Remark and further fields of an answer."""
Step = tuple[Keys, Callable[[], object]]
"""Keys below the stream, and the check of them, which raises a `VedetteError`."""


class EntityPlace(Struct, frozen=True):
    """Stream whose entities of Home Assistant are wanted.

    Attributes:
        topics: of the device.
        name, config: of the stream.
        kind: what its model finds; None: not known.
        commands: True if commands are accepted.
        state: folder of the daemon's state.
        parts: of the stream, open while it runs.
        part: open part of the feature whose entities are wanted; None: it is not open.
    """

    topics: Topics
    name: str
    config: StreamConfig
    kind: Kind | None
    commands: bool
    state: Path
    parts: Parts
    part: Any = None

    @property
    def has_pictures(self) -> bool:
        return self.kind in IN_PICTURES


_BY_NAME = {feature.name: feature for feature in FEATURES}
_ORDER = {name: number for number, name in enumerate(_BY_NAME)}


class Parts:
    """Open parts of one run of a stream, in the order of `FEATURES`. Any thread may attach, detach and read."""

    def __init__(self) -> None:
        self._open: dict[str, StreamPart] = {}  # replaced as a whole, never changed
        self._is_closed = False

    def __iter__(self) -> Iterator[StreamPart]:
        return iter(self._open.values())

    def get(self, name: str) -> Any:
        """Return an open part; None: it is not open."""
        return self._open.get(name)

    def attach(self, name: str, part: StreamPart) -> None:
        """Add a part, from the next input on; close it if the run is over."""
        if self._is_closed:
            part.close()
            return
        parts = {**self._open, name: part}
        self._open = dict(sorted(parts.items(), key=lambda pair: _ORDER.get(pair[0], -1)))

    def detach(self, name: str) -> None:
        """Leave a part out, without closing it."""
        self._open = {known: part for known, part in self._open.items() if known != name}

    @property
    def trouble(self) -> str:
        return next(filter(None, (part.trouble for part in self)), "")

    @property
    def problems(self) -> tuple[Problem, ...]:
        return tuple(problem for part in self for problem in part.problems)

    @property
    def shown(self) -> list[Track]:
        return [track for part in self for track in part.shown]

    @property
    def on_packet(self) -> Callable[[MediaPacket], None] | None:
        """Hands a packet to all parts that need it; None: no part does."""
        takers = [part.on_packet for part in self if part.on_packet is not None]

        def give(packet: MediaPacket) -> None:
            for take in takers:
                take(packet)

        return give if takers else None

    @property
    def wait_s(self) -> float:
        return min((part.wait_s for part in self), default=math.inf)

    def perception(self, perception: Any) -> Any:
        """Return the perception with what parts have put around it."""
        for part in self:
            perception = part.perceive(perception)
        return perception

    def process(self, item: Frame | AudioChunk, result: StreamResult) -> None:
        for part in self:
            part.process(item, result)

    def idle(self, events: Sequence[Event], *, lost: bool) -> None:
        for part in self:
            part.idle(events, lost=lost)

    def end(self, events: Sequence[Event], reason: str) -> None:
        for part in self:
            part.end(events, reason)

    def configure(self, config: StreamConfig) -> None:
        for part in self:
            part.configure(config)

    def set_budget(self, budget: StreamBudget) -> None:
        for part in self:
            part.set_budget(budget)

    def demand(self, own: Demand) -> Demand:
        """Return the demand of the stream itself and of its parts."""
        demands = own, *(part.demand() for part in self)
        mode = max(demand.mode for demand in demands)
        return Demand(mode, own.moved, own.most, any(demand.exact for demand in demands))

    def request_picture(self) -> bool:
        """Publish the next picture; return False if no part publishes any."""
        return any(part.request_picture() for part in self)

    def describe(self) -> dict[str, Any]:
        return {key: value for part in self for key, value in part.describe().items()}

    def abandon(self) -> None:
        for part in self:
            part.abandon()

    def close(self) -> None:
        """Close each part, even if another one fails."""
        self._is_closed = True
        with ExitStack() as closing:
            for part in self:
                closing.callback(part.close)
        self._open = {}


def open_parts(context: StreamContext) -> Parts:
    """Open what a stream's configuration asks for."""
    parts = Parts()
    with ExitStack() as opened:
        opened.callback(parts.close)
        for feature in FEATURES:
            if feature.is_wanted(context.name, context.config, context.state):
                open_part(feature.name, context, parts)
        opened.pop_all()
    return parts


def open_part(name: str, context: StreamContext, parts: Parts) -> Any:
    """Return an open part, opened now if need be; None: there is nothing for it to do."""
    if (part := parts.get(name)) is None:
        part = _BY_NAME[name].load("part").open_part(context, parts)
        if part is not None:
            parts.attach(name, part)
    return part


class DeviceParts:
    """Open parts of the device. For the daemon's thread; any thread may call `get`."""

    def __init__(self, runtime: Any) -> None:
        """Open nothing yet; `runtime` is handed to the parts."""
        self._runtime, self._open, self._is_started = runtime, dict[str, DevicePart](), False

    def __iter__(self) -> Iterator[DevicePart]:
        return iter(self._open.values())

    def get(self, name: str) -> Any:
        """Return an open part; None: it is not open."""
        return self._open.get(name)

    def open(self, config: Config) -> None:
        """Open what a configuration asks for; what it does not ask for any more stays, and may close itself."""
        for feature in FEATURES:
            if feature.device(config):
                self.open_part(feature.name)

    def open_part(self, name: str) -> Any:
        """Return an open part, opened now if need be."""
        if name not in self._open:
            part = _BY_NAME[name].load("part").open_device_part(self._runtime)
            self._open = {**self._open, name: part}
            if self._is_started:
                part.start()
        return self._open[name]

    def start(self) -> None:
        self._is_started = True
        for part in self:
            part.start()

    def poll(self, config: Config) -> None:
        self.open(config)
        for part in self:
            part.poll()

    def configure(self, config: Config) -> None:
        self.open(config)
        for part in self:
            part.configure(config)

    @property
    def troubles(self) -> tuple[str, ...]:
        return tuple(part.trouble for part in self)

    def health(self) -> dict[str, Any]:
        return {key: value for part in self for key, value in part.health().items()}

    def report(self, stream: str = "") -> dict[str, Any]:
        return {key: value for part in self for key, value in part.report(stream).items()}

    def stop(self) -> None:
        for part in self:
            part.stop()

    def close(self, seconds: float) -> None:
        for part in self:
            part.close(seconds)


def execute(asked: Asked) -> Reply | None:
    """Execute a command of a feature. Raises VedetteError if it is refused."""
    verb = asked.command.verb
    feature = next(one for one in FEATURES if verb in (*one.verbs, *one.device_verbs))
    feature.check_installed()
    reply: Reply | None = getattr(feature.load("part"), verb)(asked)
    return reply


def is_of_feature(verb: str) -> bool:
    """Return True if a feature executes a command."""
    return any(verb in (*feature.verbs, *feature.device_verbs) for feature in FEATURES)


def check_values(name: str, config: StreamConfig) -> Iterator[Step]:
    """Yield the checks of the features' tables that need no model; each is made before the next is asked for."""
    for feature in FEATURES:
        if feature.when(config):
            yield (feature.name,), feature.check_installed
            if feature.has_checks:
                yield from feature.load("checks").steps(name, config)


def check_device_tables(config: Config, read: ModelReader) -> Iterator[VedetteError]:
    """Yield the problems of the features' tables that do not belong to a single stream; `read` reads models."""
    for feature in FEATURES:
        if feature.device(config):
            try:
                feature.check_installed()
            except ConfigError as error:
                yield error
                continue
            if feature.has_device_checks:
                yield from feature.load("checks").device_problems(config, read)


def check_with_model(name: str, config: StreamConfig, model: Model) -> None:
    """Check that what features ask for goes with the model. Raises ConfigError."""
    for feature in FEATURES:
        if feature.has_checks and feature.when(config):
            with about(feature.name):
                feature.load("checks").check_with_model(name, config, model)


def entities(place: EntityPlace) -> dict[str, dict[str, Any]]:
    """Return the entities of Home Assistant that a stream's features give, by id."""
    made: dict[str, dict[str, Any]] = {}
    for feature in FEATURES:
        if feature.has_entities and feature.is_wanted(place.name, place.config, place.state):
            made |= feature.load("part").entities(replace(place, part=place.parts.get(feature.name)))
    return made
