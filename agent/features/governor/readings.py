"""Reads the board and its streams once a second, and which promises the newest window breaks."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from agent.board.heat import HeatModel
from agent.board.sensors import BoardSensors, ChipReading
from agent.board.thermal import Zone, firmware_limit_c
from agent.compute.manifest import AUTO
from agent.config import Config
from agent.config.source_uri import parse
from agent.daemon.streams.counters import Window, joined

if TYPE_CHECKING:
    from agent.daemon.streams.stream import Stream

log = logging.getLogger(__name__)
RESERVE = 0.08
"""Share of all processors that stays idle when something comes back."""
COLD_C = 15.0
"""So far below its limit a board is cold, and everything may come back, °C."""
BLIND_S = 600.0
"""Time for which nothing comes back to a warm board whose temperature cannot be read any more, s."""
_FAR, _NEARLY = 0.7, 0.96
"""Shares of a promised rate: below the first it is far from kept; from the second on, for 10 s, it is kept."""
_PICTURE, _FEW = 0.5, 0.25
"""A window of two seconds has few pictures: so many per second may be missing, but no more than this share."""
_AHEAD_S, _NEAR_S = 90.0, 45.0
"""The load is reduced if the limit would be reached within this time, s: by a curve, and by the slope alone."""
_WARM_C = 6.0
"""Nearer to its limit than this, the slope of the temperature alone is reason enough to reduce the load, °C."""
_MARGIN_C = 3.0
"""The limit lies so far below the temperature at which the kernel throttles, °C."""
_WINDOW_S = 1.0
"""Open time from which on a rate of inferences is taken, s."""
_WINDOWS, _LATELY, _OPEN_WINDOWS, _RATES = 2, 10, 30, 60
"""Windows over which the newest rates and those of lately are taken; over which the share of open gates is the
greatest; over which the rate of the source is the upper quartile."""
_MEAN = 5
"""Windows that are taken together for the rate of the source."""
_NEWEST = 0.2
"""Weight of the newest window in the cost of an inference."""
_KEYS_ALONE = 50
"""Pictures of an opened camera, all of them key frames, after which no others are expected."""


class VariantCost(Struct, frozen=True, gc=False):
    """A size of a model, and its multiply-adds relative to the largest, 0..1."""

    name: str = ""
    cost: float = 1.0


_ALL = (VariantCost(),)


class StreamReading(Struct, frozen=True):
    """One stream in the newest window.

    Attributes:
        priority: streams with a lower number give way first.
        min_fps: inferences per second that it is to have while its gate is open; 0: none are promised.
        max_latency_ms: from the capture of a picture to its result that it is to keep, ms; 0: none is promised.
        fps: pictures per second that its source gives when nothing disturbs it.
        fps_now, fps_lately: pictures per second that it has given in the newest two and ten windows.
        open_share: share of them that the gate lets through, 0..1: the most of the last half minute.
        inferred_fps, inferred_lately: inferences per second while the gate was open, in the newest two and ten
            windows; None: it was closed for most of the time.
        latency_ms: 95th percentile of capture to result; None: nothing was inferred.
        cost_ms: processor time of an inference of the largest variant when nothing disturbs it, ms.
        handled_fps: pictures per second that the stream has handled in the window, inferred or not.
        variants: that may be used, the largest first.
        has_samples, has_snapshots, has_clips: whether it publishes or encodes these; clips of copied packets
            cannot be reduced.
        has_decoding: whether less of its camera may be decoded: that is encoded, decoded as needed, gives others
            than key frames, and is not shared, and the stream is promised no rate.
    """

    priority: int = 50
    min_fps: float = 0.0
    max_latency_ms: float = 0.0
    fps: float = 0.0
    fps_now: float = 0.0
    open_share: float = 0.0
    inferred_fps: float | None = None
    inferred_lately: float | None = None
    fps_lately: float = 0.0
    latency_ms: float | None = None
    cost_ms: float = 0.0
    handled_fps: float = 0.0
    variants: tuple[VariantCost, ...] = _ALL
    has_samples: bool = False
    has_snapshots: bool = False
    has_clips: bool = False
    has_decoding: bool = False


class BoardReading(Struct, frozen=True, gc=False):
    """The board in the newest window.

    Attributes:
        cores, idle, others, quota: see `ProcessorShares`.
        celsius: temperature of the zone that is nearest to its limit, °C; None: unknown.
        limit_c: temperature that this zone is not to exceed, °C.
        settles_c: temperature that the present load leads to, °C; None: unknown.
        limit_in_s: time until `limit_c` is reached under the present load, s; None: never, or unknown.
        slowed: why the hardware reduces its clock now; empty: it does not, or that is unknown.
        battery_percent: charge of the battery that the board runs on, 0..100; None: it runs on none, or it is
            unknown.
    """

    cores: int = 1
    idle: float = 1.0
    others: float = 0.0
    quota: float | None = None
    celsius: float | None = None
    limit_c: float = 80.0
    settles_c: float | None = None
    limit_in_s: float | None = None
    slowed: str = ""
    battery_percent: float | None = None


class Readings(Struct, frozen=True):
    """Everything of one window.

    Attributes:
        now_s: CLOCK_MONOTONIC, s.
        board: see `BoardReading`.
        streams: that run, by name.
        shortages: how `memory`, `disk` and `link` are short; empty or missing: they are not.
        known: names of streams that do not run now and may come back, and of those that run.
    """

    now_s: float
    board: BoardReading
    streams: dict[str, StreamReading]
    shortages: Mapping[str, str] = {}
    known: frozenset[str] = frozenset()


def broken_promise(stream: StreamReading) -> str:
    """Return which promise a stream's window breaks; empty: none."""
    if _lacks_rate(stream):
        most = f", of {stream.fps:.3g} that its camera gives" if stream.fps < stream.min_fps else ""
        rates = [rate for rate in (stream.inferred_fps, stream.inferred_lately) if rate is not None]
        return f"infers {min(rates):.1f} of {stream.min_fps:g} pictures per second{most}"
    if stream.latency_ms is not None and 0.0 < stream.max_latency_ms < stream.latency_ms:
        return f"takes {stream.latency_ms:.4g} of {stream.max_latency_ms:g} ms"
    return ""


def _lacks_rate(stream: StreamReading) -> bool:
    """Return True if the newest window clearly has too little, or a little too little as those before it."""
    if stream.inferred_fps is None or stream.inferred_fps >= _NEARLY * min(stream.min_fps, stream.fps_now):
        return False
    lately = stream.inferred_lately
    if lately is not None and lately < _NEARLY * min(stream.min_fps, stream.fps_lately):
        return True
    promised = min(stream.min_fps, 0.9 * stream.fps_now)
    return stream.inferred_fps < promised - min(_PICTURE, _FEW * promised)


def is_far_below(stream: StreamReading) -> bool:
    """Return True if a stream gets much less than it is promised."""
    if stream.inferred_fps is not None and stream.inferred_fps < _FAR * min(stream.min_fps, stream.fps_now):
        return True
    return stream.latency_ms is not None and 0.0 < stream.max_latency_ms < _FAR * stream.latency_ms


def heat_trouble(board: BoardReading) -> str:
    """Return why the load must be reduced to keep the board cool; empty: it need not."""
    if board.slowed:
        return board.slowed
    if board.celsius is None:
        return ""
    if board.celsius >= board.limit_c:
        return f"the board is at {board.celsius:.0f} °C"
    is_near = board.celsius >= board.limit_c - _WARM_C
    ahead_s = _AHEAD_S if board.settles_c is not None else _NEAR_S if is_near else -1.0
    if board.limit_in_s is not None and board.limit_in_s <= ahead_s:
        return f"the board would reach {board.limit_c:.0f} °C in {board.limit_in_s:.0f} s"
    return ""


class BoardLoad:
    """Follows the temperature, the supply and the battery. For one thread."""

    def __init__(
        self,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
        sensors: BoardSensors | None = None,
    ) -> None:
        """Start.

        Args:
            root: of the file system with the board's sensors.
            clock: monotonic, s.
            sensors: of the board; None: those below `root`, read whenever this is.
        """
        self._clock, self._heat = clock, dict[str, HeatModel]()
        self._firmware_c = firmware_limit_c(root)
        self._sensors = sensors or BoardSensors(root, clock)

    def load_changed(self) -> None:
        """Forget how the temperature went on: the load is another one from now on."""
        self._heat = {}

    def read(
        self, config: Config, cores: int = 1, idle: float = 1.0, others: float = 0.0, quota: float | None = None
    ) -> BoardReading:
        """Return the board now, with these shares of the processors; the limit is the configuration's."""
        chip, battery = self._sensors.chip(), self._sensors.energy().battery
        zone, limit_c = self._nearest_to_limit(chip, config)
        settles_c = limit_in_s = None
        if zone is not None:
            heat = self._heat[zone.name]
            settles_c, left_s = heat.settles_at(), heat.seconds_until(limit_c)
            limit_in_s = left_s if left_s != math.inf else None
        return BoardReading(
            cores,
            idle,
            others,
            quota,
            zone.temperature_c if zone is not None else None,
            limit_c,
            settles_c,
            limit_in_s,
            _why_slow(chip),
            battery.percent if battery is not None and battery.feeds_board else None,
        )

    def _nearest_to_limit(self, chip: ChipReading, config: Config) -> tuple[Zone | None, float]:
        """Return the zone that is nearest to its limit, and this limit, °C; no zone: the configured one."""
        now_s = self._clock()
        for zone in chip.zones.values():
            self._heat.setdefault(zone.name, HeatModel()).add(now_s, zone.temperature_c)
        nearest = max(
            chip.zones.values(), key=lambda one: one.temperature_c - self._limit_c(one, config), default=None
        )
        return nearest, self._limit_c(nearest, config)

    def _limit_c(self, zone: Zone | None, config: Config) -> float:
        if config.governor.max_temperature_c is not None:
            return config.governor.max_temperature_c
        limit_c = zone.limit_c if zone is not None and zone.limit_c is not None else self._firmware_c
        return config.thermal.warn_c if limit_c is None else min(config.thermal.warn_c, limit_c - _MARGIN_C)


def _why_slow(chip: ChipReading) -> str:
    if chip.supply is not None and chip.supply.now:
        return f"the firmware reports: {', '.join(chip.supply.now)}"
    return f"the kernel has slowed {chip.brakes[0].name} down" if chip.brakes else ""


class StreamReaders:
    """Reads all streams.

    Attributes:
        variants: size that each may use now, by name; empty: the configured one.
    """

    def __init__(self) -> None:
        self._readers: dict[str, StreamReader] = {}
        self.variants: Mapping[str, str] = {}

    def read(self, streams: Mapping[str, Stream]) -> dict[str, StreamReading]:
        """Return the readings of the streams that run."""
        self._readers = {name: one for name, one in self._readers.items() if streams.get(name) is one.stream}
        readings = {}
        for name, stream in streams.items():
            if name not in self._readers:
                self._readers[name] = StreamReader(stream)
            reading = self._readers[name].read(self.variants.get(name, ""))
            if reading is not None:
                readings[name] = reading
        cameras = Counter(reader.camera for reader in self._readers.values() if not reader.stream.has_sound)
        return {
            name: replace(reading, has_decoding=False) if cameras[self._readers[name].camera] > 1 else reading
            for name, reading in readings.items()
        }


class StreamReader:
    """Follows one stream, and makes its readings. For the governor's thread."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._windows: deque[Window] = deque(maxlen=_LATELY)
        self._open: deque[float] = deque(maxlen=_OPEN_WINDOWS)
        self._captured, self._captured_at = 0, math.nan
        self._rates: deque[float] = deque(maxlen=_RATES)
        self._cost_ms: float | None = None
        self._has_inter_coded = False
        stream.metrics.meter.take()

    def read(self, variant: str) -> StreamReading | None:
        """Return the stream's newest reading; None: it does not run. `variant` is the size that it may use."""
        stream = self.stream
        if stream.status[0] not in ("running", "degraded") or stream.model is None or stream.has_sound:
            return None
        window = stream.metrics.meter.take()
        self._windows.append(window)
        if seen_s := window.open_s + window.closed_s:
            self._open.append(window.open_s / seen_s)
        variants = self._variants()
        self._update_captured()
        self._update_cost(window, next((one.cost for one in variants if one.name == variant), 1.0))
        now, lately = joined(list(self._windows)[-_WINDOWS:]), joined(self._windows)
        service, publish = stream.config.service, stream.config.publish
        latencies = sorted(now.latencies_ms)
        is_long = len(self._windows) == _LATELY and lately.open_s >= 0.5 * _LATELY * _WINDOW_S
        return StreamReading(
            priority=service.priority,
            min_fps=service.min_fps,
            max_latency_ms=service.max_latency_ms,
            fps=self._fps,
            fps_now=self._fps_of(_WINDOWS),
            open_share=max(self._open, default=0.0),
            inferred_fps=now.inferred / now.open_s if now.open_s >= _WINDOW_S else None,
            inferred_lately=lately.inferred / lately.open_s if is_long else None,
            fps_lately=self._fps_of(_LATELY),
            latency_ms=latencies[(len(latencies) * 19 - 1) // 20] if latencies else None,
            cost_ms=(self._cost_ms or 0.0) if self._gives_way else 0.0,
            handled_fps=now.inputs / seen_s if (seen_s := now.open_s + now.closed_s) else 0.0,
            variants=variants,
            has_samples=publish.detections,
            has_snapshots=publish.snapshot,
            has_clips=stream.encodes_clips,
            has_decoding=self._decodes_as_needed and not service.min_fps,
        )

    @property
    def _fps(self) -> float:
        """Pictures per second that the source gives when nothing disturbs it; one window has whole pictures."""
        rates = list(self._rates)
        means = sorted(sum(rates[at : at + _MEAN]) / _MEAN for at in range(len(rates) - _MEAN + 1))
        return means[3 * len(means) // 4] if means else self._fps_of(_MEAN)

    def _fps_of(self, windows: int) -> float:
        newest = list(self._rates)[-windows:]
        return sum(newest) / len(newest) if newest else 0.0

    @property
    def _gives_way(self) -> bool:
        """False for a stream that must infer every picture: of parts, or of a replay that waits."""
        return self.stream.config.inspection is None and not parse(self.stream.config.source).lossless

    @property
    def _decodes_as_needed(self) -> bool:
        """True for a camera on the network whose decoding is left to the stream, if that need not infer all.

        It must give others than key frames: those of MJPEG, of raw video and of some encoders are all key frames.
        """
        config = self.stream.config
        is_free = config.capture.decode in ("auto", "saving") and self._has_inter_coded
        return self._gives_way and is_free and parse(config.source).on_network

    @property
    def camera(self) -> object:
        """Value that is equal for streams that share a camera."""
        return self.stream.config.source, replace(self.stream.config.capture, max_fps=0.0)

    def _update_captured(self) -> None:
        """Follow the rate of the source over a minute, and whether it gives others than key frames.

        Under load its reader, too, comes too late. A camera that is lost is taken as it was.
        """
        captured, now_s = self.stream.captured, time.monotonic()
        frames = captured.frames if captured is not None else 0
        if captured is not None:
            packets = captured.decoded + captured.undecoded
            if captured.undecoded:
                frames = packets  # what is left encoded comes when it is wanted
            if captured.inter_coded or packets >= _KEYS_ALONE:
                self._has_inter_coded = captured.inter_coded > 0
        if now_s > self._captured_at:  # False for NaN
            most = self.stream.config.capture.max_fps or math.inf
            rate = (frames - self._captured) / (now_s - self._captured_at)
            self._rates.append(max(0.0, min(rate, most)))
        self._captured, self._captured_at = frames, now_s

    def _update_cost(self, window: Window, relative: float) -> None:
        """Follow the processor time of an inference of the largest variant. All threads take about as much."""
        if not window.costs_ms:
            return
        threads = self.stream.config.threads or 1
        now = median(window.costs_ms) * threads / max(0.01, relative)
        self._cost_ms = now if self._cost_ms is None else self._cost_ms + _NEWEST * (now - self._cost_ms)

    def _variants(self) -> tuple[VariantCost, ...]:
        """Return the sizes that may be used; the configured one alone if states were taught with it."""
        stream, model = self.stream, self.stream.model
        assert model is not None
        if not stream.config.service.smaller_variants or any(part.pins_variant for part in stream.parts):
            return _ALL
        chosen = model.manifest.variant("" if stream.config.variant == AUTO else stream.config.variant)
        if chosen.after or not chosen.multiply_adds:
            return _ALL
        most, others = chosen.multiply_adds, model.manifest.variants
        smaller = [one for one in others if 0 < one.multiply_adds < most and not one.after]
        smaller.sort(key=lambda one: -one.multiply_adds)
        return (_ALL[0], *(VariantCost(one.name, one.multiply_adds / most) for one in smaller))
