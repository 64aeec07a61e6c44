"""Snapshots of one stream: the best picture of what is in view, or the next picture when asked.

OpenCV is loaded for the first snapshot only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, cast

from msgspec.structs import replace

from agent import spans
from agent.capture.source import DecodeMode, Demand
from agent.comms.entities import (
    Component,
    button,
    display_name,
    entity,
    stream_id,
    unless_disabled,
)
from agent.comms.reporter import Reporter
from agent.config import PublishConfig, StreamConfig
from agent.config.features import StreamBudget
from agent.daemon.parts import NO_DEMAND, Asked, EntityPlace, Parts, Reply, StreamContext, StreamPart
from agent.daemon.streams.pipeline import show_snapshot
from agent.errors import CommandError
from agent.types import Box, Event, Frame, Image, StreamResult, Track

if TYPE_CHECKING:
    from agent.compute.vision import VideoPerception


_BETTER = 1.1
"""A frame replaces an earlier one of the same track if its quality is so many times higher."""
_CROP_PADDING, _CROP_MIN = 0.15, 64.0
"""Surroundings on each side of a cropped object, as a share of its longer side; and the least size, px."""
_CUT = 0.5
"""Factor on the quality of an object at the frame's edge."""
_CHECKS = 0.125
"""Interval between checks of frames without events, as a share of `every_s`."""
_EDGE = 0.005
"""A box touches the frame's edge within this distance, as a share of the side."""


class BestShot:
    """Follows the track of the newest `new` event and finds frames that show it better than all before.

    After that track has ended it follows the track of the next event. Frames are `every_s` apart, or more.
    """

    def __init__(self, every_s: float) -> None:
        self.set_interval(every_s)
        self._shot_ns: int | None = None
        self._checked_ns: int | None = None
        self._id = ""
        self._hits = 0
        self._best = 0.0

    @property
    def track(self) -> str:
        """Id of the track that it follows; empty: there was none yet."""
        return self._id

    def set_interval(self, every_s: float) -> None:
        """Change the least time between frames, s. Any thread may call this."""
        self._every_ns = round(every_s * 1e9)

    def is_due(self, now_ns: int) -> bool:
        """Return True if a frame without events is worth checking, a few times within `every_s`."""
        if self._checked_ns is not None and now_ns - self._checked_ns < self._every_ns * _CHECKS:
            return False
        self._checked_ns = now_ns
        return True

    def is_better(self, events: Iterable[Event], tracks: Sequence[Track], now_ns: int) -> bool:
        """Return True if a frame with these events, and these tracks alive after it, should be encoded now."""
        alive = {track.id: track for track in tracks}
        self._choose(events, alive)
        track = alive.get(self._id)
        # Without a hit the track's box is that of an earlier frame.
        if track is None or track.hits <= self._hits:
            return False
        self._hits = track.hits
        now = quality(track)
        early = self._shot_ns is not None and now_ns - self._shot_ns < self._every_ns
        if early or now <= self._best * _BETTER:
            return False
        self._shot_ns, self._best = now_ns, now
        return True

    def _choose(self, events: Iterable[Event], alive: dict[str, Track]) -> None:
        current = [event for event in events if event.kind != "end" and event.track.id in alive]
        candidates = [event.track for event in current if event.kind == "new"]
        if not candidates and self._id not in alive:
            candidates = [event.track for event in current]
        if candidates:
            self._id = max(candidates, key=quality).id
            self._hits, self._best = 0, 0.0


def quality(track: Track) -> float:
    """Return how well a frame shows a track, 0..1: score × side of the visible box, halved at the frame's edge.

    A track without a box counts its score alone.
    """
    if track.box is None:
        return track.score
    x0, y0, x1, y1 = (min(1.0, max(0.0, value)) for value in track.box)
    side = math.sqrt(max(0.0, x1 - x0) * max(0.0, y1 - y0))
    is_cut = min(x0, y0) < _EDGE or max(x1, y1) > 1.0 - _EDGE
    return track.score * side * (_CUT if is_cut else 1.0)


class SnapshotPart(StreamPart):
    """Publishes the best picture of what is in view, and the next one when asked. Any thread may `request`."""

    def __init__(
        self,
        vision: VideoPerception,
        reporter: Reporter,
        config: PublishConfig,
        parts: Parts | None = None,
    ) -> None:
        """Publish snapshots as `config` says, with the zones and lines of `vision` and tracks of `parts`."""
        self._vision, self._reporter, self._config, self._parts = vision, reporter, config, parts or Parts()
        self._best = BestShot(config.snapshot_every_s)
        self._requested, self._budget = False, StreamBudget()

    def demand(self) -> Demand:
        return Demand(DecodeMode.FULL) if self._requested else NO_DEMAND

    def configure(self, config: StreamConfig) -> None:
        self._config = config.publish
        self._best.set_interval(self._config.snapshot_every_s * self._budget.snapshot_factor)

    def request_picture(self) -> bool:
        """Publish the next frame, whatever is in it, in full quality."""
        self._requested = True
        return True

    def set_budget(self, budget: StreamBudget) -> None:
        self._budget = budget
        self._best.set_interval(self._config.snapshot_every_s * budget.snapshot_factor)

    def process(self, frame: Frame, result: StreamResult) -> None:
        """Publish the newest frame if it is the best, or was asked for."""
        requested = self._requested
        if self._is_best(frame, result) or requested:
            if requested:
                self._requested = False
            with spans.span("snapshot"):
                self._publish(frame, None if requested else self._budget)

    def _is_best(self, frame: Frame, result: StreamResult) -> bool:
        if not self._config.snapshot or not (result.events or self._best.is_due(frame.captured_ns)):
            return False
        return self._best.is_better(result.events, self._vision.tracker.tracks(), frame.captured_ns)

    def _publish(self, frame: Frame, budget: StreamBudget | None) -> None:
        # The box of a track that was missed in this frame is where it was before: it is not drawn.
        found = [track for track in self._vision.tracker.tracks() if track.last_seen == frame.captured_at]
        picture = self._marked(frame, found)
        may_draw = frame.may_be_drawn_on or picture is not frame.image
        local = f"{frame.captured_at.astimezone():%Y-%m-%d %H:%M:%S}" if self._config.snapshot_time else ""
        if self._config.snapshot_crop:
            followed = [track for track in found if track.id == self._best.track and budget is not None]
            picture = self._cropped(picture, followed or found, local)
        if local:
            from agent.compute.drawing import annotate, titled

            if picture.shape == frame.image.shape:
                picture = annotate(picture, (), order=frame.order, title=local, in_place=may_draw)
            else:  # in a small part it would cover the object
                picture = titled(picture, local, order=frame.order)
        show_snapshot(self._reporter, replace(frame, pixels=picture), budget, self._config.snapshot_quality)

    def _cropped(self, picture: Image, tracks: Sequence[Track], title: str) -> Image:
        """Return the part of a picture that shows tracks with their labels, and is as wide as a title."""
        from agent.compute.drawing import label_place, title_width

        boxed = [track for track in tracks if track.box is not None]
        labels = [label_place(picture, track) for track in boxed] if self._config.snapshot_boxes else []
        boxes = [track.box for track in boxed if track.box is not None]
        return cropped(picture, boxes, labels, title_width(title) if title else 0)

    def _marked(self, frame: Frame, found: Sequence[Track]) -> Image:
        """Return the picture with what the configuration wants drawn."""
        picture, config, in_place = frame.image, self._config, frame.may_be_drawn_on
        if config.snapshot_zones:
            from agent.compute.drawing import draw_places

            used = self._vision.config
            picture = draw_places(picture, used.zones, used.lines, order=frame.order, in_place=in_place)
            in_place = True
        if config.snapshot_boxes:
            from agent.compute.drawing import annotate

            shown = [*self._parts.shown, *found]
            picture = annotate(picture, shown, order=frame.order, in_place=in_place)
        return picture


def cropped(
    image: Image, boxes: Sequence[Box], labels: Sequence[tuple[int, int, int, int]] = (), least_width: int = 0
) -> Image:
    """Return the part of a picture that holds boxes with some surroundings; the whole if there are none.

    Args:
        image: H×W×3.
        boxes: of the objects.
        labels: left, top, right and bottom of what belongs to them, px.
        least_width: of the part, where the picture is that wide, px.
    """
    if not boxes:
        return image
    height, width = image.shape[:2]
    x0, y0 = min(box[0] for box in boxes) * width, min(box[1] for box in boxes) * height
    x1, y1 = max(box[2] for box in boxes) * width, max(box[3] for box in boxes) * height
    pad = max(_CROP_PADDING * max(x1 - x0, y1 - y0), (_CROP_MIN - min(x1 - x0, y1 - y0)) / 2)
    edges = ((math.floor(x0 - pad), math.floor(y0 - pad), math.ceil(x1 + pad), math.ceil(y1 + pad)), *labels)
    left, top = (max(0, min(one[side] for one in edges)) for side in (0, 1))
    right, bottom = (min(most, max(one[side] for one in edges)) for side, most in ((2, width), (3, height)))
    if right - left < least_width:
        left = max(0, min((left + right - least_width) // 2, width - least_width))
        right = min(width, left + least_width)
    return image[top:bottom, left:right] if left < right and top < bottom else image


def open_part(context: StreamContext, parts: Parts) -> SnapshotPart | None:
    """Publish the pictures of a stream; of sound there are none, and an inspection shows its own."""
    if context.has_sound or context.config.inspection is not None:
        return None
    vision = cast("VideoPerception", context.perception)
    return SnapshotPart(vision, context.reporter, context.config.publish, parts)


def snapshot(asked: Asked) -> Reply:
    """Publish the next picture; remark when that is if not at once. Raises CommandError if there will be none."""
    stream = asked.stream
    if stream.has_sound:
        raise CommandError(f"stream {stream.name} has sound only: it has no pictures")
    state, detail = stream.status
    if not stream.is_at_work or not stream.parts.request_picture():
        raise CommandError(f"stream {stream.name} is {state}, so there is no picture{detail and f': {detail}'}")
    only_keys = "keyframes" in (stream.config.capture.decode, stream.budget.decode)
    captured = stream.captured
    waits = only_keys and captured is not None and captured.decoding == "keyframes"
    remark = "it comes with the next key frame: no other picture is decoded" if waits else ""
    return remark, {"topic": asked.topics.snapshot(stream.name)}


def entities(place: EntityPlace) -> Iterator[tuple[str, Component]]:
    """Yield the entities of a stream, by id."""
    if place.commands and place.has_pictures:
        yield stream_id(place.name, "snapshot"), button(place.topics, place.name, "snapshot", "take picture")
    if place.config.publish.snapshot and place.kind in ("things", "verdicts", "texts"):
        topic = {"image_topic": place.topics.snapshot(place.name), "content_type": "image/jpeg"}
        shown = unless_disabled(place.topics, place.name)
        yield (
            stream_id(place.name, "picture"),
            entity("image", display_name(place.name, "last event"), **topic, **shown),
        )
