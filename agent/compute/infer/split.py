"""Measures how several streams of one model use the cores best.

The ways are few inferences at once with several threads each, or many with one. Each stream asks for the next
inference when it has the answer to the one before, as streams do whose gates are open; who has waited longest
goes first. Every inference runs in a worker process. The ways that are compared take turns, so that what slows
the board down for a moment slows all of them.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing

from msgspec import Struct
from msgspec.structs import replace

from agent.compute.infer.benchmark import Progress
from agent.compute.infer.chain import ModelChain
from agent.compute.infer.choice import Inputs, SplitMeasurement, golden_inputs, side_by_side
from agent.compute.infer.session import BackendSpec, SessionOptions
from agent.compute.infer.turns import Turns
from agent.compute.infer.worker import PATIENCE_S, WorkerSession
from agent.compute.manifest import Model
from agent.errors import BackendError, ModelError, VedetteError
from agent.text import plural

STREAMS_MAX = 64
"""Most streams that are measured at once."""
TURNS, TURN_S = 8, 0.5
"""Number and length, s, of the turns of each way."""
_HANGS_S = 10.0
"""Deadline of an inference, s: several run at once, and a model may be slow."""


class _Turn(Struct, frozen=True):
    """What a turn gave: inferences of each stream, time, s, and CPU time of all worker processes, s."""

    counts: tuple[int, ...]
    wall_s: float
    cpu_s: float


class _Chains:
    """Opened models, which streams take and give back in turns."""

    def __init__(self) -> None:
        self._turns: Turns[threading.Semaphore, ModelChain] = Turns()
        self._taken: dict[int, ModelChain] = {}
        self._lock = threading.Lock()

    def add(self, chain: ModelChain) -> None:
        """Add one."""
        with self._lock:
            self._turns.add(chain)
            self._serve()

    def take(self, stream: threading.Semaphore) -> ModelChain:
        """Return one, when it is the turn of this stream."""
        with self._lock:
            self._turns.ask(stream, time.monotonic())
            self._serve()
        stream.acquire()
        return self._taken[id(stream)]

    def give_back(self, stream: threading.Semaphore) -> None:
        """End the turn of this stream."""
        with self._lock:
            chain = self._turns.end(stream, time.monotonic())
            assert chain is not None
            self._turns.add(chain)
            self._serve()

    def _serve(self) -> None:
        for stream, chain in self._turns.grants(time.monotonic()):
            self._taken[id(stream)] = chain
            stream.release()


class _Split:
    """One way, with its worker processes."""

    def __init__(
        self, model: Model, streams: int, threads: int, at_once: int, inputs: Inputs, patience_s: float
    ) -> None:
        """Open the model `at_once` times. Raises as `WorkerSession`."""
        self.known = SplitMeasurement(streams, threads, at_once)
        self._turns: list[_Turn] = []
        self._error = ""
        self._opened = ExitStack()
        self._sessions: list[WorkerSession] = []
        self._chains = _Chains()
        try:
            for _ in range(at_once):
                self._chains.add(self._open(model, inputs, patience_s))
        except BaseException:
            self.close()
            raise

    def _open(self, model: Model, inputs: Inputs, patience_s: float) -> ModelChain:
        plan, options = BackendSpec(threads=self.known.threads), SessionOptions(threads=self.known.threads)
        opened = WorkerSession(model, plan, options, deadline_s=_HANGS_S, patience_s=patience_s)
        session = self._opened.enter_context(closing(opened))
        self._sessions.append(session)
        chain = ModelChain(session, model.manifest)
        chain.set_input(inputs(chain.inputs)[0])
        chain.invoke()
        return chain

    def close(self) -> None:
        """End the worker processes."""
        self._opened.close()

    def run(self, seconds: float) -> None:
        """Let all streams run for so long."""
        if self._error:
            return
        try:
            used_s, counts = self._cpu_s(), [0] * self.known.streams
            began_s = time.monotonic()
            self._run_streams(counts, began_s + seconds)
            wall_s = time.monotonic() - began_s
            self._turns.append(_Turn(tuple(counts), wall_s, self._cpu_s() - used_s))
        except BackendError as error:
            self._error = str(error)

    def _run_streams(self, counts: list[int], until_s: float) -> None:
        threads = [
            threading.Thread(target=self._run_stream, args=(number, counts, until_s), daemon=True)
            for number in range(len(counts))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._error:
            raise BackendError(self._error)

    def _run_stream(self, number: int, counts: list[int], until_s: float) -> None:
        stream = threading.Semaphore(0)
        while time.monotonic() < until_s and not self._error:
            chain = self._chains.take(stream)
            try:
                chain.invoke()
                counts[number] += 1
            except VedetteError as error:
                self._error = str(error)
            finally:
                self._chains.give_back(stream)

    def _cpu_s(self) -> float:
        return sum(session.usage().cpu_s for session in self._sessions)

    def rss_mb(self) -> float:
        """Return the resident memory of the first worker process, MB."""
        return self._sessions[0].usage().rss_mb

    def result(self) -> SplitMeasurement:
        """Return the measurement so far."""
        totals = [sum(counts) for counts in zip(*(turn.counts for turn in self._turns), strict=True)]
        inferences, wall_s = sum(totals), sum(turn.wall_s for turn in self._turns)
        if self._error or not inferences:
            return replace(self.known, refused=self._error or "no inference ended in time")
        return replace(
            self.known,
            per_s=inferences / wall_s,
            latency_ms=self.known.streams * wall_s / inferences * 1e3,
            cpu_ms=sum(turn.cpu_s for turn in self._turns) / inferences * 1e3,
            least_share=min(1.0, min(totals) * len(totals) / inferences),
        )


def measure_splits(
    model: Model,
    streams: int,
    cores: int,
    threads_max: int,
    *,
    inputs: Inputs = golden_inputs,
    patience_s: float = PATIENCE_S,
    spare_mb: float = math.inf,
    turns: int = TURNS,
    progress: Progress = lambda _: None,
) -> tuple[SplitMeasurement, ...]:
    """Measure what so many streams of a model get with 1 thread for an inference, with 2, and so on.

    Args:
        model: to run; without exits.
        streams: that ask for inferences, 1 to `STREAMS_MAX`.
        cores: of the CPU that can be used.
        threads_max: most threads of an inference.
        inputs: returns the inputs, of which the first is used.
        patience_s: longest time to open a model, and of its first inference, s.
        spare_mb: memory for processes, MB; if it is short, the ways are measured one after the other.
        turns: of `TURN_S` for each way.
        progress: called with what is measured next; its errors end the measurement.

    Raises:
        ModelError, BackendError: the CPU does not run the model.
    """
    ways = [
        (threads, min(streams, side_by_side(cores, threads))) for threads in range(1, min(cores, threads_max) + 1)
    ]
    with closing(_Split(model, 1, 1, 1, inputs, patience_s)) as probe:
        each_mb = probe.rss_mb()
    at_once = sum(count for _, count in ways) * each_mb <= spare_mb
    found: list[SplitMeasurement] = []
    for group in [ways] if at_once else [[way] for way in ways]:
        found += _measure_group(model, streams, group, inputs, patience_s, turns, progress)
    if all(one.refused for one in found):
        raise BackendError(found[0].refused)
    return tuple(found)


def _measure_group(
    model: Model,
    streams: int,
    ways: Sequence[tuple[int, int]],
    inputs: Inputs,
    patience_s: float,
    turns: int,
    progress: Progress,
) -> list[SplitMeasurement]:
    with ExitStack() as opened:
        splits, refused = [], []
        for threads, at_once in ways:
            try:
                split = _Split(model, streams, threads, at_once, inputs, patience_s)
                splits.append(opened.enter_context(closing(split)))
            except (BackendError, ModelError) as error:
                refused.append(SplitMeasurement(streams, threads, at_once, refused=str(error)))
        for number in range(turns):
            for split in splits[:: -1 if number % 2 else 1]:
                progress(f"{plural(streams, 'stream')}, {plural(split.known.threads, 'thread')} each")
                split.run(TURN_S)
        return sorted([*(one.result() for one in splits), *refused], key=lambda one: one.threads)
