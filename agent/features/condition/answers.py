"""Answers of a camera's model that drift over days, or that never change.

A lens gets dirty, a web grows, a lamp is replaced, a file was quantised badly: all goes on, and less is found,
with less certainty. Each day is compared with the days before, because a day has all of a place's lights and
habits. A day has `LEAST` tracks, or goes on for another day.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import NamedTuple

import cv2
import numpy as np
from msgspec import Struct

from agent.types import Array, Event, Image

DAY_S = 24 * 3600.0
LEAST = 20
"""Tracks that a day needs."""
KNOWN, KEPT = 7, 28
"""Days after which the usual is known: a week has all days of one; and most days that are kept."""
_SURE = (0.01, 0.02)
"""Least standard deviation of the mean score, and of the share of other labels: few days are alike by chance."""
_ODD, _MOST = 1.25, 3.0
"""Standard deviations that a day may differ by without being suspect, and most that count of one day."""
_LIMIT, _FULL, _AGAIN = 6.0, 9.0, 3.0
"""Sum of what exceeds that from which the answers have drifted, its most, and below which they are as before: a
few odd days are holidays. Source of the method: Page, Continuous Inspection Schemes, Biometrika 41 (1954)."""
_UNUSUAL = 2.0
"""Standard deviations from which a day teaches nothing."""
_LABELS_MAX, _TOLD = 64, 3
"""Most labels of a day that are counted apart, and of those that are told."""


class Day(Struct, frozen=True):
    """Tracks of a day by their label: number, and sum of their best scores."""

    labels: dict[str, int]
    scores: dict[str, float]


class DriftMemory(Struct, frozen=True):
    """What was learned, as it is written to a file.

    Attributes:
        model: whose answers they are.
        days: of before, the oldest first.
        today: the present day so far.
        passed_s: its length so far, s.
        sums: of what made the newest days suspect, for scores and for labels.
        drifted: what has drifted, in words; empty: nothing.
    """

    model: str = ""
    days: tuple[Day, ...] = ()
    today: Day = Day({}, {})
    passed_s: float = 0.0
    sums: tuple[float, float] = (0.0, 0.0)
    drifted: str = ""


class AnswerDrift:
    """Compares the tracks of each day with those of the days before. For one thread, but for `accept`.

    Attributes:
        drifted: what has drifted, in words; empty: nothing.
    """

    def __init__(self, model: str, memory: DriftMemory | None = None) -> None:
        """Start with what was learned of this model, if anything. `model` identifies it and its settings."""
        self._model, self._accepts = model, False
        self._before_ns: int | None = None
        known = memory if memory is not None and memory.model == model else DriftMemory()
        self._days, self._passed_s = known.days, known.passed_s
        self._labels, self._scores = Counter(known.today.labels), dict(known.today.scores)
        self._sums, self.drifted = known.sums, known.drifted

    def add(self, events: Sequence[Event]) -> None:
        """Add the tracks that have ended."""
        for event in events:
            if event.kind == "end":
                label = event.track.label
                if label not in self._labels and len(self._labels) >= _LABELS_MAX:
                    label = "…"
                self._labels[label] += 1
                score = min(1.0, max(0.0, event.track.best_score))
                self._scores[label] = self._scores.get(label, 0.0) + score

    def pass_time(self, now_ns: int) -> None:
        """Let time pass, ns, and judge the day when it is over."""
        if self._accepts:
            self._accepts, self._days, self._sums, self.drifted = False, (), (0.0, 0.0), ""
        passed_s = 0.0 if self._before_ns is None else (now_ns - self._before_ns) / 1e9
        self._before_ns = now_ns
        before, self._passed_s = self._passed_s // DAY_S, self._passed_s + min(DAY_S, max(0.0, passed_s))
        if self._passed_s // DAY_S > before and self._labels.total() >= LEAST:
            day = Day(dict(self._labels), self._scores)
            self._labels, self._scores, self._passed_s = Counter(), {}, 0.0
            self._judge(day)

    def accept(self) -> None:
        """Learn anew what is usual, from now on. Any thread may call this."""
        self._accepts = True

    def remember(self) -> DriftMemory:
        """Return what was learned."""
        today = Day(dict(self._labels), dict(self._scores))
        return DriftMemory(self._model, self._days, today, round(self._passed_s, 3), self._sums, self.drifted)

    def _judge(self, day: Day) -> None:
        odd = compare(day, self._days) if len(self._days) >= KNOWN else Odd(0.0, 0.0)
        scores, labels = self._sums = (_add(self._sums[0], odd.scores), _add(self._sums[1], odd.labels))
        limit = _AGAIN if self.drifted else _LIMIT
        texts = [describe_scores(day, self._days)] if scores >= limit else []
        texts += [describe_labels(day, self._days)] if labels >= limit else []
        self.drifted = "; ".join(texts)
        if max(odd) < _UNUSUAL and not self.drifted:
            self._days = (*self._days, day)[-KEPT:]


def _add(total: float, odd: float) -> float:
    return min(_FULL, max(0.0, total + min(_MOST, odd) - _ODD))


class Odd(NamedTuple):
    """By how many standard deviations of the days before a day has lower scores, and more of other labels."""

    scores: float
    labels: float


def compare(day: Day, before: Sequence[Day]) -> Odd:
    """Compare a day with two or more before."""
    others = (_pooled([*before[:at], *before[at + 1 :]]) for at in range(len(before)))
    usual = zip(*(_signs(one, rest) for one, rest in zip(before, others, strict=True)), strict=True)
    growth = sqrt(1.0 + 1.0 / len(before))  # of the deviation of a new value from a mean
    return Odd(
        *(
            (now - fmean(known)) / (max(least, stdev(known)) * growth)
            for now, known, least in zip(_signs(day, _pooled(before)), usual, _SURE, strict=True)
        )
    )


def _signs(day: Day, usual: Day) -> tuple[float, float]:
    """Return by how much a day's scores are lower than the usual ones, and the share that has other labels."""
    return -_gain(day, usual), difference(_shares(day), _shares(usual))


def describe_scores(day: Day, before: Sequence[Day]) -> str:
    """Return the mean score of a day in words, and what it would be by the days before."""
    score = sum(day.scores.values()) / sum(day.labels.values())
    return f"scores {score:.2f} instead of {score - _gain(day, _pooled(before)):.2f}"


def describe_labels(day: Day, before: Sequence[Day]) -> str:
    """Return in words which labels have become more or less frequent than in the days before."""
    shares, usual = _shares(day), _shares(_pooled(before))
    changes = {label: shares.get(label, 0.0) - usual.get(label, 0.0) for label in {**usual, **shares}}
    worst = sorted(changes, key=lambda label: (-round(abs(changes[label]), 2), -changes[label]))[:_TOLD]
    return ", ".join(
        f"{label[:40]} {shares.get(label, 0):.0%} instead of {usual.get(label, 0):.0%}" for label in worst
    )


def _pooled(days: Sequence[Day]) -> Day:
    labels, scores = Counter[str](), dict[str, float]()
    for day in days:
        labels.update(day.labels)
        for label, score in day.scores.items():
            scores[label] = scores.get(label, 0.0) + score
    return Day(labels, scores)


def _gain(day: Day, usual: Day) -> float:
    """Return by how much the scores of a day are higher than the usual ones of its labels, on average.

    A label that is not usual is left out: that it is there is told by the labels.
    """
    known = {label: count for label, count in day.labels.items() if usual.labels.get(label, 0) > 0}
    gains = (
        day.scores[label] - count * usual.scores[label] / usual.labels[label] for label, count in known.items()
    )
    return sum(gains) / max(1, sum(known.values()))


def _shares(day: Day) -> dict[str, float]:
    total = sum(day.labels.values())
    return {label: count / total for label, count in day.labels.items()}


def difference(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Return the total variation distance of two distributions, 0..1: the share that has other labels."""
    return sum(abs(one.get(label, 0.0) - other.get(label, 0.0)) for label in {**one, **other}) / 2.0


_CHECK_S = 2.0
"""Time between two checks, s."""
_NUMBERS = 64
"""Least numbers of an answer: those of a model that tells two classes may be the same for long."""
_PICTURES, _SPAN_S = 8, 20.0
"""Pictures, unlike the first, with one answer, and the time that they take, until the answer is constant."""
_LEVELS, _SHARE = 12, 0.005
"""Pictures differ if so many grey levels change in such a share of their pixels."""


class ConstantAnswer:
    """Compares the answers of one model with its pictures. For one thread.

    `active` is True while it gives one answer to different pictures.
    """

    def __init__(self) -> None:
        self.active = False
        self._next_ns = -(1 << 62)
        self._answer: tuple[int, ...] = ()
        self._began_ns, self._different = 0, 0

    def update(self, now_ns: int, outputs: Callable[[], Sequence[Array]], view: Callable[[], Image]) -> None:
        """Add the answer `outputs` to the picture that `view` returns, small and grey, if one is due."""
        if 0 < self._next_ns - now_ns <= _CHECK_S * 1e9:
            return
        self._next_ns = now_ns + round(_CHECK_S * 1e9)
        found = outputs()
        if sum(one.size for one in found) < _NUMBERS:
            return
        picture = view()
        answer = (*picture.shape, *(zlib.crc32(np.ascontiguousarray(one).data.cast("B")) for one in found))
        if answer != self._answer:
            self._answer, self._first, self._began_ns = answer, picture.copy(), now_ns
            self._different, self.active = 0, False
            return
        changed = np.count_nonzero(cv2.absdiff(picture, self._first) > _LEVELS)
        self._different += bool(changed >= _SHARE * picture.size)
        self.active = self._different >= _PICTURES and now_ns - self._began_ns >= _SPAN_S * 1e9
