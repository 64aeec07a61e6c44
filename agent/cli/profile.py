"""`vedette profile`: time of a model by operation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.options import picture_option
from agent.cli.output import console, open_table, print_json
from agent.text import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from agent.optimise.profile import ModelProfile, OperatorRow


_NATIVE = "not delegated"
_LONGEST_S = 3600.0
"""For all runs of a model that root has profiled by another user, s."""


@click.command()
@click.argument("model")
@click.option("--variant", default="", help="Size or depth; default: the model's first.")
@click.option("--runs", type=click.IntRange(min=1), default=50, show_default=True, help="Inferences to measure.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; default: as the daemon chooses.")
@click.option(
    "--patience",
    type=click.FloatRange(min=0.0, min_open=True),
    default=120.0,
    show_default=True,
    help="Time limit, s.",
)
@click.option("--each", is_flag=True, help="Show every operation in its order, instead of one row per kind.")
@picture_option("the times")
@click.option("--json", "as_json", is_flag=True, help="Print every operation as JSON instead of a table.")
def profile(
    model: str,
    variant: str,
    runs: int,
    threads: int | None,
    patience: float,
    each: bool,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Show which operations of MODEL take the time on this board's CPU, which XNNPACK runs, and what could help.

    Needs LiteRT: tflite-runtime has no profiler. It runs in a process of its own. Nothing is changed.
    Times are wall times: other work on this board, such as the service, makes them longer, and is not told.
    """
    from agent.compute.infer.unprivileged import without_root
    from agent.models.library import open_model_without_root
    from agent.optimise.profile import ModelProfile
    from agent.optimise.profile import profile as measured

    if picture is not None:
        from agent.cli.chart import check

        check(picture)
    opened = open_model_without_root(model, variant)
    found = without_root(
        lambda: measured(opened, variant, runs=runs, threads=threads or 0, patience_s=patience),
        ModelProfile,
        _LONGEST_S,
    )
    if as_json:
        print_json(found)
    else:
        after = opened.manifest.variant(found.variant).after
        before = [one.name for one in opened.manifest.chain(found.variant)[:-1]]
        _print(f"{model}, variant {found.variant}{f' after {after}' if after else ''}", found, each=each)
        if before:
            click.echo(f"without {', '.join(before)}, which run before it: --variant {before[0]} profiles that")
    if picture is not None:
        from agent.cli.chart import draw_profile

        draw_profile(found, f"{opened.manifest.name}, variant {found.variant}", picture)


def _print(what: str, found: ModelProfile, *, each: bool) -> None:
    from agent.optimise.profile import COARSE

    out = console(140, markup=False)
    threads = f"{found.threads} thread{'s' if found.threads > 1 else ''}"
    out.print(plain(f"{what}: {threads}, {found.runtime}, {found.runs} runs"))
    out.print(_each(found) if each else _by_kind(found))
    explained = found.total_ms / found.p50_ms
    out.print(
        f"the operations take {found.total_ms:.3f} ms, {explained:.0%} of an inference without the profiler "
        f"(p50 {found.p50_ms:.3f} ms){f'; {COARSE}' if found.is_coarse else ''}"
    )
    native = [row for row in found.rows if not row.kernel]
    if native:
        share = sum(row.share for row in native)
        out.print(f"{_NATIVE} to XNNPACK: {len(native)} of {len(found.rows)} operations, {share:.1%} of the time")
    _print_worst(out, found)


def _print_worst(out: Console, found: ModelProfile) -> None:
    from agent.optimise.report import short_ms

    out.print("\nthe three worst")
    for number, row in enumerate(found.worst, 1):
        what = plain(f"{row.name or row.kernel} {_output(row)}").strip()
        out.print(f"{number}. {what}: {short_ms(row.ms)} ms, {row.share:.1%}")
        out.print(f"   {row.advice}")


def _by_kind(found: ModelProfile) -> Table:
    groups: dict[tuple[str, str], list[OperatorRow]] = {}
    for row in found.rows:
        groups.setdefault((row.name, row.kernel.partition(" ×")[0]), []).append(row)
    table = _table("count")
    cumulated = 0.0
    for (name, kernel), rows in sorted(groups.items(), key=lambda group: -sum(row.ms for row in group[1])):
        cumulated += sum(row.share for row in rows)
        _add(table, name, kernel, str(len(rows)), rows, cumulated)
    return table


def _each(found: ModelProfile) -> Table:
    table = _table("output")
    cumulated = 0.0
    for row in found.rows:
        cumulated += row.share
        _add(table, row.name, row.kernel, _output(row), [row], cumulated)
    return table


def _output(row: OperatorRow) -> str:
    """Return name and shape of an operation's output; fused names are joined by `;`, the innermost last."""
    return f"{row.tensor.rpartition(';')[2]} {'×'.join(map(str, row.shape))}".strip()


def _table(third: str) -> Table:
    figures = ("ms", "share", "sum", "M mult-adds", "G/s")
    return open_table("operation", "kernel of XNNPACK", third, *figures, right=(*figures, "count"))


def _add(table: Table, name: str, kernel: str, third: str, rows: list[OperatorRow], cumulated: float) -> None:
    from agent.optimise.profile import OTHER
    from agent.optimise.report import short_ms

    ms, products = sum(row.ms for row in rows), sum(row.multiply_adds for row in rows)
    table.add_row(
        plain(name) or OTHER,
        plain(kernel) or _NATIVE,
        plain(third),
        short_ms(ms),
        f"{sum(row.share for row in rows):.1%}",
        f"{cumulated:.1%}",
        f"{products / 1e6:.1f}" if products else "",
        f"{products / ms / 1e6:.1f}" if products and ms else "",
    )
