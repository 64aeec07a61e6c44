"""Reports of the steps of `vedette optimise`: JSON beside the model, Markdown, and one HTML file with its charts.

A report may come from a stranger, and so may the names in it: they are escaped wherever they are written. The
HTML loads nothing and runs nothing.
"""

from __future__ import annotations

import base64
import html
import importlib
import io
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
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
_LONGEST, _BARS = 60, 30
"""Characters of a name in a chart, and bars in one."""
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
        per_s: inferences a second when many wait; None: not measured.
        memory_mb: resident memory of a process that runs it, MB; None: not measured.
        energy_mj: estimate for one inference on a board, mJ; None: no estimate.
        kept: False: it did not help, and the next step began with the model before it.
        notes: what was done, or why it was not kept.
    """

    name: str
    metric: str = ""
    score: _Share | None = None
    interval: tuple[_Share, _Share] | None = None
    size: _Whole = 0
    latency_ms: _Amount | None = None
    per_s: _Amount | None = None
    memory_mb: _Amount | None = None
    energy_mj: _Amount | None = None
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
    """Read a report, also that of a step with keys of its own, which become notes.

    Raises:
        ModelError: the file cannot be read, or is no report.
    """
    text = read_text(path)
    try:
        data = msgspec.json.decode(text)
        if isinstance(data, dict) and "steps" not in data:
            return _of_other_keys(data)
        return convert(data, OptimiseReport)
    except NO_JSON as error:
        raise ModelError(f"{path}: not a report of `vedette optimise`: {error}") from None


def _of_other_keys(data: dict[str, Any]) -> OptimiseReport:
    """Convert a report whose keys are a step's own. Raises a ValueError if it names no step and model."""
    is_first = "module" in data  # an import: there was no file before
    if is_first:
        data = {"model": data["module"], **data, "bytes": {"after": data.get("bytes", 0)}}
    if missing := [key for key in ("step", "model") if key not in data]:
        raise ValueError(f"the key {missing[0]!r} is missing")
    carried = {name: data[name] for name in ("sha256_before", "sha256_after", "learned") if name in data}
    own = {"step", "model", "module", "bytes", "rewrites", "comparison", "maps", *carried}
    sizes = convert(data.get("bytes", {}), dict[str, int])
    times, done, remarks = _of_rewrite(data)
    notes = tuple(f"{name}: {value}" for key in data if key not in own for name, value in _flat(key, data[key]))
    first = StepResult("before", size=sizes.get("before", 0), latency_ms=times[0])
    name, size = str(data.get("step", "")), sizes.get("after", 0)
    after = StepResult(name, size=size, latency_ms=times[1], notes=(*done, *notes))
    steps = (after,) if is_first else (first, after)
    known = {"step": data.get("step"), "model": data.get("model"), "steps": steps, "remarks": remarks}
    return convert(msgspec.to_builtins(known | carried), OptimiseReport)


def _of_rewrite(data: dict[str, Any]) -> tuple[tuple[Any, Any], list[str], list[str]]:
    """Return times before and after, notes and remarks of a report of `rewrite`, and the notes of `features`."""
    compared = convert(data.get("comparison", {}), dict[str, float | str])
    notes = [f"{name}: {count}" for name, count in convert(data.get("rewrites", {}), dict[str, int]).items()]
    maps = convert(data.get("maps", []), list[dict[str, str | list[int]]])
    notes += (f"features: {', '.join(str(part) for part in one.values() if part)}" for one in maps)
    differences = [compared[name] for name in ("last_bits", "relative") if name in compared]
    if len(differences) == 2:
        notes.append(told_differences(*convert(differences, tuple[float, float])))
    remarks = [str(compared["busy"])] if compared.get("busy") else []
    return (compared.get("before_ms"), compared.get("after_ms")), notes, remarks


def told_differences(last_bits: float, relative: float) -> str:
    """Return by how much the answers of a model differ, see `agent.optimise.graph.compare.Comparison`."""
    amounts = f"{last_bits:.2g} last bits of quantised outputs, and {relative:.1g} of float ones"
    return f"answers differ by at most {amounts}"


def _flat(name: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    elif isinstance(value, float):
        yield name, f"{value:.5g}"
    else:
        yield name, value


class _Table(NamedTuple):
    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""


def _facts(report: OptimiseReport) -> _Table:
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
    return _Table("", ("", ""), [(name, value) for name, value in facts.items() if value])


_Figure = tuple[str, Callable[[StepResult], str]]
_FIGURES: tuple[_Figure, ...] = (
    ("score, %", lambda one: short_number(one.score, 100.0)),
    ("95 %", lambda one: f"{one.interval[0]:.2%} to {one.interval[1]:.2%}" if one.interval else ""),
    ("size, kB", lambda one: short_number(one.size or None, 1e-3)),
    ("latency, ms", lambda one: short_number(one.latency_ms)),
    ("per s", lambda one: short_number(one.per_s)),
    ("memory, MB", lambda one: short_number(one.memory_mb)),
    ("energy, mJ (estimate)", lambda one: short_number(one.energy_mj)),
)


def _steps(report: OptimiseReport) -> _Table:
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
    return _Table("Steps", ("step", *titles, "kept", "notes"), rows, note)


def _layers(report: OptimiseReport) -> _Table:
    rows = [
        (one.name, one.operation, str(one.bits), str(one.values), short_number(one.sensitivity) or _NONE)
        for one in report.layers
    ]
    return _Table("Layers", ("layer", "operation", "bits", "weights", "sensitivity"), rows)


def _operations(report: OptimiseReport) -> _Table:
    rows = [(one.name, short_ms(one.before_ms), short_ms(one.after_ms)) for one in report.operations]
    return _Table("Time by operation", ("operation", "before, ms", "after, ms"), rows)


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


def _tables(report: OptimiseReport) -> list[_Table]:
    return [table for table in (_steps(report), _layers(report), _operations(report)) if table.rows]


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


def _markdown_table(table: _Table) -> str:
    lines = [[_escaped(column) for column in table.columns], ["---"] * len(table.columns)]
    lines += [[_escaped(cell) for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", plain(text))


_STYLE = """
body { font-family: sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { border: 1px solid #ccc; padding: 0.3em 0.6em; text-align: left; overflow-wrap: break-word; }
td:first-child, td:last-child { min-width: 8em; overflow-wrap: anywhere; }
tr.dropped td { color: #888; }
img { max-width: 100%; }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_SOUNDS = "; media-src data:"


def to_html(report: OptimiseReport) -> str:
    """Return the report as one HTML file. Charts are left out if matplotlib is missing."""
    facts = _facts(report)
    parts = [html_table(facts.columns, facts.rows)]
    dropped = {number for number, step in enumerate(report.steps) if not step.kept}
    for table in _tables(report):
        rows = html_table(table.columns, table.rows, dropped if table.title == "Steps" else set())
        parts += [f"<h2>{table.title}</h2>", rows, f"<p>{html.escape(table.note)}</p>" if table.note else ""]
    parts += [f"<p>{html_picture(name, chart, 'png')}</p>" for name, chart in _charts(report)]
    if report.remarks:
        parts.append("<h2>Remarks</h2>")
        parts.append(f"<ul>{''.join(f'<li>{html.escape(plain(one))}</li>' for one in report.remarks)}</ul>")
    return html_page(_title(report), parts)


def html_page(title: str, parts: Iterable[str], *, sounds: bool = False) -> str:
    """Return an HTML file that loads nothing and runs nothing.

    Args:
        title: as text.
        parts: of its body, HTML whose texts are escaped.
        sounds: they hold some.
    """
    name, body = html.escape(plain(title)), "\n".join(parts)
    policy = f"{_POLICY}{_SOUNDS if sounds else ''}"
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
    head += f"<title>{name}</title><style>{_STYLE}</style>"
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n<h1>{name}</h1>\n{body}\n</body></html>\n'
    )


def html_picture(name: str, content: bytes, kind: str) -> str:
    """Return a picture within the page.

    Args:
        name: as text.
        content: of the file.
        kind: `png` or `jpeg`.
    """
    source = base64.b64encode(content).decode()
    return f'<img alt="{html.escape(plain(name))}" src="data:image/{kind};base64,{source}">'


def html_table(columns: Sequence[str], cells: Iterable[Sequence[str]], dropped: Set[int] = frozenset()) -> str:
    """Return a table.

    Args:
        columns: their names; all empty: there is no head.
        cells: of each row, as text.
        dropped: numbers of rows that are greyed.
    """
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns) if any(columns) else ""
    rows = [f"<tr>{head}</tr>"] if head else []
    for number, row in enumerate(cells):
        filled = "".join(f"<td>{html.escape(plain(cell))}</td>" for cell in row)
        rows.append(f'<tr class="dropped">{filled}</tr>' if number in dropped else f"<tr>{filled}</tr>")
    return f"<table>{''.join(rows)}</table>"


def _charts(report: OptimiseReport) -> Iterator[tuple[str, bytes]]:
    """Yield title and PNG of each chart."""
    try:
        figure = importlib.import_module("matplotlib.figure").Figure
    except ImportError:
        return
    measured = [one for one in report.steps if one.size or one.score is not None or one.latency_ms is not None]
    if len(measured) > 1:
        yield "score, size and latency of each step", _draw_steps(figure, measured[:_BARS])
    if report.operations:
        yield "time by operation", _draw_operations(figure, report.operations[:_BARS])
    if len({one.bits for one in report.layers}) > 1:
        yield "bits of each layer", _draw_layers(figure, report.layers)


def _draw_steps(new: Any, steps: Sequence[StepResult]) -> bytes:
    figure = new(figsize=(9.0, 1.2 + 0.35 * len(steps)), layout="constrained")
    panels = (
        (
            f"{next((one.metric for one in steps if one.metric), 'score')}, %",
            [(one.score or 0) * 100 for one in steps],
        ),
        ("size, kB", [one.size / 1e3 for one in steps]),
        ("latency, ms", [one.latency_ms or 0 for one in steps]),
    )
    shown = [(title, values) for title, values in panels if any(values)]
    axes = figure.subplots(1, max(1, len(shown)), sharey=True, squeeze=False)[0]
    for axis, (title, values) in zip(axes, shown, strict=False):
        axis.barh(range(len(steps)), values, color=["tab:blue" if one.kept else "lightgrey" for one in steps])
        axis.set(title=_label(title))
        axis.grid(alpha=0.3, axis="x")
    axes[0].set_yticks(range(len(steps)), [_label(one.name) for one in steps])
    axes[0].invert_yaxis()
    return _png(figure)


def _draw_operations(new: Any, operations: Sequence[OperationTime]) -> bytes:
    figure = new(figsize=(9.0, 1.2 + 0.4 * len(operations)), layout="constrained")
    axis = figure.add_subplot()
    for shift, name in ((-0.2, "before"), (0.2, "after")):
        places = [number + shift for number in range(len(operations))]
        axis.barh(places, [getattr(one, f"{name}_ms") or 0.0 for one in operations], 0.4, label=name)
    axis.set_yticks(range(len(operations)), [_label(one.name) for one in operations])
    axis.set(xlabel="ms per inference")
    axis.invert_yaxis()
    axis.grid(alpha=0.3, axis="x")
    axis.legend()
    return _png(figure)


def _draw_layers(new: Any, layers: Sequence[LayerResult]) -> bytes:
    figure = new(figsize=(9.0, 1.2 + 0.3 * min(_BARS, len(layers))), layout="constrained")
    axis = figure.add_subplot()
    for bits in sorted({one.bits for one in layers}):
        bars = [(number, one.values) for number, one in enumerate(layers) if one.bits == bits]
        axis.barh(*zip(*bars, strict=True), label=f"{bits} bits")
    if len(layers) <= _BARS:
        axis.set_yticks(range(len(layers)), [_label(one.name) for one in layers])
    axis.set(ylabel="layer, in the order of the graph", xlabel="weights")
    axis.invert_yaxis()
    axis.grid(alpha=0.3, axis="x")
    axis.legend()
    return _png(figure)


def _label(name: str) -> str:
    """Return a short name in which matplotlib reads no formula."""
    name = plain(name)
    return (name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…").replace("$", r"\$")


def _png(figure: Any) -> bytes:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    return drawn.getvalue()
