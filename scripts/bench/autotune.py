"""Choosing the number of threads: how much slower is the chosen one than the best of all?

In several passes over the bundled models and variants the choice is made as the daemon makes it, by latency and
by energy, and every number of threads is measured independently of that: in this process and with pauses, as a
stream runs what was chosen; all are open at the same time and take turns. Of these rounds the half counts in
which other programs used the processor least, and of it the median. Choices count whatever other programs do.
Some more, without a target, are made while a load of this bench's own comes and goes.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import common

sys.path.insert(0, str(common.ROOT))

from agent.board.processors import OtherLoad
from agent.compute.infer.benchmark import By, decide, survey
from agent.compute.infer.chain import ModelChain
from agent.compute.infer.litert import CpuBackend
from agent.compute.infer.session import SessionOptions
from agent.config import SelectionConfig
from agent.models.golden import golden
from agent.models.library import open_model

MODELS = (
    ("nanodet", "256"),
    ("nanodet", "320"),
    ("nanodet", "416"),
    ("small-speech", "3"),
    ("small-speech", "12"),
)
BY: tuple[By, ...] = ("latency", "energy")
LIMIT = 1.05
_TURN_S, _PAUSE_S = 0.2, (0.01, 0.03)

Costs = dict[By, dict[int, float]]
"""Compared variant → number of threads → ms."""


class Plan(NamedTuple):
    """How long it takes: passes, with rounds in each and a choice; and choices under a load."""

    passes: int
    rounds: int
    loaded: int


class Subject:
    """A model, its sessions with each number of threads, and what was found.

    Attributes:
        key: model and variant. chosen: what was chosen, and what was under a load.
    """

    def __init__(self, name: str, variant: str, threads_max: int) -> None:
        self.key, self.model, self._threads_max = f"{name}_{variant}", open_model(name, variant), threads_max
        self.chosen: dict[str, list[dict[By, int]]] = {"": [], "_under_load": []}
        self._rounds: list[tuple[float, dict[int, tuple[float, float]]]] = []
        self._wholes: dict[int, ModelChain] = {}
        for threads in range(1, threads_max + 1):
            session = CpuBackend().open(self.model, SessionOptions(threads=threads))
            self._wholes[threads] = ModelChain(session, self.model.manifest)
            self._wholes[threads].run_cases(golden(self.model)(self._wholes[threads].inputs))

    def measure(self) -> None:
        """One round: each number of threads has a turn."""
        busy, own, began = OtherLoad(), time.process_time(), time.monotonic()
        order = sorted(self._wholes, reverse=bool(len(self._rounds) % 2))
        turns = {threads: turn(self._wholes[threads]) for threads in order}
        cores_s = (time.monotonic() - began) * (os.cpu_count() or 1)
        self._rounds.append((max(0.0, busy.share() - (time.process_time() - own) / cores_s), turns))

    def choose(self, when: str = "") -> None:
        """Choose as the daemon does."""
        tried = survey(self.model, [], self._threads_max, inputs=golden(self.model))
        self.chosen[when].append({by: decide(tried, [], by).cpu.threads for by in BY})

    def costs(self) -> Costs:
        """Return the time of an inference with each number of threads."""
        calm = self._calmer()
        return {
            by: {
                threads: statistics.median(turns[threads][place] for _, turns in calm) for threads in self._wholes
            }
            for place, by in enumerate(BY)
        }

    @property
    def others(self) -> float:
        """Share of the processor that others used in the rounds that count."""
        return statistics.mean(others for others, _ in self._calmer())

    def _calmer(self) -> list[tuple[float, dict[int, tuple[float, float]]]]:
        return sorted(self._rounds, key=lambda one: one[0])[: len(self._rounds) // 2]


def main() -> None:
    args = common.arguments(__doc__ or "").parse_args()
    plan = Plan(2, 8, 1) if args.quick else Plan(8, 12, 3)
    threads_max = min(SelectionConfig().threads_max, len(os.sched_getaffinity(0)))
    subjects = [Subject(name, variant, threads_max) for name, variant in (MODELS[::4] if args.quick else MODELS)]
    for _ in range(plan.passes):
        for subject in subjects:
            for _ in range(plan.rounds):
                subject.measure()
            subject.choose()
    with load():
        for subject in subjects * plan.loaded:
            subject.choose("_under_load")
    figures = {"threads_max": float(threads_max), "choices": float(plan.passes * len(subjects))}
    for subject in subjects:
        figures |= told(subject)
    for when in ("", "_under_load"):
        worst = max(figures[f"{one.key}_{by}{when}_ratio"] for one in subjects for by in BY)
        figures[f"worst{when}_ratio"] = worst
    meets = figures["worst_ratio"] <= LIMIT
    common.conclude("autotune", figures, {"worst_ratio": f"<= {LIMIT}"}, meets)


def told(subject: Subject) -> dict[str, float]:
    """Print what was found of a subject; gives its ratios."""
    figures, costs = {}, subject.costs()
    for by in BY:
        each = ", ".join(f"{threads}: {ms:.3f} ms" for threads, ms in costs[by].items())
        print(f"{subject.key}, {by}: {each} (others used {subject.others:.0%})")
        for when, some in subject.chosen.items():
            print(f"    chosen{when.replace('_', ' ')}: {', '.join(str(one[by]) for one in some)}")
            worst = max(costs[by][one[by]] for one in some)
            figures[f"{subject.key}_{by}{when}_ratio"] = worst / min(costs[by].values())
    return figures


def turn(whole: ModelChain) -> tuple[float, float]:
    """Median time of an inference, and its CPU time, ms."""
    whole.invoke()
    used, times = time.process_time(), []
    until = time.perf_counter() + _TURN_S
    while time.perf_counter() < until:
        time.sleep(random.uniform(*_PAUSE_S))
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
