"""Worker process of `agent.optimise.profile`: profile one model by LiteRT's profiler, send the result, and exit.

LiteRT's profiler has no Python API; ctypes reads the time of each operation and each kernel of XNNPACK. A library
with an unknown layout may crash the process. Sources, in google-ai-edge/LiteRT: `litert/c/litert_profiler.h`,
`litert_profiler_event.h`, `litert_compiled_model.h`, `litert_model_types.h`, and for the options, which are TOML,
`litert/c/options`. Tried with ai-edge-litert 2.3.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from ctypes import Structure, byref, c_char_p, c_int, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from agent.child import LARGEST_REQUEST, describe_failure, drop_root, encode, init_child, receive, send
from agent.compute.infer.benchmark import golden_inputs
from agent.compute.infer.litert import (
    CpuBackend,
    CpuSession,
    default_threads,
    keep_stderr,
    load_runtime,
    runtime_version,
)
from agent.compute.infer.session import SessionOptions
from agent.compute.manifest import Model
from agent.compute.tflite.model import ModelFile, TensorSpec
from agent.compute.tflite.read import read_modelfile
from agent.errors import BackendError
from agent.optimise.profile import ProfileReply, ProfileRequest, ProfilerEvent
from agent.structs import from_json

_CPU, _WRITE = 1, 1
_OPERATION, _PIECES, _KERNEL = 2, 4, 8
"""Types of events: an operation, a delegate's inner operation, and one that stands for an operation."""
_SOURCES = range(3)
_ELEMENTS = {1: "float32", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 7: "int16", 9: "int8", 10: "float16"}
_RANK = 8


class _Layout(Structure):
    _fields_ = (
        ("rank", c_uint32, 7),
        ("strided", c_uint32, 1),
        ("sizes", c_int32 * 8),
        ("strides", c_uint32 * 8),
    )


class _Type(Structure):
    _fields_ = (("element", c_int), ("layout", _Layout))


class _Event(Structure):
    _fields_ = (
        ("tag", c_char_p),
        ("kind", c_int),
        ("start_us", c_uint64),
        ("elapsed_us", c_uint64),
        ("memory", c_uint64 * 6),
        ("node", c_uint64),
        ("graph", c_uint64),
        ("source", c_int),
    )


class Profiler:
    """A model, compiled for the CPU with profiling enabled."""

    def __init__(self, content: bytes, signature: int, subgraph: int, threads: int) -> None:
        """Compile the model. All objects live as long as the process.

        Raises:
            BackendError: this LiteRT cannot profile, or refuses the model.
        """
        self._library, self._subgraph, self._signature = library(), subgraph, c_size_t(signature)
        self._alive: list[Any] = [ctypes.create_string_buffer(content, len(content))]
        environment, options, model, self._compiled = c_void_p(), c_void_p(), c_void_p(), c_void_p()
        self._call("LiteRtCreateEnvironment", 0, None, byref(environment))
        self._call("LiteRtCreateOptions", byref(options))
        self._call("LiteRtSetOptionsHardwareAccelerators", options, _CPU)
        self._add(options, "xnnpack", f"num_threads = {threads}\n")
        self._add(options, "runtime_options_string", "enable_profiling = true\n")
        size = c_size_t(len(content))
        self._call("LiteRtCreateModelFromBuffer", environment, self._alive[0], size, byref(model))
        self._call("LiteRtCreateCompiledModel", environment, model, options, byref(self._compiled))
        self._inputs = self._buffers(environment, model, "Input")
        self._outputs = self._buffers(environment, model, "Output")
        self._profiler = c_void_p()
        self._call("LiteRtCompiledModelGetProfiler", self._compiled, byref(self._profiler))

    def run(self) -> list[ProfilerEvent]:
        """Run the model once, and return its steps in order.

        Raises:
            BackendError: the run failed, or the profiler's events cannot be read.
        """
        self._call("LiteRtResetProfiler", self._profiler)
        self._call("LiteRtStartProfiler", self._profiler)
        inputs, outputs = self._inputs, self._outputs
        sizes = c_size_t(len(inputs)), c_size_t(len(outputs))
        self._call("LiteRtRunCompiledModel", self._compiled, self._signature, sizes[0], inputs, sizes[1], outputs)
        self._call("LiteRtStopProfiler", self._profiler)
        count = c_int()
        self._call("LiteRtGetNumProfilerEvents", self._profiler, byref(count))
        if count.value < 1:
            raise BackendError("LiteRT's profiler has no events; it is known to work in ai-edge-litert 2.3")
        events = (_Event * count.value)()
        self._call("LiteRtGetProfilerEvents", self._profiler, count, events)
        if not all(map(_is_plausible, events)):
            raise BackendError(
                "LiteRT's profiler uses an unknown event layout; that of ai-edge-litert 2.3 is known"
            )
        return self._steps(events)

    def _steps(self, events: Any) -> list[ProfilerEvent]:
        here = [event for event in events if event.graph == self._subgraph]
        kernel = _KERNEL if any(event.kind == _KERNEL for event in here) else _PIECES
        return [
            ProfilerEvent(
                event.tag.decode(errors="replace"),
                -1 if event.kind == kernel else event.node,
                event.elapsed_us / 1e3,
            )
            for event in here
            if event.kind in (_OPERATION, kernel)
        ]

    def _call(self, name: str, *arguments: Any) -> None:
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise BackendError(
                f"the LiteRT that is installed has no {name}: profiling is known to work in ai-edge-litert 2.3"
            ) from None
        if status := function(*arguments):
            raise BackendError(f"{name} failed with status {status}")

    def _add(self, options: c_void_p, name: str, toml: str) -> None:
        text, made = ctypes.create_string_buffer(toml.encode()), c_void_p()
        self._alive += [text, _keep_text]
        self._call("LiteRtCreateOpaqueOptions", name.encode(), text, _keep_text, byref(made))
        self._call("LiteRtAddOpaqueOptions", options, made)

    def _buffers(self, environment: c_void_p, model: c_void_p, end: str) -> Any:
        signature, count = c_void_p(), c_size_t()
        self._call("LiteRtGetModelSignature", model, self._signature, byref(signature))
        self._call(f"LiteRtGetNumSignature{end}s", signature, byref(count))
        buffers = (c_void_p * count.value)()
        for index in range(count.value):
            tensor, kind, needs, buffer = c_void_p(), _Type(), c_void_p(), c_void_p()
            at = c_size_t(index)
            self._call(f"LiteRtGetSignature{end}TensorByIndex", signature, at, byref(tensor))
            self._call("LiteRtGetRankedTensorType", tensor, byref(kind))
            asked = f"LiteRtGetCompiledModel{end}BufferRequirements"
            self._call(asked, self._compiled, self._signature, at, byref(needs))
            make = "LiteRtCreateManagedTensorBufferFromRequirements"
            self._call(make, environment, byref(kind), needs, byref(buffer))
            if end == "Input":
                self._fill(buffer, kind)
            buffers[index] = buffer.value
        return buffers

    def _fill(self, buffer: c_void_p, kind: _Type) -> None:
        shape = tuple(max(1, size) for size in kind.layout.sizes[: min(kind.layout.rank, _RANK)])
        dtype = _ELEMENTS.get(kind.element)
        if dtype is None:
            raise BackendError(f"an input's elements are of LiteRT's type {kind.element}, which cannot be filled")
        spec = TensorSpec("", shape, dtype, 0.0, 0)
        value = np.zeros(shape, dtype) if dtype == "bool" else golden_inputs([spec], 1)[0][0]
        value, address = np.ascontiguousarray(value), c_void_p()
        self._call("LiteRtLockTensorBuffer", buffer, byref(address), _WRITE)
        ctypes.memmove(address, value.ctypes.data, value.nbytes)
        self._call("LiteRtUnlockTensorBuffer", buffer)


_keep_text = ctypes.CFUNCTYPE(None, c_void_p)(lambda _: None)
"""Destructor of an option's text, which Python frees."""


@functools.cache
def library() -> ctypes.CDLL:
    """Load LiteRT's C library.

    Raises:
        BackendError: it is not installed.
    """
    found = importlib.util.find_spec("ai_edge_litert")
    places = found.submodule_search_locations if found else None
    path = Path(next(iter(places))) / "libLiteRt.so" if places else None
    if path is None or not path.exists():
        raise BackendError(
            "profiling needs LiteRT (libLiteRt.so); tflite-runtime has no profiler: pip install ai-edge-litert"
        )
    return ctypes.CDLL(str(path))


def _is_plausible(event: Any) -> bool:
    kind = int(event.kind)  # the tag is not checked: it may be an invalid pointer
    return 0 < kind < 1 << 10 and kind & (kind - 1) == 0 and event.source in _SOURCES


_WARM, _TURNS = 2, 5
_OUTLIER, _GRAIN_MS = 2.0, 0.002
"""A time is an outlier above this factor times the median plus the profiler's resolution, ms."""


def main(requests: int, replies: int, life: int) -> None:
    """Read a request, profile, and send the reply."""
    init_child(life)
    keep_stderr()
    try:
        library()
        for late in ("numpy.ma", "numpy.random"):  # the other user may lack the right to read them
            importlib.import_module(late)
        drop_root()
        ask = from_json(receive(requests), ProfileRequest)
        reply: object = _profile(ask, receive(requests, largest=LARGEST_REQUEST))
    except Exception as error:
        reply = describe_failure(error)
    send(replies, encode(reply))
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
