"""`vedette bench --sustained`: run a model at full rate for minutes, and print rate, heat and power over time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.optimise.progress import show_progress
from agent.cli.options import duration
from agent.cli.output import NO_VALUE, console, open_table, print_json
from agent.text import plain

if TYPE_CHECKING:
    from agent.compute.infer.session import BackendSpec
    from agent.compute.infer.sustained import RateSample, SustainedRun

_LEAST_S, _MOST_S = 1.0, 24 * 3600.0
_ROWS = 12
"""Most rows of the table."""
_SAMPLES = 60
"""Stretches of a run: 10 s each of 10 minutes."""
_LEAST_STRETCH_S = 0.1
_THREADS = 4
"""Most threads of the CPU, as `vedette bench` measures."""


def bench_sustained(
    model: str, variant: str, backend: str, time: str, picture: Path | None, *, patience_s: float, as_json: bool
) -> None:
    """Run a model for a time, print the result, and draw it into a picture unless None."""
    from agent.compute.infer.sustained import BoardSampler, judge_run, sustain
    from agent.models.library import golden, open_model_without_root

    seconds = _seconds(time)
    if picture is not None:
        from agent.cli.chart import check

        check(picture)
    plan, opened, sampler = _plan(backend), open_model_without_root(model, variant), BoardSampler()
    idle, stretch_s = sampler.read(), max(_LEAST_STRETCH_S, seconds / _SAMPLES)
    stretches = sustain(
        opened, plan, seconds, stretch_s, sampler.read, inputs=golden(opened), patience_s=patience_s
    )
    with closing(stretches):
        samples = _collect(stretches, seconds)
    run = judge_run(plan, seconds, idle, samples)
    if picture is not None and samples:
        from agent.cli.chart import draw_sustained

        draw_sustained(run, f"{opened.manifest.name} at full rate on {plan.backend}", picture)
    if as_json:
        print_json(run)
    else:
        _print(run)


def _seconds(text: str) -> float:
    try:
        seconds = duration(text)
    except click.BadParameter as error:
        raise click.BadParameter(error.message, param_hint="--sustained") from None
    if not _LEAST_S <= seconds <= _MOST_S:
        raise click.BadParameter(f"expected 1s to 24h, found {text!r}", param_hint="--sustained")
    return seconds


def _plan(backend: str) -> BackendSpec:
    from agent.compute.infer.delegates import probe_delegates
    from agent.compute.infer.session import CPU, BackendSpec
    from agent.errors import BackendError

    if backend in ("", CPU):
        return BackendSpec(threads=min(_THREADS, len(os.sched_getaffinity(0))))
    (found,) = probe_delegates([backend], besides=[CPU])
    if found.plan is None:
        raise BackendError(f"{backend}: {found.missing}")
    return found.plan


def _collect(stretches: Iterator[RateSample], seconds: float) -> list[RateSample]:
    """Return the samples until the end or Ctrl-C, and show the progress."""
    samples: list[RateSample] = []
    try:
        for sample in stretches:
            samples.append(sample)
            show_progress(f"{sample.at_s:.0f} of {seconds:.0f} s: {sample.per_s:.1f} per s{_warmth(sample)}")
    except KeyboardInterrupt:
        if not samples:
            raise
    finally:
        show_progress("")
    return samples


def _warmth(sample: RateSample) -> str:
    return "" if sample.board.celsius is None else f", {sample.board.celsius:.1f} °C"


def _print(run: SustainedRun) -> None:
    out = console(100, markup=False)
    columns = ("time", "per s", "°C", "MHz", "W")
    table = open_table(*columns, "", right=columns)
    for samples in _rows(run.samples):
        table.add_row(*_cells(samples))
    out.print(table)
    for line in verdict_lines(run):
        out.print(line)


def _rows(samples: Sequence[RateSample]) -> Iterator[list[RateSample]]:
    """Yield the samples in at most `_ROWS` groups, of a second or more."""
    rows = min(_ROWS, max(1, int(samples[-1].at_s))) if samples else _ROWS
    each = -(-len(samples) // rows)
    for _, group in groupby(enumerate(samples), lambda numbered: numbered[0] // each):
        yield [sample for _, sample in group]


def _cells(samples: Sequence[RateSample]) -> tuple[str, ...]:
    last, at_s = samples[-1].board, round(samples[-1].at_s)
    power = NO_VALUE if last.watts is None else f"{last.watts:.2f}{'~' if last.power_from == 'estimate' else ''}"
    remarks = {
        "throttled": any(one.board.throttled for one in samples),
        "under-voltage": any(one.board.under_voltage for one in samples),
    }
    return (
        f"{at_s // 60}:{at_s % 60:02}",
        f"{sum(one.per_s for one in samples) / len(samples):.1f}",
        NO_VALUE if last.celsius is None else f"{last.celsius:.1f}",
        str(last.mhz or NO_VALUE),
        power,
        ", ".join(name for name, told in remarks.items() if told),
    )


def verdict_lines(run: SustainedRun) -> Iterator[str]:
    """Yield the lines below the table: rates of the first minute and for ever, and what is estimated."""
    threads = f" with {run.threads} threads" if run.threads > 1 else ""
    if not run.complete and run.samples:
        yield f"interrupted after {run.samples[-1].at_s:.0f} of {run.asked_s:.0f} s"
    if run.first_per_s is not None:
        yield f"first minute: {run.first_per_s:.1f} per s on {plain(run.backend)}{threads}"
    held = run.held
    rate = "unknown" if held.per_s is None else f"{held.per_s:.1f} per s"
    yield f"holds for ever: {rate} ({held.why})"
    if held.limited_in_s is not None:
        yield f"throttling would begin {held.limited_in_s / 60:.1f} min after the end of this run"
    if any(one.board.power_from == "estimate" for one in run.samples):
        yield "~ estimated from the load and published figures, not measured"
