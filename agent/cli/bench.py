"""`vedette bench`: measure a model on everything that this board has, or its rate and heat over minutes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from agent.cli.options import NumberRange, duration
from agent.cli.output import NO_VALUE, console, open_table, print_json, show_progress
from agent.text import plain

if TYPE_CHECKING:
    from rich.table import Table

    from agent.compute.infer.benchmark import Measurement, Selection
    from agent.compute.infer.delegates import DelegateProbe
    from agent.compute.infer.session import BackendSpec
    from agent.compute.manifest import Model


@click.command()
@click.argument("model")
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
    "--sustained",
    type=duration,
    metavar="TIME",
    help="Run the model at full rate for so long, such as 10m, and print rate and temperature per minute.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def bench(
    model: str,
    variant: str,
    backends: tuple[str, ...],
    by: str,
    patience: float,
    sustained: float | None,
    as_json: bool,
) -> None:
    """Measure MODEL on this board: on the CPU with 1 to 4 threads, and on every accelerator found.

    Each backend runs in a process of its own, which may crash or hang. Its answers are compared with the CPU's
    before it is timed, with pauses as in a stream. Nothing is changed. p50 and p95 are wall times: other work on
    this board, such as the service, makes them longer, and is not told.

    With --sustained one backend, the CPU unless --backend names another, is kept busy, and rate, temperature and
    throttling are printed per minute. Ctrl-C ends it with what was measured until then.
    """
    _check_together(click.get_current_context())
    if sustained is not None:
        if len(backends) > 1:
            raise click.UsageError("--sustained runs one backend: name one")
        if not _LEAST_S <= sustained <= _MOST_S:
            raise click.BadParameter("expected 1s to 24h", param_hint="--sustained")
        bench_sustained(model, variant, "".join(backends), sustained, patience_s=patience, as_json=as_json)
        return
    from agent.compute.infer.benchmark import choose
    from agent.daemon.measurements import spare_memory_mb
    from agent.models.golden import golden
    from agent.models.library import open_model_without_root

    opened = open_model_without_root(model, variant)
    verdict = choose(
        opened,
        _candidates(backends),
        len(os.sched_getaffinity(0)),
        "energy" if by == "energy" else "latency",
        inputs=golden(opened),
        patience_s=patience,
        spare_mb=spare_memory_mb(),
        progress=lambda what: show_progress(f"measuring {what}"),
    )
    show_progress("")
    if as_json:
        print_json(verdict)
    else:
        _print(verdict, asked=bool(backends))


_MODES = {
    "--sustained": {"MODEL", "--variant", "--backend", "--patience"},
}
"""Options of which each is a measurement of its own, and what it takes besides `--json`."""


def _check_together(context: click.Context) -> None:
    """Refuse options that do not go together."""
    given = [
        one.opts[0] if isinstance(one, click.Option) else "MODEL"
        for one in context.command.params
        if context.get_parameter_source(one.name or "") is ParameterSource.COMMANDLINE
    ]
    mode = next((name for name in _MODES if name in given), "")
    for name in given:
        if mode and name not in _MODES[mode] | {mode, "--json"}:
            raise click.UsageError(f"{name} does not go together with {mode}: leave one of them out")


def _candidates(backends: Sequence[str]) -> list[DelegateProbe]:
    from agent.compute.infer.delegates import probe_delegates
    from agent.compute.infer.session import CPU

    names = [name for name in backends if name != CPU]
    return probe_delegates(names, besides=[CPU]) if names or not backends else []


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


def _print(verdict: Selection, *, asked: bool) -> None:
    out = console(100, markup=False)
    out.print(_table(verdict))
    for one in _refused(verdict, asked=asked):
        out.print(f"{plain(one.name)}: {plain(one.refused)}")
    away = [one.name for one in verdict.measured if not one.here]
    if away and not asked:
        out.print(f"not on this board: {', '.join(away)}; --backend NAME shows what is missing")


def _refused(verdict: Selection, *, asked: bool) -> list[Measurement]:
    return [one for one in verdict.measured if one.refused and (one.here or asked)]


# `--sustained`: a board that warms up may show for a minute a rate that it cannot keep, because the kernel or the
# firmware slows its processors when it is too hot.

_LEAST_S, _MOST_S = 1.0, 24 * 3600.0
_STRETCH_S = 60.0
_THREADS = 4
"""Most threads of the CPU that are measured."""
_HANGS_S, _HANGS = 2.0, 50.0
"""An inference hangs if it takes longer than this, s, and longer than this factor times the first ones."""


@dataclass(frozen=True)
class Stretch:
    """One minute of the run.

    Attributes:
        at_s: time of its end since the run began, s.
        per_s: inferences per second within it.
        celsius: of the processor's hottest zone at its end, °C; None: unknown.
        throttled: what slows the processors at its end, such as heat or under-voltage.
    """

    at_s: float
    per_s: float
    celsius: float | None
    throttled: tuple[str, ...]


def bench_sustained(
    model: str, variant: str, backend: str, seconds: float, *, patience_s: float, as_json: bool
) -> None:
    """Run a model for a time, and print a row for each minute."""
    from agent.models.library import open_model_without_root

    plan, opened = _plan(backend), open_model_without_root(model, variant)
    stretches: list[Stretch] = []
    with closing(_run(opened, plan, seconds, patience_s, _board_reader())) as running:
        try:
            for stretch in running:
                stretches.append(stretch)
                show_progress(f"{stretch.at_s:.0f} of {seconds:.0f} s: {stretch.per_s:.1f} per s")
        except KeyboardInterrupt:
            if not stretches:
                raise
        finally:
            show_progress("")
    if as_json:
        print_json({"backend": plan.backend, "threads": plan.threads, "asked_s": seconds, "stretches": stretches})
    else:
        _print_sustained(plan, stretches)


def _plan(backend: str) -> BackendSpec:
    from agent.compute.infer.backends import resolve_backend
    from agent.compute.infer.session import CPU, BackendSpec

    if backend in ("", CPU):
        return BackendSpec(threads=min(_THREADS, len(os.sched_getaffinity(0))))
    return resolve_backend(backend)


_Reader = Callable[[], tuple[float | None, tuple[str, ...]]]


def _board_reader() -> _Reader:
    """Return a function that reads the temperature, °C, and what slows the processors."""
    from agent.board.monitor import PowerMonitor
    from agent.board.sensors import BoardSensors

    sensors = BoardSensors()
    power = PowerMonitor(every_s=0.0, sensors=sensors)

    def read() -> tuple[float | None, tuple[str, ...]]:
        zone = sensors.hottest()
        power.poll()
        return zone.temperature_c if zone else None, tuple(power.supply.now) if power.supply else ()

    return read


def _run(
    model: Model, plan: BackendSpec, seconds: float, patience_s: float, read: _Reader
) -> Generator[Stretch, None, None]:
    """Run a model back to back in a process of its own, and yield what was measured while it runs."""
    from agent.compute.infer.chain import ModelChain
    from agent.compute.infer.session import SessionOptions
    from agent.compute.infer.worker import WorkerSession
    from agent.models.golden import golden

    options = SessionOptions(threads=plan.threads)
    opened = WorkerSession(model, plan, options, deadline_s=patience_s, patience_s=patience_s)
    with closing(opened) as session:
        chain = ModelChain(session, model.manifest)
        chain.set_input(golden(model)(chain.inputs)[0])
        chain.invoke()
        began_s = time.monotonic()
        chain.invoke()
        session.deadline_s = max(_HANGS_S, _HANGS * (time.monotonic() - began_s))
        began_s = since_s = now_s = time.monotonic()
        while now_s - began_s < seconds:
            count, until_s = 0, min(since_s + _STRETCH_S, began_s + seconds)
            while now_s < until_s or not count:
                chain.invoke()
                count, now_s = count + 1, time.monotonic()
            yield Stretch(round(now_s - began_s, 3), count / (now_s - since_s), *read())
            since_s = now_s


def _print_sustained(plan: BackendSpec, stretches: list[Stretch]) -> None:
    from agent.board.firmware import UNDER_VOLTAGE

    out = console(100, markup=False)
    table = open_table("time", "per s", "°C", "", right=("time", "per s", "°C"))
    for stretch in stretches:
        at_s = round(stretch.at_s)
        celsius = NO_VALUE if stretch.celsius is None else f"{stretch.celsius:.1f}"
        table.add_row(
            f"{at_s // 60}:{at_s % 60:02}", f"{stretch.per_s:.1f}", celsius, ", ".join(stretch.throttled)
        )
    out.print(table)
    threads = f" with {plan.threads} threads" if plan.threads > 1 else ""
    first, last = stretches[0], stretches[-1]
    out.print(
        f"{plain(plan.backend)}{threads}: {first.per_s:.1f} per s in the first minute, "
        f"{last.per_s:.1f} in the last"
    )
    if (slowed := next((stretch for stretch in stretches if stretch.throttled), None)) is not None:
        cause = "under-voltage" if UNDER_VOLTAGE in slowed.throttled else "heat"
        out.print(f"throttled by {cause} from minute {slowed.at_s / 60:.0f} on: the last rate is what it holds")
    else:
        out.print("not throttled; the rate holds if the temperature no longer rises")
