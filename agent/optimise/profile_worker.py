"""Worker process of `agent.optimise.profile`: profile one model, send the result, and exit."""

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
from agent.optimise.litert_profiler import Profiler, ProfilerEvent, library
from agent.optimise.profile import ProfileReply, ProfileRequest

_WARM, _TURNS = 2, 5
_OUTLIER, _GRAIN_MS = 2.0, 0.002
"""A time is an outlier above this factor times the median plus the profiler's resolution, ms."""


def main(requests: int, replies: int, life: int) -> None:
    """Read a request, profile, and send the reply."""
    init_child(life)
    try:
        library()
        for late in ("numpy.ma", "numpy.random"):  # the other user may lack the right to read them
            importlib.import_module(late)
        drop_root_rights()
        ask = msgspec.json.decode(protocol.receive(requests), type=ProfileRequest)
        reply: object = _profile(ask, protocol.receive(requests, largest=protocol.LARGEST_REQUEST))
    except Exception as error:
        reply = describe_failure(error)
    protocol.send(replies, msgspec.json.encode(reply))
    # Skip the teardown: libraries may crash in it.
    os._exit(0)


def _profile(ask: ProfileRequest, content: bytes) -> ProfileReply:
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
    return ProfileReply(
        runtime_version(load_runtime()[0]), threads, float(np.median(times)) * 1e3, mean_steps(runs)
    )


def turns(runs: int) -> list[int]:
    """Split the runs into turns, with and without the profiler alternately: a busy moment affects both."""
    return [len(part) for part in np.array_split(np.arange(runs), min(runs, _TURNS))]


def _timed(session: CpuSession, count: int) -> list[float]:
    """Time inferences as the daemon makes them, s."""
    times = []
    for _ in range(_WARM + count):
        began = time.perf_counter()
        session.invoke()
        times.append(time.perf_counter() - began)
    return times[_WARM:]


def indices(file: ModelFile, signature: str) -> tuple[int, int]:
    """Return the index of a signature in the file, and of its graph; an empty name is the first graph.

    Raises:
        ModelError: there is no such signature.
    """
    file.graph(signature)
    for index, known in enumerate(file.signatures):
        if known.name == signature or (not signature and known.subgraph == 0):
            return index, known.subgraph
    return 0, 0  # LiteRT makes a signature for a file without one


def mean_steps(runs: Sequence[Sequence[ProfilerEvent]]) -> tuple[ProfilerEvent, ...]:
    """Return the steps of an inference, each the mean over the faster half of the runs, without outliers.

    A mean is finer than the profiler's microseconds, and means add up. In the slower half other processes were
    running; where one interrupted a single step of the faster half, its time is an outlier. Runs with other steps
    than the fastest run, as loops make them, are left out.
    """
    by_time = sorted(runs, key=lambda run: sum(event.ms for event in run))
    steps = [(event.name, event.node) for event in by_time[0]]
    alike = [run for run in by_time[: -(-len(runs) // 2)] if [(e.name, e.node) for e in run] == steps]
    return tuple(ProfilerEvent(*step, _mean([run[at].ms for run in alike])) for at, step in enumerate(steps))


def _mean(times: Sequence[float]) -> float:
    """Return the mean without outliers, ms."""
    bound = _OUTLIER * float(np.median(times)) + _GRAIN_MS
    return float(np.mean([ms for ms in times if ms <= bound]))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
