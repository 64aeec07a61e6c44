"""The CPU backend: LiteRT's interpreter with XNNPACK, or tflite-runtime's where that is what is installed.

A variant is a signature, and a signature is a subgraph: all of them share one interpreter and its weights. The
public Python API reaches only the first subgraph without copying, so the interpreter's wrapper is called
directly; its `tensor` and `Invoke` take a subgraph in both runtimes.

The runtime writes to file descriptor 2. `native_stderr` sends that to the log.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from msgspec import Struct

from agent.board.process import STDERR_TURN
from agent.compute.infer.session import BackendSpec, SessionOptions
from agent.compute.manifest import Model
from agent.compute.tflite.model import ModelFile, TensorSpec
from agent.compute.tflite.read import incompatibilities, read_modelfile
from agent.errors import BackendError, ModelError
from agent.types import Array

_keeps_stderr = threading.Event()
_STDERR_WAIT_S = 1.0
"""Longest wait for another thread that redirects descriptor 2, s: PortAudio may hang while it does."""


def keep_stderr() -> None:
    """Make `native_stderr` do nothing, in a process whose descriptor 2 is its own log already."""
    _keeps_stderr.set()


@contextmanager
def native_stderr(log: logging.Logger) -> Iterator[None]:
    """Log what is written to descriptor 2 in this context, at debug level.

    Does nothing if another thread redirects descriptor 2 for longer than `_STDERR_WAIT_S`. The log's own output
    is not caught: see `agent.board.process.separate_stderr`.
    """
    if _keeps_stderr.is_set() or not STDERR_TURN.acquire(timeout=_STDERR_WAIT_S):
        yield
        return
    try:
        with _redirected(log):
            yield
    finally:
        STDERR_TURN.release()


@contextmanager
def _redirected(log: logging.Logger) -> Iterator[None]:
    with tempfile.TemporaryFile() as caught:
        if sys.stderr is not None:
            sys.stderr.flush()
        saved = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            caught.seek(0)
            for line in caught.read().decode(errors="replace").splitlines():
                log.debug("%s", line)


log = logging.getLogger(__name__)
_CPU = BackendSpec()
_CREATES = "tflite_plugin_create_delegate"
_NODE = re.compile(r"Node number \d+ \([^()]*\) failed to (invoke|prepare)\.")

Runtime = Literal["litert", "tflite-runtime"]

RUNTIMES: dict[Runtime, str] = {
    "litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
}
"""In order of preference: LiteRT is newer and runs what the other refuses or gets wrong."""


def load_runtime() -> tuple[Runtime, Any]:
    """Import the preferred installed runtime; return its name and module. Raises BackendError without one."""
    for name, module in RUNTIMES.items():
        try:
            return name, importlib.import_module(module)
        except ImportError as error:
            log.debug("runtime %s: %s", name, error)
    raise BackendError(
        "no TFLite runtime is installed: pip install ai-edge-litert (64-bit) or '.[tflite]' in the clone (32-bit)"
    )


@functools.cache
def runtime_version(name: Runtime) -> str:
    """Return package and version of an installed runtime. Cached: after dropping root it may not be readable."""
    package = importlib.import_module(RUNTIMES[name].partition(".")[0])
    return f"{package.__name__.replace('_', '-')} {package.__version__}"


def default_threads(cores: int) -> int:
    """Return the number of threads: one core stays free, and more than 4 make small models slower."""
    return min(4, max(1, cores - 1))


def side_by_side(cores: int, threads: int) -> int:
    """Return how many inferences keep the CPU busy: of several threads some wait for the others at times."""
    return max(1, cores // threads) + (threads > 1)


_TENSORS_BYTES = 512 * 1024**2
_COPIES, _STACKS = 4, 128 * 2**20
"""Copies of the weights, and bytes for the stacks of threads: small models need some 60 MB."""


def memory_max(model_bytes: int) -> int:
    """Return the memory that a process may add to open and run a model of this size, bytes.

    Runtimes copy its weights, unpacked to 8 bits or more.
    """
    return tensors_max() + _COPIES * model_bytes + _STACKS


def tensors_max() -> int:
    """Return the memory that the tensors of a model may take on this board, bytes."""
    return min(_TENSORS_BYTES, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 3)


def _too_large(needed: int) -> list[str]:
    most = tensors_max()
    if needed <= most:
        return []
    return [f"its tensors need at least {needed >> 20} MB of memory; at most {most >> 20} MB are allowed here"]


def _open_input(file: ModelFile) -> str:
    """Say which input has sizes that may change; empty: none, but for the batch."""
    for graph in file.subgraphs:
        for tensor in (graph.tensors[index] for index in graph.inputs):
            if -1 in tensor.sizes[1:]:
                shape = ", ".join("?" if size < 0 else str(size) for size in tensor.sizes)
                return (
                    f"cannot be run: the input {tensor.name!r} has the shape [{shape}], whose sizes may change: "
                    "convert the model with fixed sizes"
                )
    return ""


class CpuBackend:
    """Runs models in this process."""

    def __init__(self, plan: BackendSpec = _CPU) -> None:
        """Set the backend; one with a delegate only in a worker process, which may crash."""
        self._plan = plan

    def open(self, model: Model, options: SessionOptions) -> CpuSession:
        runtime, module = load_runtime()
        try:
            file = read_modelfile(model.content)
            reasons = incompatibilities(file, runtime) or _too_large(file.least_memory)
        except ModelError as error:
            raise ModelError(f"{model.path}: {error}") from None
        if reasons:
            raise ModelError(f"{model.path}: refused: {reasons[0]}", *reasons[1:])
        threads = options.threads or default_threads(len(os.sched_getaffinity(0)))
        try:
            with native_stderr(log):
                delegates = self._delegates(module)
                interpreter = module.Interpreter(
                    model_content=model.content, num_threads=threads, experimental_delegates=delegates
                )
                return CpuSession(model, interpreter, options.variant, self._plan.backend)
        except (ValueError, RuntimeError) as error:
            why = _open_input(file) or f"{runtime} cannot run it: {_first_line(error)}"
            raise BackendError(f"{model.path}: {why}") from error

    def _delegates(self, module: Any) -> list[Any]:
        plan = self._plan
        if plan.kind != "delegate":
            return []
        try:
            return [module.load_delegate(plan.library, dict(plan.settings))]
        except (OSError, ValueError) as error:
            text = " ".join(str(error).removeprefix(f"Failed to load delegate from {plan.library}").split())
            raise BackendError(f"{plan.library} cannot be loaded: {text or 'no reason given'}") from error
        except AttributeError as error:
            why = f"it has no {_CREATES}" if _CREATES in str(error) else str(error)
            raise BackendError(f"{plan.library} is no TFLite delegate: {why}") from error


class _Graph(Struct, frozen=True):
    subgraph: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    input_indices: tuple[int, ...]
    output_indices: tuple[int, ...]


class _Lease:
    """Numpy's owner of the tensors' memory: its reference count tells whether a view is alive."""

    def __init__(self, interpreter: Any) -> None:
        self.interpreter = interpreter


class CpuSession:
    """Session of a model in an interpreter of this process.

    Attributes:
        nodes: operations of the first graph.
        delegated: operations of it that the external delegate runs, or without one XNNPACK; -1: not known,
            because the variant is another graph.
    """

    def __init__(self, model: Model, interpreter: Any, variant: str, backend: str = "cpu") -> None:
        self._model, self.backend = model, backend
        self.degraded = ""
        self._interpreter = interpreter
        # XNNPACK is applied when tensors are allocated: only an external delegate has taken operations by now.
        self.nodes, self.delegated = _delegated(interpreter)
        self._wrapper = interpreter._interpreter
        self._lease = _Lease(interpreter)
        self._graphs: dict[str, _Graph] = {}
        self.select(variant or model.manifest.variants[0].name)
        if backend == _CPU.backend:
            self.delegated = -1 if self._graph.subgraph else _delegated(interpreter)[1]
        self._idle_references = sys.getrefcount(self._lease)

    def select(self, variant: str) -> None:
        if variant not in self._graphs:
            signature = self._model.manifest.variant(variant).signature
            try:
                self._graphs[variant] = self._allocate(signature)
            except (ValueError, RuntimeError) as error:
                if not self._graphs:  # `CpuBackend.open` reports it
                    raise
                text = f"variant {variant!r} cannot be run: {_first_line(error)}"
                raise BackendError(f"{self._model.path}: {text}") from error
        self._graph = self._graphs[variant]
        self.variant = variant
        self.inputs, self.outputs = self._graph.inputs, self._graph.outputs

    def input(self, index: int) -> Array:
        return self._view(self._graph.input_indices[index])

    def output(self, index: int) -> Array:
        return self._view(self._graph.output_indices[index])

    def invoke(self) -> None:
        if sys.getrefcount(self._lease) != self._idle_references:
            raise BackendError("a view of a tensor is still alive: drop it before `invoke`")
        try:
            self._wrapper.Invoke(self._graph.subgraph)
        except (ValueError, RuntimeError) as error:
            raise BackendError(f"{self._model.path}: inference failed: {_first_line(error)}") from error

    def close(self) -> None:
        self._graphs.clear()
        del self._lease, self._wrapper, self._interpreter

    def _view(self, tensor: int) -> Array:
        view: Array = self._wrapper.tensor(self._lease, tensor, self._graph.subgraph)
        return view

    def _allocate(self, signature: str) -> _Graph:
        if not signature:
            self._wrapper.AllocateTensors(0)
            inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
            return _graph(0, {d["name"]: d for d in inputs}, {d["name"]: d for d in outputs})
        known = self._interpreter.get_signature_list()
        if signature not in known:
            raise ModelError(
                f"{self._model.path}: no signature {signature!r}; the file has: {', '.join(known) or 'none'}"
            )
        runner = self._interpreter.get_signature_runner(signature)
        self._wrapper.AllocateTensors(runner._subgraph_index)
        return _graph(runner._subgraph_index, runner.get_input_details(), runner.get_output_details())


def _delegated(interpreter: Any) -> tuple[int, int]:
    """Count the operations of the first graph, and those of them that lie in delegated partitions."""
    details = interpreter._get_ops_details()
    nodes = [node for node in details if node["op_name"] != "DELEGATE"]
    makers = {int(tensor): node for node in nodes for tensor in node["outputs"]}
    taken: set[int] = set()
    for piece in (node for node in details if node["op_name"] == "DELEGATE"):
        given = set(map(int, piece["inputs"]))
        open_ = [int(tensor) for tensor in piece["outputs"]]
        while open_:
            node = makers.get(open_.pop())
            if node is not None and node["index"] not in taken:
                taken.add(node["index"])
                open_ += [int(tensor) for tensor in node["inputs"] if int(tensor) not in given]
    return len(nodes), len(taken)


def _graph(subgraph: int, inputs: dict[str, Any], outputs: dict[str, Any]) -> _Graph:
    return _Graph(
        subgraph,
        tuple(_spec(name, details) for name, details in inputs.items()),
        tuple(_spec(name, details) for name, details in outputs.items()),
        tuple(details["index"] for details in inputs.values()),
        tuple(details["index"] for details in outputs.values()),
    )


def _spec(name: str, details: dict[str, Any]) -> TensorSpec:
    scale, zero_point = details["quantization"]
    shape = tuple(int(size) for size in details["shape"])
    return TensorSpec(name, shape, details["dtype"].__name__, float(scale), int(zero_point))


def _first_line(error: Exception) -> str:
    """Return the first line, without the number of the operation, which changes from run to run."""
    text = _NODE.sub("", str(error)).strip() or str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
