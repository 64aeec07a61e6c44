"""Inputs and outputs of a model as the runtime has them, for files that do not tell them.

The runtime is asked once for each file, in processes of their own, beside whoever asks: it may crash or hang. A
model that cannot be used is remembered as well as one that can.
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
"""Inputs and outputs."""

_PATIENCE_S = 20.0
"""For opening a model that the vetting has opened and run, s. Both together stay below the time after which
a stream hangs, `agent.daemon.systemd.HANGS_S`."""
_FAILED_FOR_S = 60.0
"""How long an error counts that may pass, such as a lack of memory, s."""

_asked: dict[str, tuple[Future[Ends], float]] = {}
"""By sha256: what the runtime says, or will, and when it was asked, by the monotonic clock."""
_lock = threading.Lock()


class NotYetError(ModelError):
    """The runtime is still being asked, or nobody has asked it yet."""


def ends_of(content: bytes, sha256: str, path: str, wait_s: float | None, vetting: Vetting | None = None) -> Ends:
    """Give inputs and outputs of a model as the runtime has them.

    Args:
        content: the `.tflite` file.
        sha256: hex digest of it.
        path: of the model, for errors.
        wait_s: time to wait, s; the asking goes on after that. None: as long as it takes. 0: do not ask, and
            tell only what is known.
        vetting: see `agent.compute.infer.backends.open_session`.

    Raises:
        NotYetError: it is not known in that time.
        ModelError: the model crashes the runtime or hangs. BackendError: the runtime cannot run it now.
    """
    model = Model(content, sha256, Manifest(name=plain(Path(path).stem)), path)
    found = _future(model, vetting, asks=wait_s != 0)
    try:
        if found is not None:
            return found.result(wait_s)
    except TimeoutError:
        pass
    raise NotYetError(
        "its inputs and outputs are not known yet: the runtime is being asked, which takes its time"
    )


def _future(model: Model, vetting: Vetting | None, *, asks: bool) -> Future[Ends] | None:
    sha256 = model.sha256
    with _lock:
        if sha256 in _asked:
            found, at = _asked[sha256]
            if not asks or not _may_pass(found) or time.monotonic() - at < _FAILED_FOR_S:
                return found
        elif not asks:
            return None
        found = Future()
        _asked[sha256] = found, time.monotonic()
    try:
        threading.Thread(target=_ask, args=(model, vetting, found), name="tensors", daemon=True).start()
    except RuntimeError as error:  # no more threads
        found.set_exception(BackendError(f"{model.path}: the runtime cannot be asked for its tensors: {error}"))
    return found


def _may_pass(found: Future[Ends]) -> bool:
    return found.done() and isinstance(found.exception(), BackendError)


def _ask(model: Model, vetting: Vetting | None, found: Future[Ends]) -> None:
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
