"""Reads the load and the heat of the board, and what its streams are promised and get, once a second."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from agent.board.firmware import Ask, ask_firmware
from agent.board.heat import HeatModel
from agent.board.proc import read_memory
from agent.board.processors import Quota, Ticks, read_quota, read_ticks, usable_processors
from agent.board.sensors import BoardSensors, ChipReading, LostHeat
from agent.board.thermal import Zone, firmware_limit_c
from agent.compute.manifest import AUTO
from agent.config import Config
from agent.config.source_uri import parse
from agent.daemon.streams.counters import Window, joined
from agent.features.governor.readings import BLIND_S, COLD_C, BoardReading, StreamReading, VariantCost

if TYPE_CHECKING:
    from agent.daemon.streams.stream import Stream

log = logging.getLogger(__name__)
_MARGIN_C = 3.0
"""The limit lies so far below the temperature at which the kernel throttles, °C."""
_READINGS = 2
"""Those over which shares of processors are taken."""
_QUOTA_S = 10.0
"""Time between two searches for a quota while there is none, s."""
RUNNING = ("running", "degraded")
"""Statuses of a stream that infers."""
_OVER = ("ended", "failed", "disabled")
_WINDOW_S = 1.0
"""Open time from which on a rate of inferences is taken, s."""
_WINDOWS, _LATELY, _OPEN_WINDOWS, _RATES = 2, 10, 30, 60
"""Windows over which the newest rates and those of lately are taken; over which the share of open gates is the
greatest; over which the rate of the source is the upper quartile."""
_MEAN = 5
"""Windows that are taken together for the rate of the source."""
_NEWEST = 0.2
"""Weight of the newest window in the cost of an inference."""
_NEARLY = 0.95
"""Share of the promised rate below which a camera that gives no more is told."""
_KEYS_ALONE = 50
"""Pictures of an opened camera, all of them key frames, after which no others are expected."""
_ALL = (VariantCost(),)


class UsableTicks:
    """Reads the times of the processors that this process may use, and its quota.

    Without a quota it is looked for every ten seconds: the files of all groups take most of a millisecond.
    """

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        """Read nothing yet.

        Args:
            root: of the file system.
            clock: monotonic, s.
        """
        self._root, self._clock = root, clock
        self._quota: Quota | None = None
        self._due_s = float("-inf")

    def read(self) -> Ticks:
        """Return the times until now."""
        now_s, usable = self._clock(), usable_processors()
        if self._quota is not None or now_s >= self._due_s:
            self._quota, self._due_s = read_quota(self._root), now_s + _QUOTA_S
        ticks = read_ticks(self._root / "proc/stat", usable)
        return Ticks(ticks.total, ticks.idle, ticks.own, usable, self._quota, now_s)


class ProcessorShares(Struct, frozen=True, gc=False):
    """Shares of the processors in a window, 0..1.

    Attributes:
        idle: what this process may still use: its quota may leave less than was idle.
        others: used by other programs.
        quota: processors that this process may use; None: all of them.
    """

    idle: float
    others: float
    quota: float | None = None


def processor_shares(first: Ticks, last: Ticks, cores: int) -> ProcessorShares:
    """Return how processors were used between two readings of the same ones."""
    total = max(1e-3, last.total - first.total)
    idle = min(1.0, max(0.0, (last.idle - first.idle) / total))
    own = (last.own - first.own) / total
    others = min(1.0, max(0.0, 1.0 - idle - own))
    if last.quota is None or last.quota.processors >= cores:
        return ProcessorShares(idle, others)
    left = last.quota.processors - _used(first, last)
    return ProcessorShares(min(idle, max(0.0, left / cores)), others, last.quota.processors)


def _used(first: Ticks, last: Ticks) -> float:
    """Return the processors that a quota's group used; where that is not known, what this process did."""
    seconds, used_s = last.at_s - first.at_s, last.own - first.own
    if first.quota is not None and last.quota is not None and first.quota.group == last.quota.group:
        before, now = first.quota.used_s, last.quota.used_s
        used_s = now - before if before is not None and now is not None else used_s
    return used_s / seconds if seconds > 0.0 else 0.0


class BoardLoad:
    """Follows the load of the processors and the temperature. For one thread."""

    def __init__(
        self,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
        ticks: Callable[[], Ticks] | None = None,
        cores: int = 0,
        ask: Ask = ask_firmware,
        sensors: BoardSensors | None = None,
    ) -> None:
        """Start.

        Args:
            root: of the file system with the board's sensors.
            clock: monotonic, s.
            ticks: returns the times of the processors until now; None: see `UsableTicks`.
            cores: processors; 0: those that this process may use.
            ask: asks the firmware, where no file has its warnings.
            sensors: of the board; None: those below `root`, read whenever this is.
        """
        self._root, self._clock, self._cores = root, clock, cores
        self._ticks = ticks or UsableTicks().read
        self._known = deque([self._ticks()], maxlen=_READINGS + 1)
        self._heat: dict[str, HeatModel] = {}
        self._firmware_c = firmware_limit_c(root)
        self._sensors = sensors or BoardSensors(root, clock, ask)
        self._lost, self._had_supply = LostHeat(COLD_C, BLIND_S), False

    def load_changed(self) -> None:
        """Forget how the temperature went on: the load is another one from now on."""
        self._heat = {}

    def read(self, config: Config) -> BoardReading:
        """Return the board now; the limit is the configuration's."""
        now = self._ticks()
        if now.usable != self._known[-1].usable:
            self._known.clear()
        self._known.append(now)
        cores = self._cores or len(now.usable) or len(usable_processors())
        shares = processor_shares(self._known[0], now, cores)
        chip = self._sensors.chip()
        zone, limit_c = self._nearest_to_limit(chip, config)
        return BoardReading(
            cores,
            shares.idle,
            shares.others,
            zone.temperature_c if zone is not None else None,
            limit_c,
            *self._forecast(zone, limit_c),
            _why_slow(chip),
            self._memory_free(),
            self._battery_percent(),
            shares.quota,
            self._is_supply_known(chip),
        )

    def _is_supply_known(self, chip: ChipReading) -> bool:
        self._had_supply = self._had_supply or chip.supply is not None
        return chip.supply is not None or not self._had_supply

    def _forecast(self, zone: Zone | None, limit_c: float) -> tuple[float | None, float | None]:
        """Return the temperature that the load leads to, °C, and the time until the limit, s; None: unknown."""
        if zone is None:
            return None, None
        heat = self._heat[zone.name]
        left_s = heat.seconds_until(limit_c)
        return heat.settles_at(), left_s if left_s != float("inf") else None

    def _battery_percent(self) -> float | None:
        battery = self._sensors.energy().battery
        return battery.percent if battery is not None and battery.feeds_board else None

    def _memory_free(self) -> float | None:
        memory = read_memory(self._root)
        return memory.available_mb / memory.total_mb if memory.total_mb else None

    def _nearest_to_limit(self, chip: ChipReading, config: Config) -> tuple[Zone | None, float]:
        """Return the zone that is nearest to its limit, and this limit, °C; no zone: the configured one.

        A zone that was warm and cannot be read makes the temperature unknown, unless another one is warm.
        """
        now_s = self._clock()
        for zone in chip.zones.values():
            self._heat.setdefault(zone.name, HeatModel()).add(now_s, zone.temperature_c)
        lost = self._lost.update(chip.zones, lambda zone: self._limit_c(zone, config), now_s)
        if lost is not None:
            return None, self._limit_c(lost, config)
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
    """Return why the hardware reduces its clock; empty: it does not, or that is unknown."""
    if chip.supply is not None and chip.supply.now:
        return f"the firmware reports: {', '.join(chip.supply.now)}"
    return f"the kernel has slowed {chip.brakes[0].name} down" if chip.brakes else ""


class StreamWatch:
    """Follows one stream, and makes its readings. For the governor's thread."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._windows: deque[Window] = deque(maxlen=_LATELY)
        self._open: deque[float] = deque(maxlen=_OPEN_WINDOWS)
        self._captured = 0
        self._captured_at: float | None = None
        self._rates: deque[float] = deque(maxlen=_RATES)
        self._cost_ms: float | None = None
        self._least_ms: deque[float] = deque(maxlen=_OPEN_WINDOWS)
        self._too_slow_for, self._has_inter_coded = 0.0, False
        stream.metrics.meter.take()

    def read(self, variant: str, *, is_starved: bool = False) -> StreamReading | None:
        """Return the stream's newest reading; None: it does not run.

        Args:
            variant: that it may use.
            is_starved: no processor is idle, so that a source may be read too late.
        """
        stream = self.stream
        if stream.status[0] not in RUNNING or stream.model is None or stream.has_sound:
            return None
        window = stream.metrics.meter.take()
        self._windows.append(window)
        if seen_s := window.open_s + window.closed_s:
            self._open.append(window.open_s / seen_s)
        variants = self._variants()
        self._update_fps()
        self._update_inter_coded()
        if not is_starved:
            self._tell_slow_camera()
        self._update_cost(window, next((one.cost for one in variants if one.name == variant), 1.0))
        now, lately = joined(list(self._windows)[-_WINDOWS:]), joined(self._windows)
        service = stream.config.service
        latencies = sorted(now.latencies_ms)
        return StreamReading(
            priority=service.priority,
            min_fps=service.min_fps,
            max_latency_ms=service.max_latency_ms,
            fps_now=self._fps_of(_WINDOWS),
            fps=self._fps,
            open_share=max(self._open, default=0.0),
            inferred_fps=now.inferred / now.open_s if now.open_s >= _WINDOW_S else None,
            inferred_lately=lately.inferred / lately.open_s if self._is_long(lately) else None,
            fps_lately=self._fps_of(_LATELY),
            latency_ms=latencies[(len(latencies) * 19 - 1) // 20] if latencies else None,
            cost_ms=(self._cost_ms or 0.0) if self._gives_way else 0.0,
            least_ms=min(self._least_ms, default=0.0) * variants[-1].cost,
            handled_fps=now.inputs / seen_s if (seen_s := now.open_s + now.closed_s) else 0.0,
            variants=variants,
            has_samples=stream.config.publish.detections,
            has_snapshots=stream.config.publish.snapshot,
            has_clips=stream.encodes_clips,
            has_decoding=self._decodes_as_needed and not service.min_fps,
        )

    def _is_long(self, window: Window) -> bool:
        return len(self._windows) == _LATELY and window.open_s >= 0.5 * _LATELY * _WINDOW_S

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
        """Value that is equal for streams that share a camera; None: this stream has none now."""
        config, captured = self.stream.config, self.stream.captured
        has_none = captured is None or self.stream.status[0] in _OVER
        if has_none or self.stream.has_sound or parse(config.source).lossless:
            return None
        return config.source, replace(config.capture, max_fps=0.0)

    def _update_fps(self) -> None:
        """Follow the rate of the source over a minute: under load its reader, too, comes too late."""
        captured = self.stream.captured
        now_s, frames = time.monotonic(), captured.frames if captured is not None else 0
        if captured is not None and captured.undecoded:
            frames = captured.decoded + captured.undecoded  # what is left encoded comes when it is wanted
        if self._captured_at is not None and now_s > self._captured_at:
            rate, most = (
                (frames - self._captured) / (now_s - self._captured_at),
                self.stream.config.capture.max_fps,
            )
            self._rates.append(max(0.0, min(rate, most) if most else rate))
        self._captured, self._captured_at = frames, now_s

    def _update_inter_coded(self) -> None:
        """Find out whether the camera gives others than key frames; one that is lost is taken as it was."""
        if (captured := self.stream.captured) is None:
            return
        if captured.inter_coded or captured.decoded + captured.undecoded >= _KEYS_ALONE:
            self._has_inter_coded = captured.inter_coded > 0

    def _tell_slow_camera(self) -> None:
        """Log once that the source gives less than is promised: then no more can be kept than it gives."""
        promised = self.stream.config.service.min_fps
        if len(self._rates) < _OPEN_WINDOWS or not promised:
            return
        if self._fps >= _NEARLY * promised:
            self._too_slow_for = 0.0
        elif self._too_slow_for != promised:
            self._too_slow_for = promised
            log.warning(
                "stream %s: promised %g pictures per second, of %.3g that its source gives",
                self.stream.name,
                promised,
                self._fps,
            )

    def _update_cost(self, window: Window, relative: float) -> None:
        """Follow the processor time of an inference of the largest variant. All threads take about as much."""
        if window.least_ms is not None:
            self._least_ms.append(window.least_ms / max(0.01, relative))
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
