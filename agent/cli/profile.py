"""`vedette profile`: time of a model by operation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agent.cli.output import console, open_table, print_json
from agent.text import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from agent.optimise.profile import ModelProfile, OperatorRow


_NATIVE = "not delegated"
_PATIENCE_S, _LONGEST_S = 120.0, 3600.0
"""Time limit for one profile, and for all runs of a model that root has profiled by another user, s."""


@click.command()
@click.argument("model")
@click.option("--variant", default="", help="Size or depth; default: the model's first.")
@click.option("--runs", type=click.IntRange(min=1), default=50, show_default=True, help="Inferences to measure.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; default: as the daemon chooses.")
@click.option("--json", "as_json", is_flag=True, help="Print every operation as JSON instead of a table.")
def profile(model: str, variant: str, runs: int, threads: int | None, as_json: bool) -> None:
    """Show which operations of MODEL take the time on this board's CPU, which XNNPACK runs, and what could help.

    Needs LiteRT: tflite-runtime has no profiler. It runs in a process of its own. Nothing is changed.
    Times are wall times: other work on this board, such as the service, makes them longer, and is not told.
    """
    from agent.compute.infer.unprivileged import without_root
    from agent.models.library import open_model_without_root
    from agent.optimise.profile import ModelProfile
    from agent.optimise.profile import profile as measured

    opened = open_model_without_root(model, variant)
    found = without_root(
        lambda: measured(opened, variant, runs=runs, threads=threads or 0, patience_s=_PATIENCE_S),
        ModelProfile,
        _LONGEST_S,
    )
    if as_json:
        print_json(found)
    else:
        after = opened.manifest.variant(found.variant).after
        before = [one.name for one in opened.manifest.chain(found.variant)[:-1]]
        _print(f"{model}, variant {found.variant}{f' after {after}' if after else ''}", found)
        if before:
            click.echo(f"without {', '.join(before)}, which run before it: --variant {before[0]} profiles that")


def _print(what: str, found: ModelProfile) -> None:
    out = console(140, markup=False)
    threads = f"{found.threads} thread{'s' if found.threads > 1 else ''}"
    out.print(plain(f"{what}: {threads}, {found.runtime}, {found.runs} runs"))
    out.print(_by_kind(found))
    explained = found.total_ms / found.p50_ms
    out.print(
        f"the operations take {found.total_ms:.3f} ms, {explained:.0%} of an inference without the profiler "
        f"(p50 {found.p50_ms:.3f} ms)"
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
    from agent.optimise.profile import OTHER
    from agent.optimise.report import short_ms

    groups: dict[tuple[str, str], list[OperatorRow]] = {}
    for row in found.rows:
        groups.setdefault((row.name, row.kernel.partition(" ×")[0]), []).append(row)
    figures = ("count", "ms", "share", "sum", "M mult-adds", "G/s")
    table = open_table("operation", "kernel of XNNPACK", *figures, right=figures)
    cumulated = 0.0
    for (name, kernel), rows in sorted(groups.items(), key=lambda group: -sum(row.ms for row in group[1])):
        ms, products = sum(row.ms for row in rows), sum(row.multiply_adds for row in rows)
        share = sum(row.share for row in rows)
        cumulated += share
        table.add_row(
            plain(name) or OTHER,
            plain(kernel) or _NATIVE,
            str(len(rows)),
            short_ms(ms),
            f"{share:.1%}",
            f"{cumulated:.1%}",
            f"{products / 1e6:.1f}" if products else "",
            f"{products / ms / 1e6:.1f}" if products and ms else "",
        )
    return table


def _output(row: OperatorRow) -> str:
    """Return name and shape of an operation's output; fused names are joined by `;`, the innermost last."""
    return f"{row.tensor.rpartition(';')[2]} {'×'.join(map(str, row.shape))}".strip()
