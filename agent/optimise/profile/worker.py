"""The process of `agent.optimise.profile.profile`: profiles one model, tells what it found, and ends."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Sequence

import msgspec
import numpy as np

from agent.compute.infer.choice import golden_inputs
from agent.compute.infer.litert import CpuBackend, CpuSession, default_threads, load_runtime, runtime_version
from agent.compute.infer.session import SessionOptions
from agent.compute.infer.worker import protocol
from agent.compute.infer.worker.main import describe_failure, drop_root_rights, init_child
from agent.compute.manifest import Model
from agent.compute.tflite.model import ModelFile
from agent.compute.tflite.read import read_modelfile
from agent.optimise.profile.litert_profiler import Profiler, ProfilerEvent, library
from agent.optimise.profile.profile import Ask, Told

_WARM, _TURNS = 2, 5
_OUTLIER, _GRAIN_MS = 2.0, 0.002
"""A time is an outlier beyond so many times the median, and so much that the profiler's grain is not to blame."""


def main(asked_by: int, answers_to: int, life: int) -> None:
    """Take what to do, and tell what was found.

    Args:
        asked_by: descriptor of the pipe from the other end.
        answers_to: descriptor of the pipe to it.
        life: see `agent.compute.infer.worker.main.init_child`.
    """
    init_child(life)
    try:
        library()
        for late in ("numpy.ma", "numpy.random"):  # the other user need not be allowed to read them
            importlib.import_module(late)
        drop_root_rights()
        ask = msgspec.json.decode(protocol.receive(asked_by), type=Ask)
        said: object = _profiled(ask, protocol.receive(asked_by, largest=protocol.LARGEST_REQUEST))
    except Exception as error:
        said = describe_failure(error)
    protocol.send(answers_to, msgspec.json.encode(said))
    # Libraries that crash while they are taken down have done their work.
    os._exit(0)


def _profiled(ask: Ask, content: bytes) -> Told:
    threads = ask.threads or default_threads(len(os.sched_getaffinity(0)))
    session = CpuBackend().open(Model(content, "", ask.manifest, ask.path), SessionOptions(ask.variant, threads))
    for index, array in enumerate(golden_inputs(session.inputs, 1)[0]):
        np.copyto(session.input(index), array)
    signature, subgraph = indices(read_modelfile(content), ask.manifest.variant(ask.variant).signature)
    profiler = Profiler(content, signature, subgraph, threads)
    times: list[float] = []
    runs: list[Sequence[ProfilerEvent]] = []
    for count in turns(ask.runs):
        times += _timed(session, count)
        runs += [profiler.run() for _ in range(_WARM + count)][_WARM:]
    return Told(runtime_version(load_runtime()[0]), threads, float(np.median(times)) * 1e3, quieter(runs))


def turns(runs: int) -> list[int]:
    """Runs of each turn: with and without the profiler by turns, so that a busy moment meets both."""
    return [len(part) for part in np.array_split(np.arange(runs), min(runs, _TURNS))]


def _timed(session: CpuSession, count: int) -> list[float]:
    """Time of so many inferences as the daemon makes them, s."""
    times = []
    for _ in range(_WARM + count):
        began = time.perf_counter()
        session.invoke()
        times.append(time.perf_counter() - began)
    return times[_WARM:]


def indices(file: ModelFile, signature: str) -> tuple[int, int]:
    """Index of a signature in the file, and of its graph; an empty name is the first graph.

    Raises:
        ModelError: there is no such signature.
    """
    file.graph(signature)
    for index, known in enumerate(file.signatures):
        if known.name == signature or (not signature and known.subgraph == 0):
            return index, known.subgraph
    return 0, 0  # LiteRT makes one for a file without


def quieter(runs: Sequence[Sequence[ProfilerEvent]]) -> tuple[ProfilerEvent, ...]:
    """The steps of an inference, each the mean over the faster half of the runs, without its outliers.

    A mean has a finer grain than the profiler's microseconds, and adds up. In the slower half something else was
    running, and where it took the core from a single step, that one is an outlier. Runs of other steps than the
    fastest's, as loops make them, are left out.
    """
    by_time = sorted(runs, key=lambda run: sum(event.ms for event in run))
    steps = [(event.name, event.node) for event in by_time[0]]
    alike = [run for run in by_time[: -(-len(runs) // 2)] if [(e.name, e.node) for e in run] == steps]
    return tuple(ProfilerEvent(*step, _usual([run[at].ms for run in alike])) for at, step in enumerate(steps))


def _usual(times: Sequence[float]) -> float:
    """The mean, ms, of those that are not far beyond the median."""
    bound = _OUTLIER * float(np.median(times)) + _GRAIN_MS
    return float(np.mean([ms for ms in times if ms <= bound]))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
