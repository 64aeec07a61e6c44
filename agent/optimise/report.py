"""Reports of the steps of `vedette optimise`: JSON beside the model, and Markdown.

A report may come from a stranger, and so may the names in it: they are escaped wherever they are written.
"""

from __future__ import annotations

import io
import os
import platform
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta, Struct

from agent import __version__
from agent.compute.infer.litert import load_runtime, runtime_version
from agent.errors import NO_JSON, ModelError
from agent.models.files import read_text
from agent.structs import convert
from agent.text import plain, plural

_NONE = "–"
_CPUINFO = Path("/proc/cpuinfo")
_CPU = re.compile(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", re.MULTILINE)
_MARKDOWN = re.compile(r"([\\`*_\[\]<>#|~&$])")
_SLOWER = (
    "slower than {} on this machine, {:.3g} ms instead of {:.3g}: measure both on the board with "
    "`vedette bench` before you take it"
)
_NOISE, _NOISE_MS = 0.05, 0.001
"""Difference of times, as a share and at least in milliseconds, up to which nothing is told. Beside two busy
loops the same file of 0.023 ms differed by 1.3 % at most, in turns with itself."""

_Amount = Annotated[float, Meta(ge=0.0, le=1e12)]
_Share = Annotated[float, Meta(ge=0.0, le=1.0)]
_Whole = Annotated[int, Meta(ge=0, le=10**12)]


METRICS = {
    "agreement": "share of inputs to which the model gives the same class as the one before the first step",
    "fidelity": "100 % less the error of the raw outputs, as a share of their deviation before the first step",
}
"""Meaning of the scores of examples without labels."""


class StepResult(Struct, frozen=True):
    """A model after a step.

    Attributes:
        name: of the step, such as `quantise`.
        metric: what `score` is, such as `top-1`; empty: there is no score.
        score: 0..1.
        interval: in which the score lies with 95 % probability; None: not known.
        size: of the file, bytes.
        latency_ms: median of an inference on one thread; None: not measured.
        memory_mb: resident memory of a process that runs it, MB; None: not measured.
        kept: False: it did not help, and the next step began with the model before it.
        notes: what was done, or why it was not kept.
    """

    name: str
    metric: str = ""
    score: _Share | None = None
    interval: tuple[_Share, _Share] | None = None
    size: _Whole = 0
    latency_ms: _Amount | None = None
    memory_mb: _Amount | None = None
    kept: bool = True
    notes: tuple[str, ...] = ()


class LayerResult(Struct, frozen=True):
    """A layer with weights.

    Attributes:
        name: of its output tensor.
        operation: as in the schema.
        bits: of its weights.
        values: number of its weights.
        sensitivity: damage that 4 bits in it would do, see `Quantiser.sensitivities`; None: not measured.
    """

    name: str
    operation: str = ""
    bits: Annotated[int, Meta(ge=1, le=64)] = 32
    values: _Whole = 0
    sensitivity: Annotated[float, Meta(ge=-1e12, le=1e12)] | None = None


class OperationTime(Struct, frozen=True):
    """Time of all operations of one kind in an inference, before and after, ms; None: there are none."""

    name: str
    before_ms: _Amount | None = None
    after_ms: _Amount | None = None


class OptimiseReport(Struct, frozen=True):
    """What was done to a model.

    Attributes:
        step: verb of `vedette optimise`.
        model: name or path.
        sha256_before, sha256_after: of the files; empty: there is none.
        machine: processor, cores and runtime that the figures are from.
        command: that repeats it.
        examples: on which the scores are.
        budget: see `agent.optimise.recipe.budget.parse_budget`; empty: none.
        missed: limits that the result does not meet, with by how much.
        steps: the first is the model as it was.
        layers: of the result.
        operations: kinds of operations, slowest first.
        remarks: anything else.
        learned: digests of examples that were trained on, see `agent.optimise.source.learned_sample`.
        version: of Vedette.
    """

    step: str
    model: str
    sha256_before: str = ""
    sha256_after: str = ""
    machine: str = ""
    command: str = ""
    examples: str = ""
    budget: str = ""
    missed: tuple[str, ...] = ()
    steps: tuple[StepResult, ...] = ()
    layers: tuple[LayerResult, ...] = ()
    operations: tuple[OperationTime, ...] = ()
    remarks: tuple[str, ...] = ()
    learned: tuple[str, ...] = ()
    version: str = __version__


def describe_machine() -> str:
    """Return processor, cores that this process may use, system, Python and runtime in a line."""
    try:
        found = _CPU.search(_CPUINFO.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        found = None
    processor = found[1].strip() if found else platform.machine()
    cores = plural(len(os.sched_getaffinity(0)), "core")
    runtime = runtime_version(load_runtime()[0])
    return f"{processor}, {cores}, {platform.system()} {platform.machine()}, {runtime}"


def read_report(path: Path) -> OptimiseReport:
    """Read a report.

    Raises:
        ModelError: the file cannot be read, or is no report.
    """
    text = read_text(path)
    try:
        return convert(msgspec.json.decode(text), OptimiseReport)
    except NO_JSON as error:
        raise ModelError(f"{path}: not a report of `vedette optimise`: {error}") from None


class ReportTable(NamedTuple):
    """A table of texts, with a note below it."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""


def _facts(report: OptimiseReport) -> ReportTable:
    facts = {
        "model": report.model,
        "examples": report.examples,
        "budget": report.budget,
        "missed": "; ".join(report.missed),
        "machine": report.machine,
        "command": report.command,
        "sha256 before": report.sha256_before,
        "sha256 after": report.sha256_after,
        "Vedette": report.version,
    }
    return ReportTable("", ("", ""), [(name, value) for name, value in facts.items() if value])


_Figure = tuple[str, Callable[[StepResult], str]]
_FIGURES: tuple[_Figure, ...] = (
    ("score %", lambda one: short_number(one.score, 100.0)),
    ("95 %", lambda one: f"{one.interval[0]:.2%} to {one.interval[1]:.2%}" if one.interval else ""),
    ("kB", lambda one: short_number(one.size or None, 1e-3)),
    ("ms", lambda one: short_number(one.latency_ms)),
    ("MB", lambda one: short_number(one.memory_mb)),
)


def step_table(report: OptimiseReport) -> ReportTable:
    """Return the steps, without columns that are empty for all of them."""
    figures = [(title, [text(one) for one in report.steps]) for title, text in _FIGURES]
    shown = [(title, texts) for title, texts in figures if any(texts)]
    metric = next((one.metric for one in report.steps if one.metric), "")
    titles = tuple(title.replace("score", metric or "score") for title, _ in shown)
    rows = [
        (
            step.name,
            *(texts[at] or _NONE for _, texts in shown),
            "yes" if step.kept else "no",
            "; ".join(step.notes),
        )
        for at, step in enumerate(report.steps)
    ]
    note = f"{metric}: {METRICS[metric]}" if metric in METRICS else ""
    return ReportTable("Steps", ("step", *titles, "kept", "notes"), rows, note)


def layer_table(report: OptimiseReport) -> ReportTable:
    """Return the layers."""
    rows = [
        (one.name, one.operation, str(one.bits), str(one.values), short_number(one.sensitivity) or _NONE)
        for one in report.layers
    ]
    return ReportTable("Layers", ("layer", "operation", "bits", "weights", "sensitivity"), rows)


def _operations(report: OptimiseReport) -> ReportTable:
    rows = [(one.name, short_ms(one.before_ms), short_ms(one.after_ms)) for one in report.operations]
    return ReportTable("Time by operation", ("operation", "before, ms", "after, ms"), rows)


def short_number(value: float | None, factor: float = 1.0) -> str:
    """Return a number times a factor with four digits that count; empty for None."""
    if value is None:
        return ""
    scaled = value * factor
    return f"{scaled:.0f}" if abs(scaled) >= 1000 else f"{scaled:.4g}"


def short_ms(value: float | None) -> str:
    """Return a time by a clock of 1 µs, ms; a dash for None."""
    if value is None:
        return _NONE
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def told_slower(before: StepResult, after: StepResult, than: str, noise: float = 0.0) -> tuple[str, ...]:
    """Return a remark on a result that takes longer than the model before, if it does.

    Args:
        before: as it was, with its time.
        after: the result, with its time.
        than: what the model before is, such as `the float model`.
        noise: share up to which times do not differ, if it is more than usual.
    """
    assert before.latency_ms is not None
    assert after.latency_ms is not None
    if after.latency_ms - before.latency_ms <= max(_NOISE_MS, max(noise, _NOISE) * before.latency_ms):
        return ()
    return (_SLOWER.format(than, after.latency_ms, before.latency_ms),)


def _tables(report: OptimiseReport) -> list[ReportTable]:
    return [table for table in (step_table(report), layer_table(report), _operations(report)) if table.rows]


def _title(report: OptimiseReport) -> str:
    return f"{report.step or 'optimise'}: {report.model}"


def markdown(report: OptimiseReport) -> str:
    """Return the report as Markdown, with every special character of its texts escaped."""
    parts = [f"# {_escaped(_title(report))}", _markdown_table(_facts(report))]
    for table in _tables(report):
        parts += [f"## {table.title}", _markdown_table(table), *([_escaped(table.note)] if table.note else ())]
    if report.remarks:
        parts += ["## Remarks", "\n".join(f"- {_escaped(one)}" for one in report.remarks)]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: ReportTable) -> str:
    lines = [[_escaped(column) for column in table.columns], ["---"] * len(table.columns)]
    lines += [[_escaped(cell) for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", plain(text))


def new_figure(width: float, height: float) -> Any:
    """Return a figure of matplotlib, in inches. Raises ModelError if that is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ModelError("charts need matplotlib: pip install '.[charts]' in the clone") from error
    return Figure(figsize=(width, height), layout="constrained")


def as_png(figure: Any) -> bytes:
    """Return a figure as PNG."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    return drawn.getvalue()
