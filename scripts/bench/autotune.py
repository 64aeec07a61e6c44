"""Choosing the number of threads: how much slower is the chosen one than the best of all?

For each bundled model and rung the choice is made as the daemon makes it, again and again, by latency and by
energy. Every number of threads is measured independently of that, in this process, as the daemon runs what was
chosen: all are open at the same time and take turns, in many rounds. Of these the half counts in which other
programs used the processor least, and of it the median. Choices count that were made while others used at most a
quarter of it, as `vedette doctor` has it. Some more are made while a load of this bench's own comes and goes, to
see what that does to them; they have no target.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import NamedTuple

import common

sys.path.insert(0, str(common.ROOT))

from agent.compute.infer.backend import Options
from agent.compute.infer.litert import CpuBackend
from agent.compute.infer.selection import By, decide, survey
from agent.compute.infer.whole import Whole
from agent.config import SelectionConfig
from agent.golden import golden
from agent.health.machine import Busy
from agent.library import open_model
from agent.manifest import Model

MODELS = (
    ("nanodet", "256"),
    ("nanodet", "320"),
    ("nanodet", "416"),
    ("small-speech", "3"),
    ("small-speech", "12"),
)
QUICK = MODELS[::4]
BY: tuple[By, ...] = ("latency", "energy")
LIMIT = 1.05
_BUSY = 0.25
_TURN_S = 0.2
_SETTLE = 3
"""Inferences at the start of a turn that do not count: the others' turns have left the caches cold."""

Costs = dict[By, dict[int, float]]
"""What is compared → number of threads → ms."""


class Choice(NamedTuple):
    """The numbers of threads that the daemon would run a model with, and what others used of the processor."""

    threads: dict[By, int]
    busy: float

    def ratio(self, costs: Costs, by: By) -> float:
        """What it costs against the best."""
        return costs[by][self.threads[by]] / min(costs[by].values())


def main() -> None:
    args = common.arguments(__doc__ or "").parse_args()
    models, wanted, rounds = (QUICK, 2, 12) if args.quick else (MODELS, 8, 100)
    threads_max = min(SelectionConfig().threads_max, len(os.sched_getaffinity(0)))
    figures = {"threads_max": float(threads_max), "choices": 0.0}
    for name, rung in models:
        model = open_model(name, rung)
        costs, others = measured(model, threads_max, rounds)
        calm = choices(model, threads_max, wanted)
        with load():
            loaded = [choice(model, threads_max) for _ in range(wanted // 2)]
        figures["choices"] += len(calm)
        for by in BY:
            told = ", ".join(f"{threads}: {ms:.3f} ms" for threads, ms in costs[by].items())
            print(f"{name} {rung}, {by}: {told} (others used {others:.0%})")
            for when, some in (("", calm), ("_under_load", loaded)):
                print(f"    chosen{when.replace('_', ' ')}: {', '.join(str(one.threads[by]) for one in some)}")
                worst = max((one.ratio(costs, by) for one in some), default=0.0)
                for figure in (f"{name}_{rung}_{by}{when}_ratio", f"worst_{by}{when}_ratio"):
                    figures[figure] = max(worst, figures.get(figure, 0.0))
    figures["worst_ratio"] = max(figures[f"worst_{by}_ratio"] for by in BY)
    enough = figures["choices"] >= len(models)
    if not enough:
        print("other programs kept the processor so busy that hardly a choice counts: run this again")
    meets = enough and figures["worst_ratio"] <= LIMIT
    common.conclude("autotune", figures, {"worst_ratio": f"<= {LIMIT}"}, meets)


def choices(model: Model, threads_max: int, wanted: int) -> list[Choice]:
    """So many choices while others were calm, or as many as there are in half as many attempts more."""
    made: list[Choice] = []
    for _ in range(wanted + wanted // 2):
        one = choice(model, threads_max)
        if one.busy <= _BUSY:
            made.append(one)
        if len(made) == wanted:
            break
    return made


def choice(model: Model, threads_max: int) -> Choice:
    """Choose as the daemon does."""
    busy = Busy()
    tried = survey(model, [], threads_max, inputs=golden(model))
    return Choice({by: decide(tried, [], by).cpu.threads for by in BY}, busy.others())


def measured(model: Model, threads_max: int, rounds: int) -> tuple[Costs, float]:
    """What an inference costs with each number of threads, and what others used of the processor meanwhile."""
    found: list[tuple[float, dict[int, tuple[float, float]]]] = []
    with ExitStack() as open_:
        wholes = {}
        for threads in range(1, threads_max + 1):
            session = open_.enter_context(closing(CpuBackend().open(model, Options(threads=threads))))
            wholes[threads] = Whole(session, model.manifest)
            wholes[threads].answers(golden(model)(wholes[threads].inputs))
        for number in range(rounds):
            busy, own, began = Busy(), time.process_time(), time.monotonic()
            turns = {threads: turn(wholes[threads]) for threads in sorted(wholes, reverse=bool(number % 2))}
            cores_s = (time.monotonic() - began) * (os.cpu_count() or 1)
            found.append((busy.others() - (time.process_time() - own) / cores_s, turns))
    calm = sorted(found, key=lambda one: one[0])[: rounds // 2]
    costs: Costs = {
        by: {threads: statistics.median(turns[threads][place] for _, turns in calm) for threads in wholes}
        for place, by in enumerate(BY)
    }
    return costs, statistics.mean(max(0.0, others) for others, _ in calm)


def turn(whole: Whole) -> tuple[float, float]:
    """Median time of an inference, and its CPU time, ms."""
    for _ in range(_SETTLE):
        whole.invoke()
    used, times = time.process_time(), []
    until = time.perf_counter() + _TURN_S
    while time.perf_counter() < until:
        began = time.perf_counter()
        whole.invoke()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3, (time.process_time() - used) / len(times) * 1e3


@contextmanager
def load() -> Iterator[None]:
    """A load on every core that comes and goes, as other programs do: busy for a third of the time, by chance."""
    burning = [
        multiprocessing.Process(target=burn, args=(seed,), daemon=True)
        for seed in range(len(os.sched_getaffinity(0)))
    ]
    for process in burning:
        process.start()
    try:
        yield
    finally:
        for process in burning:
            process.terminate()
            process.join()


def burn(seed: int) -> None:
    """Compute for some tenths of a second, and rest for twice as long; for ever."""
    chance = random.Random(seed)
    while True:
        until = time.perf_counter() + chance.expovariate(1 / 0.4)
        while time.perf_counter() < until:
            sum(range(10_000))
        time.sleep(chance.expovariate(1 / 0.8))


if __name__ == "__main__":
    main()
