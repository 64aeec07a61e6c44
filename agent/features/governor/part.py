"""Governs a device: reads board and streams once a second, sets budgets, and logs what changes.

What decides is loaded when something may have to give way for the first time.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from agent.capture.streams import FrameStream
from agent.config.governor import GovernorConfig
from agent.daemon.parts import DevicePart
from agent.features.governor.readings import (
    RESERVE,
    BoardReading,
    Decision,
    Readings,
    StreamReading,
    needs_decision,
)
from agent.features.governor.watch import RUNNING, BoardLoad, StreamWatch

if TYPE_CHECKING:
    from agent.daemon.runtime import Runtime
    from agent.daemon.streams.stream import Stream
    from agent.features.governor.reports import BrokenPromises, ChangeLog
    from agent.features.governor.rules import Governor

log = logging.getLogger(__name__)
_EVERY_S = 1.0
"""Time between two decisions, s."""
_LATE_S = 3.0
"""A decision that comes so much later than it should is told: something keeps the daemon from running, s."""
_TOLD_S = 600.0
"""Time for which that is not told again, s."""
_NICE, _DECODING_NICE = 5, 10
"""Niceness of the threads of streams below the highest priority: a third of the weight beside an equal rival; and
of those that decode: a tenth, since each of many cameras has one."""
_SOME = 0.3
"""Share of the processors that counts: where so much is idle, a late thread could have had it; where less is, and
others use less, the daemon itself fills them."""


class GovernorPart(DevicePart):
    """Governs the streams of a runtime in a thread of its own.

    Attributes:
        board: its newest reading.
    """

    def __init__(self, runtime: Runtime, load: BoardLoad) -> None:
        self._runtime, self._load = runtime, load
        self._watched: dict[str, StreamWatch] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._rules: tuple[Governor, BrokenPromises, ChangeLog] | None = None
        self._decision: Decision | None = None
        self._unmet = ""
        self.board = BoardReading()

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
        due_s, told_s = time.monotonic() + _EVERY_S, -math.inf
        while not self._stop.wait(max(0.0, due_s - time.monotonic())):
            late_s = time.monotonic() - due_s
            due_s = time.monotonic() + _EVERY_S
            try:
                self._govern()
            except Exception:
                log.exception("governor: internal error (please report); going on")
            if late_s > _LATE_S and due_s - told_s > _TOLD_S:
                told_s = due_s
                log.warning("governor: it ran %.1f s late; %s", late_s, _meanwhile(self.board))

    def _govern(self) -> None:
        config = self._runtime.config.governor
        self._set_nice(dict(self._runtime.streams), governed=config.enabled)
        readings = self._read()
        if self._rules is None:
            if not needs_decision(readings, config):
                return
            self._rules = _load_rules(config)
        governor, promises, changes = self._rules
        governor.configure(config)
        decision = governor.decide(readings)
        if decision.changes:
            self._load.load_changed()
        changes.update(decision.changes, self._watched, time.monotonic())
        promises.update(decision, readings.streams if config.enabled else None, time.monotonic())
        self._unmet = promises.why("")
        self._apply(decision, promises)

    def _apply(self, decision: Decision, promises: BrokenPromises) -> None:
        self._runtime.spool.set_sync_interval(decision.sync_every_s)
        for name, watch in self._watched.items():
            if (budget := decision.budgets.get(name)) is not None:
                watch.stream.budget = budget
            watch.stream.reduced = decision.reduced.get(name, "")
            watch.stream.unmet = promises.why(name)
        self._decision = decision

    def _read(self) -> Readings:
        runtime = self._runtime
        streams, everyone = self._read_streams(), frozenset(self._watched)
        loads = runtime.disk_load(), runtime.mqtt.load()
        self.board = self._load.read(runtime.config)
        return Readings(time.monotonic(), self.board, streams, *loads, known=everyone)

    def _set_nice(self, streams: Mapping[str, Stream], *, governed: bool) -> None:
        """Let the kernel prefer the streams of the highest priority, also before the governor notices a load.

        While the daemon itself fills the processors, what decodes gives way to what infers: otherwise each
        inference competes with the decoders of all cameras, and their pictures get old while they wait for it.

        Without privileges, or the unit's LimitNICE, a thread can only become nicer.
        """
        running = [one for one in streams.values() if one.status[0] in RUNNING]
        highest = max((one.config.service.priority for one in running), default=0)
        is_full = governed and max(self.board.idle, self.board.others) < _SOME
        for stream in streams.values():
            is_less = governed and stream.config.service.priority < highest
            _make_nice(stream.thread_id, is_less * (_DECODING_NICE if is_full else _NICE))
            source = stream.run.source
            if isinstance(source, FrameStream):
                _make_nice(source.decoder_thread_id, _DECODING_NICE * is_full)

    def _read_streams(self) -> dict[str, StreamReading]:
        streams = dict(self._runtime.streams)
        self._watched = {name: one for name, one in self._watched.items() if streams.get(name) is one.stream}
        readings = {}
        for name, stream in streams.items():
            watch = self._watched[name] = self._watched.get(name) or StreamWatch(stream)
            used = self._decision.budgets.get(name) if self._decision is not None else None
            is_starved = self.board.idle < RESERVE
            reading = watch.read(used.variant if used is not None else "", is_starved=is_starved)
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


def open_device_part(runtime: Runtime) -> GovernorPart:
    """Govern the streams of a runtime."""
    return GovernorPart(runtime, BoardLoad(sensors=runtime.board.sensors))


def _load_rules(config: GovernorConfig) -> tuple[Governor, BrokenPromises, ChangeLog]:
    from agent.features.governor.reports import BrokenPromises, ChangeLog
    from agent.features.governor.rules import Governor

    return Governor(config), BrokenPromises(), ChangeLog()


def _make_nice(thread: int | None, steps: int) -> None:
    """Make a thread nicer than this one by so many steps."""
    if thread is None:
        return
    with suppress(OSError):  # it is over, or may not become less nice
        wanted = os.getpriority(os.PRIO_PROCESS, 0) + steps
        if os.getpriority(os.PRIO_PROCESS, thread) != wanted:
            os.setpriority(os.PRIO_PROCESS, thread, wanted)


def _meanwhile(board: BoardReading) -> str:
    """Return how the processors were used while this thread did not run."""
    used = f"meanwhile other programs used {board.others:.0%} of the processors"
    if board.idle >= _SOME:
        return f"{used}, and {board.idle:.0%} were idle: the daemon was stopped, or waited for the disk or memory"
    return f"{used}, the daemon {max(0.0, 1.0 - board.idle - board.others):.0%}"
