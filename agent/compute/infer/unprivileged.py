"""Lets a command of root work on models without root's rights: as the daemon's user, or else as `nobody`.

`without_root` has a fork do the work, such as parsing a model's file; files that only root may read are read
before, see `agent.models.files.preloaded`. Results come back as typed msgpack, so that root need not trust the
fork. Processes that open models call `agent.child.drop_root` themselves.
"""

from __future__ import annotations

import importlib
import logging
import os
import pkgutil
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

import msgspec
from msgspec import Struct

from agent import errors
from agent.child import InvalidMessageError, describe_exit, drop_root, is_root, other_user, run_fork
from agent.compute.infer.delegates import device_groups
from agent.errors import NO_JSON, ModelError, VedetteError
from agent.structs import from_msgpack

log = logging.getLogger(__name__)
_LARGEST = 64 * 2**20
"""Largest result, bytes, without models that the caller expects."""
_NO_PROGRAM = 77
"""Exit status of a fork whose user may not run this Python."""
_WHO = "the process without root's rights"

parsed_as_root = ""
"""Why root's work is done as root here, for `vedette doctor`; empty: it is not, as far as is known."""
T = TypeVar("T")


class _ForkResult(Struct, frozen=True):
    """Result of the work, msgpack, or type and texts of the error that ended it."""

    result: msgspec.Raw = msgspec.Raw(b"\xc0")
    kind: str = ""
    faults: tuple[str, ...] = ()


def without_root(work: Callable[[], T], kind: Any, within_s: float = 300.0, model_bytes: int = 0) -> T:
    """Do some work without root's rights: in a fork for root, else in this process.

    If the other user may not run this Python, as in a clone in root's home, or if the process has other threads,
    the work is done as root. Even then models are opened only by processes without root's rights.

    Args:
        work: what to do. It sees the process's memory as it is now; of its changes only those to files remain.
        kind: type of its result, which msgspec can write and read.
        within_s: timeout, s.
        model_bytes: size of the model that the result holds, bytes: the result may be larger by that.

    Raises:
        VedetteError: as the work raises, of the same type.
        ModelError: the fork ended early or took too long, or its result is too large.
    """
    global parsed_as_root
    # A fork would inherit the locks of other threads and wait for ever.
    if not is_root() or parsed_as_root or len(sys._current_frames()) > 1:
        return work()
    _import_all()
    sys.stdout.flush()
    try:
        written, status = run_fork(lambda writer: _run_in_fork(work, writer), _LARGEST + model_bytes, within_s)
    except TimeoutError:
        raise ModelError(f"{_WHO} took longer than {within_s:g} s") from None
    except InvalidMessageError:
        raise ModelError(f"{_WHO} returned more than {(_LARGEST + model_bytes) >> 20} MB") from None
    if status == _NO_PROGRAM:
        parsed_as_root = f"user {other_user()} may not run {sys.executable}"
        return work()
    result: T = _decode(written, status, kind)
    return result


def _run_in_fork(work: Callable[[], T], writer: int) -> NoReturn:
    try:
        os.setsid()  # detach from root's terminal, into which it could type
        drop_root(device_groups())
        if not os.access(sys.executable, os.X_OK):
            os._exit(_NO_PROGRAM)
        try:
            result = _ForkResult(msgspec.Raw(msgspec.msgpack.encode(work())))
        except VedetteError as error:
            faults = error.faults if isinstance(error, ModelError) else (str(error),)
            result = _ForkResult(kind=type(error).__name__, faults=faults)
        with os.fdopen(writer, "wb") as file:
            file.write(msgspec.msgpack.encode(result))
        sys.stdout.flush()
        os._exit(0)
    except BaseException as error:
        with suppress(Exception):
            log.error("without root: %s: %s", type(error).__name__, error)
    finally:
        os._exit(1)


def _decode(written: bytes, status: int, kind: Any) -> Any:
    if not written:
        raise ModelError(f"{_WHO} {describe_exit(status)}")
    try:
        told = from_msgpack(written, _ForkResult)
        if not told.kind:
            return from_msgpack(told.result, kind)
    except NO_JSON as error:
        raise ModelError(f"{_WHO} returned an invalid result: {error}") from error
    found = getattr(errors, told.kind, ModelError)
    if isinstance(found, type) and issubclass(found, ModelError):
        raise found(*told.faults)
    is_ours = isinstance(found, type) and issubclass(found, VedetteError)
    raise (found if is_ours else VedetteError)("; ".join(told.faults))


def _import_all() -> None:
    """Import what the work may need, because the other user may not be allowed to read it."""
    import agent.compute

    for module in pkgutil.walk_packages(agent.compute.__path__, "agent.compute."):
        if not module.name.endswith("_main"):
            with suppress(ImportError):
                importlib.import_module(module.name)
    from agent.compute.infer.litert import load_runtime, runtime_version
    from agent.config.source_uri import import_openers

    import_openers()
    with suppress(VedetteError):
        runtime_version(load_runtime()[0])
