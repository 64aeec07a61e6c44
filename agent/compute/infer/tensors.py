"""The tensors of a model without its answers: a backend that computes nothing, and what the runtime reports."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from agent.compute.infer.session import BackendSpec, NotYetError, SessionOptions
from agent.compute.manifest import Manifest, Model
from agent.compute.tflite.model import ModelFile, TensorSpec
from agent.compute.tflite.read import read_modelfile
from agent.errors import BackendError, ModelError
from agent.text import plain
from agent.types import Array

if TYPE_CHECKING:
    from agent.compute.infer.vetting import Vetting


class NullBackend:
    """Opens models that compute nothing, for checks and to measure everything else."""

    def open(self, model: Model, options: SessionOptions) -> NullSession:
        return NullSession(model, read_modelfile(model.content), options.variant)


class NullSession:
    """Session that returns zero points at once, so that nothing is detected."""

    backend = "null"
    degraded = ""

    def __init__(self, model: Model, file: ModelFile, variant: str) -> None:
        self._model, self._file = model, file
        self.select(variant or model.manifest.variants[0].name)

    def select(self, variant: str) -> None:
        signature = self._model.manifest.variant(variant).signature
        try:
            self.inputs, self.outputs = self._file.ends(signature)
        except ModelError as error:
            raise ModelError(f"{self._model.path}: {error}") from None
        self.variant = variant
        self._inputs = [_memory(spec) for spec in self.inputs]
        self._outputs = [_memory(spec) for spec in self.outputs]

    def input(self, index: int) -> Array:
        return self._inputs[index]

    def invoke(self) -> None:
        pass

    def output(self, index: int) -> Array:
        return self._outputs[index]

    def close(self) -> None:
        self._inputs, self._outputs = [], []


def _memory(spec: TensorSpec) -> Array:
    return np.full(
        [max(1, size) for size in spec.shape], spec.zero_point if spec.quantised else 0, np.dtype(spec.dtype)
    )


Ends = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]
"""Specs of the inputs and of the outputs."""
_results: dict[str, Future[Ends]] = {}
"""By sha256. A temporary error, such as a lack of memory, is told once."""
_lock = threading.Lock()


def ends_of(content: bytes, sha256: str, path: str, wait_s: float | None, vetting: Vetting | None = None) -> Ends:
    """Return the inputs and outputs that the runtime reports for a `.tflite` file of this digest and path.

    Each file is opened once, in a worker process and a thread of its own, because the runtime may crash or hang.
    Results and refusals are cached by the file's hash. After `wait_s` the file is still being opened; None waits
    as long as it takes, 0 returns cached results only.

    Raises:
        NotYetError: they are not known in that time.
        ModelError: the model crashes the runtime or hangs. BackendError: the model cannot be opened now.
    """
    model = Model(content, sha256, Manifest(name=plain(Path(path).stem)), path)
    found = _future(model, vetting, starts=wait_s != 0)
    try:
        if found is not None:
            return found.result(wait_s)
    except TimeoutError:
        pass
    raise NotYetError("its inputs and outputs are not known yet: the runtime is still opening the model")


def _future(model: Model, vetting: Vetting | None, *, starts: bool) -> Future[Ends] | None:
    with _lock:
        found = _results.get(model.sha256)
        if starts and found is not None and found.done() and isinstance(found.exception(), BackendError):
            del _results[model.sha256]  # who asks gets this error, and who asks after that has it tried again
        if found is not None or not starts:
            return found
        found = _results[model.sha256] = Future()
    try:
        threading.Thread(target=_open, args=(model, vetting, found), name="tensors", daemon=True).start()
    except RuntimeError as error:  # no more threads
        found.set_exception(BackendError(f"{model.path}: no thread to open it: {error}"))
    return found


def _open(model: Model, vetting: Vetting | None, found: Future[Ends]) -> None:
    from agent.compute.infer.vetting import OPEN_S, VETTING
    from agent.compute.infer.worker import WorkerSession

    try:
        # First: it limits CPU time, which a worker does not.
        (vetting or VETTING).check(model, SessionOptions())
        session = WorkerSession(model, BackendSpec(), SessionOptions(), patience_s=OPEN_S)
        try:
            found.set_result((session.inputs, session.outputs))
        finally:
            session.close()
    except BaseException as error:
        if not found.done():
            found.set_exception(error)
