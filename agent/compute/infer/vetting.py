"""Vetting: a model is opened and run in another process before this process opens it.

A file that our reader accepts may still crash or hang the runtime. The exact bytes that this process will open
are run by a fork of the vetting process (`agent.compute.infer.vetting_process`). A crash there is an error of
that model. One whose time or memory depends on its input could harm later: it always runs in a worker process.

Outcomes are cached in this process, and longer by a `Record`; a refusal expires after `HOLDS_S`. Temporary
errors, such as a lack of memory, are not cached.
"""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple, Protocol

from msgspec import Struct

from agent.child import ChildError, ChildProcess, Failed, encode, signal_name
from agent.compute.infer.litert import CpuBackend
from agent.compute.infer.session import BackendSpec, Session, SessionOptions
from agent.compute.manifest import Manifest, Model
from agent.compute.tflite.read import read_modelfile
from agent.errors import NO_JSON, BackendError, ModelError, reason_of
from agent.structs import from_json
from agent.text import plain

log = logging.getLogger(__name__)
Identity = tuple[str, int, tuple[str, ...]]
HOLDS_S = 86_400.0
"""How long a refusal is cached, s: failing memory or an overheated board may have caused it."""


class Outcome(NamedTuple):
    """Outcome of vetting a model: the reason, as `Record.read` gives it, and the monotonic time, s."""

    reason: str
    at_s: float


KNOWN: dict[Identity, Outcome] = {}
"""Outcomes found in this process or read from its record, by model."""


class VettingLimits(Struct, frozen=True):
    """Limits for vetting one model.

    Attributes:
        within_s: wall time, s; less than the watchdog's timeout for a stream.
        cpu_s: CPU time, s; unlike wall time it does not depend on the board's load.
        memory: data memory, bytes; 0: see `agent.compute.infer.litert.memory_max`.
    """

    within_s: float = 120.0
    cpu_s: int = 60
    memory: int = 0


_LIMITS = VettingLimits()
OPEN_S = 20.0
"""Timeout for opening a vetted model in a worker process, and for an inference there, s. Together with vetting it
stays below the watchdog's timeout for streams."""


class Record(Protocol):
    """Stores outcomes across restarts."""

    def read(self, model: Model) -> str | None:
        """Return the reason to refuse the model; empty: it runs; None: not known."""
        ...

    def write(self, model: Model, reason: str) -> None:
        """Store an outcome, as `read` returns it."""
        ...


class Vetting:
    """Opens models on the CPU after vetting them. Any thread may use it.

    Without a record, outcomes are cached in this process only. `clock` is monotonic, s; refusals expire by it.
    """

    def __init__(
        self,
        record: Record | None = None,
        limits: VettingLimits = _LIMITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._record, self._limits, self._clock = record, limits, clock

    def open(self, model: Model, options: SessionOptions) -> Session:
        """Open a model on the CPU, vetted as by `check`. Raises as `check` and `CpuBackend.open`.

        It runs in this process if it is a packaged one, or if its time and memory cannot depend on its input.
        """
        self.check(model, options)
        if model.is_packaged or read_modelfile(model.content).has_fixed_cost:
            return CpuBackend().open(model, options)
        from agent.compute.infer.worker import WorkerSession  # few models need it

        return WorkerSession(model, BackendSpec(), options, deadline_s=OPEN_S, patience_s=OPEN_S)

    def check(self, model: Model, options: SessionOptions, within_s: float | None = None) -> bool:
        """Vet a model unless its outcome is known. Return True if it runs, False if that is not known in time.

        The vetting continues after `within_s`; None waits as long as it takes.

        Raises:
            ModelError: the model crashed the runtime, or cannot run.
            BackendError: it cannot be vetted now.
        """
        reason = self._known(model)
        if reason is None:
            try:
                reason = outcome(model, options, self._limits, self._record).result(within_s)
            except TimeoutError:
                return False
        if reason:
            raise ModelError(f"{model.path}: {reason}")
        return True

    def _known(self, model: Model) -> str | None:
        key = identity(model)
        found = KNOWN.get(key)
        if found is not None and (not found.reason or self._clock() - found.at_s < HOLDS_S):
            return found.reason
        reason = None if self._record is None else self._record.read(model)
        if reason == "":  # a refusal is read again each time, because the record decides when it expires
            KNOWN[key] = Outcome(reason, self._clock())
        return reason


VETTING = Vetting()
"""For programs without a state folder."""


def identity(model: Model) -> Identity:
    """Return the key of an outcome: hash of the file, size of the content that is opened, and its signatures."""
    sha256 = model.sha256 or hashlib.sha256(model.content).hexdigest()
    return sha256, len(model.content), tuple(variant.signature for variant in model.manifest.variants)


_AT_ONCE = 2 if (os.cpu_count() or 1) >= 4 else 1
"""Most models that are vetted at once."""
_LINGER_S = 2.0
"""How long an idle process is kept for another model, s."""
_CRASHES = (signal.SIGSEGV, signal.SIGILL, signal.SIGABRT, signal.SIGFPE, signal.SIGTRAP, signal.SIGSYS)
_LASTING = (*_CRASHES, signal.SIGXCPU)
"""Signals that a model causes. Others come from outside: SIGKILL when memory runs out, SIGBUS from a failing
disk, SIGTERM from systemd."""
_NO_MEMORY = "bad_alloc"
_MODULE = "agent.compute.infer.vetting_process"
_ADVICE = "use another version of this model, or convert it again"


class Vet(Struct, frozen=True):
    """A request to the process, followed by the model's bytes; answered by `VettingReply`.

    Attributes:
        threads: see `SessionOptions`.
        manifest, path: of the model.
        cpu_s: limit of its CPU time, s.
        memory: see `VettingLimits`.
    """

    threads: int
    manifest: Manifest
    path: str
    cpu_s: int
    memory: int


class VettingReply(Struct, frozen=True):
    """Result of vetting a model.

    Attributes:
        runtime: name and version.
        opened: whether the model was opened.
        ran: whether all its graphs ran.
        status: exit status of the fork, or the negative number of the signal that ended it.
        failed: error that ended it; None: none.
    """

    runtime: str
    opened: bool
    ran: bool
    status: int
    failed: Failed | None = None


class _Trial(NamedTuple):
    model: Model
    options: SessionOptions
    limits: VettingLimits
    record: Record | None
    outcome: Future[str]


class _Trials:
    """The vettings under way, in the order in which they came; the processes end when there is nothing to do."""

    def __init__(self) -> None:
        self._under_way: dict[Identity, Future[str]] = {}
        self._queue: queue.SimpleQueue[_Trial] = queue.SimpleQueue()
        self._lock, self._threads = threading.Lock(), 0

    def start(self, trial: _Trial) -> Future[str]:
        """Start a trial, unless one of the same model is under way; return its outcome."""
        key = identity(trial.model)
        with self._lock:
            if key in self._under_way:
                return self._under_way[key]
            if self._threads < _AT_ONCE:
                try:
                    threading.Thread(target=self._run, name="vetting", daemon=True).start()
                except RuntimeError as error:  # no more threads
                    trial.outcome.set_exception(_cannot(trial, str(error)))
                    return trial.outcome
                self._threads += 1
            self._under_way[key] = trial.outcome
            self._queue.put(trial)
        return trial.outcome

    def _run(self) -> None:
        process: ChildProcess | None = None
        while True:
            try:
                trial = self._queue.get(timeout=_LINGER_S)
            except queue.Empty:
                with self._lock:
                    if not self._queue.empty():
                        continue
                    self._threads -= 1
                if process is not None:
                    process.end()
                return
            failed: BaseException | None = None
            reason = ""
            try:
                process = process or ChildProcess(_MODULE)
                reason = _vet_in(process, trial)
                KNOWN[identity(trial.model)] = Outcome(reason, time.monotonic())
                if trial.record is not None:
                    trial.record.write(trial.model, reason)
            except ChildError as error:
                failed = _cannot(trial, f"its process {error}")
                if process is not None:
                    process.end()
                process = None
            except OSError as error:
                failed = _cannot(trial, f"no process: {reason_of(error)}")
            except BaseException as error:
                failed = error
            with self._lock:
                del self._under_way[identity(trial.model)]
            if failed is None:
                trial.outcome.set_result(reason)
            else:
                trial.outcome.set_exception(failed)


_TRIALS = _Trials()


def _cannot(trial: _Trial, why: str) -> BackendError:
    return BackendError(f"{trial.model.path}: cannot be vetted: {why}")


def outcome(model: Model, options: SessionOptions, limits: VettingLimits, record: Record | None) -> Future[str]:
    """Vet a model unless that is under way, and return why it is refused; empty: it runs.

    The future raises the errors of `Vetting.check`. `record` stores the outcome.
    """
    return _TRIALS.start(_Trial(model, options, limits, record, Future()))


def _vet_in(process: ChildProcess, trial: _Trial) -> str:
    """Return why the model is refused; empty: it runs."""
    model, limits = trial.model, trial.limits
    log.info("%s: new model, testing it in a separate process first", model.path)
    request = Vet(trial.options.threads, model.manifest, plain(model.path), limits.cpu_s, limits.memory)
    since = process.log_end
    answer = process.ask(encode(request), model.content, within_s=limits.within_s, what="vetting")
    try:
        reply = from_json(answer, VettingReply)
    except NO_JSON as error:
        raise ChildError(f"sent an invalid answer: {error}") from None
    return _refusal(reply, process.last_log_line(since), trial)


def _refusal(reply: VettingReply, log_line: str, trial: _Trial) -> str:
    """Return why the model is refused, for the record; empty: it runs. Raises where it need not be at fault."""
    if reply.failed is not None:
        raise reply.failed.error()
    if reply.ran:
        return ""
    when = "when it was first run" if reply.opened else "when it was opened"
    how = signal_name(-reply.status) if reply.status < 0 else f"exit status {reply.status}"
    if -reply.status not in _LASTING or _NO_MEMORY in log_line:
        raise _cannot(trial, f"its process ended {when} ({how}){log_line}; is memory short?")
    if -reply.status == signal.SIGXCPU:
        return f"hung {reply.runtime} {when}: it took over {trial.limits.cpu_s} s of CPU time; {_ADVICE}"
    return f"crashed {reply.runtime} {when} ({how}){log_line}; {_ADVICE}"
