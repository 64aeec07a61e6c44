"""Fusion: joins evidence of cameras, microphones and texts in a time window into one event. Time is handed in.

A piece of evidence lasts from its beginning to its end, and counts for `window_s` longer. A fused event begins at
the first instant at which its condition is true, and lasts until the condition has been false for `hold_s`.

Evidence may come late and in any order. What is older than `late_s` is settled, and an event ends only by what is
settled. A condition that more evidence can only make true is judged at once; one with a `not`, which late
evidence might refute, `late_s` later. So the order of arrival changes nothing, if an event lasts through gaps of
`late_s` at least. Evidence that comes later still counts from the settled time on.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol

from msgspec import Struct
from msgspec.structs import replace

from agent.features.fusion.expression import Judgement, Reading, Term, phrases_in, plain_words
from agent.types import Event, FusedEvidence, Track

PIECES_MAX = 256
"""Pieces of evidence that are kept for one fused event."""
SHOWN_MAX = 16
"""Pieces of evidence in one message."""
_LOST_MAX = 64
"""Outages of one source that are kept."""
_CLEARER = 0.1
"""Increase of the score since the newest message that gives an update."""
_NEVER = 1 << 62


class Evidence(Struct, frozen=True):
    """A track, a keyword or words of a text.

    Attributes:
        source: name of the stream or the text input.
        label: of the track or keyword; of a text, the words that were asked for.
        score: highest so far, 0..1.
        key: same for all news of one piece.
        from_ns: beginning, CLOCK_MONOTONIC.
        to_ns: end; None: it goes on.
        track: id of its track; empty: it has none.
    """

    source: str
    label: str
    score: float
    key: str
    from_ns: int
    to_ns: int | None
    track: str = ""

    @staticmethod
    def of_event(stream: str, event: Event, from_ns: int, at_ns: int) -> Evidence:
        """Return what a stream's event says.

        Args:
            stream: its name.
            event: of a track or a keyword.
            from_ns: when its track was first seen.
            at_ns: when the event was captured; a track is taken to be there until its `end` is.
        """
        goes_on, track = event.kind in ("new", "update"), event.track
        to_ns = None if goes_on else max(from_ns, at_ns)
        return Evidence(stream, track.label, track.best_score, f"{stream}/{track.id}", from_ns, to_ns, track.id)

    @staticmethod
    def of_words(source: str, words: str, at_ns: int) -> Evidence:
        """Return what words of a text say; `words` as `plain_words` returns them."""
        return Evidence(source, words, 1.0, f"{source}/{at_ns}/{words}", at_ns, at_ns)


def text_evidence(terms: Sequence[Term], source: str, text: str, at_ns: int) -> Iterator[Evidence]:
    """Yield the evidence of a text that was said at an instant for the terms of a condition."""
    labels = dict.fromkeys(term.label for term in terms if source in term.sources)
    for label in phrases_in(text, labels):
        yield Evidence.of_words(source, label, at_ns)


class Condition(Protocol):
    """Condition of a fused event: `Rule` or `LogOdds`.

    Attributes:
        terms: that it reads.
        is_monotone: more evidence never makes it false.
    """

    @property
    def terms(self) -> Sequence[Term]: ...

    @property
    def is_monotone(self) -> bool: ...

    def judge(self, readings: Sequence[Reading]) -> Judgement: ...


class FusionTimes(Struct, frozen=True):
    """Times of one fused event, ns.

    Attributes:
        window: for which evidence counts after its end.
        late: by which evidence may come late.
        hold: for which the condition must be false until the event ends; at least `late`.
        update: least time between two updates.
    """

    window: int
    late: int
    hold: int
    update: int

    @staticmethod
    def of_seconds(window: float, late: float, hold: float, update: float) -> FusionTimes:
        """Return times that are given in seconds."""
        return FusionTimes(*(round(one * 1e9) for one in (window, late, max(hold, late), update)))


class _Piece:
    """Evidence as known now, and the numbers of the terms that it serves."""

    __slots__ = ("end_ns", "evidence", "terms")

    def __init__(self, evidence: Evidence, terms: tuple[int, ...], window_ns: int) -> None:
        self.evidence, self.terms = evidence, terms
        self.end_ns = _NEVER if evidence.to_ns is None else evidence.to_ns + window_ns

    def merged(self, other: Evidence) -> Evidence:
        """Join news of the same piece; their order does not matter."""
        one = self.evidence
        ends = [end for end in (one.to_ns, other.to_ns) if end is not None]
        return Evidence(
            one.source,
            one.label,
            max(one.score, other.score),
            one.key,
            min(one.from_ns, other.from_ns),
            max(ends, default=None),
            one.track or other.track,
        )


class _Span(NamedTuple):
    """A time for which the condition is true, its highest score, and the pieces that count in it."""

    from_ns: int
    to_ns: int
    score: float
    pieces: dict[str, _Piece]


class _Open:
    """The event that goes on. `shown` and `shown_score` are of the newest message, at `shown_ns`.

    `began` is the UTC of its beginning as the first message told it: late evidence does not change it.
    """

    def __init__(self, name: str, span: _Span, now_ns: int) -> None:
        self.id, self.from_ns, self.to_ns = name, span.from_ns, span.to_ns
        self.began: datetime | None = None
        self.score = self.best = span.score
        self.pieces = dict(span.pieces)
        self.mark_shown(now_ns)

    def extend(self, span: _Span) -> None:
        self.from_ns = min(self.from_ns, span.from_ns)
        self.to_ns = max(self.to_ns, span.to_ns)
        self.score, self.best = span.score, max(self.best, span.score)
        self.pieces |= span.pieces
        while len(self.pieces) > PIECES_MAX:
            del self.pieces[next(iter(self.pieces))]

    def mark_shown(self, now_ns: int) -> None:
        self.shown, self.shown_score, self.shown_ns = set(self.pieces), self.best, now_ns

    @property
    def change(self) -> str:
        """Return what has changed since the newest message; empty: nothing worth one."""
        if not self.pieces.keys() <= self.shown:
            return "evidence"
        return "clearer" if self.best >= self.shown_score + _CLEARER else ""


class Fusion:
    """One fused event. For one thread.

    Attributes:
        name: label of its events.
        condition, times: that it was made with.
        events: number of events since the start.
    """

    def __init__(self, name: str, condition: Condition, times: FusionTimes, *, run: str = "") -> None:
        """Start without evidence, and with every source away, see `set_away`.

        Ids of events begin with `name` and `run`, unique over restarts.
        """
        self.name, self.condition, self.times = name, condition, times
        self._prefix = f"{name}-{run or secrets.token_hex(4)}-"
        self.events = 0
        self._terms: dict[tuple[str, str], tuple[int, ...]] = {}
        for number, term in enumerate(condition.terms):
            for source in term.sources:
                key = source, term.label
                self._terms[key] = (*self._terms.get(key, ()), number)
        self.sources = tuple(dict.fromkeys(source for term in condition.terms for source in term.sources))
        self._away: dict[str, list[tuple[int, int]]] = {source: [(-_NEVER, _NEVER)] for source in self.sources}
        self._pieces: dict[str, _Piece] = {}
        self._settled_ns: int | None = None
        self._unjudged_ns = _NEVER  # since when something has changed that the newest `poll` did not know
        self._judged_ns = -_NEVER  # until when the newest `poll` has judged
        self._open: _Open | None = None
        self.next_due_ns: int | None = None

    @property
    def is_on(self) -> bool:
        """True while an event goes on."""
        return self._open is not None

    @property
    def away(self) -> tuple[str, ...]:
        """Sources that are away now."""
        return tuple(source for source, spans in self._away.items() if spans and spans[-1][1] == _NEVER)

    def add(self, evidence: Evidence) -> bool:
        """Add evidence, or news of a piece that is known; return True if it counts."""
        terms = self._terms.get((evidence.source, plain_words(evidence.label)))
        known = self._pieces.get(evidence.key)
        if terms is None and known is None:
            return False
        if known is None or evidence.from_ns < known.evidence.from_ns:
            self._unjudged_ns = min(self._unjudged_ns, evidence.from_ns)
        if known is not None:
            terms, evidence = known.terms, known.merged(evidence)
            self._unjudged_ns = min(self._unjudged_ns, known.end_ns)  # it may count for longer than that
        assert terms is not None
        self._keep(evidence, terms)
        if len(self._pieces) > PIECES_MAX:
            self._make_room()
        return True

    def _make_room(self) -> None:
        """Drop a piece of the kind that there are most of: a flood of one must not displace the others."""
        count = Counter(piece.terms for piece in self._pieces.values())
        most = max(count, key=lambda terms: count[terms])
        of_it = [key for key, piece in self._pieces.items() if piece.terms == most]
        del self._pieces[min(of_it, key=lambda key: self._pieces[key].end_ns)]

    def set_away(self, source: str, at_ns: int, *, away: bool) -> None:
        """Record that a source is away from an instant on, or back. What it saw until then has ended."""
        if source not in self._away or (source in self.away) is away:
            return
        spans = self._away[source]
        if not away:
            spans[-1] = (spans[-1][0], at_ns)
            return
        spans.append((at_ns, _NEVER))
        del spans[:-_LOST_MAX]
        for piece in list(self._pieces.values()):
            if piece.evidence.source == source and piece.evidence.to_ns is None:
                self._keep(replace(piece.evidence, to_ns=at_ns), piece.terms)

    def _keep(self, evidence: Evidence, terms: tuple[int, ...]) -> None:
        piece = self._pieces[evidence.key] = _Piece(evidence, terms, self.times.window)
        if self._open is not None and evidence.key in self._open.pieces:
            self._open.pieces[evidence.key] = piece

    def poll(self, now_ns: int, now: datetime) -> list[Event]:
        """Return the events that are due. Call after `add` and `set_away`, and at `next_due_ns`.

        Args:
            now_ns: CLOCK_MONOTONIC; never before that of an earlier call.
            now: UTC of the same instant.
        """
        settling_ns = now_ns - self.times.late - 1  # what is late by `late` exactly still comes in time
        if self._settled_ns is None:
            self._settled_ns = settling_ns
        horizon_ns = max(self._settled_ns, now_ns if self.condition.is_monotone else settling_ns)
        begin_ns = max(self._settled_ns, min(self._judged_ns, self._unjudged_ns))
        self._judged_ns, self._unjudged_ns = horizon_ns, _NEVER
        events: list[Event] = []
        for span in self._spans(begin_ns, horizon_ns):
            events += self._extend(span, settling_ns, now_ns, now)
        events += self._end_if_over(settling_ns, now_ns, now)
        events += self._update_if_due(now_ns, now)
        self._settled_ns = max(self._settled_ns, settling_ns)
        self._forget()
        self.next_due_ns = self._next_due(horizon_ns, now_ns)
        return events

    def finish(self, now_ns: int, now: datetime, reason: str) -> list[Event]:
        """End the event that goes on, if any."""
        going, self._open = self._open, None
        return [] if going is None else [self._event("end", going, reason, now_ns, now)]

    def readings(self, at_ns: int) -> list[Reading]:
        """Return the readings of the terms at one instant, from what is known of it now."""
        return self._readings(self._pieces_at(at_ns), at_ns)

    def _extend(self, span: _Span, settling_ns: int, now_ns: int, now: datetime) -> Iterator[Event]:
        """Add a span to the event that goes on, or begin one. A later event waits until this one is over."""
        going = self._open
        if going is not None and span.from_ns <= going.to_ns + self.times.hold + 1:
            going.extend(span)
            return
        yield from self._end_if_over(settling_ns, now_ns, now)
        if self._open is not None:
            self._unjudged_ns = min(self._unjudged_ns, span.from_ns)
        else:
            self.events += 1
            going = self._open = _Open(f"{self._prefix}{self.events}", span, now_ns)
            yield self._event("new", going, "appeared", now_ns, now)

    def _end_if_over(self, settling_ns: int, now_ns: int, now: datetime) -> Iterator[Event]:
        going = self._open
        if going is not None and settling_ns > going.to_ns + self.times.hold:
            yield from self.finish(now_ns, now, "ended")

    def _update_if_due(self, now_ns: int, now: datetime) -> Iterator[Event]:
        going = self._open
        if going is not None and now_ns - going.shown_ns >= self.times.update and (change := going.change):
            going.mark_shown(now_ns)
            yield self._event("update", going, change, now_ns, now)

    def _event(self, kind: str, going: _Open, reason: str, now_ns: int, now: datetime) -> Event:
        def at(ns: int) -> datetime:
            return now - timedelta(microseconds=(now_ns - min(ns, now_ns)) // 1000)

        began = going.began = going.began or at(going.from_ns)
        pieces = sorted(going.pieces.values(), key=lambda piece: -piece.evidence.from_ns)
        evidence = tuple(_shown(piece.evidence, now_ns) for piece in pieces[:SHOWN_MAX])
        track = Track(
            going.id,
            self.name,
            round(going.score, 4),
            round(going.best, 4),
            len(going.pieces),
            began,
            max(began, at(going.to_ns)),
            evidence=evidence,
        )
        return Event("new" if kind == "new" else "update" if kind == "update" else "end", track, reason)

    def _spans(self, from_ns: int, to_ns: int) -> Iterator[_Span]:
        """Yield the times between two instants for which the condition is true, in order.

        Between two instants at which evidence begins or ceases to count, nothing changes.
        """
        points = sorted({from_ns, *(point for point in self._points() if from_ns < point <= to_ns)})
        span: _Span | None = None
        for point, after in zip(points, [*points[1:], to_ns + 1], strict=True):
            pieces = self._pieces_at(point)
            truth, score = self.condition.judge(self._readings(pieces, point))
            if not truth or not pieces:
                if span is not None:
                    yield span
                span = None
            elif span is None:
                span = _Span(point, after - 1, score, {piece.evidence.key: piece for piece in pieces})
            else:
                pieces_by_key = span.pieces | {piece.evidence.key: piece for piece in pieces}
                span = _Span(span.from_ns, after - 1, max(span.score, score), pieces_by_key)
        if span is not None:
            yield span

    def _points(self) -> Iterator[int]:
        """Yield the instants at which a reading may change."""
        window = self.times.window
        for piece in self._pieces.values():
            yield piece.evidence.from_ns
            yield piece.end_ns + 1
        if not self.condition.is_monotone:  # what is unknown is as good as false otherwise
            for spans in self._away.values():
                for begin, end in spans:
                    yield begin
                    yield end + window + 1

    def _pieces_at(self, at_ns: int) -> list[_Piece]:
        return [piece for piece in self._pieces.values() if piece.evidence.from_ns <= at_ns <= piece.end_ns]

    def _readings(self, pieces: Sequence[_Piece], at_ns: int) -> list[Reading]:
        scores: dict[int, float] = {}
        for piece in pieces:
            for number in piece.terms:
                scores[number] = max(scores.get(number, 0.0), piece.evidence.score)
        window = self.times.window
        away = {
            source
            for source, spans in self._away.items()
            if any(begin <= at_ns and at_ns - window <= end for begin, end in spans)
        }
        return [
            Reading(number in scores, away.isdisjoint(term.sources), scores.get(number, 0.0))
            for number, term in enumerate(self.condition.terms)
        ]

    def _forget(self) -> None:
        """Drop what cannot count any more."""
        assert self._settled_ns is not None
        settled = self._settled_ns
        self._pieces = {key: piece for key, piece in self._pieces.items() if piece.end_ns >= settled}
        for source, spans in self._away.items():
            self._away[source] = [span for span in spans if span[1] >= settled - self.times.window]

    def _next_due(self, horizon_ns: int, now_ns: int) -> int | None:
        """Return when time alone may change something; None: never."""
        lag = now_ns - horizon_ns
        dues = [point + lag for point in self._points() if horizon_ns < point < _NEVER // 2]
        if (going := self._open) is not None:
            if going.to_ns < horizon_ns:  # else it is true still, and ends after one of the points
                dues.append(going.to_ns + self.times.hold + self.times.late + 2)
            if going.change:
                dues.append(going.shown_ns + self.times.update)
        later = [due for due in dues if due > now_ns]
        return min(later, default=None)


def _shown(evidence: Evidence, now_ns: int) -> FusedEvidence:
    age_s = None if evidence.to_ns is None else round(max(0.0, (now_ns - evidence.to_ns) / 1e9), 3)
    score = evidence.score if math.isfinite(evidence.score) else 0.0
    return FusedEvidence(evidence.source, evidence.label, round(score, 4), evidence.track, age_s)
