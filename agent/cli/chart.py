"""Charts as PNG, SVG or PDF files, drawn by matplotlib (extra `[charts]`)."""

from __future__ import annotations

import importlib
import io
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import VedetteError
from agent.storage.files import write_atomic
from agent.text import plain

if TYPE_CHECKING:
    from agent.compute.infer.benchmark import Measurement, Selection
    from agent.features.screening.rules import ScreeningPoint
    from agent.optimise.calibrate import CalibrationResult
    from agent.optimise.evaluation.operating import Found


_LINE, _TITLE = 118, 90
"""Characters that fit into the width."""


def check(path: Path) -> None:
    """Refuse a path to which a chart cannot be written.

    Raises:
        VedetteError: matplotlib is missing, the suffix is unknown, or the folder is missing or read-only.
    """
    known = _figure().canvas.get_supported_filetypes()
    if path.exists() and not path.is_file():
        raise VedetteError(f"{path}: exists and is not a regular file")
    if not path.absolute().parent.is_dir():
        raise VedetteError(f"{path}: there is no such folder")
    if not os.access(path.absolute().parent, os.W_OK):
        raise VedetteError(f"{path}: the folder is not writable")
    if _format(path) not in known:
        raise VedetteError(f"{path}: expected a name that ends in .png, .svg or .pdf, or has no suffix (PNG)")


def draw_calibration(result: CalibrationResult, path: Path) -> None:
    """Draw accuracy against cost, with the chosen point.

    Raises:
        VedetteError: matplotlib is missing, or the picture cannot be written.
    """
    _save(_calibration(result), path)


def calibration_png(result: CalibrationResult) -> bytes:
    """Return the picture of `draw_calibration` as a PNG. Raises VedetteError if matplotlib is missing."""
    drawn = io.BytesIO()
    _calibration(result).savefig(drawn, format="png", dpi=120)
    return drawn.getvalue()


def _calibration(result: CalibrationResult) -> Any:
    figure = _figure()
    axes = figure.add_subplot()
    learned = result.learned
    axes.plot(
        [p.cost * 100 for p in learned.curve], [p.accuracy * 100 for p in learned.curve], ".-", label="cascade"
    )
    whole = sum(result.costs)
    spent = [sum(result.costs[: n + 1]) / whole * 100 for n in range(len(result.costs))]
    axes.plot(spent, [share * 100 for share in learned.alone], "s", label="one depth for all")
    for name, x, y in zip(result.variants, spent, learned.alone, strict=True):
        axes.annotate(name, (x, y * 100), textcoords="offset points", xytext=(4, -12))
    axes.plot(
        learned.chosen.cost * 100,
        learned.chosen.accuracy * 100,
        "o",
        markersize=10,
        fillstyle="none",
        label="chosen",
    )
    axes.set(xlabel="multiply-adds, % of the whole depth", ylabel="accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def draw_operating_point(point: ScreeningPoint, found: Found, path: Path) -> None:
    """Draw the FROC of an operating point with its place on it, and how well its probabilities hold.

    Raises:
        VedetteError: matplotlib is missing, or the picture cannot be written.
    """
    import numpy as np

    from agent.optimise.evaluation.operating import froc

    figure = _figure()
    curve, calibration = figure.subplots(1, 2)
    rates = np.geomspace(1 / max(8, len(found.objects)), 8.0, 60)
    curve.semilogx(rates, [100 * one.sensitivity for one in froc(found, tuple(map(float, rates)))])
    expected = point.expected
    at = max(expected.false_positives, float(rates[0]))
    curve.plot(at, 100 * expected.sensitivity, "o", markersize=10, fillstyle="none", label="operating point")
    curve.set(xlabel="false positives a picture", ylabel="found, %", title=plain(point.label))
    curve.legend()
    told = np.array([point.calibration.probability(score) for score in found.scores])
    bins = np.minimum((told * 10).astype(int), 9)
    full = [number for number in range(10) if (bins == number).any()]
    calibration.plot([0, 100], [0, 100], ":", color="grey")
    calibration.plot(
        [100 * told[bins == number].mean() for number in full],
        [100 * found.hits[bins == number].mean() for number in full],
        "o-",
    )
    calibration.set(xlabel="probability that is told, %", ylabel="right, %")
    for axes in (curve, calibration):
        axes.grid(alpha=0.3)
    _save(figure, path)


def draw_latencies(verdict: Selection, refused: Sequence[Measurement], title: str, path: Path) -> None:
    """Draw median and 95th percentile of every backend that was timed, and list why others were refused.

    Raises:
        VedetteError: matplotlib is missing, or the picture cannot be written.
    """
    timed = [one for one in verdict.measured if one.p50_ms]
    reasons = [textwrap.shorten(f"{_name(one, 30)}: {one.refused}", _LINE, placeholder=" …") for one in refused]
    figure = _figure(2.2 + 0.4 * len(timed) + 0.16 * len(reasons))
    axes = figure.add_subplot()
    places = range(len(timed))
    bars = axes.barh(places, [one.p50_ms for one in timed], label="p50")
    for bar, one in zip(bars, timed, strict=True):
        bar.set_hatch("//" if one.refused else "")
    axes.plot([one.p95_ms for one in timed], places, "|", markersize=14, color="black", label="p95")
    axes.set_yticks(places, [_text(_name(one, 36)) for one in timed])
    axes.set(xlabel="ms per inference", xscale="log" if _spread(timed) > 20.0 else "linear")
    axes.invert_yaxis()
    axes.grid(alpha=0.3, axis="x")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False)  # never over a bar
    _entitle(figure, title)
    if reasons:
        text = "\n".join(["refused (hatched where it was timed):", *map(_text, reasons)])
        figure.supxlabel(text, x=0.01, horizontalalignment="left", fontsize=8)
    _save(figure, path)


def _spread(timed: Sequence[Measurement]) -> float:
    times = [one.p50_ms for one in timed]
    return max(times) / min(times) if times else 1.0


def _name(one: Measurement, width: int) -> str:
    threads = f", {one.threads} thread{'s' * (one.threads != 1)}" if one.threads else ""
    return _short(one.name, width - len(threads)) + threads


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width // 2 - 1]}…{text[-(width - width // 2) :]}"


def _text(text: str) -> str:
    """Escape a text so that matplotlib reads no formula in it."""
    return plain(text).replace("$", r"\$")


def _entitle(figure: Any, title: str) -> None:
    figure.suptitle(_text(_short(title, _TITLE)), fontsize=11)


def _format(path: Path) -> str:
    return path.suffix.lower().removeprefix(".") or "png"


def _save(figure: Any, path: Path) -> None:
    # Into memory first: matplotlib would add a suffix to a name that has none.
    drawn = io.BytesIO()
    try:
        figure.savefig(drawn, format=_format(path), dpi=120)
    except (OSError, ValueError) as error:
        raise VedetteError(f"{path}: the chart cannot be drawn: {error}") from error
    write_atomic(path, drawn.getvalue())


def _figure(height: float = 4.5) -> Any:
    try:
        figure = importlib.import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise VedetteError("charts need matplotlib: pip install '.[charts]' in the clone") from error
    return figure(figsize=(7.0, height), layout="constrained")
