"""The CPU backend: LiteRT's interpreter with XNNPACK, or tflite-runtime's where that is what is installed.

A variant is a signature, and a signature is a subgraph: all of them share one interpreter and its weights. The
public Python API reaches only the first subgraph without copying, so the interpreter's wrapper is called
directly; its `tensor` and `Invoke` take a subgraph in both runtimes.
"""

from __future__ import annotations

import functools
import importlib.metadata
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
from agent.compute.infer.worker import protocol
from agent.compute.manifest import Model
from agent.compute.tensors import TensorSpec
from agent.errors import BackendError, ModelError
from agent.types import Array

_kept = threading.Event()
_TURN_S = 1.0
"""Longest wait for another thread that redirects descriptor 2, s: PortAudio may hang while it does."""


def keep_stderr() -> None:
    """From now on leave descriptor 2 where it is: for a process whose descriptor 2 is a log of its own."""
    _kept.set()


@contextmanager
def native_stderr(log: logging.Logger) -> Iterator[None]:
    """Send what is written to descriptor 2 to `log` at debug level, until the context ends.

    Where another thread redirects descriptor 2 for longer than `_TURN_S`, leave it alone and catch nothing.
    What Vedette logs meanwhile is not caught: see `agent.board.process.separate_stderr`.
    """
    if _kept.is_set() or not STDERR_TURN.acquire(timeout=_TURN_S):
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
    """The best runtime that is installed: its name and its interpreter module.

    Raises:
        BackendError: there is none.
    """
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
    """Name and version of a runtime that is installed."""  # kept: who drops root's rights may not read it again
    package = "ai-edge-litert" if name == "litert" else "tflite-runtime"
    return f"{package} {importlib.metadata.version(package)}"


def default_threads(cores: int) -> int:
    """One core stays free for capture and delivery; beyond four, small models only get slower."""
    return min(4, max(1, cores - 1))


def _too_large(needed: int) -> list[str]:
    """Why tensors of so many bytes are refused; empty: they are not."""
    board = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    most = min(protocol.TENSORS_BYTES, board // 3)
    if needed <= most:
        return []
    return [f"its tensors need at least {needed >> 20} MB of memory; at most {most >> 20} MB are allowed here"]


class CpuBackend:
    """Runs models in this process."""

    def __init__(self, plan: BackendSpec = _CPU) -> None:
        """Prepare.

        Args:
            plan: with a delegate: only for a process that may crash, see `agent.compute.infer.worker.session`.
        """
        self._plan = plan

    def open(self, model: Model, options: SessionOptions) -> CpuSession:
        """See `Backend.open`."""
        from agent.compute.tflite.read import incompatibilities, read_modelfile

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
            raise BackendError(f"{model.path}: {runtime} cannot run it: {_first_line(error)}") from error

    def _delegates(self, module: Any) -> list[Any]:
        plan = self._plan
        if plan.kind != "delegate":
            return []
        try:
            return [module.load_delegate(plan.library, dict(plan.settings))]
        except (OSError, ValueError) as error:
            said = " ".join(str(error).removeprefix(f"Failed to load delegate from {plan.library}").split())
            raise BackendError(f"{plan.library} cannot be loaded: {said or 'it refuses'}") from error
        except AttributeError as error:
            why = f"it has no {_CREATES}" if _CREATES in str(error) else str(error)
            raise BackendError(f"{plan.library} is no TFLite delegate: {why}") from error


class _Graph(Struct, frozen=True):
    """One subgraph, allocated: its tensors, and their indices in the interpreter."""

    subgraph: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    input_indices: tuple[int, ...]
    output_indices: tuple[int, ...]


class _Lease:
    """Owner of the tensors' memory in the eyes of numpy: every live view holds a reference to it."""

    def __init__(self, interpreter: Any) -> None:
        self.interpreter = interpreter


class CpuSession:
    """A model in an interpreter; see `Session`.

    Attributes:
        nodes: operations of the first graph.
        delegated: of those, how many the external delegate has taken, or without one XNNPACK; -1: not known,
            for the variant is another graph.
    """

    def __init__(self, model: Model, interpreter: Any, variant: str, backend: str = "cpu") -> None:
        self._model, self.backend = model, backend
        self.degraded = ""
        self._interpreter = interpreter
        # XNNPACK comes with the tensors' memory: what is delegated by now is an external delegate's.
        self.nodes, self.delegated = _delegated(interpreter)
        self._wrapper = interpreter._interpreter
        self._lease = _Lease(interpreter)
        self._graphs: dict[str, _Graph] = {}
        self.use(variant or model.manifest.variants[0].name)
        if backend == _CPU.backend:
            self.delegated = -1 if self._graph.subgraph else _delegated(interpreter)[1]
        self._idle_references = sys.getrefcount(self._lease)

    def use(self, variant: str) -> None:
        """See `Session.use`."""
        if variant not in self._graphs:
            signature = self._model.manifest.variant(variant).signature
            try:
                self._graphs[variant] = self._allocate(signature)
            except (ValueError, RuntimeError) as error:
                if not self._graphs:  # `CpuBackend.open` says it
                    raise
                text = f"variant {variant!r} cannot be run: {_first_line(error)}"
                raise BackendError(f"{self._model.path}: {text}") from error
        self._graph = self._graphs[variant]
        self.variant = variant
        self.inputs, self.outputs = self._graph.inputs, self._graph.outputs

    def input(self, index: int) -> Array:
        """See `Session.input`."""
        return self._view(self._graph.input_indices[index])

    def output(self, index: int) -> Array:
        """See `Session.output`."""
        return self._view(self._graph.output_indices[index])

    def invoke(self) -> None:
        """See `Session.invoke`."""
        if sys.getrefcount(self._lease) != self._idle_references:
            raise BackendError("a view of a tensor is still alive: drop it before `invoke`")
        try:
            self._wrapper.Invoke(self._graph.subgraph)
        except (ValueError, RuntimeError) as error:
            raise BackendError(f"{self._model.path}: inference failed: {_first_line(error)}") from error

    def close(self) -> None:
        """See `Session.close`."""
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
    """Operations of the first graph, and how many of them lie between the ends of delegated pieces."""
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
    """What the runtime says first, without the number that it gives the operation, which hangs on."""
    said = _NODE.sub("", str(error)).strip() or str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__
