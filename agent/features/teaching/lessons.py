"""What a stream was taught: lessons by commands, files in the state folder, and a check of the examples.

A lesson is a request of another thread: what comes next shows one value. The stream's thread takes the examples;
another one learns, checks each example by the others, and writes the file, which holds embeddings, and neither
pictures nor sound.
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from agent.comms.reporter import Reporter
from agent.compute.states import EXAMPLES_MIN, Floats, Head, leave_one_out
from agent.daemon.parts import StreamPart
from agent.errors import NO_JSON, CommandError, StorageError
from agent.features.teaching.taught import (
    STATES_MAX,
    VALUES_MAX,
    Lesson,
    TaughtState,
    check_lesson,
    read_state,
)
from agent.storage.files import make_folder
from agent.storage.state import StateFile
from agent.structs import from_json
from agent.text import plural
from agent.types import WHOLE, Box, Event

log = logging.getLogger(__name__)
PATIENCE_S = 60.0
"""Longest wait for the examples of a lesson, s."""
Done = Callable[[dict[str, Any] | None, str], None]
"""Called with the result of a lesson, or with None and the reason."""


class TaughtHead:
    """Something taught that is in use. Its examples stay in the file: they take more memory than what they teach.

    Attributes:
        taught: without its examples.
        head: tells its values apart; None: too few are taught yet.
        counts: number of examples by value.
    """

    def __init__(self, taught: TaughtState, head: Head | None) -> None:
        self.taught, self.head = replace(taught, examples={}), head
        self.counts = {value: len(some) for value, some in taught.examples.items()}

    def missing(self, values_min: int) -> str:
        """Return what is missing to tell all values; empty: nothing."""
        few = {value: EXAMPLES_MIN - count for value, count in self.counts.items() if count < EXAMPLES_MIN}
        lines = [f"{value!r} needs {plural(count, 'more example')}" for value, count in few.items()]
        return "; ".join(lines or (["a second value is needed"] if len(self.counts) < values_min else []))


class Course:
    """A lesson that is going on.

    Attributes:
        lesson: what is to be learned.
        done: called at its end.
        taken: examples so far.
        begun_s: monotonic time from which examples are waited for, s: of the request, then of the newest one.
        newest_ns: time of capture of the newest example, ns.
    """

    def __init__(self, lesson: Lesson, done: Done) -> None:
        self.lesson, self.done = lesson, done
        self.taken: list[Floats] = []
        self.begun_s, self.newest_ns = time.monotonic(), -math.inf


class Teaching(StreamPart, ABC):
    """All that one stream was taught, and the lesson that is going on.

    What takes examples, `poll` and `finish` are for the stream's thread; the rest is for any thread.

    Attributes:
        values_min: values that are needed before any is told.
        noun: what an example is.
        delay_s: time from a request to its first example, s.
    """

    values_min = 2
    noun = "picture"
    delay_s = 0.0
    _heads: dict[str, Any]

    def __init__(
        self,
        stream: str,
        folder: Path,
        perception: Any,
        reporter: Reporter,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Read what was taught.

        Args:
            stream: its name.
            folder: of the files of all streams' states; it need not exist.
            perception: gives embeddings: `VideoPerception` or `UtterancePerception`.
            reporter: of the stream.
            patience_s: longest wait for the examples of a lesson, s.
        """
        self._stream, self._folder, self._perception, self._reporter = stream, folder, perception, reporter
        self._patience_s = patience_s
        self._prefix, self._number = f"{stream}-{secrets.token_hex(4)}-{self.noun[0]}", 0
        self._lock = threading.Lock()
        self._course: Course | None = None
        self._is_closed, self._stale = False, set[str]()
        self._heads = read_states(folder, stream, self._open)

    def teach(self, lesson: Lesson, done: Done) -> None:
        """Begin a lesson; `done` is called at its end, from another thread.

        Raises:
            CommandError: the lesson cannot be given, or another one is going on.
        """
        if not self._perception.has_features:
            raise CommandError(
                f"model {self._perception.model.manifest.name} gives no features to teach states from; "
                "`vedette optimise features` adds them to a detector"
            )
        self._check(lesson)
        with self._lock:
            if self._is_closed:
                raise CommandError("the stream is being stopped")
            if self._course is not None:
                lesson = self._course.lesson
                raise CommandError(f"{lesson.state} is being taught {lesson.value!r}; wait until that has ended")
            self._check_room(lesson)
            self._course = Course(lesson, done)

    def forget(self, state: str, value: str) -> None:
        """Delete a state, or one value of it.

        Raises:
            CommandError: there is no such state or value. StorageError: the disk refuses.
        """
        with self._lock:
            if (one := self._heads.get(state)) is None:
                raise CommandError(f"no state {state!r} is taught; there are: {', '.join(self._heads) or 'none'}")
            if value and value not in one.counts:
                raise CommandError(f"{state} has no value {value!r}; it has: {', '.join(one.counts)}")
            if self._course is not None and self._course.lesson.state == state:
                raise CommandError(f"{state} is being taught; wait until that has ended")
            if value and len(one.counts) > 1:
                taught = self._read(one)
                taught = replace(
                    taught, examples={name: some for name, some in taught.examples.items() if name != value}
                )
                self._file(state).write(msgspec.json.encode(taught))
                self._discard(one, "forgotten")
                self._heads[state] = self._open(taught)
                return
            self._file(state).write(b"")
            self._discard(one, "forgotten")
            del self._heads[state]

    def describe(self) -> dict[str, Any]:
        return {"states": self.describe_states()}

    def describe_states(self) -> dict[str, Any]:
        """Return what is known of each state, by name: examples by value, why it is silent, and more."""
        with self._lock:
            return {name: self._describe(one) for name, one in self._heads.items()}

    @property
    def values(self) -> dict[str, tuple[str, ...]]:
        """Values by state, of those that are taught completely and with this model."""
        with self._lock:
            return {
                name: one.head.values
                for name, one in self._heads.items()
                if one.head is not None and self._is_current(one.taught)
            }

    def poll(self, now_ns: int) -> None:
        """End a lesson for which no examples come."""
        with self._lock:
            course = self._course
        is_late = course is not None and time.monotonic() - course.begun_s > self._patience_s
        if course is not None and is_late and len(course.taken) < course.lesson.examples:
            asked, taken = plural(course.lesson.examples, self.noun), len(course.taken)
            self._end(course, None, f"{taken} of {asked} came, and none for {self._patience_s:.0f} s")

    def end(self, events: Sequence[Event], reason: str) -> None:
        self.finish(reason)

    def finish(self, reason: str) -> None:
        """End what is open."""
        with self._lock:
            self._is_closed, course = True, self._course
            for one in self._heads.values():
                self._discard(one, reason)
        if course is not None and len(course.taken) < course.lesson.examples:
            self._end(course, None, f"the stream was stopped or changed before the lesson was over ({reason})")

    def _interrupt(self, why: str) -> None:
        """End a lesson that still needs examples."""
        course = self._course
        if course is not None and len(course.taken) < course.lesson.examples:
            self._end(course, None, why)

    @abstractmethod
    def _learn_head(self, examples: Mapping[str, Floats]) -> Head:
        """Return what tells the values apart. Raises ValueError if nothing can."""

    @abstractmethod
    def _open(self, taught: TaughtState) -> TaughtHead:
        """Return what uses something taught."""

    @abstractmethod
    def _inherit(self, one: Any, before: Any) -> None:
        """Take over what is known from what used a state before it was taught more."""

    @abstractmethod
    def _discard(self, one: Any, reason: str) -> None:
        """Publish that nothing is known any more."""

    @abstractmethod
    def _describe(self, one: Any) -> dict[str, Any]: ...

    def _check(self, lesson: Lesson) -> None:
        check_lesson(lesson)

    def _why_silent(self, one: Any) -> str:
        """Return why a state has no value; empty: no reason is known."""
        taught = one.taught
        if not self._is_current(taught):
            if taught.name not in self._stale:
                self._stale.add(taught.name)
                log.warning(
                    "stream %s: state %s was taught with another model: teach it again", self._stream, taught.name
                )
            return "taught with another model or variant: teach it again"
        return one.missing(self.values_min) if one.head is None else ""

    def _check_room(self, lesson: Lesson) -> None:
        known = self._heads.get(lesson.state)
        if known is None:
            if len(self._heads) >= STATES_MAX:
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
        seen = self._perception
        if not seen.has_features or taught.size != seen.embedding_size:
            return False
        return (taught.model, taught.variant) == (seen.model.sha256, seen.answered_by[1])

    def _region(self, lesson: Lesson) -> Box:
        """Return the region of a lesson, which may be that of its state."""
        known = self._heads.get(lesson.state)
        return lesson.region or (known.taught.region if known else WHOLE)

    def _add_example(self, course: Course, rows: Floats, at_ns: int) -> None:
        """Add the embeddings [variations, size] of an example, and learn from all after the last one."""
        course.newest_ns, course.begun_s = at_ns, time.monotonic() - self.delay_s
        course.taken.append(rows)
        if len(course.taken) == course.lesson.examples:
            model, variant = self._perception.model.sha256, self._perception.answered_by[1]
            base = TaughtState(course.lesson.state, self._region(course.lesson), model, variant, rows.shape[1])
            work = threading.Thread(
                target=self._learn, args=(course, base), name=f"teach-{self._stream}", daemon=True
            )
            work.start()

    def _learn(self, course: Course, base: TaughtState) -> None:
        """Learn from the examples of a lesson, write them, and use what was learned."""
        lesson = course.lesson
        try:
            known = self._heads.get(lesson.state)
            taught = (base if known is None else self._read(known)).with_examples(lesson.value, course.taken)
            opened, result = self._open(taught), self._result(taught)
            _check_kept(known, taught)
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
            if known is not None:
                self._inherit(opened, known)
            self._heads[lesson.state] = opened
            self._stale.discard(lesson.state)
        log.info("stream %s: state %s has learned %r", self._stream, lesson.state, lesson.value)
        self._end(course, result, "")

    def _head_of(self, taught: TaughtState) -> Head | None:
        """Return what tells the values of a state apart; None: too few are taught, or with quite another model.

        Raises:
            ValueError: see `TaughtState.learned`.
        """
        taught.check()
        seen = self._perception
        fits = seen.has_features and taught.size == seen.embedding_size
        return taught.learned(self._learn_head, self.values_min) if fits else None

    def _result(self, taught: TaughtState) -> dict[str, Any]:
        """Return the number of examples by value, and how each was told by the others."""
        result: dict[str, Any] = {"examples": {value: len(some) for value, some in taught.examples.items()}}
        if taught.learned(self._learn_head, self.values_min) is None:
            return result
        found = leave_one_out(taught.ready(), self._learn_head)
        return result | {"check": {value: msgspec.to_builtins(one) for value, one in found.items()}}

    def _end(self, course: Course, result: dict[str, Any] | None, why: str) -> None:
        with self._lock:
            if self._course is not course:
                return
            self._course = None
        course.done(result, why)

    def _read(self, one: Any) -> TaughtState:
        """Return a state with its examples; without any if its file is gone. Raises StorageError."""
        file = self._file(one.taught.name)
        try:
            return from_json(content, TaughtState) if (content := file.read()) else one.taught
        except NO_JSON as error:
            raise StorageError(f"{file.path}: is damaged: {error}") from error

    def _file(self, state: str) -> StateFile:
        return StateFile(self._folder / f"{self._stream}.{state}.json")


def _check_kept(known: TaughtHead | None, taught: TaughtState) -> None:
    """Raise ValueError if there is no room for enough examples of each value."""
    for value, count in (known.counts if known else {}).items():
        if count >= EXAMPLES_MIN > len(taught.examples.get(value, ())):
            raise ValueError(f"{taught.name} has no room for another value: forget one, or teach another state")


def read_states(folder: Path, stream: str, use: Callable[[TaughtState], Any]) -> dict[str, Any]:
    """Return what `use` makes of each taught state of a stream, by name; a damaged file is set aside."""
    found = {}
    for path in sorted(folder.glob(f"{stream}.*.json")):
        try:
            taught = read_state(path)
            found[taught.name] = use(taught)
        except (StorageError, ValueError) as error:
            aside = StateFile(path).set_aside(keep_name=False)
            reason = str(error).removeprefix(f"{path}: ")
            log.error("stream %s: a taught state is lost: %s: %s; see %s", stream, path, reason, aside)
    return found
