"""Inspection as a part of its stream: verdicts in place of tracks, a command that announces a part, snapshots."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from msgspec.structs import replace

from agent.capture.source import DecodeMode, Demand
from agent.comms.entities import Component, button, display_name, entity, stream_id
from agent.comms.reporter import Reporter
from agent.config import PublishConfig
from agent.daemon.parts import Asked, EntityPlace, Parts, Reply, StreamContext, StreamPart
from agent.daemon.streams.pictures import show_snapshot
from agent.errors import CommandError
from agent.types import (
    Detection,
    Event,
    Frame,
    StreamBudget,
    StreamResult,
    Verdict,
)

if TYPE_CHECKING:
    from agent.compute.vision import VideoPerception


from agent.features.inspection.triggers import Inspection
from agent.features.inspection.vision import InspectedVision


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
