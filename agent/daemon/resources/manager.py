"""Runs the governor: collects its readings once a second, gives streams their budgets, and tells what changes."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from statistics import median
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from agent.compute.governor.decision import Decision
from agent.compute.governor.governor import Governor
from agent.compute.governor.readings import Readings, StreamReading, VariantCost
from agent.compute.manifest import AUTO
from agent.config.source_uri import parse
from agent.daemon.resources.load import BoardLoad
from agent.daemon.resources.meter import Window, joined

if TYPE_CHECKING:
    from agent.daemon.runtime import Runtime
    from agent.daemon.streams.stream import Stream


log = logging.getLogger(__name__)
EVERY_S = 1.0
"""Time between two decisions, s."""
_LATE_S = 3.0
"""A decision that comes so much later than it should is told: something keeps the daemon from running, s."""
_WINDOWS, _OPEN_WINDOWS, _RATES = 2, 30, 60
"""Windows over which rates of inferences are taken, over which the share of open gates is the greatest, and over
which the rate of the source is the upper quartile."""
_NEWEST = 0.2
"""Weight of the newest window in the cost of an inference."""
_NICE = 5
"""Niceness of the threads of streams below the highest priority: a third of the weight beside an equal rival."""
_KEPT_S = 10.0
"""Time for which a promise must be kept until that is told, s."""
_RUNNING = ("running", "degraded")
_OVER = ("ended", "failed", "disabled")
_ALL = (VariantCost(),)


class StreamWatch:
    """Follows one stream, and makes its readings. For the manager's thread."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._windows: deque[Window] = deque(maxlen=_WINDOWS)
        self._open: deque[float] = deque(maxlen=_OPEN_WINDOWS)
        self._captured = 0
        self._captured_at: float | None = None
        self._rates: deque[float] = deque(maxlen=_RATES)
        self._cost_ms: float | None = None
        self._least_ms: deque[float] = deque(maxlen=_OPEN_WINDOWS)
        stream.metrics.meter.take()

    def read(self, variant: str) -> StreamReading | None:
        """Return the stream's newest reading, `variant` being what it may use; None: it does not run."""
        stream = self.stream
        if stream.status[0] not in _RUNNING or stream.model is None or stream.has_sound:
            return None
        window = stream.metrics.meter.take()
        self._windows.append(window)
        if seen_s := window.open_s + window.closed_s:
            self._open.append(window.open_s / seen_s)
        variants = self._variants()
        self._update_fps()
        self._update_cost(window, next((one.cost for one in variants if one.name == variant), 1.0))
        now, service = joined(self._windows), stream.config.service
        latencies = sorted(now.latencies_ms)
        return StreamReading(
            priority=service.priority,
            min_fps=service.min_fps,
            max_latency_ms=service.max_latency_ms,
            fps_now=self._fps_now,
            fps=sorted(self._rates)[3 * len(self._rates) // 4] if self._rates else 0.0,
            open_share=max(self._open, default=0.0),
            inferred_fps=now.inferred / now.open_s if now.open_s >= EVERY_S else None,
            latency_ms=latencies[(len(latencies) * 19 - 1) // 20] if latencies else None,
            cost_ms=(self._cost_ms or 0.0) if self._gives_way else 0.0,
            least_ms=min(self._least_ms, default=0.0) * variants[-1].cost,
            handled_fps=now.inputs / seen_s if (seen_s := now.open_s + now.closed_s) else 0.0,
            variants=variants,
            has_samples=stream.config.publish.detections,
            has_snapshots=stream.config.publish.snapshot,
            has_clips=stream.config.clips is not None,
            has_decoding=self._decodes_as_needed and not service.min_fps,
        )

    @property
    def _fps_now(self) -> float:
        newest = list(self._rates)[-_WINDOWS:]
        return sum(newest) / len(newest) if newest else 0.0

    @property
    def _gives_way(self) -> bool:
        """False for a stream that must infer every picture: of parts, or of a replay that waits."""
        return self.stream.config.inspection is None and not parse(self.stream.config.source).lossless

    @property
    def _decodes_as_needed(self) -> bool:
        """True for a camera on the network whose decoding is left to the stream, if that need not infer all."""
        config = self.stream.config
        is_free = config.capture.decode in ("auto", "saving")
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
        if not stream.config.service.smaller_variants or stream.states:
            return _ALL
        chosen = model.manifest.variant("" if stream.config.variant == AUTO else stream.config.variant)
        if chosen.after or not chosen.multiply_adds:
            return _ALL
        most, others = chosen.multiply_adds, model.manifest.variants
        smaller = [one for one in others if 0 < one.multiply_adds < most and not one.after]
        smaller.sort(key=lambda one: -one.multiply_adds)
        return (_ALL[0], *(VariantCost(one.name, one.multiply_adds / most) for one in smaller))


class Told(Struct, frozen=True):
    """What was told about a promise that is not kept; since when, and when it was not kept last, s."""

    why: str
    since_s: float
    last_s: float


class ResourceManager:
    """Governs the streams of a runtime in a thread of its own.

    Attributes:
        decision: the newest; None before the first.
        changes: of budgets, since the start.
    """

    def __init__(self, runtime: Runtime, load: BoardLoad | None = None) -> None:
        self._runtime, self._load = runtime, load or BoardLoad()
        self._governor = Governor(runtime.config.governor)
        self._watched: dict[str, StreamWatch] = {}
        self._nice: dict[str, tuple[int, int]] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._unmet: dict[str, Told] = {}
        self.decision: Decision | None = None
        self.changes = 0

    def start(self) -> None:
        """Govern from now on."""
        self._thread = threading.Thread(target=self._run, name="governor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Govern no more; budgets stay as they are."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(EVERY_S)

    def _run(self) -> None:
        due_s, is_late = time.monotonic() + EVERY_S, False
        while not self._stop.wait(max(0.0, due_s - time.monotonic())):
            late_s = time.monotonic() - due_s
            if (late_s > _LATE_S) is not is_late:
                is_late = not is_late
                if is_late:
                    log.warning(
                        "governor: it runs %.1f s late: something takes all processor time, or stopped it",
                        late_s,
                    )
            due_s = time.monotonic() + EVERY_S
            try:
                self._govern()
            except Exception:
                log.exception("governor: internal error (please report); going on")

    def _govern(self) -> None:
        runtime = self._runtime
        config = runtime.config
        self._governor.configure(config.governor)
        self._set_nice(dict(runtime.streams), governed=config.governor.enabled)
        streams, everyone = self._read_streams(), frozenset(self._watched)
        loads = runtime.disk_load(), runtime.mqtt.load()
        board = self._load.read(config)
        decision = self._governor.decide(Readings(time.monotonic(), board, streams, *loads, known=everyone))
        self._tell(decision, streams)
        runtime.board_trouble = told.why if (told := self._unmet.get("")) else ""
        runtime.spool.set_sync_interval(decision.sync_every_s)
        for name, watch in self._watched.items():
            if (budget := decision.budgets.get(name)) is not None:
                watch.stream.set_budget(budget)
            watch.stream.reduced = decision.reduced.get(name, "")
            watch.stream.unmet = told.why if (told := self._unmet.get(name)) else ""
        self.decision = decision

    def _set_nice(self, streams: Mapping[str, Stream], *, governed: bool) -> None:
        """Let the kernel prefer the streams of the highest priority, also before the governor notices a load.

        Without privileges, or the unit's LimitNICE, a thread can only become nicer.
        """
        running = [one for one in streams.values() if one.status[0] in _RUNNING]
        highest = max((one.config.service.priority for one in running), default=0)
        for name, stream in streams.items():
            is_less = governed and stream.config.service.priority < highest
            thread, nice = stream.thread_id, _NICE if is_less else 0
            if thread is None or self._nice.get(name, (thread, 0)) == (thread, nice):
                continue
            with suppress(OSError):  # the thread is over, or may not become less nice: it is tried again
                os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, 0) + nice)
                self._nice[name] = thread, nice

    def _read_streams(self) -> dict[str, StreamReading]:
        streams = dict(self._runtime.streams)
        self._watched = {name: one for name, one in self._watched.items() if streams.get(name) is one.stream}
        readings = {}
        for name, stream in streams.items():
            watch = self._watched[name] = self._watched.get(name) or StreamWatch(stream)
            used = self.decision.budgets.get(name) if self.decision is not None else None
            reading = watch.read(used.variant if used is not None else "")
            if reading is not None:
                readings[name] = reading
        return self._with_cameras(readings)

    def _with_cameras(self, readings: dict[str, StreamReading]) -> dict[str, StreamReading]:
        """Mark the streams that share a camera: less of it is decoded if all of them can do with less."""
        users: dict[object, list[str]] = {}
        for name, watch in self._watched.items():
            if (camera := watch.camera) is not None:
                users.setdefault(camera, []).append(name)
        for names in users.values():
            if len(names) > 1:
                can = all(one in readings and readings[one].has_decoding for one in names)
                for one in readings.keys() & names:
                    readings[one] = replace(readings[one], camera=names[0], has_decoding=can)
        return readings

    def _tell(self, decision: Decision, streams: Mapping[str, StreamReading]) -> None:
        """Log each change, and each promise of a running stream that is not kept, when that begins and ends."""
        for change in decision.changes:
            log.info("%s", f"stream {change.stream}: {change.text}" if change.stream else change.text)
        if decision.changes:
            self.changes += len(decision.changes)
            self._load.load_changed()
        self._tell_unmet(decision, streams)

    def _tell_unmet(self, decision: Decision, streams: Mapping[str, StreamReading]) -> None:
        now_s = time.monotonic()
        for name, why in decision.unmet.items():
            if name not in self._unmet:
                log.warning("%s%s, and nothing is left that could give way", _prefix(name), why)
            since_s = self._unmet[name].since_s if name in self._unmet else now_s
            self._unmet[name] = Told(why, since_s, now_s)
        for name, told in list(self._unmet.items()):
            if name in decision.broken:  # perhaps something can give way again: it is not kept yet
                self._unmet[name] = Told(told.why, told.since_s, now_s)
            elif not self._is_promised(name, streams):
                del self._unmet[name]
            elif now_s - told.last_s >= _KEPT_S:
                del self._unmet[name]
                kept = "as promised again" if name else "within its limits again"
                log.info("%s%s, after %.0f s", _prefix(name), kept, told.last_s - told.since_s)

    def _is_promised(self, name: str, streams: Mapping[str, StreamReading]) -> bool:
        """Return False if nothing is kept or broken: a stream is lost or off, or its promise was taken back."""
        if not self._runtime.config.governor.enabled:
            return False
        return not name or (name in streams and bool(streams[name].min_fps or streams[name].max_latency_ms))


def _prefix(stream: str) -> str:
    return f"stream {stream}: " if stream else "the board: "
