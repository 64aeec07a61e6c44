"""Evaluate a model of words: which are heard, which are missed, and how often one is heard in vain.

Every recording is heard with the threshold in use, which gives its figures exactly as the daemon would, and once
more without any event, which would end a word before its mean is highest: that gives the curve over all others,
on which a threshold is chosen for a rate of false alarms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from agent.compute.manifest import Model
from agent.errors import ModelError
from agent.optimise.evaluate import change, share_score
from agent.optimise.evaluation.listening import (
    THRESHOLDS,
    HeardRecording,
    JudgedSound,
    RatePoint,
    judge,
    open_listener,
    point_for_alarms,
    poisson_interval,
    rate_point,
)
from agent.optimise.evaluation.model import ModelComparison
from agent.optimise.evaluation.operating import NOTHING, Confusion, WrongAnswer, confusions, worst
from agent.optimise.evaluation.sound_data import Recording, SoundExamples

OTHER = "other sound"
_NEVER = 1.0
"""A threshold that no mean exceeds."""


class SoundEvaluation(Struct, frozen=True):
    """How good a model of words is on recordings.

    Attributes:
        model, sha256: name and hash of the file.
        data: where the recordings came from, in a line.
        count, hours: number of words that are said; length of the other sound, h.
        value: share of the words whose first event is of the right word, 0..1.
        interval: Wilson's, of 95 %.
        in_use: rates at the threshold in use.
        at_target: at the threshold for the false alarms that are asked for; None: not asked, or not reached.
        curve: rates by rising threshold: the detection error trade-off.
        words: rates at the threshold in use, by word.
        confusions: what is most often taken for another word.
        wrong: the worst errors: events in vain, surest first, then words that were missed.
        against: comparison with another model; None: there is none.
        remarks: doubts.
    """

    model: str
    sha256: str
    data: str
    count: int
    hours: float
    value: float
    interval: tuple[float, float]
    in_use: RatePoint
    at_target: RatePoint | None
    curve: tuple[RatePoint, ...]
    words: dict[str, RatePoint]
    confusions: tuple[Confusion, ...]
    wrong: tuple[WrongAnswer, ...]
    against: ModelComparison | None = None
    remarks: tuple[str, ...] = ()


class _Heard(NamedTuple):
    """All recordings as one model heard them at one threshold."""

    threshold: float
    results: tuple[HeardRecording, ...]
    judged: tuple[JudgedSound, ...]


def evaluate_sounds(
    model: Model,
    examples: SoundExamples,
    variant: str = "",
    target: float | None = None,
    other: Model | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> SoundEvaluation:
    """Evaluate a model of words, and compare it with another one on the same recordings.

    Args:
        model: to evaluate.
        examples: recordings, as they are read for it.
        variant: size or exit of the model; empty: as in a stream.
        target: most false alarms per hour; None: no threshold is chosen.
        other: tells the same words; None: nothing is compared.
        progress: called with what is heard, and how far.

    Raises:
        ModelError: a model cannot be run, or the other tells other words.
        SourceError: a recording cannot be read.
    """
    hearing = _Hearing(examples, progress)
    first = hearing.hear(model, variant, None, "threshold in use")
    curve = tuple(_curve(examples, hearing.hear(model, variant, _NEVER, "all thresholds")))
    found = _evaluation(model, examples, first, curve)
    found = replace(found, remarks=(*examples.remarks, *_answered_by(model, variant, first)))
    if target is not None:
        if not examples.hours:
            raise ModelError("a rate of false alarms needs other sound: give a folder of it by --background")
        remarks = (*found.remarks, *_too_short(examples.hours, target))
        found = replace(found, at_target=point_for_alarms(curve, target), remarks=remarks)
    if other is not None:
        found = replace(
            found, against=_compared(other, examples, first, hearing.hear(other, "", None, other.path))
        )
    return found


class _Hearing(NamedTuple):
    """The recordings, and where progress is shown."""

    examples: SoundExamples
    progress: Callable[[str], None]

    def hear(self, model: Model, variant: str, threshold: float | None, what: str) -> _Heard:
        """Hear all recordings at a threshold; None: that of the manifest."""
        examples, results = self.examples, list[HeardRecording]()
        done_s, whole_s = 0.0, sum(one.seconds for one in examples.recordings)

        def show(seconds: float) -> None:
            self.progress(f"{what}: {(done_s + seconds) / 60:.1f} of {whole_s / 60:.1f} minutes heard")

        with open_listener(model, variant, threshold) as listener:
            if set(listener.words) != set(examples.words):
                told = f"{', '.join(listener.words[:8])}, and the model {', '.join(examples.words[:8])}"
                raise ModelError(f"{model.path}: tells {told}: they cannot be compared")
            for one in examples.recordings:
                results.append(listener.hear(one, show))
                done_s += one.seconds
            judged = (
                judge(one.said, heard.events) for one, heard in zip(examples.recordings, results, strict=True)
            )
            return _Heard(listener.threshold, tuple(results), tuple(judged))


def _curve(examples: SoundExamples, heard: _Heard) -> Iterator[RatePoint]:
    for place, threshold in enumerate(THRESHOLDS):
        points = [one.curve[place] for one in heard.results]
        yield rate_point(
            threshold,
            examples.count,
            sum(heard for heard, _ in points),
            sum(false for one, (_, false) in zip(examples.recordings, points, strict=True) if one.counts_time),
            examples.hours,
        )


def _words(examples: SoundExamples, heard: _Heard) -> dict[str, RatePoint]:
    """Return the rates of each word at the threshold that was heard."""
    said, hits, alarms = Counter[str](), Counter[str](), Counter[str]()
    for one, judged in _pairs(examples, heard):
        said.update(each.label for each in one.said)
        hits.update(each.label for each, is_heard in zip(one.said, judged.heard, strict=True) if is_heard)
        alarms.update(each.label for each in judged.false if one.counts_time)
    return {
        word: rate_point(heard.threshold, said[word], hits[word], alarms[word], examples.hours)
        for word in examples.words
    }


def _point(examples: SoundExamples, heard: _Heard) -> RatePoint:
    """Return the rates of all words."""
    words = _words(examples, heard).values()
    missed, alarms = sum(one.missed for one in words), sum(one.alarms for one in words)
    return rate_point(heard.threshold, examples.count, examples.count - missed, alarms, examples.hours)


def _pairs(examples: SoundExamples, heard: _Heard) -> Iterator[tuple[Recording, JudgedSound]]:
    return zip(examples.recordings, heard.judged, strict=True)


def _evaluation(
    model: Model,
    examples: SoundExamples,
    heard: _Heard,
    curve: tuple[RatePoint, ...],
) -> SoundEvaluation:
    score = share_score("top-1", np.array(list(_right(examples, heard)), bool))
    assert score.interval is not None
    in_use = _point(examples, heard)
    return SoundEvaluation(
        model.manifest.name or model.path,
        model.sha256[:12],
        examples.description,
        examples.count,
        examples.hours,
        score.value,
        score.interval,
        in_use,
        None,
        curve,
        _words(examples, heard),
        confusions(_answers(examples, heard)),
        worst(_wrong(examples, heard)),
    )


def _too_short(hours: float, target: float) -> Iterator[str]:
    if hours > 0 and (least := poisson_interval(0)[1] / hours) > target:
        yield (
            f"{hours:.2f} h of other sound cannot show {target:g} false alarms an hour: with none at all, up to "
            f"{least:.1f} an hour are possible; give {poisson_interval(0)[1] / max(target, 1e-6):.2g} h"
        )


def _answered_by(model: Model, variant: str, heard: _Heard) -> Iterator[str]:
    """Yield a line of how many answers each exit of a cascade gave."""
    used = Counter[str]()
    for one in heard.results:
        used.update(one.exits)
    exits = [one.name for one in model.manifest.exits(variant)]
    if exits and (count := used.total()):
        told = ", ".join(f"exit {name}: {used[name] / count:.1%}" for name in exits)
        yield f"windows of sound answered by {told}"


def _right(examples: SoundExamples, heard: _Heard) -> Iterator[bool]:
    for one, judged in _pairs(examples, heard):
        for said, told in zip(one.said, judged.told, strict=True):
            yield told == said.label


def _answers(examples: SoundExamples, heard: _Heard) -> Iterator[tuple[str, str]]:
    """Yield what is said, or that it is other sound, and what was told."""
    for one, judged in _pairs(examples, heard):
        yield from ((said.label, told or NOTHING) for said, told in zip(one.said, judged.told, strict=True))
        yield from ((OTHER, each.label) for each in judged.false if one.counts_time)


def _wrong(examples: SoundExamples, heard: _Heard) -> Iterator[WrongAnswer]:
    for one, judged in _pairs(examples, heard):
        for event in judged.false:
            truth = next((s.label for s in one.said if s.start_s <= event.at_s <= s.end_s), OTHER)
            yield WrongAnswer(one.name, truth, event.label, event.score, event.at_s)
        for said, is_heard, told in zip(one.said, judged.heard, judged.told, strict=True):
            if not is_heard and not told:
                yield WrongAnswer(one.name, said.label, NOTHING, 0.0, said.start_s)


def _compared(other: Model, examples: SoundExamples, first: _Heard, second: _Heard) -> ModelComparison:
    scores = [share_score("top-1", np.array(list(_right(examples, one)), bool)) for one in (first, second)]
    by = change(scores[1], scores[0])
    name = other.manifest.name or other.path
    return ModelComparison(name, scores[1].value, by.value, by.interval)


def missed_alarm_target(found: SoundEvaluation, target: float | None) -> str:
    """Return how near a target came that no threshold reaches; empty: it is reached, or none is set."""
    if target is None or found.at_target is not None:
        return ""
    least = min(one.alarms_per_hour or 0.0 for one in found.curve)
    return f"no threshold has {target:g} false alarms an hour or fewer; the least is {least:.3g}"
