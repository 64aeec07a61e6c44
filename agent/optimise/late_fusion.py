"""Recordings of what a device published, replayed through a fused event, and situations that were written down.

A recording has a JSON object in each line: messages as `vedette watch --json` or `vedette events export` write
them, and texts as `{"text": "help", "source": "gate", "at": "2026-11-28T11:14:32Z"}`. Everything else is skipped.
Times are UTC in ns since 1970.

Calibrates the log-odds of a fused event on a labelled recording.

The recording is cut into stretches: each situation with the window behind it, and the time between situations in
pieces of the window's length. Two windows behind each situation are left out: what belongs to it may still count
there. Of each stretch the moment with the most evidence counts, as at run time. The weights are those of a
logistic regression with a penalty on their squares; a negative weight of a score is set to 0 and the others are
fitted again. What is reported is of stretches that were held out, a fifth at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.errors import NO_JSON, ConfigError, reason_of
from agent.features.fusion.expression import FusionCalibration, Judgement, Reading, Term, TermWeights, logit
from agent.features.fusion.rules import Evidence, Fusion, FusionTimes, text_evidence
from agent.optimise.logistic import Floats, calibration_error, fit, held_out
from agent.structs import convert, from_json
from agent.types import Event, EventKind, Track

Span = tuple[int, int]
"""Beginning and end of a situation, ns."""
_THERE = ("running", "degraded")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_END_NS = 1_000_000_000


class Recorded(Struct, frozen=True):
    """What became known at one instant: evidence, or which sources are there and away."""

    at_ns: int
    evidence: Evidence | None = None
    present: dict[str, bool] = {}


class _Told(Struct, frozen=True):
    stream: str
    kind: EventKind
    track: Track
    captured_at: datetime


class _Stream(Struct, frozen=True):
    state: str


class _Health(Struct, frozen=True):
    at: datetime
    streams: dict[str, _Stream]


class _Said(Struct, frozen=True):
    text: str
    source: str
    at: datetime


def to_ns(moment: datetime) -> int:
    """Return a time as ns since 1970. Raises ConfigError for one without its offset from UTC."""
    if moment.tzinfo is None:
        raise ConfigError(f"{moment.isoformat()}: expected a time with its offset from UTC, such as …Z")
    return round((moment - _EPOCH).total_seconds() * 1e6) * 1000


def to_moment(ns: int) -> datetime:
    """Return ns since 1970 as a time."""
    return datetime.fromtimestamp(ns // 1_000_000_000, UTC).replace(microsecond=ns // 1000 % 1_000_000)


def read_recording(path: Path, terms: Sequence[Term]) -> list[Recorded]:
    """Read a recording, as far as it concerns some terms; in the order of capture.

    What does not is left out, but for the first and the last instant, so that these are the recording's.

    Raises:
        ConfigError: the file cannot be read, a line is no JSON object, or nothing in it concerns the terms.
    """
    found: list[Recorded] = []
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            try:
                found += _recorded(from_json(line, dict[str, Any]), terms)
            except NO_JSON:
                raise ConfigError("expected a JSON object in each line", f"{path}:{number}") from None
    if not any(one.evidence for one in found):
        raise ConfigError("holds nothing that the rule asks for", str(path))
    found.sort(key=lambda one: one.at_ns)
    ends = (0, len(found) - 1)
    return [one for number, one in enumerate(found) if one.evidence or one.present or number in ends]


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise ConfigError(f"cannot be read: {reason_of(error)}", str(path)) from error


def _recorded(line: dict[str, Any], terms: Sequence[Term]) -> Iterator[Recorded]:
    body = line.get("payload", line)
    for read in (_of_event, _of_text, _of_health):
        with suppress(msgspec.ValidationError):
            yield from read(body, terms)
            return


def _of_event(body: Any, terms: Sequence[Term]) -> Iterator[Recorded]:
    told = convert(body, _Told)
    at_ns, event = to_ns(told.captured_at), Event(told.kind, told.track, "")
    if not any(told.stream in term.sources for term in terms):
        yield Recorded(at_ns)
        return
    first_ns = to_ns(told.track.first_seen)
    yield Recorded(at_ns, Evidence.of_event(told.stream, event, min(first_ns, at_ns), at_ns))


def _of_text(body: Any, terms: Sequence[Term]) -> Iterator[Recorded]:
    said = convert(body, _Said)
    at_ns = to_ns(said.at)
    for evidence in text_evidence(terms, said.source, said.text, at_ns):
        yield Recorded(at_ns, evidence)


def _of_health(body: Any, terms: Sequence[Term]) -> Iterator[Recorded]:
    health = convert(body, _Health)
    yield Recorded(to_ns(health.at), None, {name: one.state in _THERE for name, one in health.streams.items()})


def read_truth(path: Path) -> list[Span]:
    """Read the situations that were written down: a CSV with a beginning and an end in each line.

    Raises:
        ConfigError: it cannot be read, or a line is not two times of ISO 8601, the later one last.
    """
    spans = []
    for number, line in enumerate(_lines(path), 1):
        cells = line.decode("utf-8", "replace").strip().split(",")
        if cells == [""] or (number == 1 and not cells[0][:1].isdigit()):  # a line of names
            continue
        try:
            begin, end = (to_ns(datetime.fromisoformat(cell.strip())) for cell in cells[:2])
        except (ValueError, ConfigError):
            begin, end = 1, 0
        if end < begin:
            expected = "expected beginning and end, two times of ISO 8601 such as 2026-11-28T11:14:30Z"
            raise ConfigError(expected, f"{path}:{number}")
        spans.append((begin, end))
    if not spans:
        raise ConfigError("holds no situation", str(path))
    return sorted(spans)


def within(truth: Iterable[Span], recorded: Sequence[Recorded]) -> list[Span]:
    """Return the situations that share an instant with a recording, whose order is that of capture."""
    first, last = recorded[0].at_ns, recorded[-1].at_ns
    return [(begin, end) for begin, end in truth if end >= first and begin <= last]


def replay(
    recorded: Iterable[Recorded], fusion: Fusion, ticks: Iterable[int] = ()
) -> Iterator[tuple[int, Event | None]]:
    """Replay a recording through a new fused event as the daemon would, to its end.

    Sources are there from the beginning on, until the recording says that they are not.

    Args:
        recorded: in the order of arrival.
        fusion: new.
        ticks: further instants to stop at, sorted.

    Yields:
        each instant at which something may have changed, with an event or None; `fusion.readings` may be asked
        there.
    """
    stops: list[tuple[int, Recorded | None]] = [(one.at_ns, one) for one in recorded]
    stops = sorted([*stops, *((tick, None) for tick in ticks)], key=lambda stop: stop[0])
    if not stops:
        return
    for source in fusion.sources:
        fusion.set_away(source, stops[0][0] - fusion.times.window - 1, away=False)
    for at_ns, one in stops:
        yield from _poll_until(fusion, at_ns)
        if one is not None:
            _apply(fusion, one)
        yield from _poll(fusion, at_ns)
    times = fusion.times
    end_ns = stops[-1][0] + times.window + times.hold + 2 * times.late + _END_NS
    yield from _poll_until(fusion, end_ns)
    yield from ((end_ns, event) for event in fusion.finish(end_ns, to_moment(end_ns), "ended"))


def _apply(fusion: Fusion, one: Recorded) -> None:
    if one.evidence is not None:
        fusion.add(one.evidence)
    for source, is_there in one.present.items():
        fusion.set_away(source, one.at_ns, away=not is_there)


def _poll_until(fusion: Fusion, at_ns: int) -> Iterator[tuple[int, Event | None]]:
    while (due_ns := fusion.next_due_ns) is not None and due_ns < at_ns:
        yield from _poll(fusion, due_ns)


def _poll(fusion: Fusion, at_ns: int) -> Iterator[tuple[int, Event | None]]:
    events = fusion.poll(at_ns, to_moment(at_ns))
    yield from ((at_ns, event) for event in events)
    yield at_ns, None


class FusionScore(Struct, frozen=True):
    """How well fused events tell of situations.

    Attributes:
        events, situations: number of both.
        right: events during a situation.
        found: situations with an event.
        precision, recall, f1: 0..1.
    """

    events: int
    situations: int
    right: int
    found: int
    precision: float
    recall: float
    f1: float


def score_events(events: Sequence[Span], truth: Sequence[Span], window_ns: int) -> FusionScore:
    """Judge events by situations: they fit if they overlap, `window_ns` after the situation's end included."""
    widened = [(begin, end + window_ns) for begin, end in truth]
    right = sum(_overlaps(event, widened) for event in events)
    found = sum(_overlaps(span, events) for span in widened)
    precision = right / len(events) if events else 0.0
    recall = found / len(truth) if truth else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return FusionScore(len(events), len(truth), right, found, precision, recall, f1)


def _overlaps(span: Span, others: Iterable[Span]) -> bool:
    """Return True if a span shares an instant with one of others."""
    return any(begin <= span[1] and end >= span[0] for begin, end in others)


SITUATIONS_MIN = 20
"""Situations, and as many stretches with some evidence and without a situation, that weights are fitted on."""
PER_TERM = 3
"""Features of one term: absent, present, and the logit of the score."""
_GUARD = 2
"""Windows behind a situation that are left out."""
_PENALTY = 0.5


def features(readings: Sequence[Reading]) -> list[float]:
    """Return the features of a moment, `PER_TERM` for each term; all are 0 where nothing is known."""
    made: list[float] = []
    for one in readings:
        is_absent = one.known and not one.present
        made += (float(is_absent), float(one.present), logit(one.score) if one.present else 0.0)
    return made


class _Watched:
    """A condition that is never true: its terms are only read."""

    is_monotone = True

    def __init__(self, terms: Sequence[Term]) -> None:
        self.terms = terms

    def judge(self, readings: Sequence[Reading]) -> Judgement:
        return Judgement(False, 0.0)


def stretches(
    recorded: Sequence[Recorded], truth: Sequence[Span], terms: Sequence[Term], times: FusionTimes
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the features of every stretch, [n, terms × `PER_TERM`], and if it is a situation, [n].

    Situations outside the recording are left out.
    """
    first, last = recorded[0].at_ns, recorded[-1].at_ns + times.window
    spans = list(_spans(within(truth, recorded), first, last, times.window))
    ticks = sorted({(begin + end) // 2 for begin, end, _ in spans})
    best: list[tuple[float, list[float]]] = [(-1.0, [])] * len(spans)
    fusion, number = Fusion("", _Watched(terms), times), 0
    for at_ns, _ in replay(recorded, fusion, ticks):
        while number < len(spans) - 1 and at_ns > spans[number][1]:
            number += 1
        if spans[number][0] <= at_ns <= spans[number][1]:
            readings = fusion.readings(at_ns)
            amount = sum(one.present + one.score for one in readings)
            if amount > best[number][0]:
                best[number] = amount, features(readings)
    kept = [(made, is_one) for (amount, made), (_, _, is_one) in zip(best, spans, strict=True) if amount >= 0]
    return np.array([made for made, _ in kept]), np.array([is_one for _, is_one in kept])


def _spans(truth: Sequence[Span], first: int, last: int, window: int) -> Iterator[tuple[int, int, bool]]:
    """Yield stretches in order: beginning, end, and if it is a situation."""
    at = first
    for begin, end in truth:
        yield from _between(at, begin - 1, window)
        if end + window >= at:
            yield max(at, begin), end + window, True
        at = max(at, end + (1 + _GUARD) * window + 1)
    yield from _between(at, last, window)


def _between(begin: int, end: int, window: int) -> Iterator[tuple[int, int, bool]]:
    while begin < end:
        yield begin, min(end, begin + window), False
        begin += window + 1


def calibrate(
    recorded: Sequence[Recorded], truth: Sequence[Span], terms: Sequence[Term], times: FusionTimes
) -> FusionCalibration:
    """Fit the weights of terms on a recording.

    Args:
        recorded: in the order of capture.
        truth: situations, sorted.
        terms: that give evidence.
        times: of the fused event.

    Raises:
        ConfigError: there are too few situations, or too few stretches with evidence and without a situation.
    """
    x, y = _checked_stretches(recorded, truth, terms, times)
    inputs = np.concatenate((np.ones((len(x), 1)), x), axis=1)
    weights = _fit(inputs, y)
    told = held_out(inputs, np.arange(len(y)), lambda rows: _fit(inputs[rows], y[rows]))
    fitted = tuple(
        TermWeights(term.text, *(round(float(value), 4) for value in weights[1 + PER_TERM * number :][:PER_TERM]))
        for number, term in enumerate(terms)
    )
    return FusionCalibration(
        fitted,
        round(float(weights[0]), 4),
        times.window / 1e9,
        int(y.sum()),
        len(y),
        round(log_loss(told, y), 4),
        round(calibration_error(told, y), 4),
    )


def _checked_stretches(
    recorded: Sequence[Recorded], truth: Sequence[Span], terms: Sequence[Term], times: FusionTimes
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return `stretches`, of which there are enough. Raises ConfigError as `calibrate` does."""
    x, y = stretches(recorded, truth, terms, times)
    similar = int((x[~y][:, 1::PER_TERM].sum(1) > 0).sum()) if len(x) else 0
    for count, what in ((int(y.sum()), "situations"), (similar, "stretches with evidence but no situation")):
        if count < SITUATIONS_MIN:
            raise ConfigError(f"expected at least {SITUATIONS_MIN} {what}; found {count}")
    return x, y


def _fit(inputs: Floats, y: NDArray[np.bool_]) -> Floats:
    """Return the intercept and the weights, [1 + features]; weights of scores are not negative."""
    size = inputs.shape[1]
    used, penalty = np.ones(size), np.array([1e-6, *([_PENALTY] * (size - 1))])
    while True:
        found = fit(inputs * used, y.astype(np.float64), penalty, np.zeros(size))
        wrong = (found < 0) & (used > 0) & (np.arange(size) % PER_TERM == 0)
        wrong[0] = False  # the intercept
        if not wrong.any():
            return found
        used[wrong] = 0.0


def log_loss(probabilities: Floats, y: NDArray[np.bool_]) -> float:
    """Return the mean logarithmic loss, nats."""
    bounded = np.clip(probabilities, 1e-9, 1.0 - 1e-9)
    return float(-np.where(y, np.log(bounded), np.log(1.0 - bounded)).mean())
