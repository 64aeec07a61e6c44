"""Runs unknown models in a process of its own, and judges what happened there.

It is imported for the first unknown model only: most starts of the daemon do not need it. This module is both the
daemon's side, `outcome`, and the program of the process. The process imports the runtime once, so that a fork
takes milliseconds, and opens and runs each model in a fork of itself. The model may crash, hang or take over the
fork: that has limited memory and CPU time, never root's rights, and only the pipe for its outcome.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import random
import resource
import signal
import sys
import threading
import time
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
from msgspec import Struct

from agent.child import (
    LARGEST_REQUEST,
    ChildError,
    ChildProcess,
    ClosedError,
    Failed,
    describe_failure,
    drop_root,
    encode,
    init_child,
    limit_memory,
    lower_limit,
    receive,
    run_fork,
    send,
    signal_name,
    trim_log,
)
from agent.compute.infer.litert import (
    CpuBackend,
    CpuSession,
    keep_stderr,
    load_runtime,
    memory_max,
    runtime_version,
)
from agent.compute.infer.session import SessionOptions
from agent.compute.infer.vetting import KNOWN, Identity, Outcome, Record, VettingLimits, identity
from agent.compute.manifest import Manifest, Model
from agent.errors import NO_JSON, BackendError, VedetteError, reason_of
from agent.structs import from_json
from agent.text import plain
from agent.types import Array

log = logging.getLogger(__name__)
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


class Trial(NamedTuple):
    """A model to be vetted: with what it will be opened, the limits of the fork, and what stores the outcome."""

    model: Model
    options: SessionOptions
    limits: VettingLimits
    record: Record | None


class _Trials:
    """The vettings under way, in the order in which they came; the processes end when there is nothing to do."""

    def __init__(self) -> None:
        self._under_way: dict[Identity, Future[str]] = {}
        self._queue: queue.SimpleQueue[tuple[Trial, Future[str]]] = queue.SimpleQueue()
        self._lock, self._threads = threading.Lock(), 0

    def outcome(self, trial: Trial) -> Future[str]:
        """Start a trial, unless one of the same model is under way; return its outcome."""
        key = identity(trial.model)
        with self._lock:
            if (found := self._under_way.get(key)) is not None:
                return found
            found = Future()
            if self._threads < _AT_ONCE:
                try:
                    threading.Thread(target=self._run, name="vetting", daemon=True).start()
                except RuntimeError as error:  # no more threads
                    found.set_exception(BackendError(f"{trial.model.path}: cannot be vetted: {error}"))
                    return found
                self._threads += 1
            self._under_way[key] = found
            self._queue.put((trial, found))
        return found

    def _run(self) -> None:
        process: ChildProcess | None = None
        while True:
            try:
                trial, found = self._queue.get(timeout=_LINGER_S)
            except queue.Empty:
                with self._lock:
                    if not self._queue.empty():
                        continue
                    self._threads -= 1
                if process is not None:
                    process.end()
                return
            try:
                process = process or ChildProcess(_MODULE)
                self._try(process, trial, found)
            except OSError as error:
                why = f"no process: {reason_of(error)}"
                self._end(trial, found, BackendError(f"{trial.model.path}: cannot be vetted: {why}"))
            except ChildError as error:
                if process is not None:
                    process.end()
                process = None
                why = f"its process {error}"
                self._end(trial, found, BackendError(f"{trial.model.path}: cannot be vetted: {why}"))
            except BaseException as error:
                self._end(trial, found, error)

    def _try(self, process: ChildProcess, trial: Trial, found: Future[str]) -> None:
        reason = _vet_in(process, trial)
        KNOWN[identity(trial.model)] = Outcome(reason, time.monotonic())
        if trial.record is not None:
            trial.record.write(trial.model, reason)
        self._end(trial, found, reason)

    def _end(self, trial: Trial, found: Future[str], outcome: str | BaseException) -> None:
        with self._lock:
            del self._under_way[identity(trial.model)]
        if isinstance(outcome, str):
            found.set_result(outcome)
        else:
            found.set_exception(outcome)


_TRIALS = _Trials()


def outcome(model: Model, options: SessionOptions, limits: VettingLimits, record: Record | None) -> Future[str]:
    """Vet a model unless that is under way, and return why it is refused; empty: it runs.

    The future raises the errors of `Vetting.check`. `record` stores the outcome.
    """
    return _TRIALS.outcome(Trial(model, options, limits, record))


def _vet_in(process: ChildProcess, trial: Trial) -> str:
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


def _refusal(reply: VettingReply, log_line: str, trial: Trial) -> str:
    """Return why the model is refused, for the record; empty: it runs. Raises where it need not be at fault."""
    if reply.failed is not None:
        raise reply.failed.error()
    if reply.ran:
        return ""
    when = "when it was first run" if reply.opened else "when it was opened"
    how = signal_name(-reply.status) if reply.status < 0 else f"exit status {reply.status}"
    if -reply.status not in _LASTING or _NO_MEMORY in log_line:
        text = f"its process ended {when} ({how}){log_line}; is memory short?"
        raise BackendError(f"{trial.model.path}: cannot be vetted: {text}")
    if -reply.status == signal.SIGXCPU:
        return f"hung {reply.runtime} {when}: it took over {trial.limits.cpu_s} s of CPU time; {_ADVICE}"
    return f"crashed {reply.runtime} {when} ({how}){log_line}; {_ADVICE}"


# In the process.

_OPENED, _RAN, _FAILED = b"o", b"r", b"f"
"""Written by a fork when the model is open, when it has run, and before an error."""
_LARGEST = 64 * 1024
"""Most bytes that are read from a fork."""
_MOST = 2**20
"""Most elements of an input that are filled, because noise takes time and memory."""
_RANGES = ((0.0, 1.0), (-3.0, 3.0), (0.0, 255.0), (0.0, 1.0))
"""Values of float inputs, an inference each: those of pictures and sound, by how they are normalised."""
_SHARE = 0.25
"""Share of the CPU time after which no further inference begins."""
_RANDOM = random.SystemRandom()


def main(asked_by: int, answers_to: int, life: int) -> None:
    """Serve requests until the parent closes the pipe. The arguments are descriptors, see `ChildProcess`."""
    init_child(life)
    keep_stderr()
    runtime = "the runtime"
    with contextlib.suppress(VedetteError):  # without one every fork reports that
        runtime = runtime_version(load_runtime()[0])
    drop_root()
    with contextlib.suppress(ClosedError):
        while True:
            request = from_json(receive(asked_by), Vet)
            reply = _vet(request, receive(asked_by, largest=LARGEST_REQUEST), runtime)
            trim_log()
            send(answers_to, encode(reply))
    os._exit(0)


def _vet(request: Vet, content: bytes, runtime: str) -> VettingReply:
    written, status = run_fork(lambda writer: _run_model(request, content, writer), _LARGEST)
    stages, is_failed, error = written.partition(_FAILED)  # a fork may write anything
    problem = None
    if is_failed:
        try:
            problem = from_json(error, Failed)
        except NO_JSON:
            problem = Failed("its error cannot be read")
    return VettingReply(runtime, _OPENED in stages, _RAN in stages and not status, status, problem)


def _run_model(request: Vet, content: bytes, writer: int) -> None:
    """Open and run the model."""
    try:
        limit_memory(request.memory or memory_max(len(content)))
        lower_limit(resource.RLIMIT_CPU, request.cpu_s, request.cpu_s + 1)
        model, options = (
            Model(content, "", request.manifest, request.path),
            SessionOptions(threads=request.threads),
        )
        session = CpuBackend().open(model, options)
        os.write(writer, _OPENED)
        for variant in request.manifest.variants:
            session.select(variant.name)
            for number, values in enumerate(_RANGES):
                if not number or time.process_time() < _SHARE * request.cpu_s:
                    _infer(session, values)
        os.write(writer, _RAN)
    except Exception as error:
        os.write(writer, _FAILED + encode(describe_failure(error)))
    finally:
        os._exit(0)


def _infer(session: CpuSession, values: tuple[float, float]) -> None:
    with contextlib.suppress(BackendError):  # another input may be accepted
        for index in range(len(session.inputs)):
            _fill(session.input(index), *values)
        session.invoke()


def _fill(tensor: Array, least: float, most: float) -> None:
    """Fill a tensor of numbers with noise whose mean and contrast the model cannot foresee."""
    values = tensor.reshape(-1)[:_MOST]
    low, high = sorted((_RANDOM.random(), _RANDOM.random()))
    noise = low + (high - low) / 255.0 * np.frombuffer(os.urandom(values.size), np.uint8)
    if tensor.dtype.kind == "f":
        values[...] = least + (most - least) * noise
    elif tensor.dtype.kind in "iu":
        values[...] = (255.0 * noise).astype(np.int16) - (0 if tensor.dtype.kind == "u" else 128)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
