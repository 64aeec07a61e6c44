"""The program of the worker processes of `WorkerSession`: runs one model, with its tensors in shared memory.

It drops root's rights before it receives the model.

LiteRT's own accelerators, GPU (WebGPU over Vulkan) and NPU, are run by `CompiledModel`. It is used here only:
loading LiteRT's GPU library on a Cortex-A72 ends the process with SIGILL, and `CompiledModel` holds the GIL while
it runs. It knows the tensors' shapes only; their quantisation is read from the file.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import resource
import sys
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from agent.child import (
    LARGEST_REQUEST,
    ClosedError,
    describe_failure,
    drop_root,
    encode,
    init_child,
    is_root,
    limit_memory,
    receive,
    send,
    trim_log,
)
from agent.compute.infer.chain import PAUSE_S, ModelChain, TimingRun, time_runs
from agent.compute.infer.litert import CpuBackend, keep_stderr, load_runtime, memory_max, runtime_version
from agent.compute.infer.session import BackendSpec, Session, SessionOptions
from agent.compute.infer.worker import (
    RUN,
    TENSORS_BYTES,
    Answer,
    ModelOpened,
    OpenModel,
    Request,
    SelectVariant,
    TensorRegion,
    TimeModel,
    TimeTurn,
    Usage,
    fits,
    map_tensors,
    region_bytes,
    requests,
)
from agent.compute.manifest import Model
from agent.compute.tflite.model import TensorSpec
from agent.compute.tflite.read import read_modelfile
from agent.errors import BackendError, ModelError, VedetteError
from agent.types import Array

_NEEDED = {
    "cpu": ("agent.compute.tflite.read",),
    "delegate": ("agent.compute.tflite.read",),
    "accelerator": (
        "ai_edge_litert.compiled_model",
        "ai_edge_litert.gpu_options",
        "ai_edge_litert.options",
    ),
}
"""Modules that opening a model imports, by the kind of its plan."""


def main(asked_by: int, answers_to: int, life: int, tensors: int) -> None:
    """Serve requests until the parent closes the pipe. The arguments are descriptors, see `ChildProcess`."""
    init_child(life)
    keep_stderr()
    with contextlib.suppress(ClosedError):
        _Server(asked_by, answers_to, tensors).serve()
    # Skip the libraries' cleanup, in which some crash.
    os._exit(0)


class _Server:
    def __init__(self, asked_by: int, answers_to: int, tensors: int) -> None:
        self._from, self._to, self._tensors = asked_by, answers_to, tensors
        self._end = 0
        self._mapped: dict[str, tuple[TensorRegion, list[Array], list[Array]]] = {}

    def serve(self) -> None:
        self._reply(self._open)
        while True:
            message = self._receive()
            if message == RUN:
                self._run()
            else:
                self._reply(lambda message=message: self._handle(requests.decode(message)))

    def _receive(self) -> bytes:
        return receive(self._from, largest=LARGEST_REQUEST)

    def _open(self) -> Answer:
        request = requests.decode(self._receive())
        assert isinstance(request, OpenModel)
        drop_root_rights(request.plan)
        content = self._receive()
        if request.plan.kind == "cpu":
            limit_memory(memory_max(len(content)))
        model = Model(content, "", request.manifest, request.path)
        options = SessionOptions(request.variant, request.threads or request.plan.threads)
        self._manifest, self._path = model.manifest, request.path
        self._session, runtime, nodes, delegated = open_model(model, request.plan, options)
        return ModelOpened(runtime, nodes, delegated, self._select(request.variant))

    def _handle(self, request: Request) -> Answer:
        if isinstance(request, SelectVariant):
            return self._select(request.variant)
        if isinstance(request, TimeModel):
            return self._time(request)
        if isinstance(request, TimeTurn):
            self._write_inputs()
            return time_runs(self._session.invoke, request.seconds, time.process_time)
        used = resource.getrusage(resource.RUSAGE_SELF)
        return Usage(used.ru_utime + used.ru_stime, _resident_mb())

    def _select(self, variant: str) -> TensorRegion:
        session = self._session
        session.select(variant)
        if variant not in self._mapped:
            specs = (*session.inputs, *session.outputs)
            size = region_bytes(specs)
            if not fits(self._end, size):
                raise BackendError(
                    f"{self._path}: its tensors take {(self._end + size) / 1e6:.0f} MB; a worker process "
                    f"may have at most {TENSORS_BYTES / 1e6:.0f} MB"
                )
            region = TensorRegion(session.inputs, session.outputs, self._end, size)
            arrays = map_tensors(self._tensors, region)
            self._end += size
            count = len(session.inputs)
            self._mapped[variant] = (region, arrays[:count], arrays[count:])
        return self._mapped[variant][0]

    def _time(self, request: TimeModel) -> TimingRun:
        variant, chain = self._session.variant, self._chain
        try:
            self._select(chain.first)
            chain.set_input(self._mapped[chain.first][1])
            run = time_runs(chain.invoke, request.seconds, time.process_time, PAUSE_S)
            self._select(chain.last)
            for index, target in enumerate(self._mapped[chain.last][2]):
                self._copy(self._session.output(index), target, index)
            return run
        finally:
            self._session.select(variant)

    @cached_property
    def _chain(self) -> ModelChain:
        return ModelChain(self._session, self._manifest)

    def _run(self) -> None:
        session = self._session
        try:
            self._write_inputs()
            session.invoke()
            for index, target in enumerate(self._mapped[session.variant][2]):
                self._copy(session.output(index), target, index)
        except Exception as error:
            send(self._to, encode(describe_failure(error)))
        else:
            send(self._to, RUN)
        trim_log()

    def _copy(self, output: Array, target: Array, index: int) -> None:
        if output.shape != target.shape:
            sizes = f"{list(output.shape)}, and had {list(target.shape)} before"
            raise ModelError(f"{self._path}: output {index} has the shape {sizes}: expected fixed sizes")
        np.copyto(target, output)

    def _write_inputs(self) -> None:
        for index, source in enumerate(self._mapped[self._session.variant][1]):
            np.copyto(self._session.input(index), source)

    def _reply(self, handler: Any) -> None:
        try:
            answer = handler()
        except ClosedError:
            raise
        except Exception as error:
            answer = describe_failure(error)
        send(self._to, encode(answer))


def drop_root_rights(plan: BackendSpec) -> None:
    """Drop root's rights, if this process has them. Call before receiving a model's bytes.

    The plan's modules and library are loaded first, because the other user may not be allowed to read them.
    """
    if not is_root():
        return
    with contextlib.suppress(ImportError, VedetteError):
        runtime_version(load_runtime()[0])
        for module in _NEEDED[plan.kind]:
            importlib.import_module(module)
    if plan.kind == "delegate":
        with contextlib.suppress(OSError):  # loading the delegate later reports why
            ctypes.PyDLL(plan.library)
    if plan.kind == "cpu":
        drop_root()
    else:
        from agent.compute.infer.delegates import device_groups

        drop_root(device_groups())


def open_model(model: Model, plan: BackendSpec, options: SessionOptions) -> tuple[Session, str, int, int]:
    """Open a model; return session, runtime, nodes and delegated nodes (-1: unknown)."""
    if plan.kind == "accelerator":
        accelerated = AcceleratorSession(model, plan, options.variant)
        return accelerated, runtime_version("litert"), accelerated.nodes, -1
    cpu = CpuBackend(plan).open(model, options)
    return cpu, runtime_version(load_runtime()[0]), cpu.nodes, cpu.delegated


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


_Ends = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]
_Names = tuple[list[str], list[str]]


class AcceleratorSession:
    """Session of a compiled model. `nodes` is the number of operations of its first graph."""

    def __init__(self, model: Model, plan: BackendSpec, variant: str) -> None:
        """Compile the model. Raises BackendError if the accelerator is missing, or refuses the model."""
        self._model, self.backend = model, plan.backend
        self.degraded = ""
        self._file = read_modelfile(model.content)
        self.nodes = len(self._file.subgraphs[0].operations)
        try:
            self._compiled = _compile(model.content, plan)
            self._signatures = self._compiled.get_signature_list()
        except (ImportError, AttributeError, RuntimeError, ValueError) as error:
            raise BackendError(f"{model.path}: {plan.backend} cannot run it: {_cause(error)}") from error
        self._graphs: dict[str, _Graph] = {}
        self.select(variant or model.manifest.variants[0].name)

    def select(self, variant: str) -> None:
        signature = self._model.manifest.variant(variant).signature
        ends = self._file.ends(signature)
        if variant not in self._graphs:
            self._graphs[variant] = self._prepare(signature, ends)
        self.variant, self._graph = variant, self._graphs[variant]
        self.inputs, self.outputs = ends

    def input(self, index: int) -> Array:
        return self._graph.inputs[index]

    def invoke(self) -> None:
        try:
            self._graph.run()
        except (RuntimeError, ValueError) as error:
            raise BackendError(f"{self.backend} failed: {_cause(error)}") from error

    def output(self, index: int) -> Array:
        return self._graph.outputs[index]

    def close(self) -> None:
        self._graphs.clear()
        self._compiled.close()

    def _prepare(self, signature: str, ends: _Ends) -> _Graph:
        keys = list(self._signatures)
        if signature and signature not in keys:
            raise ModelError(f"no signature {signature!r}; the file has: {', '.join(keys) or 'none'}")
        number = keys.index(signature) if signature else 0
        found = self._signatures[keys[number]] if keys else {}
        inputs, outputs = ([spec.name for spec in specs] for specs in ends)
        if signature:
            inputs, outputs = found["inputs"], found["outputs"]
        try:
            return _Graph(self._compiled, number, (inputs, outputs), ends)
        except (RuntimeError, ValueError) as error:
            raise BackendError(f"{self.backend}: {_cause(error)}") from error


def _compile(content: bytes, plan: BackendSpec) -> Any:
    from ai_edge_litert.compiled_model import CompiledModel, HardwareAccelerator

    kind = getattr(HardwareAccelerator, plan.library)
    if plan.settings.get("precision") != "f32":
        return CompiledModel.from_buffer(content, hardware_accel=kind)
    from ai_edge_litert.gpu_options import GpuOptions
    from ai_edge_litert.options import Options

    return CompiledModel.from_buffer(content, options=Options(kind, gpu_options=GpuOptions(enforce_f32=True)))


class _Graph:
    """One signature with its buffers, and their arrays in the order of the specs."""

    def __init__(self, compiled: Any, number: int, names: _Names, ends: _Ends) -> None:
        self._compiled, self._number = compiled, number
        self._in_buffers, self._out_buffers = (
            compiled.create_input_buffers(number),
            compiled.create_output_buffers(number),
        )
        self.inputs, self.outputs = ([np.zeros(spec.shape, spec.dtype) for spec in specs] for specs in ends)
        # The accelerator has its own order of buffers.
        self._in_order, self._out_order = (
            [[spec.name for spec in specs].index(name) for name in known]
            for known, specs in zip(names, ends, strict=True)
        )

    def run(self) -> None:
        for buffer, index in zip(self._in_buffers, self._in_order, strict=True):
            buffer.write(self.inputs[index])
        self._compiled.run_by_index(self._number, self._in_buffers, self._out_buffers)
        for buffer, index in zip(self._out_buffers, self._out_order, strict=True):
            array = self.outputs[index]
            np.copyto(array, buffer.read(array.size, array.dtype.type).reshape(array.shape))


def _cause(error: Exception) -> str:
    """Return the last line: those before it are places in LiteRT's source."""
    lines = [line.strip("└ ") for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
