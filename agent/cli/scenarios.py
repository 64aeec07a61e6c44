"""MLPerf LoadGen in `vedette bench`: choose backends, run, print."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from agent.compute.infer.benchmark import Progress
from agent.compute.infer.choice import Selection
from agent.compute.infer.delegates import DelegateProbe
from agent.compute.infer.session import CPU, BackendSpec
from agent.compute.manifest import Model
from agent.models.library import golden
from agent.optimise.loadgen import ScenarioResult, run_scenarios
from agent.text import plain

if TYPE_CHECKING:
    from rich.console import Console


def ways(verdict: Selection, found: Sequence[DelegateProbe], backends: Sequence[str]) -> list[BackendSpec]:
    """Return the backends to test: those named that could be timed, or the chosen one if none is named.

    Args:
        verdict: of the bench.
        found: what it was made of.
        backends: that the user has named.
    """
    if not backends:
        return [verdict.chosen]
    timed = {one.name for one in verdict.measured if one.p50_ms}
    processor = [verdict.cpu] if CPU in backends else []
    return [*processor, *(one.plan for one in found if one.plan is not None and one.name in timed)]


def outcomes(
    model: Model,
    plans: Sequence[BackendSpec],
    seconds: float,
    logs: Path | None,
    *,
    patience_s: float,
    progress: Progress,
) -> list[ScenarioResult]:
    """Have LoadGen test them, one after the other.

    Args:
        model: to run.
        plans: the ways.
        seconds: for each of the two scenarios, s.
        logs: folder to keep LoadGen's files in; None: nowhere.
        patience_s: for opening the model and for its first inference, s.
        progress: is told what is tested next.

    Raises:
        VedetteError: see `agent.optimise.loadgen.run_scenarios`.
    """
    with ExitStack() as stack:
        folder = logs or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vedette-loadgen-")))
        done = []
        for plan in plans:
            name = _way(plan.backend, plan.threads)
            progress(f"{name}, by LoadGen")
            there = folder / (re.sub(r"[^\w.]+", "-", name).strip("-.") or "way")
            done.append(run_scenarios(model, plan, golden(model), seconds, there, patience_s=patience_s))
        return done


def print_outcome(one: ScenarioResult, console: Console) -> None:
    """Print one backend's table and why a result is not valid."""
    from rich import box
    from rich.table import Table

    console.print(f"\nMLPerf LoadGen {one.version}: {plain(_way(one.name, one.threads))}, {one.seconds:g} s each")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("scenario")
    for column in ("p50 ms", "p90 ms", "p99 ms", "per s", "inferences"):
        table.add_column(column, justify="right")
    table.add_column("result")
    for scenario in one.scenarios:
        latencies = (scenario.p50_ms, scenario.p90_ms, scenario.p99_ms)
        figures = ["–" if ms is None else f"{ms:.2f}" for ms in latencies]
        table.add_row(scenario.name, *figures, f"{scenario.per_s:.1f}", str(scenario.inferences), scenario.result)
    if one.scenarios:
        console.print(table)
    for remark in _remarks(one):
        console.print(remark)


def _remarks(one: ScenarioResult) -> list[str]:
    said = [f"{scenario.name} is {scenario.result}: {scenario.why}" for scenario in one.scenarios if scenario.why]
    if one.refused:
        said.append(f"not tested further: {plain(one.refused)}")
    required_s = max((scenario.required_s for scenario in one.scenarios), default=0.0)
    if one.seconds < required_s:
        said.append(f"MLPerf asks for {required_s:g} s each: these are to compare by, and not for a submission")
    return said


def _way(name: str, threads: int) -> str:
    return f"{name} with {threads} thread{'s' * (threads != 1)}" if threads else name
