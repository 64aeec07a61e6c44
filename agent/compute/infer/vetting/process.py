"""Asks the process that tries models (`main` beside this); see `agent.compute.infer.vetting.vetting`.

It is imported for the first unknown model only: most starts of the daemon need none of it.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct

from agent.compute.infer.session import SessionOptions
from agent.compute.infer.vetting.vetting import KNOWN, Identity, Outcome, Record, VettingLimits, identity
from agent.compute.infer.worker import protocol
from agent.compute.infer.worker.process import ChildProcess, signal_name
from agent.compute.manifest import Manifest, Model
from agent.errors import NO_JSON, BackendError, ModelError, reason_of
from agent.text import plain

# Memory that a model may take while it is tried. Sources: proc_meminfo(5), cgroup-v2 (memory.max).

_LEAST = 128 * 2**20
"""Bytes that every model may take: small ones need some 60 MB with the stacks of their threads."""


def spare_bytes(root: Path = Path("/")) -> int:
    """Half of the memory that is available now, or of the limit of this process's cgroup if that is lower.

    Args:
        root: of the file system.

    Returns:
        Bytes, at least `_LEAST`.
    """
    return max(_LEAST, min(_available(root), *_cgroup_limits(root)) // 2)


def _available(root: Path) -> int:
    """Memory that could be had without swapping; all that the board has where the kernel does not tell, bytes."""
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroup_limits(root: Path) -> list[int]:
    """Limits of the cgroup and of those around it, bytes; one that limits nothing comes first."""
    top, limits = root / "sys/fs/cgroup", [1 << 62]
    lines = _read(root / "proc/self/cgroup").splitlines()
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    inside = [folder for folder in (top / own, *(top / own).parents) if folder.is_relative_to(top)]
    texts = (_read(folder / "memory.max").strip() for folder in inside)
    return limits + [int(text) for text in texts if text.isascii() and text.isdigit()]


def _read(path: Path) -> str:
    with suppress(OSError, ValueError):
        return path.read_text(encoding="ascii")
    return ""


log = logging.getLogger(__name__)

_MORE_MB = 1024
"""Address space beyond the board's memory, MB: libraries and stacks reserve that much and use little of it."""
_MANY_CORES = 4
"""From so many on two models are tried at once, else one."""
_MAIN = "agent.compute.infer.vetting.main"
_LINGER_S = 2.0
"""How long the process waits for another model, and an error for another who asks, s."""
_CRASHES = (signal.SIGSEGV, signal.SIGILL, signal.SIGABRT, signal.SIGFPE, signal.SIGTRAP, signal.SIGSYS)
_LASTING = (*_CRASHES, signal.SIGXCPU)
"""Signals that a model causes. Others come from people and from the kernel: SIGKILL where memory runs out, SIGBUS
where a disk fails, SIGTERM from systemd."""
_NO_MEMORY = "bad_alloc"
_ADVICE = "use another version of this model, or convert it again"


class Vet(Struct, frozen=True):
    """A request to the process, followed by the model's bytes; answered by `VettingReply`.

    Attributes:
        threads: see `SessionOptions`.
        manifest, path: of the model.
        cpu_s: CPU time that it may take, s.
        memory: address space that it may take, bytes.
        data: memory of its own that it may take besides what the process has already, bytes.
    """

    threads: int
    manifest: Manifest
    path: str
    cpu_s: int
    memory: int
    data: int


class VettingReply(Struct, frozen=True):
    """How it went.

    Attributes:
        runtime: name and version.
        opened: the model was opened. ran: all its graphs ran.
        signal: that ended the fork; 0: none.
        status: exit status of the fork.
        failed: the error that it ended with; None: none.
    """

    runtime: str
    opened: bool
    ran: bool
    signal: int
    status: int
    failed: protocol.Failed | None = None


requests: msgspec.json.Decoder[Vet] = msgspec.json.Decoder(Vet)
_answers: msgspec.json.Decoder[VettingReply] = msgspec.json.Decoder(VettingReply)


class Trial(NamedTuple):
    """A model to be tried.

    Attributes:
        model: see `Backend.open`.
        options: as it will be opened with.
        limits: for it.
        record: keeps the outcome; None: nobody does.
    """

    model: Model
    options: SessionOptions
    limits: VettingLimits
    record: Record | None


class _Trials:
    """What is being found out of models."""

    def __init__(self) -> None:
        self._under_way: dict[Identity, Future[str]] = {}
        self._idle: list[tuple[ChildProcess, float]] = []
        self._lock, self._dismisses = threading.Lock(), False
        self._turns = threading.Semaphore(2 if (os.cpu_count() or 1) >= _MANY_CORES else 1)

    def outcome(self, trial: Trial) -> Future[str]:
        """The outcome of a trial, which begins unless one of these bytes is under way or has just failed."""
        key = identity(trial.model)
        with self._lock:
            if (found := self._under_way.get(key)) is not None:
                return found
            found = self._under_way[key] = Future()
        try:
            threading.Thread(target=self._try, args=(trial, found), name="vetting", daemon=True).start()
        except RuntimeError as error:  # no more threads
            found.set_exception(BackendError(f"{trial.model.path}: cannot be tried: {error}"))
            self._forget(key)
        return found

    def _try(self, trial: Trial, found: Future[str]) -> None:
        key = identity(trial.model)
        try:
            with self._turns:
                reason = self._run(trial)
            KNOWN[key] = Outcome(reason, time.monotonic())
            if trial.record is not None:
                trial.record.write(trial.model, reason)
        except BaseException as error:
            found.set_exception(error)
            time.sleep(_LINGER_S)  # whoever asks next gets the same answer
        else:
            found.set_result(reason)
        self._forget(key)

    def _forget(self, key: Identity) -> None:
        with self._lock:
            self._under_way.pop(key, None)

    def _run(self, trial: Trial) -> str:
        """Why the model cannot be used; empty: it runs.

        Raises:
            ModelError: the runtime refuses it. BackendError: it could not be tried.
        """
        path = trial.model.path
        log.info("%s: is new here: it is tried in a process of its own first", path)
        with self._lock:
            process = self._idle.pop()[0] if self._idle else None
        try:
            process = process or ChildProcess(_MAIN)
        except OSError as error:
            raise BackendError(f"{path}: cannot be tried: no process: {reason_of(error)}") from error
        try:
            since, told = process.said, _asked(process, trial)
            said = process.last_log_line(since)
        except BaseException:
            process.end()
            raise
        self._lay_aside(process)
        return _reason(told, said, trial)

    def _lay_aside(self, process: ChildProcess) -> None:
        """Keep a process for the next model, for a moment."""
        with self._lock:
            self._idle.append((process, time.monotonic() + _LINGER_S))
            if self._dismisses:
                return
            self._dismisses = True
        with suppress(RuntimeError):  # no more threads: it ends with this process
            threading.Thread(target=self._dismiss, name="vetting-end", daemon=True).start()

    def _dismiss(self) -> None:
        """End processes that nobody has needed for a while, until none is left."""
        while self._dismisses:
            time.sleep(_LINGER_S)
            with self._lock:
                due = [process for process, until in self._idle if until < time.monotonic()]
                self._idle = [one for one in self._idle if one[0] not in due]
                self._dismisses = bool(self._idle)
            for process in due:
                process.end()


_TRIALS = _Trials()


def outcome(model: Model, options: SessionOptions, limits: VettingLimits, record: Record | None) -> Future[str]:
    """Try a model, unless that is under way.

    Args:
        model: see `Backend.open`.
        options: as it will be opened with.
        limits: for it.
        record: keeps the outcome; None: nobody does.

    Returns:
        Why it cannot be used; empty: it runs. Its errors are those of `Vetting.check`.
    """
    return _TRIALS.outcome(Trial(model, options, limits, record))


def _asked(process: ChildProcess, trial: Trial) -> VettingReply:
    """Have the process try a model.

    Raises:
        BackendError: it died, hangs or answers nonsense, and is to be ended.
    """
    model, limits = trial.model, trial.limits
    memory, within_s = limits.memory or _address_space(), limits.within_s
    path = plain(model.path)
    request = Vet(trial.options.threads, model.manifest, path, limits.cpu_s, memory, spare_bytes())
    try:
        process.put(protocol.encode(request), within_s)
        process.put(model.content, within_s)
        return _answers.decode(process.get(within_s))
    except TimeoutError:
        raise BackendError(f"{model.path}: cannot be tried: it was not done after {within_s:g} s") from None
    except protocol.ClosedError:
        raise BackendError(f"{model.path}: cannot be tried: its process {process.exit_reason()}") from None
    except (protocol.NonsenseError, *NO_JSON) as error:
        raise BackendError(f"{model.path}: cannot be tried: its process answers nonsense: {error}") from error


def _reason(told: VettingReply, said: str, trial: Trial) -> str:
    """Why a model cannot be used, as it is kept; empty: it runs.

    Raises:
        ModelError: the runtime refuses it. BackendError: it ended for a reason that need not be the model.
    """
    if told.failed is not None:
        raise (ModelError if told.failed.model else BackendError)(told.failed.text)
    if told.ran:
        return ""
    when = "when it was first run" if told.opened else "when it was opened"
    if told.signal not in _LASTING or _NO_MEMORY in said:
        how = signal_name(told.signal) if told.signal else f"exit status {told.status}"
        text = f"its process ended {when} ({how}){said}; is memory short?"
        raise BackendError(f"{trial.model.path}: cannot be tried: {text}")
    if told.signal == signal.SIGXCPU:
        return f"hung {told.runtime} {when}: it took over {trial.limits.cpu_s} s of CPU time; {_ADVICE}"
    return f"crashed {told.runtime} {when} ({signal_name(told.signal)}){said}; {_ADVICE}"


def _address_space() -> int:
    """Bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + _MORE_MB * 2**20
