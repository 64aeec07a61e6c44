"""Inspection of parts: triggers and judged pictures in, one verdict for each part out. No devices and no clock.

A trigger opens a part. Each picture that is captured after its delay, up to the number of views, is judged:

    a defect of at least `ng_score`             ng, and no more pictures are needed
    a weaker one                                unsure
    `ok_labels`, and none of at least ok_score  unsure
    the part touches the edge of the picture    unsure
    else                                        ok

A part is ok if all its views are. What is not judged by its deadline, or before the window of the next part
opens, is unsure.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct

from agent.comms.messages import PartVerdict
from agent.config.features import InspectionConfig
from agent.types import WHOLE, Box, Detection, Verdict

GOOD, BETWEEN, NOT_FOUND, HALF = "good", "between", "not found", "half in view"
FEW, NONE, OVERTAKEN, LATE = "too few pictures", "no picture", "overtaken", "late"
OPEN_MAX = 64
"""Most parts between trigger and verdict."""
_EDGE = 0.005
"""A box touches an edge within this distance, as a share of the side."""


class ViewJudgement(Struct, frozen=True):
    """Judgement of a part by one picture.

    Attributes:
        verdict, reason, score: see `PartVerdict`.
        detections: what the model found.
    """

    verdict: Verdict
    reason: str
    score: float
    detections: tuple[Detection, ...]


def judge_view(
    detections: Sequence[Detection], config: InspectionConfig, *, is_cut: bool = False
) -> ViewJudgement:
    """Judge a part by one picture.

    Args:
        detections: what the model found in it, above its own threshold.
        config: labels and scores.
        is_cut: the part is known to reach out of the picture.
    """
    defects = [one for one in detections if is_defect(one.label, config)]
    good = [one for one in detections if one.label in config.ok_labels]
    worst = max(defects, key=lambda one: one.score, default=None)
    best = max(good, key=lambda one: one.score, default=None)
    score = worst.score if worst else 0.0
    is_cut = is_cut or (best is not None and touches_edge(best.box, config.crop))

    def judged(verdict: Verdict, reason: str) -> ViewJudgement:
        return ViewJudgement(verdict, reason, score, tuple(detections))

    if worst is not None:
        return judged("ng", worst.label) if score >= config.ng_score else judged("unsure", BETWEEN)
    if is_cut:
        return judged("unsure", HALF)
    if config.ok_labels and (best is None or best.score < config.ok_score):
        return judged("unsure", NOT_FOUND if best is None else BETWEEN)
    return judged("ok", GOOD)


def is_defect(label: str, config: InspectionConfig) -> bool:
    """Return True if a label counts as a defect."""
    return label in config.ng_labels if config.ng_labels else label not in config.ok_labels


def touches_edge(box: Box | None, within: Box = WHOLE) -> bool:
    """Return True if a box touches an edge of the part of the picture that the model was shown."""
    if box is None:
        return False
    width, height = within[2] - within[0], within[3] - within[1]
    near = (
        box[0] - within[0] < _EDGE * width,
        box[1] - within[1] < _EDGE * height,
        within[2] - box[2] < _EDGE * width,
        within[3] - box[3] < _EDGE * height,
    )
    return any(near)


class _Part:
    """A part whose verdict is not known yet; times in ns, see `Inspector.trigger`."""

    def __init__(self, key: int, part: str, opens_ns: int, due_ns: int, at: datetime) -> None:
        self.key, self.part, self.opens_ns, self.due_ns, self.at = key, part, opens_ns, due_ns, at
        self.next_ns = opens_ns
        self.views: list[ViewJudgement] = []


class ClosedPart(Struct, frozen=True):
    """A part with its verdict.

    Attributes:
        key: of its trigger.
        verdict: what is published.
        triggered_ns: CLOCK_MONOTONIC of its trigger, ns.
    """

    key: int
    verdict: PartVerdict
    triggered_ns: int


class Inspector:
    """Opens, judges and closes the parts of one stream. For one thread.

    Parts are judged in the order in which their windows open.
    """

    def __init__(self, config: InspectionConfig) -> None:
        self._config = config
        self._delay_ns, self._every_ns, self._deadline_ns = (
            round(seconds * 1e9) for seconds in (config.delay_s, config.view_every_s, config.deadline_s)
        )
        self._open: list[_Part] = []

    def trigger(self, key: int, part: str, captured_ns: int, now_ns: int, at: datetime) -> list[ClosedPart]:
        """Open a part; return those that had to be closed for it, since too many are open.

        Args:
            key: of the trigger, unique; ids of parts need not be.
            part: its id.
            captured_ns: time of the trigger on the clock of the pictures, ns.
            now_ns: the same time on CLOCK_MONOTONIC, ns; another one only in a replay.
            at: UTC of the trigger.
        """
        closed = [self._close(self._open[0])] if len(self._open) >= OPEN_MAX else []
        self._open.append(_Part(key, part, captured_ns + self._delay_ns, now_ns + self._deadline_ns, at))
        self._open.sort(key=lambda one: one.opens_ns)
        return closed

    def overtaken(self, captured_ns: int) -> list[ClosedPart]:
        """Close the parts that a picture can no longer show, since the window of a later one has opened."""
        closed = []
        while len(self._open) > 1 and self._open[1].opens_ns <= captured_ns:
            closed.append(self._close(self._open[0], OVERTAKEN))
        return closed

    def wants(self, captured_ns: int) -> bool:
        """Return True if a picture shows the first open part, and has to be judged."""
        return bool(self._open) and self._open[0].next_ns <= captured_ns

    def add(self, captured_ns: int, now_ns: int, view: ViewJudgement) -> ClosedPart | None:
        """Add a judged picture to the first open part; return the part if that closes it.

        Args:
            captured_ns: of the picture, on its own clock, ns.
            now_ns: CLOCK_MONOTONIC when it was judged, ns.
            view: what it says.
        """
        part = self._open[0]
        part.views.append(view)
        part.next_ns = captured_ns + max(1, self._every_ns)
        if now_ns >= part.due_ns:
            return self._close(part, LATE)
        if view.verdict != "ng" and len(part.views) < self._config.views:
            return None
        return self._close(part)

    def due(self, now_ns: int) -> list[ClosedPart]:
        """Close the parts whose deadline has passed on CLOCK_MONOTONIC."""
        return [self._close(part) for part in self._open[:] if part.due_ns <= now_ns]

    def finish(self, reason: str) -> list[ClosedPart]:
        """Close all parts."""
        return [self._close(part, reason) for part in self._open[:]]

    @property
    def next_due_ns(self) -> int | None:
        """CLOCK_MONOTONIC of the next deadline, ns; None: no part is open."""
        return min((part.due_ns for part in self._open), default=None)

    def _close(self, part: _Part, why: str = "") -> ClosedPart:
        """Conclude on a part; `why` it is closed before all its views counts if they say nothing against it."""
        self._open.remove(part)
        doubts = [view for view in part.views if view.verdict == "unsure"]
        defects = [view for view in part.views if view.verdict == "ng"]
        missing = len(part.views) < self._config.views
        decisive = next(iter((*defects, *doubts, *part.views[-1:])), None)
        verdict, reason = (decisive.verdict, decisive.reason) if decisive else ("unsure", why or NONE)
        if verdict == "ok" and (missing or why):
            verdict, reason = "unsure", why or FEW
        score = max((view.score for view in part.views), default=0.0)
        found = decisive.detections if decisive else ()
        closed = PartVerdict(part.part, verdict, reason, score, len(part.views), part.at, found)
        return ClosedPart(part.key, closed, part.due_ns - self._deadline_ns)


class Counters(Struct, frozen=True):
    """Counts of parts since the first start.

    Attributes:
        ok, ng, unsure: parts by verdict.
        rejected: parts for which the reject output was told to act.
        reasons: parts that were not ok, by the reason of their verdict, at most 64 reasons.
        last: verdict on the newest part; None: there was none.
    """

    ok: int = 0
    ng: int = 0
    unsure: int = 0
    rejected: int = 0
    reasons: dict[str, int] = {}
    last: Verdict | None = None


_REASONS_MAX = 64


def counted(counters: Counters, verdict: PartVerdict) -> Counters:
    """Return the counters with one more part."""
    more = {name: getattr(counters, name) + (verdict.verdict == name) for name in ("ok", "ng", "unsure")}
    reasons, why = dict(counters.reasons), verdict.reason
    if verdict.verdict != "ok" and (why in reasons or len(reasons) < _REASONS_MAX):
        reasons[why] = reasons.get(why, 0) + 1
    rejected = counters.rejected + verdict.rejected
    return Counters(**more, rejected=rejected, reasons=reasons, last=verdict.verdict)
