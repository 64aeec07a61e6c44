"""State sensors of one stream: taught by commands, kept in the state folder, published when their value changes.

A lesson is a request of another thread: the next pictures show one value. The stream's thread takes them; another
one learns, checks each example by the others, and writes the file, which holds embeddings and no pictures.
"""

from __future__ import annotations

import logging
import math
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from agent.comms.messages import SensorMessage
from agent.comms.reporter import Reporter
from agent.compute.states import (
    CHANNELS_MAX,
    EMBEDDING_CELLS,
    EXAMPLES_MIN,
    UNSURE,
    Floats,
    StateHead,
    StateSensor,
    leave_one_out,
    vary,
)
from agent.errors import NO_JSON, CommandError, StorageError
from agent.storage.files import make_folder
from agent.storage.state_file import StateFile
from agent.structs import from_json
from agent.text import plural
from agent.types import WHOLE, Box, Event, Frame, StageTimes, Track

if TYPE_CHECKING:
    from agent.compute.vision import VideoPerception


log = logging.getLogger(__name__)
FOLDER = "states"
"""Name of their folder in the state folder."""
STATES_MAX, VALUES_MAX, EXAMPLES_MAX, BYTES_MAX = 16, 8, 20, 740_000
"""Most states of a stream, values of a state, examples of a value, and bytes of all examples of a state, whose
file is JSON and may have 1 MiB."""
REGION_MIN = 0.02
"""Least side of a region, as a share of the picture."""
_EVERY_NS = 500_000_000
"""Least time between two examples: pictures in a row are alike."""
_SETTLING_NS = 200_000_000
"""Least time between two inferences that are made only because answers differ from the value."""
DELAY_S = 1.0
"""Time from a request to its first example, s: pictures of a network camera are that late."""
PATIENCE_S = 60.0
"""Longest wait for the pictures of a lesson, s."""
NO_VALUES = (UNSURE, "none", "unknown", "unavailable")
"""Words that no value can be: Home Assistant reads the last three as none."""
SIZE_MAX = EMBEDDING_CELLS * CHANNELS_MAX
"""Numbers of an embedding."""
_VALUE = re.compile(r"[^\W_][\w -]{0,31}")

Done = Callable[[dict[str, Any] | None, str], None]
"""Called with the result of a lesson, or with None and the reason."""


class Lesson(Struct, frozen=True):
    """A request to learn what the next pictures show.

    Attributes:
        state: name of the sensor.
        value: that they show.
        examples: number of pictures.
        region: of the picture, as fractions; None: that of the state, or the whole picture for a new one.
    """

    state: str
    value: str
    examples: int = 10
    region: Box | None = None


class TaughtState(Struct, frozen=True, forbid_unknown_fields=True):
    """Content of a state's file.

    Attributes:
        name: of the sensor.
        region: of the picture, as fractions.
        model: sha256 of the model's file; embeddings of another model say nothing.
        variant: of the model.
        examples: of each value, oldest first: float16 [variations, size], little-endian. The first row is the
            picture itself.
        size: of an embedding.
    """

    name: str
    region: Box
    model: str
    variant: str
    size: int
    examples: dict[str, tuple[bytes, ...]] = {}

    def embeddings(self) -> dict[str, list[Floats]]:
        """Return the examples of each value, float32 [variations, size] each.

        Raises:
            ValueError: they have not the size that is stated.
        """
        return {
            value: [np.frombuffer(one, "<f2").astype(np.float32).reshape(-1, self.size) for one in some]
            for value, some in self.examples.items()
        }

    def ready(self) -> dict[str, list[Floats]]:
        """Return the examples of each value that has enough."""
        return {value: some for value, some in self.embeddings().items() if len(some) >= EXAMPLES_MIN}

    def with_examples(self, value: str, new: Iterable[Floats]) -> TaughtState:
        """Return the state with more examples of a value; the oldest are dropped where there are too many."""
        packed = tuple(one.astype("<f2").tobytes() for one in new)
        examples = {**self.examples, value: (*self.examples.get(value, ()), *packed)[-EXAMPLES_MAX:]}
        while sum(len(one) for some in examples.values() for one in some) > BYTES_MAX:
            longest = max(examples, key=lambda name: len(examples[name]))
            examples[longest] = examples[longest][1:]
        return replace(self, examples=examples)

    def learned(self) -> StateHead | None:
        """Return what tells the values apart that have enough examples; None: fewer than two have.

        Raises:
            ValueError: they cannot be told apart, or the file holds what no lesson writes.
        """
        self._check()
        ready = self.ready()
        if len(ready) < 2:
            return None
        return StateHead({value: np.concatenate(some) for value, some in ready.items()})

    def _check(self) -> None:
        """Raise ValueError for names, a region or numbers that no lesson writes: a file may be anybody's."""
        for value in (*self.examples, "x"):
            try:
                check_lesson(Lesson(self.name, value, region=self.region))
            except CommandError as error:
                raise ValueError(str(error)) from None
        if not 1 <= self.size <= SIZE_MAX or not self.examples:
            raise ValueError(f"{len(self.examples)} values of embeddings of {self.size} numbers")
        for some in self.embeddings().values():
            if not all(np.isfinite(one).all() for one in some):
                raise ValueError("an embedding is not finite")


class _Sensor:
    """A taught state in use. Its examples stay in the file: they take more memory than what they teach."""

    def __init__(self, taught: TaughtState) -> None:
        self.taught, self.head, self.follower = replace(taught, examples={}), taught.learned(), StateSensor()
        self.counts = {value: len(some) for value, some in taught.examples.items()}
        self.track: Track | None = None
        self.message: SensorMessage | None = None

    @property
    def missing(self) -> str:
        """What is missing to tell all values apart; empty: nothing."""
        few = {value: EXAMPLES_MIN - count for value, count in self.counts.items() if count < EXAMPLES_MIN}
        lines = [f"{value!r} needs {plural(count, 'more example')}" for value, count in few.items()]
        return "; ".join(lines or (["a second value is needed"] if len(self.counts) < 2 else []))


class _Course:
    """A lesson that is going on."""

    def __init__(self, lesson: Lesson, done: Done) -> None:
        self.lesson, self.done = lesson, done
        self.taken: list[Floats] = []
        self.begun_s, self.newest_ns = time.monotonic(), -_EVERY_NS


class StreamStates:
    """State sensors of one stream.

    `process`, `poll`, `suspend` and `finish` are for the stream's thread; the rest is for any thread.
    """

    def __init__(
        self,
        stream: str,
        folder: Path,
        vision: VideoPerception,
        reporter: Reporter,
        delay_s: float = DELAY_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Read what was taught.

        Args:
            stream: its name.
            folder: of the files of all streams' states; it need not exist.
            vision: gives embeddings of the newest picture.
            reporter: of the stream.
            delay_s: time from a request to its first example, s.
            patience_s: longest wait for the pictures of a lesson, s.
        """
        self._stream, self._folder, self._vision, self._reporter = stream, folder, vision, reporter
        self._delay_s, self._patience_s = delay_s, patience_s
        self._lock = threading.Lock()
        self._course: _Course | None = None
        self._is_closed, self._stale, self._processed_ns = False, set[str](), -_SETTLING_NS
        self._prefix, self._number = f"{stream}-{secrets.token_hex(4)}-s", 0
        self._sensors = {one.name: _Sensor(one) for one in read_states(folder, stream)}

    def teach(self, lesson: Lesson, done: Done) -> None:
        """Begin a lesson; `done` is called at its end, from another thread.

        Raises:
            CommandError: the lesson cannot be given, or another one is going on.
        """
        if not self._vision.has_features:
            raise CommandError(
                f"model {self._vision.model.manifest.name} gives no features to teach states from; "
                "`vedette optimise features` adds them to a detector"
            )
        check_lesson(lesson)
        with self._lock:
            if self._is_closed:
                raise CommandError("the stream is being stopped")
            if self._course is not None:
                lesson = self._course.lesson
                raise CommandError(f"{lesson.state} is being taught {lesson.value!r}; wait until that has ended")
            self._check_room(lesson)
            self._course = _Course(lesson, done)

    def forget(self, state: str, value: str) -> None:
        """Delete a state, or one value of it.

        Raises:
            CommandError: there is no such state or value. StorageError: the disk refuses.
        """
        with self._lock:
            if (sensor := self._sensors.get(state)) is None:
                raise CommandError(
                    f"no state {state!r} is taught; there are: {', '.join(self._sensors) or 'none'}"
                )
            if value and value not in sensor.counts:
                raise CommandError(f"{state} has no value {value!r}; it has: {', '.join(sensor.counts)}")
            if self._course is not None and self._course.lesson.state == state:
                raise CommandError(f"{state} is being taught; wait until that has ended")
            if value and len(sensor.counts) > 1:
                taught = self._read(sensor)
                taught = replace(
                    taught, examples={name: some for name, some in taught.examples.items() if name != value}
                )
                self._file(state).write(msgspec.json.encode(taught))
                self._publish_end(sensor, "forgotten")
                self._sensors[state] = _Sensor(taught)
                return
            self._file(state).write(b"")
            self._publish_end(sensor, "forgotten")
            del self._sensors[state]

    def describe(self) -> dict[str, Any]:
        """Return each state's value, score, region, number of examples by value, and why it has no value."""
        with self._lock:
            return {
                name: {
                    "value": sensor.follower.value or None,
                    "score": round(sensor.follower.score, 3),
                    "region": sensor.taught.region,
                    "examples": sensor.counts,
                    "detail": self._why_silent(sensor) or sensor.missing,
                }
                for name, sensor in self._sensors.items()
            }

    @property
    def values(self) -> dict[str, tuple[str, ...]]:
        """Values by state, of those that are taught completely."""
        with self._lock:
            return {name: one.head.values for name, one in self._sensors.items() if one.head is not None}

    @property
    def tracks(self) -> list[Track]:
        """The values that are known now, each with its region, to be drawn."""
        with self._lock:
            return [one.track for one in self._sensors.values() if one.track is not None]

    def process(self, frame: Frame) -> None:
        """Classify the frame that was inferred last, and take an example of it if one is due."""
        if self._vision.last_crop != WHOLE:
            return
        self._processed_ns = frame.captured_ns
        with self._lock:
            for sensor in self._sensors.values():
                if sensor.head is not None and not self._why_silent(sensor):
                    answer = sensor.head.classify(self._vision.embed(sensor.taught.region))
                    if sensor.follower.update(answer, frame.captured_ns):
                        self._publish(sensor, frame.captured_at)
            course = self._course
        if course is not None:
            self._take_example(course, frame)

    def poll(self, now_ns: int) -> None:
        """Ask for an inference at `now_ns` if one is needed, and end a lesson for which no pictures come."""
        with self._lock:
            course = self._course
            settling = any(one.follower.is_settling for one in self._sensors.values())
        is_due = course is not None and now_ns - course.newest_ns >= _EVERY_NS
        settling = settling and now_ns - self._processed_ns >= _SETTLING_NS
        self._vision.wants_inference = settling or is_due
        is_late = course is not None and time.monotonic() - course.begun_s > self._patience_s
        if course is not None and is_late and len(course.taken) < course.lesson.examples:
            asked, taken = plural(course.lesson.examples, "picture"), len(course.taken)
            self._end(course, None, f"{taken} of {asked} came, and none for {self._patience_s:.0f} s")

    def finish(self, reason: str) -> None:
        """End what is open; a value is unknown from now on."""
        with self._lock:
            self._is_closed, course = True, self._course
            for sensor in self._sensors.values():
                self._publish_end(sensor, reason)
                sensor.follower = StateSensor()
        if course is not None and len(course.taken) < course.lesson.examples:
            self._end(course, None, f"the stream was stopped or changed before the lesson was over ({reason})")

    def suspend(self) -> None:
        """Make the values of a lost source unknown until pictures come again, and end a lesson."""
        course = self._course
        if course is not None and len(course.taken) < course.lesson.examples:
            self._end(course, None, "the camera was lost before the lesson was over")
        with self._lock:
            for sensor in self._sensors.values():
                if sensor.follower.value:
                    self._publish_end(sensor, "stall")
                    sensor.follower = StateSensor()

    def _why_silent(self, sensor: _Sensor) -> str:
        """Return why a state has no value; empty: no reason is known."""
        taught = sensor.taught
        if sensor.head is None:
            return sensor.missing
        if not self._is_current(taught):
            if taught.name not in self._stale:
                self._stale.add(taught.name)
                log.warning(
                    "stream %s: state %s was taught with another model: teach it again", self._stream, taught.name
                )
            return "taught with another model or variant: teach it again"
        return ""

    def _check_room(self, lesson: Lesson) -> None:
        known = self._sensors.get(lesson.state)
        if known is None:
            if len(self._sensors) >= STATES_MAX:
                raise CommandError(f"{STATES_MAX} states are taught, which is the most: forget one")
            return
        taught = known.taught
        if not self._is_current(taught):
            raise CommandError(
                f"{lesson.state} was taught with another model or variant ({taught.variant}): use that again, or "
                "forget it and teach it anew"
            )
        if lesson.value not in known.counts and len(known.counts) >= VALUES_MAX:
            raise CommandError(f"{lesson.state} has {VALUES_MAX} values, which is the most: forget one")
        if lesson.region is not None and lesson.region != taught.region:
            raise CommandError(
                f"{lesson.state} was taught with the region {', '.join(f'{one:g}' for one in taught.region)}; "
                "forget it to use another"
            )

    def _is_current(self, taught: TaughtState) -> bool:
        vision = self._vision
        if not vision.has_features or taught.size != vision.embedding_size:
            return False
        return (taught.model, taught.variant) == (vision.model.sha256, vision.answered_by[1])

    def _take_example(self, course: _Course, frame: Frame) -> None:
        lesson = course.lesson
        if time.monotonic() - course.begun_s < self._delay_s:
            return
        if frame.captured_ns - course.newest_ns < _EVERY_NS or len(course.taken) >= lesson.examples:
            return
        course.newest_ns, course.begun_s = frame.captured_ns, time.monotonic() - self._delay_s
        known = self._sensors.get(lesson.state)
        region = lesson.region or (known.taught.region if known else WHOLE)
        rows = [self._vision.embed(region)]
        for image in vary(frame.image):
            self._vision.infer_crop(replace(frame, image=image), WHOLE)
            rows.append(self._vision.embed(region))
        course.taken.append(np.stack(rows))
        if len(course.taken) == lesson.examples:
            base = TaughtState(
                lesson.state, region, self._vision.model.sha256, self._vision.answered_by[1], rows[0].size
            )
            work = threading.Thread(
                target=self._learn, args=(course, base), name=f"teach-{self._stream}", daemon=True
            )
            work.start()

    def _learn(self, course: _Course, base: TaughtState) -> None:
        """Learn from the examples of a lesson, write them, and use what was learned."""
        lesson = course.lesson
        try:
            known = self._sensors.get(lesson.state)
            taught = (base if known is None else self._read(known)).with_examples(lesson.value, course.taken)
            self._check_kept(known, taught)
            sensor, result = _Sensor(taught), _result(taught)
            make_folder(self._folder)
            self._file(lesson.state).write(msgspec.json.encode(taught))
        except (StorageError, ValueError) as error:
            self._end(course, None, str(error))
            return
        except Exception as error:  # must not leave the lesson open
            log.exception("stream %s: internal error (please report)", self._stream)
            self._end(course, None, f"{type(error).__name__}: {error}")
            return
        with self._lock:
            self._go_on(known, sensor)
            self._sensors[lesson.state] = sensor
            self._stale.discard(lesson.state)
        log.info("stream %s: state %s has learned %r", self._stream, lesson.state, lesson.value)
        self._end(course, result, "")

    def _check_kept(self, known: _Sensor | None, taught: TaughtState) -> None:
        """Raise ValueError if there is no room for enough examples of each value."""
        for value, count in (known.counts if known else {}).items():
            if count >= EXAMPLES_MIN > len(taught.examples.get(value, ())):
                kept = sum(map(len, taught.examples.values()))
                raise ValueError(
                    f"{taught.name} has room for some {kept} examples of this model, too few for another value: "
                    "forget one, or teach another state"
                )

    def _go_on(self, known: _Sensor | None, sensor: _Sensor) -> None:
        """Let a sensor that has learned more go on with its value, if it still tells it."""
        if known is None:
            return
        value = known.follower.value
        if value and (sensor.head is None or value not in (*sensor.head.values, UNSURE)):
            self._publish_end(known, "changed")
            return
        sensor.follower, sensor.track, sensor.message = known.follower, known.track, known.message
        if sensor.message is not None and sensor.head is not None:
            sensor.message = replace(sensor.message, values=sensor.head.values)
            self._reporter.sensor(sensor.message)

    def _end(self, course: _Course, result: dict[str, Any] | None, why: str) -> None:
        with self._lock:
            if self._course is not course:
                return
            self._course = None
        course.done(result, why)

    def _read(self, sensor: _Sensor) -> TaughtState:
        """Return a state with its examples; without any if its file is gone. Raises StorageError."""
        file = self._file(sensor.taught.name)
        try:
            return from_json(content, TaughtState) if (content := file.read()) else sensor.taught
        except NO_JSON as error:
            raise StorageError(f"{file.path}: is damaged: {error}") from error

    def _file(self, state: str) -> StateFile:
        return StateFile(self._folder / f"{self._stream}.{state}.json")

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
        self._reporter.sensor(sensor.message)

    def _publish_end(self, sensor: _Sensor, reason: str) -> None:
        self._end_track(sensor, reason, datetime.now(UTC))
        self._reporter.clear_sensor(sensor.taught.name)

    def _end_track(self, sensor: _Sensor, reason: str, at: datetime) -> None:
        if sensor.track is not None:
            track, sensor.track = replace(sensor.track, last_seen=at), None
            self._report(Event("end", track, reason), at)

    def _report(self, event: Event, at: datetime) -> None:
        self._reporter.events([event], at, StageTimes(), *self._vision.answered_by)


def check_lesson(lesson: Lesson) -> None:
    """Raise CommandError for names, numbers or a region that cannot be used."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", lesson.state):
        raise CommandError(f"{lesson.state[:40]!r} is no name of a state: use up to 32 letters, digits, - and _")
    if not _VALUE.fullmatch(lesson.value) or lesson.value.casefold() in NO_VALUES:
        raise CommandError(
            f"{lesson.value[:40]!r} is no value: use up to 32 letters, digits, spaces, - and _; none of "
            f"{', '.join(NO_VALUES)}"
        )
    if not 1 <= lesson.examples <= EXAMPLES_MAX:
        raise CommandError(f"a lesson takes 1 to {EXAMPLES_MAX} examples")
    if lesson.region is not None:
        left, top, right, bottom = lesson.region
        inside = all(math.isfinite(edge) and 0.0 <= edge <= 1.0 for edge in lesson.region)
        if not inside or right - left < REGION_MIN or bottom - top < REGION_MIN:
            raise CommandError(
                "region: expected left, top, right, bottom as fractions 0..1 of the picture, at least "
                f"{REGION_MIN:g} apart"
            )


def _result(taught: TaughtState) -> dict[str, Any]:
    """Return the number of examples by value, and how each was told by the others."""
    result: dict[str, Any] = {"examples": {value: len(some) for value, some in taught.examples.items()}}
    if taught.learned() is None:
        return result
    return result | {
        "check": {value: msgspec.to_builtins(one) for value, one in leave_one_out(taught.ready()).items()}
    }


def read_states(folder: Path, stream: str) -> list[TaughtState]:
    """Return the taught states of a stream; a damaged file is kept aside, and logged."""
    found = []
    for path in sorted(folder.glob(f"{stream}.*.json")):
        file = StateFile(path)
        try:
            taught = from_json(file.read() or b"", TaughtState)
            if path.name != f"{stream}.{taught.name}.json":
                raise ValueError(f"is of a state {taught.name[:40]!r}")
            taught.learned()
        except (StorageError, ValueError, *NO_JSON) as error:
            log.error("stream %s: a taught state is lost: %s: %s; see %s", stream, path, error, file.set_aside())
            continue
        found.append(taught)
    return found
