"""Inspection as a part of its stream: verdicts in place of tracks, a command that announces a part, snapshots."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args

import numpy as np
from msgspec.structs import replace

from agent.capture.source import DecodeMode, Demand
from agent.comms.entities import Component, button, display_name, entity, stream_id
from agent.comms.messages import InspectionMessage, PartVerdict
from agent.comms.reporter import Reporter
from agent.config import PublishConfig
from agent.config.features import StreamBudget
from agent.daemon.parts import Asked, EntityPlace, Parts, Reply, StreamContext, StreamPart
from agent.daemon.streams.pipeline import show_snapshot
from agent.errors import CommandError
from agent.features.inspection.rules import ClosedPart, Inspector, ViewJudgement, judge_view
from agent.features.inspection.triggers import Inspection
from agent.storage.part_pictures import picture_name
from agent.types import Box, Detection, Event, Frame, Image, StageTimes, StreamResult, Verdict

if TYPE_CHECKING:
    from agent.compute.gate.barrier import BarrierReading
    from agent.compute.manifest import Model
    from agent.compute.track.tracker import Tracker
    from agent.compute.vision import VideoPerception


class InspectionPart(StreamPart):
    """An inspected stream: its pins and files, its snapshots, and a perception in place of gate and tracks."""

    pins_variant = True

    def __init__(
        self, inspection: Inspection, vision: VideoPerception, reporter: Reporter, publish: PublishConfig
    ):
        self.inspection, self._reporter, self._publish = inspection, reporter, publish
        self.vision = InspectedVision(vision, reporter, inspection)
        self.vision.shows = self._show_due
        self._snapshot_s, self._budget = 0.0, StreamBudget()

    @property
    def trouble(self) -> str:
        return self.inspection.store.trouble

    @property
    def wait_s(self) -> float:
        return self.vision.wait_s

    def perceive(self, perception: Any) -> InspectedVision:
        return self.vision

    def demand(self) -> Demand:
        return Demand(DecodeMode.FULL, exact=True)

    def request_picture(self) -> bool:
        """Publish the next picture as the snapshot, whether it shows a part or not."""
        self.vision.snapshot_asked = True
        return True

    def process(self, item: Frame, result: StreamResult) -> None:
        if self.vision.snapshot_asked:
            self.vision.snapshot_asked = False
            self._show(item, result.detections or (), None)
        self.vision.write_counters()

    def idle(self, events: Sequence[Event], *, lost: bool) -> None:
        self.vision.idle()

    def set_budget(self, budget: StreamBudget) -> None:
        self._budget = budget

    def abandon(self) -> None:
        self.inspection.close()

    def close(self) -> None:
        self.inspection.close()

    def _show_due(self, frame: Frame, detections: Iterable[Detection]) -> None:
        now = time.monotonic()
        every_s = self._publish.snapshot_every_s * self._budget.snapshot_factor
        if self._publish.snapshot and (now - self._snapshot_s >= every_s or not self._snapshot_s):
            self._snapshot_s = now
            self._show(frame, detections, self._budget)

    def _show(self, frame: Frame, detections: Iterable[Detection], budget: StreamBudget | None) -> None:
        from agent.compute.drawing import annotate_detections

        picture = annotate_detections(frame.image, detections, order=frame.order)
        shown = replace(frame, pixels=picture, lease=None)
        show_snapshot(self._reporter, shown, budget, self._publish.snapshot_quality)


def open_part(context: StreamContext, _: Parts) -> InspectionPart:
    """Open pins, counters and the folder of pictures."""
    config, services = context.config, context.services
    assert config.inspection is not None
    opened = Inspection(context.name, config.inspection, context.state or Path(), services.clips)
    return InspectionPart(opened, cast("VideoPerception", context.perception), context.reporter, config.publish)


def inspect(asked: Asked) -> Reply:
    """Announce a part, and return its id. Raises CommandError if the stream inspects none, or not now."""
    stream, (state, detail) = asked.stream, asked.stream.status
    config, part = stream.config.inspection, stream.parts.get("inspection")
    if config is None:
        raise CommandError(f"stream {stream.name} inspects no parts; [streams.{stream.name}.inspection] does")
    if config.trigger == "every":
        raise CommandError(f"stream {stream.name} inspects every picture: no part is announced")
    if part is None or not stream.is_at_work:
        raise CommandError(
            f"stream {stream.name} is {state}, so no part can be inspected{detail and f': {detail}'}"
        )
    try:
        return "", {"part": part.inspection.trigger(asked.command.part)}
    except CommandError as error:
        raise CommandError(f"stream {stream.name}: {error}") from None


def entities(place: EntityPlace) -> Iterator[tuple[str, Component]]:
    """Yield the counters of inspected parts and the newest verdict, and a button that announces a part."""
    topics, name, config = place.topics, place.name, place.config
    if place.commands and config.inspection is not None and config.inspection.trigger != "every":
        yield stream_id(name, "inspect"), button(topics, name, "inspect", "inspect part", payload="")
    if not config.publish.counts:
        return
    topic = {"state_topic": topics.inspection(name)}
    for verdict in get_args(Verdict):
        counter = {"value_template": f"{{{{ value_json.{verdict} }}}}", "state_class": "total_increasing"}
        yield (
            stream_id(name, "parts", verdict),
            entity("sensor", display_name(name, "parts", verdict), **topic, **counter),
        )
    newest = {"device_class": "enum", "options": [*get_args(Verdict)], "value_template": "{{ value_json.last }}"}
    yield stream_id(name, "verdict"), entity("sensor", display_name(name, "verdict"), **topic, **newest)


log = logging.getLogger(__name__)
_QUALITY = 90
"""Quality of the JPEG of a part, 1..100: a model may learn from it."""


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


class InspectedVision:
    """Perception of a stream that judges parts: waits for a part, judges its pictures, and concludes on it.

    Attributes:
        snapshot_asked: the next picture is inferred, whether it shows a part or not.
        shows: called with the picture of a part that is not ok.
    """

    def __init__(self, vision: VideoPerception, reporter: Reporter, inspection: Inspection) -> None:
        self._vision, self._reporter, self._inspection = vision, reporter, inspection
        self._config = config = inspection.config
        self._inspector = Inspector(config)
        self._barrier = None
        if config.region is not None:
            from agent.compute.gate.barrier import LightBarrier

            self._barrier = LightBarrier(config.region, config.region_cover, config.crop)
        self._kept: _Kept | None = None
        self._is_warm = self.snapshot_asked = self._has_dropped = False
        self._seq: int | None = None
        self.shows: Callable[[Frame, Sequence[Detection]], None] = lambda *_: None
        self._report_counters()

    @property
    def model(self) -> Model:
        return self._vision.model

    @property
    def tracker(self) -> Tracker:
        return self._vision.tracker

    @property
    def answered_by(self) -> tuple[str, str]:
        return self._vision.answered_by

    @property
    def wait_s(self) -> float:
        """Longest wait for the next picture, s: a part may have to be closed before."""
        due_ns = self._inspector.next_due_ns
        return math.inf if due_ns is None else max(0.001, (due_ns - time.monotonic_ns()) / 1e9)

    def process(self, frame: Frame) -> StreamResult:
        """Judge a frame if it shows a part. The very first one is judged in any case, to warm the model up."""
        self._note_dropped(frame)
        began = time.monotonic_ns()
        reading = self._barrier.read(frame.model_image, frame.captured_ns) if self._barrier else None
        self._open_parts(frame, reading)
        self._conclude(self._inspector.overtaken(frame.captured_ns))
        self._conclude(self._inspector.due(time.monotonic_ns()))
        wanted = self._inspector.wants(frame.captured_ns)
        gate = time.monotonic_ns() - began
        if not wanted and self._is_warm and not self.snapshot_asked:
            return StreamResult([], None, StageTimes(queue=began - frame.read_ns, gate=gate))
        self._is_warm = True
        found = self._vision.infer_crop(frame, self._config.crop)
        stages = StageTimes(began - frame.read_ns, gate, found.prepare, found.infer, found.decode)
        if wanted:
            is_cut = reading is not None and reading.covered and reading.is_cut
            self._judge(frame, judge_view(found.detections, self._config, is_cut=is_cut))
        return StreamResult([], found.detections, stages)

    def finish(self, at_ns: int, at: datetime, reason: str) -> list[Event]:
        """Close all parts; after `reason`, unless the camera is only lost, no more are taken."""
        if reason != "stall":
            self._inspection.stop()
        self.take_waiting()
        self._conclude(self._inspector.finish(reason))
        return []

    def idle(self) -> None:
        """Close what is due while no frame comes."""
        self.take_waiting()
        self._conclude(self._inspector.due(time.monotonic_ns()))
        self.write_counters()

    def take_waiting(self) -> None:
        while (one := self._inspection.next()) is not None:
            self._conclude(self._inspector.trigger(one.key, one.part, one.now_ns, one.now_ns, one.at))

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
        self.take_waiting()
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
            copied = replace(frame, lease=None)
            self._kept = _Kept(frame.image.copy(), view.verdict, copied) if needed else None

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
                self.shows(shown, verdict.detections)

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

    def _report_counters(self) -> None:
        one = self._inspection.counters.counters
        parts = one.ok + one.ng + one.unsure
        place, counts = self._reporter.place, (parts, one.ok, one.ng, one.unsure, one.rejected)
        self._reporter.retain(InspectionMessage(*place, *counts, one.reasons, one.last))

    def write_counters(self) -> None:
        if self._inspection.counters.is_due:
            self._inspection.store.run(self._inspection.counters.write)
