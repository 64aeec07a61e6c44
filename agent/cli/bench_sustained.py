"""`vedette bench --sustained`: run a model at full rate for minutes, and print rate, temperature and throttling.

A board that warms up may show for a minute a rate that it cannot keep: when it is too hot, the kernel or the
firmware slows its processors.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import TYPE_CHECKING

import click
from msgspec import Struct

from agent.board.firmware import UNDER_VOLTAGE
from agent.cli.optimise.progress import show_progress
from agent.cli.options import duration
from agent.cli.output import NO_VALUE, console, open_table, print_json
from agent.text import plain

if TYPE_CHECKING:
    from agent.compute.infer.session import BackendSpec
    from agent.compute.manifest import Model

_LEAST_S, _MOST_S = 1.0, 24 * 3600.0
_STRETCH_S = 60.0
_THREADS = 4
"""Most threads of the CPU, as `vedette bench` measures."""
_HANGS_S, _HANGS = 2.0, 50.0
"""An inference hangs if it takes longer than this, s, and longer than this factor times the first ones."""


class Stretch(Struct, frozen=True):
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
    model: str, variant: str, backend: str, text: str, *, patience_s: float, as_json: bool
) -> None:
    """Run a model for a time, and print a row for each minute."""
    from agent.models.library import open_model_without_root

    seconds = _seconds(text)
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
        _print(plan, stretches)


def _seconds(text: str) -> float:
    try:
        seconds = duration(text)
    except click.BadParameter as error:
        raise click.BadParameter(error.message, param_hint="--sustained") from None
    if not _LEAST_S <= seconds <= _MOST_S:
        raise click.BadParameter(f"expected 1s to 24h, found {text!r}", param_hint="--sustained")
    return seconds


def _plan(backend: str) -> BackendSpec:
    from agent.compute.infer.session import CPU, BackendSpec, resolve_backend

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


def _print(plan: BackendSpec, stretches: list[Stretch]) -> None:
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
