"""Reports of an evaluation: tables as text, and one HTML file with the confusions and the worst errors."""

from __future__ import annotations

import html
import importlib
import io
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from agent.compute.drawing import annotate_detections
from agent.errors import ModelError
from agent.optimise.data import Examples
from agent.optimise.evaluation.model import ClassResult, Evaluation, ModelComparison, Positive
from agent.optimise.evaluation.operating import OperatingPoint
from agent.optimise.evaluation.slices import SliceResult
from agent.optimise.report import html_page, html_picture, html_table
from agent.text import plain, plural
from agent.types import Detection

_SIDE, _QUALITY = 240, 80
"""Longest side of a picture in the report, px, and quality of its JPEG."""
_CLASSES_DRAWN = 60
_SIGNIFICANT = 0.05


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


def percent(value: float | None) -> str:
    """Return a share as text, such as `98.7 %`; empty for None."""
    return "" if value is None else f"{value * 100:.1f} %"


def span(interval: tuple[float, float] | None) -> str:
    """Return an interval of shares as text, such as `97.1 to 99.4 %`; empty for None."""
    return "" if interval is None else f"{interval[0] * 100:.1f} to {interval[1] * 100:.1f} %"


def headline(found: Evaluation) -> str:
    """Return the metric in a line."""
    more = "".join(f", {name} {percent(value)}" for name, value in found.details.items())
    between = f" ({span(found.interval)})" if found.interval else ""
    return f"{found.metric} {percent(found.value)}{between}{more} on {plural(found.count, 'example')}"


def comparison(metric: str, one: ModelComparison | None) -> str:
    """Return the comparison by a metric in a line; empty without one."""
    if one is None:
        return ""
    told = f"{metric} of {one.model} {percent(one.value)}: {one.difference * 100:+.1f} percentage points"
    if one.interval is None:
        return told
    low, high = (edge * 100 for edge in one.interval)
    sure = one.p_value is not None and one.p_value < _SIGNIFICANT
    words = f"p = {one.p_value:.2g}" if one.p_value is not None else ""
    return f"{told}, {low:+.1f} to {high:+.1f}; {words}: {'' if sure else 'not '}significant"


def tables(found: Evaluation) -> Iterator[EvaluationTable]:
    """Yield the tables of an evaluation."""
    shown = ("class", "count", "recall", "95 %", "precision", "AP")
    has_ap = any(one.ap is not None for one in found.classes)
    columns = shown if has_ap else shown[:-1]
    rows = [_class_row(one)[: len(columns)] for one in found.classes if one.count]
    yield EvaluationTable("by class", columns, columns[1:], rows)
    points = [row for one in found.positives for row in _point_rows(one)]
    if points:
        alarms = "false a picture" if found.metric == "AP" else "false alarms"
        names = ("to find", "at", "threshold", "recall", "95 %", alarms, "precision", "missed")
        yield EvaluationTable("operating points", names, names[2:], points)
    curves = [one for one in found.positives if one.froc]
    if curves:
        rates = tuple(f"{point.false_positives:g}" for point in curves[0].froc)
        rows = [(_names(one), *(percent(point.sensitivity) for point in one.froc)) for one in curves]
        yield EvaluationTable("sensitivity at false positives a picture", ("to find", *rates), rates, rows)
    yield from slice_table(found.slices, slice_figure(found))


def slice_figure(found: Evaluation) -> str:
    """Return the name of the figure of the slices."""
    return "found" if found.metric == "AP" else "right"


def slice_table(slices: Sequence[SliceResult], figure: str) -> Iterator[EvaluationTable]:
    """Yield the table of the slices, whose figure has a name; nothing without slices."""
    if slices:
        columns = ("by", "slice", "count", figure, "95 %", "")
        rows = [
            (
                one.attribute,
                one.value,
                str(one.count),
                percent(one.figure),
                span(one.interval),
                "worst" if one.worst else "",
            )
            for one in slices
        ]
        yield EvaluationTable("slices", columns, columns[2:5], rows)


def _names(one: Positive) -> str:
    return ", ".join(one.names)


def _class_row(one: ClassResult) -> tuple[str, ...]:
    return (
        one.name,
        str(one.count),
        percent(one.recall),
        span(one.recall_interval),
        percent(one.precision),
        percent(one.ap),
    )


def _point_rows(one: Positive) -> Iterator[tuple[str, ...]]:
    points = {"manifest": one.at_manifest, "target": one.at_target}
    for name, point in points.items():
        if point is not None:
            yield (_names(one), name, *_point_cells(point, of_boxes=one.auroc is None))


def _point_cells(point: OperatingPoint, *, of_boxes: bool) -> tuple[str, ...]:
    alarms = f"{point.false_alarms:.3g}" if of_boxes else percent(point.false_alarms)
    recall = percent(point.recall), span(point.recall_interval)
    return floored(point.threshold), *recall, alarms, percent(point.precision), str(point.missed)


def floored(threshold: float) -> str:
    """Return a threshold as text that is no larger: a larger one would lose the example whose score it is."""
    return f"{math.floor(threshold * 1e6) / 1e6:.6f}".rstrip("0").rstrip(".") or "0"


def draw_confusion(found: Evaluation) -> bytes:
    """Return the confusion matrix as PNG.

    Raises:
        ModelError: there is none, or matplotlib is missing.
    """
    if not found.confusion:
        raise ModelError("there is no confusion matrix: only of classes of whole pictures")
    names = [one.name for one in found.classes]
    return draw_confusions(found.confusion, names, names)


def draw_confusions(confusion: Sequence[Sequence[int]], rows: Sequence[str], columns: Sequence[str]) -> bytes:
    """Return confusions as PNG.

    Args:
        confusion: numbers of examples, of each row by column.
        rows: names of what the examples are.
        columns: names of what they were told to be.

    Raises:
        ModelError: matplotlib is missing.
    """
    try:
        new = importlib.import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise ModelError("charts need matplotlib: pip install '.[charts]' in the clone") from error
    side = 2.0 + 0.4 * min(len(rows), _CLASSES_DRAWN)
    figure = new(figsize=(side + 1.0, side), layout="constrained")
    _fill(figure.add_subplot(), np.array(confusion), _shown(rows), _shown(columns))
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    return drawn.getvalue()


def _shown(names: Sequence[str]) -> list[str]:
    return [plain(name).replace("$", r"\$")[:24] for name in names]


def _fill(axis: Any, counts: Any, names: Sequence[str], told: Sequence[str]) -> None:
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    axis.set(xlabel="told", ylabel="is", xticks=range(len(told)), yticks=range(len(names)))
    axis.set_xticklabels(told, rotation=90)
    axis.set_yticklabels(names)
    if len(names) <= _CLASSES_DRAWN // 2:
        for row, column in np.argwhere(counts > 0):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=8)


def to_html(found: Evaluation, examples: Examples) -> str:
    """Return the evaluation as one HTML file, with the pictures of the worst errors."""
    lines = [headline(found), comparison(found.metric, found.against), found.data, *found.remarks]
    parts = [html_table(("", ""), [("", line) for line in lines if line])]
    for table in tables(found):
        parts += [f"<h2>{table.title}</h2>", html_table(table.columns, table.rows)]
    if found.confusion:
        try:
            parts += ["<h2>confusions</h2>", html_picture("confusion matrix", draw_confusion(found), "png")]
        except ModelError:
            parts.pop()  # no matplotlib
    if found.wrong:
        parts += [
            "<h2>worst errors, surest first</h2>",
            html_table(("example", "is", "told", "score"), _wrong_rows(found)),
        ]
        parts += list(_wrong_pictures(found, examples))
    return html_page(f"evaluation: {found.model}", parts)


def _wrong_rows(found: Evaluation) -> list[tuple[str, ...]]:
    return [(one.name, one.truth, one.told, f"{one.score:.3f}") for one in found.wrong]


def _wrong_pictures(found: Evaluation, examples: Examples) -> Iterator[str]:
    for one in found.wrong:
        try:
            picture = examples.picture(one.index)
        except ModelError:
            return  # values, not pictures
        if examples.order == "rgb":
            picture = np.ascontiguousarray(picture[..., ::-1])
        height, width = picture.shape[:2]
        scale = min(1.0, _SIDE / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
        if one.box is not None:
            label = one.truth if one.told == "nothing" else one.told
            small = annotate_detections(small, [Detection(label, one.score, one.box)], order="bgr")
        encoded = cv2.imencode(".jpg", small, (cv2.IMWRITE_JPEG_QUALITY, _QUALITY))[1].tobytes()
        about = f"{one.name}: {one.truth}, told {one.told}, {one.score:.3f}"
        shown = html_picture(about, encoded, "jpeg")
        yield f"<figure>{shown}<figcaption>{html.escape(plain(about))}</figcaption></figure>"
