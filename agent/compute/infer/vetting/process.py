"""Starts vetting processes (`agent.compute.infer.vetting.main`) and judges their answers.

It is imported for the first unknown model only: most starts of the daemon do not need it.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from typing import NamedTuple

import msgspec
from msgspec import Struct

from agent.compute.infer.session import SessionOptions
from agent.compute.infer.vetting.vetting import KNOWN, Identity, Outcome, Record, VettingLimits, identity
from agent.compute.infer.worker import protocol
from agent.compute.infer.worker.process import ChildProcess, signal_name
from agent.compute.manifest import Manifest, Model
from agent.errors import NO_JSON, BackendError, ModelError, reason_of
from agent.structs import json_decoder
from agent.text import plain

log = logging.getLogger(__name__)
_MANY_CORES = 4
"""With at least so many cores two models are vetted at once, else one."""
_MAIN = "agent.compute.infer.vetting.main"
_LINGER_S = 2.0
"""How long an idle process is kept for another model, and an error for another caller, s."""
_CRASHES = (signal.SIGSEGV, signal.SIGILL, signal.SIGABRT, signal.SIGFPE, signal.SIGTRAP, signal.SIGSYS)
_LASTING = (*_CRASHES, signal.SIGXCPU)
"""Signals that a model causes. Others come from outside: SIGKILL when memory runs out, SIGBUS from a failing
disk, SIGTERM from systemd."""
_NO_MEMORY = "bad_alloc"
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
        signal: number of the signal that ended the fork; 0: none.
        status: exit status of the fork.
        failed: error that ended it; None: none.
    """

    runtime: str
    opened: bool
    ran: bool
    signal: int
    status: int
    failed: protocol.Failed | None = None


requests: msgspec.json.Decoder[Vet] = json_decoder(Vet)
_answers: msgspec.json.Decoder[VettingReply] = json_decoder(VettingReply)


class Trial(NamedTuple):
    """A model to be vetted: with what it will be opened, the limits of the fork, and what stores the outcome."""

    model: Model
    options: SessionOptions
    limits: VettingLimits
    record: Record | None


class _Trials:
    """The vettings under way, and the idle processes."""

    def __init__(self) -> None:
        self._under_way: dict[Identity, Future[str]] = {}
        self._idle: list[tuple[ChildProcess, float]] = []
        self._lock, self._ends_idle = threading.Lock(), False
        self._turns = threading.Semaphore(2 if (os.cpu_count() or 1) >= _MANY_CORES else 1)

    def outcome(self, trial: Trial) -> Future[str]:
        """Start a trial, unless one of the same model is under way or has just failed; return its outcome."""
        key = identity(trial.model)
        with self._lock:
            if (found := self._under_way.get(key)) is not None:
                return found
            found = self._under_way[key] = Future()
        try:
            threading.Thread(target=self._try, args=(trial, found), name="vetting", daemon=True).start()
        except RuntimeError as error:  # no more threads
            found.set_exception(BackendError(f"{trial.model.path}: cannot be vetted: {error}"))
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
            time.sleep(_LINGER_S)  # the next caller gets the same error
        else:
            found.set_result(reason)
        self._forget(key)

    def _forget(self, key: Identity) -> None:
        with self._lock:
            self._under_way.pop(key, None)

    def _run(self, trial: Trial) -> str:
        path = trial.model.path
        log.info("%s: new model, testing it in a separate process first", path)
        with self._lock:
            process = self._idle.pop()[0] if self._idle else None
        try:
            process = process or ChildProcess(_MAIN)
        except OSError as error:
            raise BackendError(f"{path}: cannot be vetted: no process: {reason_of(error)}") from error
        try:
            since, reply = process.log_end, _request(process, trial)
            log_line = process.last_log_line(since)
        except BaseException:
            process.end()
            raise
        self._keep_idle(process)
        return _refusal(reply, log_line, trial)

    def _keep_idle(self, process: ChildProcess) -> None:
        with self._lock:
            self._idle.append((process, time.monotonic() + _LINGER_S))
            if self._ends_idle:
                return
            self._ends_idle = True
        with suppress(RuntimeError):  # no more threads: it ends with this process
            threading.Thread(target=self._end_idle, name="vetting-end", daemon=True).start()

    def _end_idle(self) -> None:
        while self._ends_idle:
            time.sleep(_LINGER_S)
            with self._lock:
                due = [process for process, until in self._idle if until < time.monotonic()]
                self._idle = [one for one in self._idle if one[0] not in due]
                self._ends_idle = bool(self._idle)
            for process in due:
                process.end()


_TRIALS = _Trials()


def outcome(model: Model, options: SessionOptions, limits: VettingLimits, record: Record | None) -> Future[str]:
    """Vet a model unless that is under way, and return why it is refused; empty: it runs.

    The future raises the errors of `Vetting.check`. `record` stores the outcome.
    """
    return _TRIALS.outcome(Trial(model, options, limits, record))


def _request(process: ChildProcess, trial: Trial) -> VettingReply:
    """Have the process vet a model. Raises BackendError if it fails; the caller ends it."""
    model, limits = trial.model, trial.limits
    path, within_s = plain(model.path), limits.within_s
    request = Vet(trial.options.threads, model.manifest, path, limits.cpu_s, limits.memory)
    try:
        process.send(protocol.encode(request), within_s)
        process.send(model.content, within_s)
        return _answers.decode(process.receive(within_s))
    except TimeoutError:
        raise BackendError(f"{model.path}: cannot be vetted: not finished after {within_s:g} s") from None
    except protocol.ClosedError:
        raise BackendError(f"{model.path}: cannot be vetted: its process {process.exit_reason()}") from None
    except (protocol.InvalidMessageError, *NO_JSON) as error:
        text = f"its process sent an invalid answer: {error}"
        raise BackendError(f"{model.path}: cannot be vetted: {text}") from error


def _refusal(reply: VettingReply, log_line: str, trial: Trial) -> str:
    """Return why the model is refused, for the record; empty: it runs. Raises where it need not be at fault."""
    if reply.failed is not None:
        raise (ModelError if reply.failed.model else BackendError)(reply.failed.text)
    if reply.ran:
        return ""
    when = "when it was first run" if reply.opened else "when it was opened"
    if reply.signal not in _LASTING or _NO_MEMORY in log_line:
        how = signal_name(reply.signal) if reply.signal else f"exit status {reply.status}"
        text = f"its process ended {when} ({how}){log_line}; is memory short?"
        raise BackendError(f"{trial.model.path}: cannot be vetted: {text}")
    if reply.signal == signal.SIGXCPU:
        return f"hung {reply.runtime} {when}: it took over {trial.limits.cpu_s} s of CPU time; {_ADVICE}"
    return f"crashed {reply.runtime} {when} ({signal_name(reply.signal)}){log_line}; {_ADVICE}"
