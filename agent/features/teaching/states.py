"""State sensors of one stream: what its pictures show of a region, published when a value changes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec.structs import replace

from agent.comms.messages import SensorMessage
from agent.compute.states import UNSURE, Floats, Head, StateHead, StateSensor, confused_values, vary
from agent.features.teaching.lessons import Course, TaughtHead, Teaching
from agent.features.teaching.taught import TaughtState
from agent.types import WHOLE, Event, Frame, StageTimes, StreamResult, Track

if TYPE_CHECKING:
    from agent.compute.vision import VideoPerception

_EVERY_NS = 500_000_000
"""Least time between two examples: pictures in a row are alike."""
_SETTLING_NS = 200_000_000
"""Least time between two inferences that are made only because a value is unknown or may change."""


class _Sensor(TaughtHead):
    """A taught state in use.

    Attributes:
        confused: values that its examples do not tell from another one; they are never published.
    """

    def __init__(self, taught: TaughtState, head: Head | None, confused: tuple[str, ...]) -> None:
        super().__init__(taught, head)
        self.confused = confused
        self.follower = StateSensor()
        self.track: Track | None = None
        self.message: SensorMessage | None = None


class StreamStates(Teaching):
    """State sensors of one stream. Its perception gives embeddings of the newest picture."""

    delay_s = 1.0  # pictures of a network camera are that late
    _perception: VideoPerception
    _heads: dict[str, _Sensor]
    _processed_ns = -_SETTLING_NS

    @property
    def pins_variant(self) -> bool:
        return bool(self.describe_states())

    @property
    def shown(self) -> list[Track]:
        with self._lock:
            return [one.track for one in self._heads.values() if one.track is not None]

    def process(self, item: Frame, result: StreamResult) -> None:
        if result.detections is not None:
            self.classify(item)
        self.poll(item.captured_ns)

    def idle(self, events: Sequence[Event], *, lost: bool) -> None:
        if lost:
            self.suspend()
        self.poll(time.monotonic_ns())

    def classify(self, frame: Frame) -> None:
        """Classify the frame that was inferred last, and take an example of it if one is due."""
        if self._perception.last_crop != WHOLE:
            return
        self._processed_ns = frame.captured_ns
        with self._lock:
            for sensor in self._heads.values():
                if sensor.head is not None and not self._why_silent(sensor):
                    answer = sensor.head.classify(self._perception.embed(sensor.taught.region))
                    if sensor.follower.update(answer, frame.captured_ns):
                        self._publish(sensor, frame.captured_at)
            course = self._course
        if course is not None:
            self._take_example(course, frame)

    def poll(self, now_ns: int) -> None:
        """Ask for an inference at `now_ns` if one is needed, and end a lesson for which no pictures come."""
        with self._lock:
            course = self._course
            settling = any(map(self._needs_answer, self._heads.values()))
        is_due = course is not None and now_ns - course.newest_ns >= _EVERY_NS
        settling = settling and now_ns - self._processed_ns >= _SETTLING_NS
        self._perception.wants_inference = settling or is_due
        super().poll(now_ns)

    def suspend(self) -> None:
        """Make the values of a lost source unknown until pictures come again, and end a lesson."""
        self._interrupt("the camera was lost before the lesson was over")
        with self._lock:
            for sensor in self._heads.values():
                if sensor.follower.value:
                    self._discard(sensor, "stall")

    def _needs_answer(self, sensor: _Sensor) -> bool:
        """Return True if newer answers differ from the value, or if it has none: no motion may come for long."""
        is_unknown = sensor.head is not None and not sensor.follower.value
        return sensor.follower.is_settling or (is_unknown and not self._why_silent(sensor))

    def _learn_head(self, examples: Mapping[str, Floats]) -> StateHead:
        return StateHead(examples)

    def _open(self, taught: TaughtState) -> _Sensor:
        if self._head_of(taught) is None:
            return _Sensor(taught, None, ())
        ready = taught.ready()
        confused = confused_values(ready)
        head = StateHead({value: np.concatenate(some) for value, some in ready.items()}, confused)
        return _Sensor(taught, head, confused)

    def _inherit(self, one: _Sensor, before: _Sensor) -> None:
        """Go on with the value, if it is still told."""
        value = before.follower.value
        told = () if one.head is None else {*one.head.values, UNSURE} - {*one.confused}
        if value and value not in told:
            self._discard(before, "changed")
            return
        one.follower, one.track, one.message = before.follower, before.track, before.message
        if one.message is not None and one.head is not None:
            one.message = replace(one.message, values=one.head.values)
            self._reporter.retain(one.message)

    def _describe(self, one: _Sensor) -> dict[str, Any]:
        return {
            "value": one.follower.value or None,
            "score": round(one.follower.score, 3),
            "region": one.taught.region,
            "examples": one.counts,
            "detail": self._why_silent(one) or one.missing(self.values_min) or _confusion(one.confused),
        }

    def _take_example(self, course: Course, frame: Frame) -> None:
        if time.monotonic() - course.begun_s < self.delay_s:
            return
        if frame.captured_ns - course.newest_ns < _EVERY_NS or len(course.taken) >= course.lesson.examples:
            return
        region = self._region(course.lesson)
        rows = [self._perception.embed(region)]
        for image in vary(frame.image):
            self._perception.infer_crop(replace(frame, pixels=image), WHOLE)
            rows.append(self._perception.embed(region))
        self._add_example(course, np.stack(rows), frame.captured_ns)

    def _publish(self, sensor: _Sensor, at: datetime) -> None:
        follower, name = sensor.follower, sensor.taught.name
        self._end_track(sensor, "changed", at)
        self._number += 1
        label, box = f"{name} {follower.value}", sensor.taught.region
        score = round(follower.score, 4)
        sensor.track = Track(f"{self._prefix}{self._number}", label, score, score, 1, at, at, box)
        self._report(Event("new", sensor.track, "state"), at)
        values = sensor.head.values if sensor.head else ()
        sensor.message = SensorMessage(*self._reporter.place, name, follower.value, score, at, values)
        self._reporter.retain(sensor.message)

    def _discard(self, one: _Sensor, reason: str) -> None:
        self._end_track(one, reason, datetime.now(UTC))
        self._reporter.clear(SensorMessage, one.taught.name)
        one.follower = StateSensor()

    def _end_track(self, sensor: _Sensor, reason: str, at: datetime) -> None:
        if sensor.track is not None:
            track, sensor.track = replace(sensor.track, last_seen=at), None
            self._report(Event("end", track, reason), at)

    def _report(self, event: Event, at: datetime) -> None:
        self._reporter.events([event], at, StageTimes(), *self._perception.answered_by)


def _confusion(values: tuple[str, ...]) -> str:
    """Return what is wrong with values that look the same; empty: there are none."""
    if not values:
        return ""
    names = " and ".join(map(repr, values))
    return f"{names} look the same in their examples, so they stay unsure: teach them again, or another region"
