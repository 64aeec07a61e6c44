"""The corridor of a stream of pictures: frames through its vision to its reporter and its clips, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from agent.comms.reporter import Reporter
from agent.compute.annotate import annotate, jpeg
from agent.compute.track.bestshot import BestShot
from agent.compute.vision import Vision
from agent.config import PublishConfig
from agent.corridor import Corridor, Source
from agent.messages import Event, Frame, Seen

if TYPE_CHECKING:
    from agent.filming import Filming


class FrameSource(Source[Frame], Protocol):
    """Where frames come from: `agent.capture.grabber.Grabber`, or a test's list."""

    def give_back(self, frame: Frame) -> None:
        """The frame's memory may be used again."""
        ...


class Pipeline(Corridor[Frame]):
    """Pictures of one stream."""

    def __init__(
        self,
        source: FrameSource,
        vision: Vision,
        reporter: Reporter,
        config: PublishConfig,
        filming: Filming | None = None,
    ) -> None:
        super().__init__(source, vision, reporter)
        self._filming = filming
        self._frames, self._vision, self._config = source, vision, config
        self._best = BestShot(config.snapshot_every_s)
        self._asked = False

    def ask_snapshot(self) -> None:
        """Publish the next frame as the snapshot, whatever is in it."""
        self._asked = True

    def _handle(self, frame: Frame) -> None:
        taken = False
        try:
            seen = self._look(frame)
            if not self._reporter.stopped:  # else this inference has outlasted the stream
                taken = self._show(frame, seen)
            self._note(seen, 1)
        finally:
            if not taken:
                self._frames.give_back(frame)

    def _show(self, frame: Frame, seen: Seen) -> bool:
        """Hand the picture to the clips and publish it where it is wanted; True if the clips keep it."""
        taken = self._filming is not None and self._filming.film(frame, seen.events)
        wanted = self._config.snapshot and (seen.events or self._best.due(frame.captured_ns))
        if (wanted and self._is_best(frame, seen)) or self._asked:
            self._asked = False
            self._snapshot(frame, is_ours=not taken)
        return taken

    def _look(self, frame: Frame) -> Seen:
        vision = self._vision
        self._now = frame.captured_ns, frame.captured_at
        seen = vision.look(frame)
        self._reporter.seen(frame.seq, frame.captured_at, seen, *vision.answered_by)
        if seen.events:
            self._count()
        if self.shadow is not None and seen.detections is not None:
            self.shadow.saw(frame, vision.looked, seen.detections, seen.stages.infer)
        return seen

    def _report(self, events: Sequence[Event], at: datetime) -> None:
        super()._report(events, at)
        if self._filming is not None and events:
            self._filming.hear(events)

    def _is_best(self, frame: Frame, seen: Seen) -> bool:
        return self._best.consider(seen.events, self._vision.tracks(), frame.captured_ns)

    def _snapshot(self, frame: Frame, *, is_ours: bool) -> None:
        # One that was missed in this very frame stays in memory only: its box is where it was.
        found = [track for track in self._vision.tracks() if track.last_seen == frame.captured_at]
        picture = annotate(frame.image, found, order=frame.order, in_place=is_ours)
        self._reporter.snapshot(jpeg(picture, self._config.snapshot_quality, frame.order))
