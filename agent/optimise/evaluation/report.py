"""Reports of evaluations: lines and tables as text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from agent.optimise.evaluation.listening import RatePoint, point_for_alarms
from agent.optimise.evaluation.model import Evaluation, ModelComparison, Positive
from agent.optimise.evaluation.operating import Confusion, OperatingPoint, WrongAnswer
from agent.optimise.evaluation.sound import SoundEvaluation
from agent.text import plural

_CURVE_RATES = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
"""False alarms per hour whose rows of the curve are shown."""


class EvaluationTable(NamedTuple):
    """A table.

    Attributes:
        title: in a few words.
        columns: their names.
        right: those whose cells are right-aligned.
        rows: of cells.
    """

    title: str
    columns: tuple[str, ...]
    right: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


class EvaluationReport(NamedTuple):
    """What is shown of an evaluation: lines, of which empty ones are left out, and tables below them."""

    lines: Sequence[str]
    tables: Sequence[EvaluationTable]


def percent(value: float | None) -> str:
    """Return a share as text, such as `98.7 %`; empty for None."""
    return "" if value is None else f"{value * 100:.1f} %"


def span(interval: tuple[float, float] | None) -> str:
    """Return an interval of shares as text, such as `97.1 to 99.4 %`; empty for None."""
    return "" if interval is None else f"{interval[0] * 100:.1f} to {interval[1] * 100:.1f} %"


def picture_report(found: Evaluation) -> EvaluationReport:
    """Return the report on a model of pictures."""
    more = "".join(f", {name} {percent(value)}" for name, value in found.details.items())
    between = f" ({span(found.interval)})" if found.interval else ""
    told = f"{found.metric} {percent(found.value)}{between}{more} on {plural(found.count, 'example')}"
    lines = [f"{found.model}: {told}", _comparison(found.metric, found.against), found.data, *found.remarks]
    return EvaluationReport(lines, list(_picture_tables(found)))


def _comparison(metric: str, one: ModelComparison | None) -> str:
    """Return the comparison by a metric in a line; empty without one."""
    if one is None:
        return ""
    told = f"{metric} of {one.model} {percent(one.value)}: {one.difference * 100:+.1f} percentage points"
    if one.interval is None:
        return told
    low, high = (edge * 100 for edge in one.interval)
    return f"{told}, {low:+.1f} to {high:+.1f}: {'not ' if low <= 0 <= high else ''}significant"


def _picture_tables(found: Evaluation) -> Iterator[EvaluationTable]:
    shown = ("class", "count", "recall", "95 %", "precision", "AP")
    has_ap = any(one.ap is not None for one in found.classes)
    columns = shown if has_ap else shown[:-1]
    rows = [
        (
            one.name,
            str(one.count),
            percent(one.recall),
            span(one.recall_interval),
            percent(one.precision),
            percent(one.ap),
        )[: len(columns)]
        for one in found.classes
        if one.count
    ]
    yield EvaluationTable("by class", columns, columns[1:], rows)
    points = [row for one in found.positives for row in _threshold_rows(one)]
    if points:
        alarms = "false a picture" if found.metric == "AP" else "false alarms"
        names = ("to find", "at", "threshold", "recall", "95 %", alarms, "precision", "missed")
        yield EvaluationTable("operating points", names, names[2:], points)
    yield from _errors(found.confusions, found.wrong, "example")


def _threshold_rows(one: Positive) -> Iterator[tuple[str, ...]]:
    points = {"manifest": one.at_manifest, "target": one.at_target}
    for name, point in points.items():
        if point is not None:
            yield (", ".join(one.names), name, *_threshold_cells(point, of_boxes=one.auroc is None))


def _threshold_cells(point: OperatingPoint, *, of_boxes: bool) -> tuple[str, ...]:
    alarms = f"{point.false_alarms:.3g}" if of_boxes else percent(point.false_alarms)
    recall = percent(point.recall), span(point.recall_interval)
    return _floored(point.threshold), *recall, alarms, percent(point.precision), str(point.missed)


def _floored(threshold: float) -> str:
    """Return a threshold as text that is no larger: a larger one would lose the example whose score it is."""
    return f"{math.floor(threshold * 1e6) / 1e6:.6f}".rstrip("0").rstrip(".") or "0"


def sound_report(found: SoundEvaluation) -> EvaluationReport:
    """Return the report on a model of words."""
    told = f"{percent(found.value)} ({span(found.interval)}) of {found.count} words told rightly"
    if found.in_use.alarms_per_hour is not None:
        told += f", {_rate(found.in_use)} false alarms an hour in {found.hours:.2f} h of other sound"
    lines = [f"{found.model}: {told}", _comparison("words heard", found.against), found.data, *found.remarks]
    return EvaluationReport(lines, list(_sound_tables(found)))


def _sound_tables(found: SoundEvaluation) -> Iterator[EvaluationTable]:
    rates = ("missed", "95 %", "false alarms an hour", "95 %")
    rows = [(name, str(one.said), *_rate_cells(one)) for name, one in found.words.items()]
    yield EvaluationTable("by word, at the threshold in use", ("word", "said", *rates), ("said", *rates), rows)
    columns = ("at", "threshold", *rates)
    yield EvaluationTable("missed words against false alarms", columns, columns[1:], list(_rate_rows(found)))
    yield from _errors(found.confusions, found.wrong, "recording")


def _rate_rows(found: SoundEvaluation) -> Iterator[tuple[str, ...]]:
    points = {"in use": found.in_use, "target": found.at_target}
    points |= {f"≤ {rate:g}": point_for_alarms(found.curve, rate) for rate in _CURVE_RATES}
    for name, point in points.items():
        if point is not None:
            yield (name, f"{point.threshold:.6g}", *_rate_cells(point))


def _rate_cells(point: RatePoint) -> tuple[str, ...]:
    low, high = point.alarms_interval or (0.0, 0.0)
    alarms = "" if point.alarms_interval is None else f"{low:.3g} to {high:.3g}"
    return percent(point.reject_rate), span(point.reject_interval), _rate(point), alarms


def _rate(point: RatePoint) -> str:
    return "" if point.alarms_per_hour is None else f"{point.alarms_per_hour:.3g}"


def config_line(found: SoundEvaluation) -> str:
    """Return the keys of a stream that set the threshold for the target; empty: there is none."""
    if found.at_target is None:
        return ""
    return f"[streams.NAME.decode]\nscore_threshold = {found.at_target.threshold:.6g}"


def _errors(confused: Sequence[Confusion], wrong: Sequence[WrongAnswer], where: str) -> Iterator[EvaluationTable]:
    """Yield what is most often taken for something else, and the worst errors; `where`: they are."""
    if confused:
        rows = [(one.truth, one.told, str(one.count)) for one in confused]
        yield EvaluationTable("most frequent confusions", ("is", "told", "times"), ("times",), rows)
    if wrong:
        columns = (where, "is", "told", "score")
        places = ["" if one.at_s is None else f" at {one.at_s:.2f} s" for one in wrong]
        cells = [
            (f"{one.name}{place}", one.truth, one.told, f"{one.score:.3f}")
            for one, place in zip(wrong, places, strict=True)
        ]
        yield EvaluationTable("worst errors", columns, ("score",), cells)
