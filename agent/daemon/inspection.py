"""Inspection of one stream's parts in the daemon: triggers, verdicts, counters, pictures and the reject output.

A trigger comes from a pin's thread, from the daemon's thread for a command, or is seen in the pictures by the
stream's thread, which judges. From the trigger on the reject output expects a verdict: a part of which none comes
in time is rejected, even if the stream's thread hangs in a library. JPEG and disk have a thread of their own.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec
import numpy as np
from msgspec.structs import replace

from agent.apps.inspection import (
    ClosedPart,
    Counters,
    Inspector,
    ViewJudgement,
    at_shift,
    counted,
    judge_view,
)
from agent.comms.messages import InspectionMessage
from agent.comms.reporter import Reporter
from agent.config import InspectionConfig, PublishConfig
from agent.daemon.pipeline import TAKE_S, FrameSource, Pipeline, StreamMetrics
from agent.errors import StorageError
from agent.storage.files import CLOCK_SET
from agent.storage.part_pictures import PartPictures, picture_name
from agent.storage.state_file import StateFile
from agent.types import Box, Detection, Frame, Image, PartVerdict, StageTimes, StreamResult, Track

if TYPE_CHECKING:
    from agent.compute.gate.barrier import BarrierReading
    from agent.compute.vision import VideoPerception


log = logging.getLogger(__name__)
_WRITE_S = 60.0
"""Least time between two writes of the counters, s: SD cards wear out. A power cut loses no more than that."""
_WAITING_MAX = 64
_CLOSE_S = 0.3
"""Longest wait for a pulse to end, and for the disk, when a stream is closed, s."""
_QUALITY = 90
"""Quality of the JPEG of a part, 1..100: a model may learn from it."""
_SNAPSHOT_QUALITY = 80


class Trigger(NamedTuple):
    """A part that comes: its id, CLOCK_MONOTONIC in ns, and UTC."""

    part: str
    now_ns: int
    at: datetime


class Switch(Protocol):
    """An output: `agent.board.gpio.OutputPin`."""

    def set(self, *, active: bool) -> None: ...

    def close(self) -> None: ...


class RejectOutput:
    """Pulses an output for parts that are to be rejected. All methods may be called from any thread."""

    def __init__(self, stream: str, switch: Switch, config: InspectionConfig) -> None:
        """Start the thread `reject-NAME`."""
        self._stream, self._switch, self._config = stream, switch, config
        self._condition = threading.Condition()
        self._due: dict[str, float] = {}
        self._expected: set[str] = set()
        self._active_until, self._is_active, self._is_closed, self._has_failed = 0.0, False, False, False
        self._thread = threading.Thread(target=self._run, name=f"reject-{stream}", daemon=True)
        self._thread.start()

    def expect(self, trigger: Trigger) -> None:
        """Reject a part at its deadline unless `decide` says otherwise; only with `reject_unsure`."""
        if self._config.reject_unsure:
            after_s = self._config.reject_after_s or self._config.deadline_s
            with self._condition:
                self._expected.add(trigger.part)
                self._due[trigger.part] = trigger.now_ns / 1e9 + after_s
                self._condition.notify()

    def decide(self, verdict: PartVerdict, triggered_ns: int) -> None:
        """Pulse for a part as its verdict says, `reject_after_s` after its trigger, or now."""
        with self._condition:
            was_due = self._due.pop(verdict.part, None)
            has_fired = verdict.part in self._expected and was_due is None
            self._expected.discard(verdict.part)
            if verdict.rejected and not has_fired:
                after_s = self._config.reject_after_s
                self._due[verdict.part] = triggered_ns / 1e9 + after_s if after_s else 0.0
            self._condition.notify()

    def close(self) -> None:
        """Pulse for the parts that still wait for it, and release the output, inactive."""
        with self._condition:
            self._due = dict.fromkeys(self._due, 0.0)
            self._is_closed = True
            self._condition.notify()
        self._thread.join(min(self._config.reject_pulse_s, _CLOSE_S) + 0.1)
        self._switch.close()

    def _run(self) -> None:
        with self._condition:
            while True:
                now = time.monotonic()
                self._begin_due(now)
                self._set(active=now < self._active_until)
                if self._is_closed and not self._is_active:
                    return
                times = [*self._due.values(), *([self._active_until] if self._is_active else [])]
                self._condition.wait(max(0.0, min(times) - now) if times else None)

    def _begin_due(self, now: float) -> None:
        for part in [part for part, due in self._due.items() if due <= now]:
            del self._due[part]
            self._active_until = now + self._config.reject_pulse_s

    def _set(self, *, active: bool) -> None:
        if active is self._is_active:
            return
        self._is_active = active
        try:
            self._switch.set(active=active)
        except Exception as error:  # of the library: the line runs on
            if not self._has_failed:
                log.error("stream %s: the reject output fails: %s", self._stream, error)
            self._has_failed = True


class CounterFile:
    """Counters of a stream, kept over restarts. For one thread; writing is handed to another."""

    def __init__(self, folder: Path, stream: str, shifts: Iterable[str]) -> None:
        """Read the counters of an earlier run; a damaged file is set aside, and they begin anew."""
        self._file, self._shifts = StateFile(folder / f"inspection-{stream}.json"), tuple(shifts)
        self.counters, self._written, self._written_s = Counters(), Counters(), time.monotonic()
        try:
            content = self._file.read()
            if content is not None:
                self.counters = self._written = msgspec.json.decode(content, type=Counters)
        except (StorageError, msgspec.MsgspecError) as error:
            log.warning("stream %s: the counters of parts begin anew: %s: %s", stream, self._file.path, error)
            self._file.set_aside()

    def add(self, verdict: PartVerdict) -> None:
        """Count one part."""
        self.begin_shift()
        self.counters = counted(self.counters, verdict)

    def begin_shift(self) -> bool:
        """Begin new counters if a shift has begun; return True then. A clock that is not set begins none."""
        if time.time() < CLOCK_SET:
            return False
        before = self.counters
        self.counters = at_shift(before, datetime.now().astimezone(), self._shifts)
        return self.counters is not before

    def pending(self, *, now: bool = False) -> Callable[[], None] | None:
        """Return what writes the counters if that is due, or if they have changed and `now` is set."""
        if self.counters == self._written or not (now or time.monotonic() - self._written_s >= _WRITE_S):
            return None
        self._written, self._written_s = self.counters, time.monotonic()
        return partial(self._file.write, msgspec.json.encode(self.counters))


class Inspection:
    """What the threads of an inspected stream share: its triggers, and the devices that it has opened.

    Attributes:
        stream, config: its name, and of the inspection.
        reject: the output; None: there is none.
        counters, store: of its parts, and the writer of their pictures.
        close_s: longest wait for the disk when it is closed, s.
    """

    def __init__(
        self, stream: str, config: InspectionConfig, state: Path, clips: Path, reject: Switch | None = None
    ) -> None:
        """Open pins, counters and the folder of pictures.

        Args:
            stream: its name.
            config: of the inspection.
            state: folder of the daemon's state.
            clips: folder of all clips, with one for each stream.
            reject: output; None: that of the configuration, if any.

        Raises:
            ConfigError, SourceError: a pin cannot be opened.
        """
        self.stream, self.config, self.close_s = stream, config, _CLOSE_S
        self._token, self._numbers = uuid.uuid4().hex[:8], itertools.count(1)
        self._waiting: deque[Trigger] = deque()
        self._lock = threading.Lock()
        self._triggered_ns = 0
        with ExitStack() as opened:
            self.reject = _open_reject(stream, config, reject)
            if self.reject is not None:
                opened.callback(self.reject.close)
            self.counters = CounterFile(state, stream, config.shifts)
            self.store = PartPictures(clips / stream, config.keep_bytes)
            opened.callback(self._close_files)
            if config.trigger.startswith("gpio:"):
                from agent.board.gpio import InputPin

                pin = InputPin(config.trigger, self._on_active, active_low=config.active_low)
                opened.callback(pin.close)
            self._opened = opened.pop_all()

    def _on_active(self) -> None:
        self.trigger()

    def _close_files(self) -> None:
        if (write := self.counters.pending(now=True)) is not None:
            self.store.run(write)
        self.store.close(self.close_s)

    def trigger(self, part: str = "") -> str:
        """Announce a part that is at the sensor now; return its id, empty if it was ignored. For any thread.

        It is ignored within `debounce_s` of another, and when the stream does not keep up.
        """
        now_ns, at = time.monotonic_ns(), datetime.now(UTC)
        with self._lock:
            bounced = now_ns - self._triggered_ns < self.config.debounce_s * 1e9
            if bounced or len(self._waiting) >= _WAITING_MAX:
                return ""
            self._triggered_ns = now_ns
            trigger = self.make(part, now_ns, at)
            self._waiting.append(trigger)
        return trigger.part

    def make(self, part: str, now_ns: int, at: datetime) -> Trigger:
        """Return a trigger, with an id if it has none, whose part the reject output expects."""
        trigger = Trigger(part or f"{self.stream}-{self._token}-{next(self._numbers)}", now_ns, at)
        if self.reject is not None:
            self.reject.expect(trigger)
        return trigger

    def next(self) -> Trigger | None:
        """Remove and return the oldest trigger that waits."""
        with self._lock:
            return self._waiting.popleft() if self._waiting else None

    def close(self) -> None:
        """Release the pins, and write what waits. For any thread; a second call does nothing."""
        with self._lock:
            opened, self._opened = self._opened, ExitStack()
        opened.close()


def _open_reject(stream: str, config: InspectionConfig, switch: Switch | None) -> RejectOutput | None:
    if switch is None and config.reject:
        from agent.board.gpio import OutputPin

        switch = OutputPin(config.reject, active_low=config.reject_active_low)
    return None if switch is None else RejectOutput(stream, switch, config)


class _Kept(NamedTuple):
    """The picture of a part that is to be kept: its first that is `ng`, else `unsure`, else its newest."""

    image: Image
    verdict: str
    frame: Frame


def _cropped(image: Image, crop: Box) -> Image:
    """Return the part of a picture that the model is shown."""
    height, width = image.shape[:2]
    left, top, right, bottom = (round(edge * side) for edge, side in zip(crop, (width, height) * 2, strict=True))
    return np.ascontiguousarray(image[top : max(top + 1, bottom), left : max(left + 1, right)])


class InspectionPipeline(Pipeline[Frame]):
    """Frames of one stream: wait for a part, judge its pictures, publish a verdict, reject, count, keep."""

    def __init__(
        self,
        source: FrameSource,
        vision: VideoPerception,
        reporter: Reporter,
        inspection: Inspection,
        publish: PublishConfig,
        metrics: StreamMetrics | None = None,
    ) -> None:
        super().__init__(source, vision, reporter, metrics=metrics)
        self._frames, self._vision, self._inspection, self._publish_config = source, vision, inspection, publish
        self._config = config = inspection.config
        self._inspector = Inspector(config)
        self._barrier = None
        if config.region is not None:
            from agent.compute.gate.barrier import LightBarrier

            self._barrier = LightBarrier(config.region, config.region_cover, config.crop)
        self._kept: _Kept | None = None
        self._is_warm = self._snapshot_asked = False
        self._snapshot_s = 0.0
        self._last: str | None = None
        self._report_counters()

    def request_snapshot(self) -> None:
        """Publish the next picture as the snapshot. Any thread may call this."""
        self._snapshot_asked = True

    @property
    def _wait_s(self) -> float:
        due_ns = self._inspector.next_due_ns
        left_s = TAKE_S if due_ns is None else (due_ns - time.monotonic_ns()) / 1e9
        return min(TAKE_S, max(0.001, left_s))

    def _process(self, frame: Frame) -> None:
        try:
            result = self._inspect(frame)
            self.metrics.add(result, 1)
            if self._snapshot_asked:
                self._snapshot_asked = False
                self._show(frame, result.detections or ())
        finally:
            self._frames.give_back(frame)
        self._write_counters()

    def _inspect(self, frame: Frame) -> StreamResult:
        """Judge a frame if it shows a part. The very first one is judged in any case, to warm the model up."""
        self._now = frame.captured_ns, frame.captured_at
        began = time.monotonic_ns()
        reading = self._barrier.read(frame.image, frame.captured_ns) if self._barrier else None
        self._open_parts(frame, reading)
        self._conclude(self._inspector.overtaken(frame.captured_ns))
        self._conclude(self._inspector.due(time.monotonic_ns()))
        wanted = self._inspector.wants(frame.captured_ns)
        gate = time.monotonic_ns() - began
        if not wanted and self._is_warm and not self._snapshot_asked:
            return StreamResult([], None, StageTimes(queue=began - frame.read_ns, gate=gate))
        self._is_warm = True
        found = self._vision.infer_crop(frame, self._config.crop)
        stages = StageTimes(began - frame.read_ns, gate, found.prepare, found.infer, found.decode)
        if wanted:
            is_cut = reading is not None and reading.covered and reading.is_cut
            self._judge(frame, judge_view(found.detections, self._config, is_cut=is_cut))
        if self.shadow is not None:
            self.shadow.compare_frame(frame, self._config.crop, found.detections, found.infer)
        result = StreamResult([], found.detections, stages)
        self._reporter.report(frame.seq, frame.captured_at, result, *self._vision.answered_by)
        return result

    def _open_parts(self, frame: Frame, reading: BarrierReading | None) -> None:
        while (one := self._inspection.next()) is not None:
            self._conclude(self._inspector.trigger(one.part, one.now_ns, one.now_ns, one.at))
        if self._config.trigger == "every" or (reading is not None and reading.crossed):
            one = self._inspection.make("", frame.read_ns, frame.captured_at)
            self._conclude(self._inspector.trigger(one.part, frame.captured_ns, one.now_ns, one.at))

    def _judge(self, frame: Frame, view: ViewJudgement) -> None:
        self._remember(frame, view)
        closed = self._inspector.add(frame.captured_ns, time.monotonic_ns(), view)
        self._conclude([closed] if closed else [])

    def _remember(self, frame: Frame, view: ViewJudgement) -> None:
        """Copy a picture that may have to be kept: the frame's memory is used again."""
        ranks = ("ok", "unsure", "ng")
        if (
            self._kept is None
            or self._kept.verdict == "ok"
            or ranks.index(view.verdict) > ranks.index(self._kept.verdict)
        ):
            needed = view.verdict != "ok" or self._config.views > 1 or self._config.keep_ok
            self._kept = _Kept(frame.image.copy(), view.verdict, frame) if needed else None

    def _conclude(self, parts: Iterable[ClosedPart]) -> None:
        """Reject, publish and count closed parts; the picture is that of the first, which alone has views."""
        for part in parts:
            kept, self._kept = (self._kept, None) if part.verdict.views else (None, self._kept)
            verdict = replace(part.verdict, rejected=self._is_rejected(part.verdict))
            if self._inspection.reject is not None:
                self._inspection.reject.decide(verdict, part.triggered_ns)
            judged_ms = (time.monotonic_ns() - part.triggered_ns) / 1e6
            path = self._keep(verdict, kept)
            self._reporter.verdict(verdict, judged_ms, path, *self._vision.answered_by)
            self._inspection.counters.add(verdict)
            self._last = verdict.verdict
            self._report_counters()

    def _is_rejected(self, verdict: PartVerdict) -> bool:
        unsure = verdict.verdict == "unsure" and self._config.reject_unsure
        return self._inspection.reject is not None and (verdict.verdict == "ng" or unsure)

    def _keep(self, verdict: PartVerdict, kept: _Kept | None) -> str:
        """Show the picture of a part that is not ok, and keep it; return its path, empty: none is kept."""
        if kept is None or (verdict.verdict == "ok" and not self._config.keep_ok):
            return ""
        frame = replace(kept.frame, image=kept.image)
        if verdict.verdict != "ok":
            self._show_due(frame, verdict.detections)
        if not self._config.keep_bytes:
            return ""
        from agent.compute.drawing import jpeg

        name = picture_name(verdict.triggered_at, verdict.verdict, verdict.part)
        shown = _cropped(kept.image, self._config.crop)
        return str(self._inspection.store.keep(name, partial(jpeg, shown, _QUALITY, frame.order)) or "")

    def _show_due(self, frame: Frame, detections: Iterable[Detection]) -> None:
        now = time.monotonic()
        is_due = now - self._snapshot_s >= self._publish_config.snapshot_every_s or not self._snapshot_s
        if self._publish_config.snapshot and is_due:
            self._snapshot_s = now
            self._show(frame, detections)

    def _show(self, frame: Frame, detections: Iterable[Detection]) -> None:
        from agent.compute.drawing import annotate, jpeg

        at = frame.captured_at
        drawn = [
            Track(one.label, one.label, one.score, one.score, 1, at, at, one.box, one.keypoints, one.outline)
            for one in detections
        ]
        picture = annotate(frame.image, drawn, order=frame.order)
        self._reporter.snapshot(jpeg(picture, _SNAPSHOT_QUALITY, frame.order))

    def _report_counters(self) -> None:
        one = self._inspection.counters.counters
        parts = one.ok + one.ng + one.unsure
        counts = (one.began_at, parts, one.ok, one.ng, one.unsure, one.rejected, one.reasons, self._last)
        self._reporter.inspection(InspectionMessage(*self._reporter.place, *counts))  # type: ignore[arg-type]

    def _write_counters(self) -> None:
        if self._inspection.counters.begin_shift():
            self._report_counters()
        if (write := self._inspection.counters.pending()) is not None:
            self._inspection.store.run(write)

    def _idle(self) -> None:
        """Close what is due while no frame comes; a lost camera closes all parts."""
        while (one := self._inspection.next()) is not None:
            self._conclude(self._inspector.trigger(one.part, one.now_ns, one.now_ns, one.at))
        self._conclude(self._inspector.due(time.monotonic_ns()))
        if self._source.lost:
            self._conclude(self._inspector.finish("stall"))
        self._write_counters()

    def _end_tracks(self, reason: str) -> None:
        while (one := self._inspection.next()) is not None:
            self._conclude(self._inspector.trigger(one.part, one.now_ns, one.now_ns, one.at))
        self._conclude(self._inspector.finish(reason))
