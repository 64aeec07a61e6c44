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
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
from msgspec.structs import replace

from agent import spans
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
from agent.config import PublishConfig
from agent.config.inspection import InspectionConfig
from agent.daemon.metrics.counters import StreamMetrics
from agent.daemon.metrics.stages import add_stages
from agent.daemon.reject_output import CLOSE_S, RejectOutput, Switch, Trigger
from agent.daemon.streams.pipeline import TAKE_S, FrameSource, Pipeline
from agent.daemon.streams.snapshots import show_snapshot
from agent.errors import CommandError, StorageError
from agent.storage.files import CLOCK_SET
from agent.storage.part_pictures import PartPictures, picture_name
from agent.storage.state_file import StateFile
from agent.structs import from_json
from agent.types import Box, Detection, Frame, Image, PartVerdict, StageTimes, StreamBudget, StreamResult

if TYPE_CHECKING:
    from agent.compute.gate.barrier import BarrierReading
    from agent.compute.vision import VideoPerception


log = logging.getLogger(__name__)
_WRITE_S = 60.0
"""Least time between two writes of the counters, s: SD cards wear out. A power cut loses no more than that."""
_WAITING_MAX = 1000
"""Most parts that wait for the stream's thread: more than a line brings until a stream that hangs is replaced."""
_QUALITY = 90
"""Quality of the JPEG of a part, 1..100: a model may learn from it."""


class CounterFile:
    """Counters of a stream, kept over restarts. For one thread; writing may be handed to another."""

    def __init__(self, folder: Path, stream: str, shifts: Iterable[str]) -> None:
        """Read the counters of an earlier run; a damaged file is set aside, and they begin anew."""
        self._file, self._shifts = StateFile(folder / f"inspection-{stream}.json"), tuple(shifts)
        self.counters, self._written, self._tried_s = Counters(), Counters(), time.monotonic()
        try:
            content = self._file.read()
            if content is not None:
                self.counters = self._written = from_json(content, Counters)
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
        self.counters = at_shift(before, datetime.now(), self._shifts)  # the clock on the wall
        return self.counters is not before

    @property
    def is_due(self) -> bool:
        """True if the counters have changed and no write was tried for a while; the next is due later then."""
        if time.monotonic() - self._tried_s < _WRITE_S or self.counters == self._written:
            return False
        self._tried_s = time.monotonic()
        return True

    def write(self) -> None:
        """Write the counters if they have changed.

        Raises:
            StorageError: the disk refuses; they are written the next time.
        """
        counters = self.counters
        if counters != self._written:
            self._file.write(msgspec.json.encode(counters))
            self._written = counters


class Inspection:
    """Triggers and open devices of an inspected stream, which its threads share.

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
        self.stream, self.config, self.close_s = stream, config, CLOSE_S
        self._token, self._numbers = uuid.uuid4().hex[:8], itertools.count(1)
        self._waiting: deque[Trigger] = deque()
        self._lock = threading.Lock()
        self._triggered_ns, self._is_closed, self._has_ignored = 0, False, False
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
        try:
            self.trigger()
        except CommandError as error:
            if len(self._waiting) >= _WAITING_MAX and not self._has_ignored:
                self._has_ignored = True
                log.error("stream %s: %s", self.stream, error)

    def _close_files(self) -> None:
        try:
            self.counters.write()
        except StorageError as error:
            log.warning("stream %s: its counters of parts are not written: %s", self.stream, error)
        self.store.close(self.close_s)

    def trigger(self, part: str = "") -> str:
        """Announce a part that is at the sensor now; return its id. For any thread.

        Raises:
            CommandError: it is too soon after another, or the stream has fallen behind by so many parts that this
                one gets no verdict; the reject output expects one all the same.
        """
        now_ns, at = time.monotonic_ns(), datetime.now(UTC)
        with self._lock:
            if self._is_closed:
                raise CommandError("the stream is being stopped")
            if now_ns - self._triggered_ns < self.config.debounce_s * 1e9:
                raise CommandError("ignored: too soon after the part before, see debounce_s")
            self._triggered_ns = now_ns
            trigger = self.make(part, now_ns, at)
            if len(self._waiting) >= _WAITING_MAX:
                raise CommandError(f"{_WAITING_MAX} parts wait for a verdict: this one gets none")
            self._waiting.append(trigger)
        return trigger.part

    def make(self, part: str, now_ns: int, at: datetime) -> Trigger:
        """Return a trigger, with an id if it has none, whose part the reject output expects."""
        key = next(self._numbers)
        trigger = Trigger(key, part or f"{self.stream}-{self._token}-{key}", now_ns, at)
        if self.reject is not None:
            self.reject.expect(trigger)
        return trigger

    def next(self) -> Trigger | None:
        """Remove and return the oldest trigger that waits."""
        with self._lock:
            return self._waiting.popleft() if self._waiting else None

    def stop(self) -> None:
        """Take no more triggers: those that wait are the last."""
        with self._lock:
            self._is_closed = True

    def close(self) -> None:
        """Release the pins, and write what waits. For any thread; a second call does nothing."""
        with self._lock:
            self._is_closed = True
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
    """Return the part of a picture that the model is shown, at least a pixel."""
    height, width = image.shape[:2]
    left, top = min(round(crop[0] * width), width - 1), min(round(crop[1] * height), height - 1)
    right, bottom = max(left + 1, round(crop[2] * width)), max(top + 1, round(crop[3] * height))
    return np.ascontiguousarray(image[top:bottom, left:right])


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
        self._is_warm = self._snapshot_asked = self._has_dropped = False
        self._seq: int | None = None
        self._snapshot_s, self._budget = 0.0, StreamBudget()
        self._report_counters()

    def request_snapshot(self) -> None:
        """Publish the next picture as the snapshot. Any thread may call this."""
        self._snapshot_asked = True

    def set_budget(self, budget: StreamBudget) -> None:
        """Keep to a budget's samples and snapshots from the next part on. Any thread may call this."""
        super().set_budget(budget)
        self._budget = budget

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
                self._show(frame, result.detections or (), None)
            self._reporter.send_due_sample()
        finally:
            self._frames.give_back(frame)
        self._write_counters()

    def _inspect(self, frame: Frame) -> StreamResult:
        """Judge a frame if it shows a part. The very first one is judged in any case, to warm the model up."""
        self._now = frame.captured_ns, frame.captured_at
        self._note_dropped(frame)
        began = time.monotonic_ns()
        reading = self._barrier.read(frame.model_image, frame.captured_ns) if self._barrier else None
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
        if (recorder := spans.active) is not None:
            add_stages(recorder, began, stages, frame.seq)
        if wanted:
            is_cut = reading is not None and reading.covered and reading.is_cut
            self._judge(frame, judge_view(found.detections, self._config, is_cut=is_cut))
        if self.shadow is not None:
            self.shadow.compare_frame(frame, self._config.crop, found.detections, found.infer)
        result = StreamResult([], found.detections, stages)
        self._reporter.report(frame.seq, frame.captured_at, result, *self._vision.answered_by)
        return result

    def _note_dropped(self, frame: Frame) -> None:
        """Tell once if pictures that are parts come faster than they are judged."""
        before, self._seq = self._seq, frame.seq
        is_gap = before is not None and frame.seq > before + 1
        if is_gap and self._config.trigger == "every" and not self._has_dropped:
            self._has_dropped = True
            name = self._inspection.stream
            log.warning(
                "stream %s: pictures come faster than they are judged: those in between get no verdict", name
            )

    def _open_parts(self, frame: Frame, reading: BarrierReading | None) -> None:
        while (one := self._inspection.next()) is not None:
            self._conclude(self._inspector.trigger(one.key, one.part, one.now_ns, one.now_ns, one.at))
        if self._config.trigger == "every" or (reading is not None and reading.crossed):
            # From when it is taken up: a folder that is read fast waits in a queue, which is no delay of a line.
            one = self._inspection.make("", time.monotonic_ns(), frame.captured_at)
            opened = self._inspector.trigger(one.key, one.part, frame.captured_ns, one.now_ns, one.at)
            self._conclude(opened)

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
        """Reject, publish and count closed parts; of several, the first alone has views and so a picture."""
        for part in parts:
            kept, self._kept = (self._kept, None) if part.verdict.views else (None, self._kept)
            verdict = replace(part.verdict, rejected=self._rejects(part))
            judged_ms = (time.monotonic_ns() - part.triggered_ns) / 1e6
            path = self._keep(verdict, kept)
            self._reporter.verdict(verdict, judged_ms, path, *self._vision.answered_by)
            self._inspection.counters.add(verdict)
            self._report_counters()
            if kept is not None and verdict.verdict != "ok":
                shown = replace(kept.frame, pixels=kept.image, unmasked=None)
                self._show_due(shown, verdict.detections)

    def _rejects(self, part: ClosedPart) -> bool:
        """Tell the reject output of a verdict; return True if it acts."""
        output, verdict = self._inspection.reject, part.verdict.verdict
        is_unsure = verdict == "unsure" and self._config.reject_unsure
        return output is not None and output.decide(part, reject=verdict == "ng" or is_unsure)

    def _keep(self, verdict: PartVerdict, kept: _Kept | None) -> str:
        """Keep the picture of a part that is not ok; return its path, empty: none is kept."""
        is_wanted = verdict.verdict != "ok" or self._config.keep_ok
        if kept is None or not is_wanted or not self._config.keep_bytes:
            return ""
        from agent.compute.drawing import jpeg

        name = picture_name(verdict.triggered_at, verdict.verdict, verdict.part)
        shown = _cropped(kept.image, self._config.crop)
        return str(self._inspection.store.keep(name, partial(jpeg, shown, _QUALITY, kept.frame.order)) or "")

    def _show_due(self, frame: Frame, detections: Iterable[Detection]) -> None:
        now = time.monotonic()
        every_s = self._publish_config.snapshot_every_s * self._budget.snapshot_factor
        is_due = now - self._snapshot_s >= every_s or not self._snapshot_s
        if self._publish_config.snapshot and is_due:
            self._snapshot_s = now
            self._show(frame, detections, self._budget)

    def _show(self, frame: Frame, detections: Iterable[Detection], budget: StreamBudget | None) -> None:
        from agent.compute.drawing import annotate_detections

        picture = annotate_detections(frame.image, detections, order=frame.order)
        quality = self._publish_config.snapshot_quality
        show_snapshot(self._reporter, replace(frame, pixels=picture), budget, quality)

    def _report_counters(self) -> None:
        one = self._inspection.counters.counters
        parts = one.ok + one.ng + one.unsure
        place, counts = self._reporter.place, (parts, one.ok, one.ng, one.unsure, one.rejected)
        self._reporter.inspection(InspectionMessage(*place, one.began_at, *counts, one.reasons, one.last))

    def _write_counters(self) -> None:
        if self._inspection.counters.begin_shift():
            self._report_counters()
        if self._inspection.counters.is_due:
            self._inspection.store.run(self._inspection.counters.write)

    def _idle(self) -> None:
        """Close what is due while no frame comes; a lost camera closes all parts."""
        while (one := self._inspection.next()) is not None:
            self._conclude(self._inspector.trigger(one.key, one.part, one.now_ns, one.now_ns, one.at))
        self._conclude(self._inspector.due(time.monotonic_ns()))
        if self._source.lost:
            self._conclude(self._inspector.finish("stall"))
        self._write_counters()

    def _end_tracks(self, reason: str) -> None:
        self._inspection.stop()
        while (one := self._inspection.next()) is not None:
            self._conclude(self._inspector.trigger(one.key, one.part, one.now_ns, one.now_ns, one.at))
        self._conclude(self._inspector.finish(reason))
