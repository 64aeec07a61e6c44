"""Taught words of one stream: an utterance that is one for sure gives a keyword event."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from agent.compute.listening import WordHead
from agent.compute.states import UNSURE, Floats, Head, StateAnswer
from agent.errors import CommandError
from agent.features.teaching.lessons import Course, TaughtHead, Teaching
from agent.features.teaching.taught import Lesson, TaughtState
from agent.types import AudioChunk, Event, StageTimes, StreamResult, Track

if TYPE_CHECKING:
    from agent.compute.listening import HeardUtterance, UtterancePerception


class _Words(TaughtHead):
    """Taught words in use."""

    def __init__(self, taught: TaughtState, head: Head | None) -> None:
        super().__init__(taught, head)
        self.newest: Track | None = None


class StreamWords(Teaching):
    """Taught words of one stream. Its perception gives embeddings of utterances."""

    values_min = 1
    noun = "word"
    delay_s = 0.4  # an utterance comes so late after its end
    _perception: UtterancePerception
    _heads: dict[str, _Words]

    def process(self, item: AudioChunk, result: StreamResult) -> None:
        self.poll(time.monotonic_ns())
        self.hear(self._perception.utterances, item.captured_at, result.stages)

    def idle(self, events: Sequence[Event], *, lost: bool) -> None:
        self.poll(time.monotonic_ns())

    def end(self, events: Sequence[Event], reason: str) -> None:
        if utterances := self._perception.utterances:
            self.hear(utterances, utterances[-1].ended, StageTimes())
        self.finish(reason)

    def hear(self, utterances: Sequence[HeardUtterance], now: datetime, stages: StageTimes) -> None:
        """Report the words among utterances that have ended; while a lesson goes on they are its examples.

        Args:
            utterances: in the order in which they were heard.
            now: UTC of capture of the newest sound.
            stages: time that was spent on it.
        """
        for one in utterances:
            with self._lock:
                course = self._course
                if course is None:
                    self._recognise(one, now, stages)
            if course is not None:
                self._take_example(course, one)

    def _learn_head(self, examples: Mapping[str, Floats]) -> WordHead:
        return WordHead(examples)

    def _open(self, taught: TaughtState) -> _Words:
        return _Words(taught, self._head_of(taught))

    def _inherit(self, one: _Words, before: _Words) -> None:
        one.newest = before.newest

    def _discard(self, one: _Words, reason: str) -> None:
        one.newest = None

    def _describe(self, one: _Words) -> dict[str, Any]:
        newest = one.newest
        return {
            "value": None if newest is None else newest.label,
            "score": 0.0 if newest is None else newest.score,
            "examples": one.counts,
            "detail": self._why_silent(one) or one.missing(self.values_min),
        }

    def _check(self, lesson: Lesson) -> None:
        super()._check(lesson)
        if lesson.region is not None:
            raise CommandError("region: is of a picture, and this stream has sound; leave it out")

    def _take_example(self, course: Course, heard: HeardUtterance) -> None:
        if time.monotonic() - course.begun_s >= self.delay_s and len(course.taken) < course.lesson.examples:
            self._add_example(course, heard.embedding[None], heard.ended_ns)

    def _recognise(self, heard: HeardUtterance, now: datetime, stages: StageTimes) -> None:
        """Report the word that fits best, if one is sure."""
        found: list[tuple[StateAnswer, _Words]] = []
        for one in self._heads.values():
            if isinstance(one.head, WordHead) and not self._why_silent(one):
                answer = one.head.classify(heard.embedding, self._perception.least)
                if answer.value != UNSURE:
                    found.append((answer, one))
        if not found:
            return
        answer, words = max(found, key=lambda pair: pair[0].score)
        self._number += 1
        score = round(answer.score, 4)
        word = Track(f"{self._prefix}{self._number}", answer.value, score, score, 1, heard.began, heard.ended)
        words.newest = word
        self._reporter.events([Event("keyword", word, "word")], now, stages, *self._perception.answered_by)
