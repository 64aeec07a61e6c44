"""Finds a model's tensors by opening it, for files whose shapes only the runtime knows.

Each file is opened once, in a worker process and a thread of its own, because the runtime may crash or hang.
Results and refusals are cached by the file's hash.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from agent.compute.manifest import Manifest, Model
from agent.compute.tensors import TensorSpec
from agent.errors import BackendError, ModelError
from agent.text import plain

if TYPE_CHECKING:
    from agent.compute.infer.vetting.vetting import Vetting


Ends = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]
"""Specs of the inputs and of the outputs."""

_PATIENCE_S = 20.0
"""Timeout for opening a vetted model, s. Vetting and opening together stay below the watchdog's timeout for
streams."""
_FAILED_FOR_S = 60.0
"""How long a temporary error, such as a lack of memory, is cached, s."""

_results: dict[str, tuple[Future[Ends], float]] = {}
"""By sha256: the result, and the monotonic time at which the model was opened, s."""
_lock = threading.Lock()


class NotYetError(ModelError):
    """The model's tensors are not known yet."""


def ends_of(content: bytes, sha256: str, path: str, wait_s: float | None, vetting: Vetting | None = None) -> Ends:
    """Return the inputs and outputs that the runtime reports for a model.

    Args:
        content: the `.tflite` file.
        sha256: hex digest of it.
        path: of the model, for errors.
        wait_s: time to wait, s; the model is still opened after that. None: as long as it takes. 0: return
            cached results only.
        vetting: see `agent.compute.infer.backends.open_session`.

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
    sha256 = model.sha256
    with _lock:
        if sha256 in _results:
            found, at = _results[sha256]
            if not starts or not _is_temporary(found) or time.monotonic() - at < _FAILED_FOR_S:
                return found
        elif not starts:
            return None
        found = Future()
        _results[sha256] = found, time.monotonic()
    try:
        threading.Thread(target=_open, args=(model, vetting, found), name="tensors", daemon=True).start()
    except RuntimeError as error:  # no more threads
        found.set_exception(BackendError(f"{model.path}: no thread to open it: {error}"))
    return found


def _is_temporary(found: Future[Ends]) -> bool:
    return found.done() and isinstance(found.exception(), BackendError)


def _open(model: Model, vetting: Vetting | None, found: Future[Ends]) -> None:
    from agent.compute.infer.session import BackendSpec, SessionOptions
    from agent.compute.infer.vetting.vetting import VETTING
    from agent.compute.infer.worker.session import WorkerSession

    try:
        # First: it limits CPU time and memory, which a worker does not.
        (vetting or VETTING).check(model, SessionOptions())
        session = WorkerSession(model, BackendSpec(), SessionOptions(), patience_s=_PATIENCE_S)
        try:
            found.set_result((session.inputs, session.outputs))
        finally:
            session.close()
    except BaseException as error:
        if not found.done():
            found.set_exception(error)
