"""Rates of a model of words at any threshold: words missed, and false alarms per hour. Pure.

The detection error trade-off (Martin et al., The DET curve in assessment of detection task performance,
Eurospeech 1997) of a spotter needs its events at each threshold. They are found from the means that it compares
with its threshold, kept while it heard the sound once: `replay` gives what `KeywordSpotter` would.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.optimise.evaluate import wilson
from agent.optimise.evaluation.sound_data import SpokenWord

AFTER_S = 1.0
"""How long after a word its event may come, s: the window must hold it, and means lag."""
THRESHOLDS = (
    *(round(number / 100, 2) for number in range(1, 100)),
    *(round(1.0 - 10.0 ** (-2.0 - number / 10), 5) for number in range(1, 21)),
)
"""Thresholds of the curve."""
_RELEASE = 0.5
"""Share of the threshold to which a mean must fall before another event of its word, as in `KeywordSpotter`."""
_TAIL = 0.025


class SpotterAnswers(NamedTuple):
    """Values that a spotter compared with its threshold, an inference a row.

    Attributes:
        means: float32 [n, classes].
        full: whether the mean is of as many answers as it needs, [n].
        at_ns: time of each inference's last sample, int64 [n].
        refused: whether the verification refuses the most probable word, [n]; None: there is no verification.
    """

    means: NDArray[np.float32]
    full: NDArray[np.bool_]
    at_ns: NDArray[np.int64]
    refused: NDArray[np.bool_] | None = None


class HeardWord(Struct, frozen=True):
    """An event.

    Attributes:
        label: of the word.
        at_s: time from the beginning of the recording, s.
        score: mean of the answers, 0..1.
    """

    label: str
    at_s: float
    score: float


def replay(
    answers: SpotterAnswers, threshold: float, words: Collection[int], refractory_ns: int
) -> list[tuple[int, int]]:
    """Return the events that a `KeywordSpotter` gives for these answers: row and number of the label.

    Args:
        answers: of one stream.
        threshold: that a mean must exceed.
        words: numbers of the labels that give events.
        refractory_ns: least time between two events of a word.
    """
    if not len(answers.means):
        return []
    best = answers.means.argmax(axis=1)
    strongest = answers.means.max(axis=1)
    may = answers.full if answers.refused is None else answers.full & ~answers.refused
    rows = np.flatnonzero(may & (strongest > threshold) & np.isin(best, list(words)))
    order = np.arange(len(best))
    newest: dict[int, int] = {}
    fell: dict[int, NDArray[np.intp]] = {}
    events = []
    for row in rows.tolist():
        label = int(best[row])
        if label not in fell:
            is_low = answers.means[:, label] <= threshold * _RELEASE
            fell[label] = np.maximum.accumulate(np.where(is_low, order, -1))
        before = newest.get(label)
        if before is not None:
            soon = answers.at_ns[row] - answers.at_ns[before] < refractory_ns
            if soon or fell[label][row] <= before:
                continue
        newest[label] = row
        events.append((row, label))
    return events


class JudgedSound(NamedTuple):
    """Events of a recording, compared with its words.

    Attributes:
        heard: for each word that is said, whether it is heard.
        told: the first event in the time of each word; empty: there is none.
        false: events that are of no word that is said there. A second event of a word that was heard is none.
    """

    heard: tuple[bool, ...]
    told: tuple[str, ...]
    false: tuple[HeardWord, ...]


def judge(said: Sequence[SpokenWord], events: Iterable[HeardWord]) -> JudgedSound:
    """Compare events with the words that are said: each hears one word at most, the first that it can.

    Args:
        said: words, sorted by their beginning.
        events: in their order.
    """
    heard, told = [False] * len(said), [""] * len(said)
    false = []
    for event in events:
        near = [place for place, one in enumerate(said) if one.start_s <= event.at_s <= one.end_s + AFTER_S]
        own = [place for place in near if said[place].label == event.label]
        hit = next((place for place in own if not heard[place]), None)
        for place in near if hit is None else (hit,):
            told[place] = told[place] or event.label
        if hit is not None:
            heard[hit] = True
        elif not own:
            false.append(event)
    return JudgedSound(tuple(heard), tuple(told), tuple(false))


class CurvePoint(Struct, frozen=True, omit_defaults=True):
    """Counts at one threshold, in one recording or in all, by word.

    Attributes:
        heard: words that are said and heard.
        alarms: false alarms.
    """

    heard: dict[str, int] = {}
    alarms: dict[str, int] = {}


def curve_point(said: Sequence[SpokenWord], events: Iterable[HeardWord]) -> CurvePoint:
    """Return what events give in a recording."""
    found = judge(said, events)
    heard = Counter(one.label for one, is_heard in zip(said, found.heard, strict=True) if is_heard)
    return CurvePoint(dict(heard), dict(Counter(one.label for one in found.false)))


class RatePoint(Struct, frozen=True):
    """An operating point. Intervals are of 95 %.

    Attributes:
        threshold: that a mean must exceed.
        said, missed: numbers of words.
        reject_rate: share of words that are missed.
        reject_interval: Wilson's.
        alarms: number of false alarms.
        alarms_per_hour: of other sound; None: there is none.
        alarms_interval: Poisson's.
    """

    threshold: float
    said: int
    missed: int
    reject_rate: float
    reject_interval: tuple[float, float]
    alarms: int
    alarms_per_hour: float | None
    alarms_interval: tuple[float, float] | None


def rate_point(threshold: float, said: int, heard: int, alarms: int, hours: float) -> RatePoint:
    """Return the rates of a threshold.

    Args:
        threshold: see `RatePoint`.
        said: number of words, at least 1.
        heard: of them.
        alarms: number of false alarms in the other sound.
        hours: length of the other sound.
    """
    missed = said - heard
    per_hour, interval = None, None
    if hours > 0:
        low, high = poisson_interval(alarms)
        per_hour, interval = alarms / hours, (low / hours, high / hours)
    return RatePoint(threshold, said, missed, missed / said, wilson(missed, said), alarms, per_hour, interval)


def threshold_for_alarms(points: Sequence[RatePoint], target: float) -> float | None:
    """Return the threshold that misses fewest words with at most so many false alarms an hour.

    No higher one may have more of them. Of several that miss as few it is the highest, which is the safest.

    Args:
        points: in rising order of their thresholds.
        target: false alarms per hour.

    Returns:
        None: no threshold is high enough, or the rate is not known.
    """
    found: RatePoint | None = None
    for point in reversed(points):
        if point.alarms_per_hour is None or point.alarms_per_hour > target:
            break
        if found is None or point.missed < found.missed:
            found = point
    return None if found is None else found.threshold


def poisson_interval(count: int) -> tuple[float, float]:
    """Return the interval of 95 % of the mean of a Poisson distribution that gave a count.

    Exact: Garwood, Fiducial limits for the Poisson distribution, Biometrika 1936.
    """
    low = 0.0 if count == 0 else _solve(count - 1, 1.0 - _TAIL)
    return low, _solve(count, _TAIL)


def _solve(count: int, probability: float) -> float:
    """Return the mean at which at most `count` have this probability, by bisection."""
    low, high = 0.0, count + 10.0 * math.sqrt(count + 1.0) + 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(count, middle) > probability else (low, middle)
    return (low + high) / 2


def _at_most(count: int, mean: float) -> float:
    """Return the probability of at most `count` events."""
    if mean <= 0.0:
        return 1.0
    numbers = np.arange(1, count + 1)
    logs = np.concatenate([[0.0], np.cumsum(math.log(mean) - np.log(numbers))]) - mean
    most = float(logs.max())
    return float(np.exp(logs - most).sum() * math.exp(most))
