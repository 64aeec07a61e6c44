"""`vedette bench --streams`: how streams of a model use the cores best."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from agent.cli.optimise.progress import show_progress
from agent.cli.output import NO_VALUE, console, open_table, print_json
from agent.text import plain, plural

if TYPE_CHECKING:
    from agent.compute.infer.choice import By, SplitMeasurement


_THREADS = 4
"""Most threads of the CPU, as `vedette bench` measures."""


def bench_streams(model: str, variant: str, streams: int, by: By, *, patience_s: float, as_json: bool) -> None:
    """Measure what so many streams get with each number of threads, and print it."""
    from agent.compute.infer.benchmark import measure_splits
    from agent.compute.infer.choice import best_split
    from agent.compute.infer.sharing import is_shareable
    from agent.daemon.measurements import spare_memory_mb
    from agent.models.library import golden, open_model_without_root

    opened = open_model_without_root(model, variant)
    if not is_shareable(opened):
        raise click.UsageError(
            f"--streams is for models whose streams take turns; {plain(model)} has exits, keeps a state or hears:"
            " each of its streams has a session of its own"
        )
    cores = len(os.sched_getaffinity(0))
    found = measure_splits(
        opened,
        streams,
        cores,
        min(_THREADS, cores),
        inputs=golden(opened),
        patience_s=patience_s,
        spare_mb=spare_memory_mb(),
        progress=lambda what: show_progress(f"measuring {what}"),
    )
    show_progress("")
    best = best_split(found, streams, by)
    if as_json:
        print_json(
            {"streams": streams, "cores": cores, "threads": best.threads if best else 0, "measured": found}
        )
    else:
        _print_splits(found, best)


def _print_splits(found: tuple[SplitMeasurement, ...], best: SplitMeasurement | None) -> None:
    out = console(100, markup=False)
    figures = ("threads", "at once", "per s", "per stream", "answer ms", "CPU ms")
    table = open_table("", *figures, right=figures)
    for one in found:
        cells = [NO_VALUE] * 4
        if not one.refused:
            cells = [
                f"{one.per_s:.1f}",
                f"{one.per_s / one.streams:.1f}",
                f"{one.latency_ms:.1f}",
                f"{one.cpu_ms:.2f}",
            ]
        table.add_row("→" if one is best else "", str(one.threads), str(one.at_once), *cells)
    out.print(table)
    for one in found:
        if one.refused:
            out.print(f"{plural(one.threads, 'thread')}: {plain(one.refused)}")
    if best is not None:
        out.print(
            f"best: {plural(best.threads, 'thread')} for an inference; the daemon measures this, too, for streams"
            ' with backend = "auto" and without `threads`'
        )
