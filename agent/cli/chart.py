"""Charts as PNG files, by matplotlib, which comes with the extra `[charts]`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import VedetteError

if TYPE_CHECKING:
    from agent.compute.infer.measure import Measured
    from agent.compute.infer.profile import Profile
    from agent.compute.infer.selection import Verdict
    from agent.practice import Lesson


def check(path: Path) -> None:
    """Refuse a path that `draw` could not write to.

    Raises:
        VedetteError: matplotlib is missing, knows no such kind of picture, or there is no such folder.
    """
    known = _figure().canvas.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in known:
        raise VedetteError(f"{path}: a chart's name ends in .png, .svg or .pdf")
    if not path.absolute().parent.is_dir():
        raise VedetteError(f"{path}: no such folder to draw a chart into")
    if path.exists() and not path.is_file():
        raise VedetteError(f"{path}: is there, and is no file that a chart could replace")


def draw(lesson: Lesson, path: Path) -> None:
    """Accuracy against cost, with the point that was chosen.

    Raises:
        VedetteError: matplotlib is missing, or the picture cannot be written.
    """
    figure = _figure()
    axes = figure.add_subplot()
    learned = lesson.learned
    axes.plot(
        [p.cost * 100 for p in learned.curve], [p.accuracy * 100 for p in learned.curve], ".-", label="ladder"
    )
    whole = sum(lesson.costs)
    spent = [sum(lesson.costs[: n + 1]) / whole * 100 for n in range(len(lesson.costs))]
    axes.plot(spent, [share * 100 for share in learned.alone], "s", label="one depth for all")
    for name, x, y in zip(lesson.rungs, spent, learned.alone, strict=True):
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
    _save(figure, path)


def draw_latencies(verdict: Verdict, path: Path) -> None:
    """Median and 95th percentile of every way that was timed; refused ones are hatched.

    Raises:
        VedetteError: matplotlib is missing, or the picture cannot be written.
    """
    figure = _figure()
    axes = figure.add_subplot()
    timed = [one for one in verdict.measured if one.p50_ms]
    names = [f"{one.name}, {one.threads} threads" if one.threads else one.name for one in timed]
    bars = axes.barh(names, [one.p50_ms for one in timed], label="p50")
    for bar, one in zip(bars, timed, strict=True):
        bar.set_hatch("//" if one.refused else "")
    axes.plot([one.p95_ms for one in timed], names, "|", markersize=14, color="black", label="p95")
    axes.set(xlabel="ms per inference", xscale="log" if _spread(timed) > 20.0 else "linear")
    axes.invert_yaxis()
    axes.grid(alpha=0.3, axis="x")
    axes.legend()
    _save(figure, path)


def draw_profile(found: Profile, path: Path) -> None:
    """Time of every operation in the order of execution, by what runs it; the three worst bear their names.

    Raises:
        VedetteError: matplotlib is missing, or the picture cannot be written.
    """
    figure = _figure()
    axes = figure.add_subplot()
    for label, colour, delegated in (("XNNPACK", "tab:blue", True), ("not delegated", "tab:red", False)):
        bars = [(place, row.ms) for place, row in enumerate(found.rows) if bool(row.kernel) is delegated]
        if bars:
            axes.bar(*zip(*bars, strict=True), width=0.9, color=colour, label=label)
    named = {row.node: row.name or row.kernel for row in found.worst}
    for place, row in enumerate(found.rows):
        if row.node in named and row.node >= 0:
            axes.annotate(named[row.node], (place, row.ms), textcoords="offset points", xytext=(4, -4))
    axes.set(xlabel="operation, in the order of execution", ylabel="ms")
    axes.set_title(f"rung {found.rung}: {found.total_ms:.2f} ms in operations, p50 {found.p50_ms:.2f} ms")
    axes.grid(alpha=0.3, axis="y")
    axes.legend()
    _save(figure, path)


def _spread(timed: Sequence[Measured]) -> float:
    times = [one.p50_ms for one in timed]
    return max(times) / min(times) if times else 1.0


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise VedetteError(f"{path}: the chart cannot be written: {error}") from error


def _figure() -> Any:
    try:
        return importlib.import_module("matplotlib.figure").Figure(figsize=(7.0, 4.5), layout="constrained")
    except ImportError as error:
        raise VedetteError("charts need matplotlib: pip install '.[charts]' in the clone") from error
