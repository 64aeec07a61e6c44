"""Governs a device: watches the load and the heat of the board, and who runs nicer than whom, once a second.

What decides is loaded when something may have to give way for the first time.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from agent.board.proc import read_memory
from agent.board.processors import Quota, Ticks, read_quota, read_ticks, usable_processors
from agent.board.thermal import firmware_limit_c
from agent.capture.streams import FrameStream
from agent.comms.mqtt.link import LinkLoad
from agent.daemon.parts import DevicePart
from agent.storage.spool.spool import DiskLoad

if TYPE_CHECKING:
    from agent.daemon.runtime import Runtime
    from agent.daemon.streams.stream import Stream
    from agent.features.governor.governing import Governing

log = logging.getLogger(__name__)
_EVERY_S = 1.0
"""Time between two decisions, s."""
_NICE, _DECODING_NICE = 5, 10
"""Niceness of the threads of streams below the highest priority: a third of the weight beside an equal rival; and
of those that decode: a tenth, since each of many cameras has one."""
_SOME = 0.3
"""Share of the processors that counts: where so much is idle, a late thread could have had it; where less is, and
others use less, the daemon itself fills them."""
_SIGN_C = 18.0
"""So far below the lowest limit a temperature is the first sign of heat, °C."""
_QUOTA_S = 10.0
"""Time between two searches for a quota while there is none, s: the files of all groups take most of a ms."""
_READINGS = 2
"""Those over which shares of processors are taken."""
_MEMORY_FREE = 0.05
"""Memory is short below this free share."""
_COMMIT_MS, _WAITING_S, _BEHIND_S = 400.0, 1.5, 2.0
"""The disk is too slow from these times on: of a commit, of a waiting event, of a picture of a clip."""
_UNSENT_BYTES, _OLDEST_S = 65_536, 2.0
"""The network is too slow from so many waiting bytes, or such an age of an unacknowledged event, on."""


class GovernorPart(DevicePart):
    """Governs the streams of a runtime in a thread of its own.

    Attributes:
        processors: the newest shares.
    """

    def __init__(self, runtime: Runtime, meter: ProcessorMeter | None = None) -> None:
        self._runtime, self._meter = runtime, meter or ProcessorMeter()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._governing: Governing | None = None
        self._unmet, self._firmware_c = "", firmware_limit_c()
        self.processors = ProcessorShares()

    @property
    def trouble(self) -> str:
        return "the board is above its limits" if self._unmet else ""

    def health(self) -> dict[str, Any]:
        return {"unmet": self._unmet}

    def start(self) -> None:
        """Govern from now on."""
        self._thread = threading.Thread(target=self._run, name="governor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Govern no more; budgets stay as they are."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_EVERY_S)

    def close(self, seconds: float) -> None:
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_S):
            try:
                self._govern()
            except Exception:
                log.exception("governor: internal error (please report); going on")

    def _govern(self) -> None:
        runtime = self._runtime
        streams, is_governed = dict(runtime.streams), runtime.config.governor.enabled
        self.processors = self._meter.read()
        self._set_nice(streams, governed=is_governed)
        shortages = find_shortages(self._memory_free(), runtime.disk_load(), runtime.mqtt.load())
        if self._governing is None:
            if not is_governed or not (any(shortages.values()) or self._may_need_less(streams)):
                return
            from agent.features.governor.governing import Governing

            self._governing = Governing(runtime)
        self._unmet = self._governing.govern(streams, self.processors, shortages)

    def _may_need_less(self, streams: Mapping[str, Stream]) -> bool:
        """Return True if a stream is promised something, or at the first sign of heat or of a weak supply."""
        config, sensors = self._runtime.config, self._runtime.board.sensors
        if any(one.config.service.min_fps or one.config.service.max_latency_ms for one in streams.values()):
            return True
        chip, battery = sensors.chip(), sensors.energy().battery
        if chip.brakes or (chip.supply is not None and chip.supply.now):
            return True
        charge = battery.percent if battery is not None and battery.feeds_board else None
        if charge is not None and charge < config.governor.save_below_percent:
            return True
        limits = config.governor.max_temperature_c, config.thermal.warn_c, self._firmware_c
        return any(
            zone.temperature_c >= min(limit for limit in (*limits, zone.limit_c) if limit is not None) - _SIGN_C
            for zone in chip.zones.values()
        )

    def _memory_free(self) -> float | None:
        memory = read_memory()
        return memory.available_mb / memory.total_mb if memory.total_mb else None

    def _set_nice(self, streams: Mapping[str, Stream], *, governed: bool) -> None:
        """Let the kernel prefer the streams of the highest priority, also before the governor notices a load.

        While the daemon itself fills the processors, what decodes gives way to what infers: otherwise each
        inference competes with the decoders of all cameras, and their pictures get old while they wait for it.

        Without privileges, or the unit's LimitNICE, a thread can only become nicer.
        """
        running = [one for one in streams.values() if one.status[0] in ("running", "degraded")]
        highest = max((one.config.service.priority for one in running), default=0)
        is_full = governed and max(self.processors.idle, self.processors.others) < _SOME
        for stream in streams.values():
            is_less = governed and stream.config.service.priority < highest
            _make_nice(stream.thread_id, is_less * (_DECODING_NICE if is_full else _NICE))
            source = stream.run.source
            if isinstance(source, FrameStream):
                _make_nice(source.decoder_thread_id, _DECODING_NICE * is_full)


def open_device_part(runtime: Runtime) -> GovernorPart:
    """Govern the streams of a runtime."""
    return GovernorPart(runtime)


def _make_nice(thread: int | None, steps: int) -> None:
    """Make a thread nicer than this one by so many steps."""
    if thread is None:
        return
    with suppress(OSError):  # it is over, or may not become less nice
        wanted = os.getpriority(os.PRIO_PROCESS, 0) + steps
        if os.getpriority(os.PRIO_PROCESS, thread) != wanted:
            os.setpriority(os.PRIO_PROCESS, thread, wanted)


def find_shortages(memory_free: float | None, disk: DiskLoad, link: LinkLoad) -> dict[str, str]:
    """Return how memory, disk and link are short; empty texts: they are not.

    Args:
        memory_free: share of the memory that programs can still have, 0..1; None: unknown.
        disk: how busy storage is.
        link: how busy communication is.
    """
    memory, slow, late = "", "", ""
    if memory_free is not None and memory_free < _MEMORY_FREE:
        memory = f"{memory_free:.0%} of the memory are free"
    if disk.commit_ms is not None and disk.commit_ms > _COMMIT_MS:
        slow = f"the disk takes {disk.commit_ms:.0f} ms to store an event"
    elif disk.waiting_s > _WAITING_S:
        slow = f"an event has been waiting for the disk for {disk.waiting_s:.1f} s"
    elif disk.clips_behind_s > _BEHIND_S:
        slow = f"pictures of clips have been waiting for the disk for {disk.clips_behind_s:.1f} s"
    if link.connected and link.oldest_s > _OLDEST_S:
        late = f"the broker has not acknowledged an event for {link.oldest_s:.1f} s"
    elif link.connected and link.unsent_bytes > _UNSENT_BYTES:
        late = f"{link.unsent_bytes // 1024} kB are waiting to be sent"
    return {"memory": memory, "disk": slow, "link": late}


class ProcessorShares(NamedTuple):
    """How the processors were used in the last two seconds.

    Attributes:
        cores: processors that this process may use.
        idle: share of them that it may still use, 0..1: its quota may leave less than was idle.
        others: share of them that other programs used, 0..1.
        quota: processors that its control group may use; None: all of them.
    """

    cores: int = 1
    idle: float = 1.0
    others: float = 0.0
    quota: float | None = None


class ProcessorMeter:
    """Reads how the processors that this process may use were used."""

    def __init__(
        self,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
        ticks: Callable[[], Ticks] | None = None,
    ) -> None:
        """Read for the first time.

        Args:
            root: of the file system.
            clock: monotonic, s.
            ticks: returns the times of the processors until now; None: they are read below `root`.
        """
        self._root, self._clock, self._ticks = root, clock, ticks or self.read_ticks
        self._quota: Quota | None = None
        self._due_s = -math.inf
        self._known = deque([self._ticks()], maxlen=_READINGS + 1)

    def read(self) -> ProcessorShares:
        """Return the newest shares; they begin anew when this process may use other processors."""
        now = self._ticks()
        if now.usable != self._known[-1].usable:
            self._known.clear()
        self._known.append(now)
        return shares_between(self._known[0], now, len(now.usable) or len(usable_processors()))

    def read_ticks(self) -> Ticks:
        """Return the times of the processors until now, with the quota: without one it is rarely looked for."""
        now_s, usable = self._clock(), usable_processors()
        if self._quota is not None or now_s >= self._due_s:
            self._quota, self._due_s = read_quota(self._root), now_s + _QUOTA_S
        ticks = read_ticks(self._root / "proc/stat", usable)
        return Ticks(ticks.total, ticks.idle, ticks.own, usable, self._quota, now_s)


def shares_between(first: Ticks, last: Ticks, cores: int) -> ProcessorShares:
    """Return how processors were used between two readings of the same ones."""
    total = max(1e-3, last.total - first.total)
    idle = min(1.0, max(0.0, (last.idle - first.idle) / total))
    others = min(1.0, max(0.0, 1.0 - idle - (last.own - first.own) / total))
    if last.quota is None or last.quota.processors >= cores:
        return ProcessorShares(cores, idle, others)
    left = max(0.0, last.quota.processors - _used(first, last))
    return ProcessorShares(cores, min(idle, left / cores), others, last.quota.processors)


def _used(first: Ticks, last: Ticks) -> float:
    """Return the processors that a quota's group used; where that is not known, what this process did."""
    seconds, used_s = last.at_s - first.at_s, last.own - first.own
    if first.quota is not None and last.quota is not None and first.quota.group == last.quota.group:
        before, now = first.quota.used_s, last.quota.used_s
        used_s = now - before if before is not None and now is not None else used_s
    return used_s / seconds if seconds > 0.0 else 0.0
