"""Recordings of what a device published, replayed through a fused event, and situations that were written down.

A recording has a JSON object in each line: messages as `vedette watch --json` or `vedette events export` write
them, and texts as `{"text": "help", "source": "gate", "at": "2026-11-28T11:14:32Z"}`. Everything else is skipped.
Times are UTC in ns since 1970.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from agent.errors import NO_JSON, ConfigError, reason_of
from agent.features.fusion.expression import Term
from agent.features.fusion.rules import Evidence, Fusion, text_evidence
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
        if len(cells) < 2 or end < begin:
            raise ConfigError("expected beginning and end, two times of ISO 8601 such as 2026-11-28T11:14:30Z",
                              f"{path}:{number}")  # fmt: skip
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
    in_order = sorted(events)
    found = sum(_overlaps(span, in_order) for span in widened)
    precision = right / len(events) if events else 0.0
    recall = found / len(truth) if truth else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return FusionScore(len(events), len(truth), right, found, precision, recall, f1)


def _overlaps(span: Span, others: Sequence[Span]) -> bool:
    """Return True if a span shares an instant with one of others, sorted by their beginnings."""
    until = bisect_left(others, (span[1] + 1, span[0]))
    return any(end >= span[0] for _, end in others[:until][::-1])
