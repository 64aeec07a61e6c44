"""`vedette bench`: measure a model on everything that this board has."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from agent.cli.models.recommending import complete_board, predict_and_print
from agent.cli.optimise.progress import show_progress
from agent.cli.options import NumberRange, picture_option
from agent.cli.output import console, open_table, print_json
from agent.text import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from agent.compute.infer.benchmark import Progress
    from agent.compute.infer.choice import By, Measurement, Selection
    from agent.compute.infer.delegates import DelegateProbe
    from agent.compute.infer.session import BackendSpec
    from agent.compute.manifest import Model
    from agent.optimise.loadgen import ScenarioResult


@click.command()
@click.argument("model", default="")
@click.option("--variant", default="", help="Size or depth; default: the model's first.")
@click.option(
    "--backend",
    "backends",
    multiple=True,
    help="Measure only these besides the CPU; repeatable. `cpu`: the CPU only.",
)
@click.option(
    "--by",
    type=click.Choice(["latency", "energy"]),
    default="latency",
    show_default=True,
    help="Criterion of the choice.",
)
@click.option(
    "--patience",
    type=NumberRange(min=0.0, min_open=True, max=86_400.0),
    default=120.0,
    show_default=True,
    help="Time limit for opening and the first inference, s.",
)
@click.option(
    "--board",
    default="",
    metavar="NAME",
    shell_complete=complete_board,
    help="Predict the latencies on this board instead, such as pi4b.",
)
@click.option(
    "--fps",
    type=NumberRange(0.01, 1000.0),
    help="With --board: inferences in a second to reach; default: 15, or what a model of sound needs.",
)
@click.option(
    "--sustained",
    metavar="TIME",
    help="Run the model at full rate for so long, such as 10m, and print rate and temperature per minute.",
)
@click.option(
    "--streams",
    type=click.IntRange(1, 64),
    help="Measure with how many threads so many streams of the model share the cores best.",
)
@picture_option("the latencies")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--loadgen", is_flag=True, help="Run MLPerf LoadGen's SingleStream and Offline, too.")
@click.option(
    "--loadgen-seconds",
    type=NumberRange(0.1, 3600.0),
    default=10.0,
    show_default=True,
    help="Least time for each of the two, s.",
)
@click.option("--loadgen-logs", type=click.Path(path_type=Path), help="Keep LoadGen's log files in this folder.")
def bench(
    model: str,
    variant: str,
    backends: tuple[str, ...],
    by: str,
    patience: float,
    board: str,
    fps: float | None,
    sustained: str | None,
    streams: int | None,
    picture: Path | None,
    as_json: bool,
    loadgen: bool,
    loadgen_seconds: float,
    loadgen_logs: Path | None,
) -> None:
    """Measure MODEL on this board: on the CPU with 1 to 4 threads, and on every accelerator found.

    Each backend runs in a process of its own, which may crash or hang. Its answers are compared with the CPU's
    before it is timed, with pauses as in a stream. Nothing is changed. p50 and p95 are wall times: other work on
    this board, such as the service, makes them longer, and is not told.

    With --loadgen, MLPerf's load generator also measures the best backend, or those of --backend. Its figures
    include the way to the model's process and back, without pauses.

    With --board nothing is measured: what each variant takes on that board's CPU is predicted from published
    times of other networks, with an interval.

    With --sustained one backend, the CPU unless --backend names another, is kept busy, and rate, temperature and
    throttling are printed per minute. Ctrl-C ends it with what was measured until then.

    With --streams so many streams ask for inferences on the CPU without a pause, and take turns as in the daemon.
    """
    _check_together(click.get_current_context())
    if board:
        predict_and_print(model, board, variant, fps or 0.0, as_json=as_json)
        return
    if streams is not None:
        from agent.cli.bench_streams import bench_streams

        if set(backends) - {"cpu"}:
            raise click.UsageError("--streams measures the CPU: an accelerator runs one inference at a time")
        criterion: By = "energy" if by == "energy" else "latency"
        bench_streams(model, variant, streams, criterion, patience_s=patience, as_json=as_json)
        return
    if sustained is not None:
        from agent.cli.bench_sustained import bench_sustained

        if len(backends) > 1:
            raise click.UsageError("--sustained runs one backend: name one")
        bench_sustained(model, variant, "".join(backends), sustained, patience_s=patience, as_json=as_json)
        return
    from agent.compute.infer.benchmark import choose
    from agent.daemon.measurements import spare_memory_mb
    from agent.models.library import golden, open_model_without_root

    _check_outputs(picture, loadgen=loadgen, logs=loadgen_logs)
    opened = open_model_without_root(model, variant)
    found, inputs = _candidates(backends), golden(opened)
    verdict = choose(
        opened,
        found,
        len(os.sched_getaffinity(0)),
        "energy" if by == "energy" else "latency",
        inputs=inputs,
        patience_s=patience,
        spare_mb=spare_memory_mb(),
        progress=_progress,
    )
    tested: list[ScenarioResult] | None = None
    if loadgen:
        asked = loadgen_backends(verdict, found, backends)
        tested = run_loadgen(
            opened, asked, loadgen_seconds, loadgen_logs, patience_s=patience, progress=_progress
        )
    _progress("")
    if picture is not None:
        title = f"{opened.manifest.name}{f', variant {variant}' if variant else ''}"
        _draw(verdict, title, picture, asked=bool(backends))
    if as_json:
        _print_json(verdict, tested)
    else:
        _print(verdict, asked=bool(backends), tested=tested)


_MODES = {
    "--board": {"MODEL", "--variant", "--fps"},
    "--streams": {"MODEL", "--variant", "--backend", "--by", "--patience"},
    "--sustained": {"MODEL", "--variant", "--backend", "--patience"},
}
"""Options of which each is a measurement of its own, and what it takes besides `--json`."""


def _check_together(context: click.Context) -> None:
    """Refuse options that do not go together, and a missing model."""
    given = [
        one.opts[0] if isinstance(one, click.Option) else "MODEL"
        for one in context.command.params
        if context.get_parameter_source(one.name or "") is ParameterSource.COMMANDLINE
    ]
    mode = next((name for name in _MODES if name in given), "")
    if "MODEL" not in given:
        raise click.UsageError("Missing argument 'MODEL'.")
    for name in given:
        if mode and name not in _MODES[mode] | {mode, "--json"}:
            raise click.UsageError(f"{name} does not go together with {mode}: leave one of them out")
    for name, needed in (("--fps", "--board"), ("--loadgen-logs", "--loadgen")):
        if name in given and needed not in given:
            raise click.UsageError(f"{name} needs {needed}")


def _draw(verdict: Selection, title: str, picture: Path, *, asked: bool) -> None:
    from agent.cli.chart import draw_latencies

    draw_latencies(verdict, _refused(verdict, asked=asked), title, picture)


def _check_outputs(picture: Path | None, *, loadgen: bool, logs: Path | None) -> None:
    """Refuse what cannot be written, or lacks its extra, before anything is measured."""
    if picture is not None:
        from agent.cli.chart import check as check_chart

        check_chart(picture)
    if loadgen:
        from agent.optimise.loadgen import check

        check(logs)


def _candidates(backends: Sequence[str]) -> list[DelegateProbe]:
    from agent.compute.infer.delegates import probe_delegates
    from agent.compute.infer.session import CPU

    names = [name for name in backends if name != CPU]
    return probe_delegates(names, besides=[CPU]) if names or not backends else []


def _progress(what: str) -> None:
    """Show what is being measured; an empty text ends that."""
    show_progress(f"measuring {what}" if what else "")


def _print_json(verdict: Selection, tested: list[ScenarioResult] | None) -> None:
    import msgspec

    result: dict[str, Any] = msgspec.structs.asdict(verdict)
    if tested is not None:
        result["loadgen"] = tested
    print_json(result)


def _table(verdict: Selection) -> Table:
    figures = ("threads", "p50 ms", "p95 ms", "per s", "CPU ms", "1st run ms", "load s", "MB", "deviation")
    table = open_table("", "backend", *figures, right=figures)
    timed = [one for one in verdict.measured if one.p50_ms]
    for one in timed:
        chosen = (one.name, one.threads) == (verdict.chosen.backend, verdict.chosen.threads)
        table.add_row(
            "→" if chosen else "",
            plain(one.name),
            str(one.threads or ""),
            f"{one.p50_ms:.2f}",
            f"{one.p95_ms:.2f}",
            f"{1e3 / one.p50_ms:.0f}",
            f"{one.cpu_ms:.2f}",
            f"{one.first_ms:.0f}",
            f"{one.open_s:.1f}",
            f"{one.rss_mb:.0f}",
            "" if one.error is None else f"{one.error:.2%}",
        )
    return table


def _print(verdict: Selection, *, asked: bool, tested: list[ScenarioResult] | None) -> None:
    out = console(100, markup=False)
    out.print(_table(verdict))
    for one in verdict.measured:
        if one.software:
            out.print(f"{plain(one.name)}: no GPU: the Vulkan driver {plain(one.software)} computes on the CPU")
    for one in _refused(verdict, asked=asked):
        out.print(f"{plain(one.name)}: {plain(one.refused)}")
    away = [one.name for one in verdict.measured if not one.here]
    if away and not asked:
        out.print(f"not on this board: {', '.join(away)}; --backend NAME shows what is missing")
    if tested is not None:
        for outcome in tested:
            print_outcome(outcome, out)
        if not tested:
            out.print("nothing for LoadGen: none of the named backends could be measured")


def _refused(verdict: Selection, *, asked: bool) -> list[Measurement]:
    return [one for one in verdict.measured if one.refused and (one.here or asked)]


def loadgen_backends(
    verdict: Selection, found: Sequence[DelegateProbe], backends: Sequence[str]
) -> list[BackendSpec]:
    """Return the backends that LoadGen tests: those named that could be timed, or the chosen one if none is."""
    from agent.compute.infer.session import CPU

    if not backends:
        return [verdict.chosen]
    timed = {one.name for one in verdict.measured if one.p50_ms}
    processor = [verdict.cpu] if CPU in backends else []
    return [*processor, *(one.plan for one in found if one.plan is not None and one.name in timed)]


def run_loadgen(
    model: Model,
    plans: Sequence[BackendSpec],
    seconds: float,
    logs: Path | None,
    *,
    patience_s: float,
    progress: Progress,
) -> list[ScenarioResult]:
    """Test backends with LoadGen, one after the other.

    Each of the two scenarios takes `seconds`. `logs` is a folder that keeps LoadGen's files; None: they are
    deleted.

    Raises:
        VedetteError: LoadGen cannot run; see `agent.optimise.loadgen.run_scenarios`.
    """
    from agent.models.library import golden
    from agent.optimise.loadgen import run_scenarios

    with ExitStack() as stack:
        folder = logs or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vedette-loadgen-")))
        done = []
        for plan in plans:
            name = _backend_name(plan.backend, plan.threads)
            progress(f"{name}, by LoadGen")
            there = folder / (re.sub(r"[^\w.]+", "-", name).strip("-.") or "way")
            done.append(run_scenarios(model, plan, golden(model), seconds, there, patience_s=patience_s))
        return done


def print_outcome(one: ScenarioResult, out: Console) -> None:
    """Print one backend's table and why a result is not valid."""
    name = plain(_backend_name(one.name, one.threads))
    out.print(f"\nMLPerf LoadGen {one.version}: {name}, {one.seconds:g} s each")
    columns = ("p50 ms", "p90 ms", "p99 ms", "per s", "inferences")
    table = open_table("scenario", *columns, "result", right=columns)
    for scenario in one.scenarios:
        latencies = (scenario.p50_ms, scenario.p90_ms, scenario.p99_ms)
        figures = ["–" if ms is None else f"{ms:.2f}" for ms in latencies]
        table.add_row(scenario.name, *figures, f"{scenario.per_s:.1f}", str(scenario.inferences), scenario.result)
    if one.scenarios:
        out.print(table)
    for remark in _remarks(one):
        out.print(remark)


def _remarks(one: ScenarioResult) -> list[str]:
    remarks = [
        f"{scenario.name} is {scenario.result}: {scenario.why}" for scenario in one.scenarios if scenario.why
    ]
    if one.refused:
        remarks.append(f"not tested further: {plain(one.refused)}")
    required_s = max((scenario.required_s for scenario in one.scenarios), default=0.0)
    if one.seconds < required_s:
        remarks.append(f"MLPerf asks for {required_s:g} s each: shorter runs compare backends only")
    return remarks


def _backend_name(name: str, threads: int) -> str:
    return f"{name} with {threads} thread{'s' * (threads != 1)}" if threads else name
