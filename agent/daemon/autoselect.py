"""Opens the sessions of streams: an explicit backend as configured, `auto` on the backend measured to be best.

A stream never waits for this. It starts on the CPU; a device is opened beside it and replaces it when its
outputs are right, with the CPU as fallback. A model that was never measured on this board is measured some time
after the start, one model at a time.

Outcomes of vetting are kept in the state folder. One holds for the bytes of a model, the versions of Vedette and
of the runtime, and the processor. A refusal lapses after a day, since failing memory or an overheated board may
have caused it.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import platform
import queue
import threading
import time
import weakref
from collections import deque
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from agent import __version__
from agent.board.identity import read_board
from agent.compute.infer.backends import fallback_spec, opens_at_once, resolve_backend
from agent.compute.infer.litert import RUNTIMES, Runtime, default_threads, runtime_version
from agent.compute.infer.session import AUTO, CPU, BackendSpec, Session, SessionOptions
from agent.compute.infer.sharing import SessionPools, SwappableSession, is_shareable
from agent.compute.infer.vetting import HOLDS_S, Vetting, identity
from agent.compute.manifest import Model
from agent.config import SelectionConfig
from agent.errors import NO_JSON, StorageError, VedetteError
from agent.storage.state import MeasurementFiles
from agent.structs import from_json
from agent.text import plain

if TYPE_CHECKING:
    from agent.compute.infer.benchmark import Selection
    from agent.daemon.measurements import StoredMeasurements

log = logging.getLogger(__name__)


_VERSION = 2
"""Version of the format and of the vetting; outcomes of another version are void."""
_HOLDS = timedelta(seconds=HOLDS_S)
_REASON_MAX = 500
"""Most characters of a reason."""
_FOLDER = "vetted"


class _Outcome(Struct, frozen=True):
    """Outcome of vetting one model: the reason why it cannot be used, empty if it runs.

    It holds as long as `about`, the digest of what it depends on, is the same.
    """

    version: int
    about: str
    model: str
    at: Annotated[datetime, Meta(tz=True)]
    reason: Annotated[str, Meta(max_length=_REASON_MAX)] = ""


class VettingRecord:
    """Stored outcomes; see `agent.compute.infer.vetting.Record`. Any thread may use it."""

    def __init__(self, state: Path) -> None:
        self._files, self._has_failed = MeasurementFiles(state, _FOLDER), False

    def read(self, model: Model) -> str | None:
        """Return why a model cannot be used; empty: it runs; None: it must be vetted."""
        name, about = model.manifest.name, _digest_of(model)
        try:
            content = self._files.read(name, about)
            kept = from_json(content, _Outcome) if content else None
        except (StorageError, *NO_JSON) as error:
            path = self._files.path(name, about)
            self._log_once(f"{path}: {str(error).removeprefix(f'{path}: ')}; vetting {model.path} again")
            return None
        if kept is None or (kept.version, kept.about) != (_VERSION, about):
            return None
        if kept.reason and not timedelta() <= datetime.now(UTC) - kept.at < _HOLDS:
            return None
        return plain(kept.reason)

    def write(self, model: Model, reason: str) -> None:
        """Store an outcome. If that fails, the model is vetted again after the next start."""
        name, about = model.manifest.name, _digest_of(model)
        kept = _Outcome(_VERSION, about, model.path, datetime.now(UTC), plain(reason)[:_REASON_MAX])
        try:
            self._files.write(name, about, msgspec.json.encode(kept))
        except StorageError as error:
            self._log_once(f"{error}; new models are vetted again after the next start")

    def _log_once(self, text: str) -> None:
        if not self._has_failed:
            self._has_failed = True
            log.warning("%s", text)


def _digest_of(model: Model) -> str:
    return hashlib.sha256("\n".join(map(str, (*identity(model), *_environment()))).encode()).hexdigest()


@functools.cache
def _environment() -> tuple[str, ...]:
    """Describe what an outcome depends on besides the model; constant while this process runs."""
    board = read_board()
    features = hashlib.sha256(" ".join(board.features).encode()).hexdigest()
    return __version__, *map(_installed, RUNTIMES), platform.machine(), board.cpu, features


def _installed(name: Runtime) -> str:
    try:
        return runtime_version(name)
    except ImportError:
        return ""


class _ClosedError(Exception): ...


class _Candidate(Struct, frozen=True):
    """A session that may run better. Its references are weak: it may wait for long."""

    session: weakref.ref[SwappableSession]
    model: weakref.ref[Model]
    options: SessionOptions

    def shares(self, model: Model, options: SessionOptions) -> bool:
        """Return True if it is open, and of this model with these options."""
        session, own = self.session(), self.model()
        if session is None or session.closed or own is None:
            return False
        return (own.sha256, own.manifest.variants, self.options) == (
            model.sha256,
            model.manifest.variants,
            options,
        )


class AutoBackend:
    """Opens the sessions of all streams of a device, their models vetted, and improves those with `auto`.

    Streams with the same model share sessions, see `agent.compute.infer.sharing`.
    """

    def __init__(self, selection: SelectionConfig, state: Path) -> None:
        """Prepare; nothing is measured before a session is opened. `state` is the state folder."""
        self._selection, self._files, self._vetted = selection, MeasurementFiles(state), VettingRecord(state)
        self.vetting, self._pools = Vetting(self._vetted), SessionPools()
        self._queued: queue.SimpleQueue[_Candidate | None] = queue.SimpleQueue()
        self._waiting: deque[_Candidate] = deque()
        self._lock = threading.Lock()  # of the two below: streams open their models in threads of their own
        self._open: list[_Candidate] = []
        self._thread: threading.Thread | None = None
        self._rejected: set[str] = set()
        self._closed = self._warned_root = False
        self._due = time.monotonic() + selection.after_s

    def open(self, model: Model, backend: str, options: SessionOptions) -> Session:
        """Open a model for a stream. Raises as `agent.compute.infer.backends.open_session`."""
        if opens_at_once(backend):
            self._warn_if_root(model)
        if (plan := fallback_spec(backend)) is not None:
            return self._failover(model, plan, options, wait_s=0.0)
        if backend == CPU:
            return self._pools.open_cpu(model, options, self.vetting)
        if backend != AUTO:
            return self._pools.open_worker(model, resolve_backend(backend), options)
        self.vetting.check(model, options)  # first: also the runtime may end the process that imports it
        selected = self._selected(model, options) if self._may_be_measured else None
        session = self._on_cpu(model, BackendSpec() if selected is None else selected.cpu, options)
        job = _Candidate(weakref.ref(session), weakref.ref(model), options)
        with self._lock:
            self._open = [one for one in self._open if one.session() is not None] + [job]
        others = self._others(model, options, job)  # again: another stream may have opened it meanwhile
        if others or selected is None or selected.chosen != selected.cpu:
            self._queue(job)
        for other in others:  # with one more stream, other threads may suit all of them
            self._queue(other)
        return session

    @cached_property
    def _measurements(self) -> StoredMeasurements:
        from agent.daemon.measurements import (
            StoredMeasurements,  # with what measures; a new board has no need yet
        )

        return StoredMeasurements(self._files, self._selection)

    @property
    def _may_be_measured(self) -> bool:
        """True if this board has measurements."""
        return self._files.path("", "").parent.is_dir()

    def _selected(self, model: Model, options: SessionOptions) -> Selection | None:
        found = self._measurements.delegates()
        made = self._measurements.load_valid(model, found)
        streams = 1 + len(self._others(model, options))
        return None if made is None else self._measurements.select(made, found, options.threads, streams)

    def _others(self, model: Model, options: SessionOptions, own: _Candidate | None = None) -> list[_Candidate]:
        """Return the open sessions, besides a stream's own, that take turns with it on the CPU."""
        if options.threads:
            return []
        with self._lock:
            found = [one for one in self._open if one is not own and one.shares(model, options)]
        return found if found and is_shareable(model) else []

    def _warn_if_root(self, model: Model) -> None:
        """Warn once that this process opens models as root; models of installed packages are trusted."""
        if os.geteuid() or self._warned_root or model.is_packaged:
            return
        self._warned_root = True
        text = "%s: is opened as root; run Vedette as another user, as its systemd unit does"
        log.warning(text, model.path)

    def configure(self, selection: SelectionConfig) -> None:
        """Use another configuration, and what other processes have measured."""
        self._selection = selection
        self.__dict__.pop("_measurements", None)
        with self._lock:
            jobs = list(self._open)
        for job in jobs:
            self._queue(job)

    def close(self) -> None:
        """Stop measuring."""
        self._closed = True
        self._queued.put(None)

    def _queue(self, job: _Candidate) -> None:
        self._queued.put(job)
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="selection", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        """Improve measured models at once; measure the others once the start of the board is over."""
        while not self._closed:
            try:
                job = self._queued.get(timeout=max(0.0, self._due - time.monotonic()) if self._waiting else None)
            except queue.Empty:
                self._try(self._waiting.popleft(), measure=True)
            else:
                if job is not None:
                    self._try(job, measure=False)

    def _try(self, job: _Candidate, *, measure: bool) -> None:
        model = job.model()
        if model is None or job.session() is None or model.sha256 in self._rejected:
            return
        try:
            self._upgrade(job, model, measure=measure)
        except _ClosedError:
            return
        except VedetteError as error:
            self._rejected.add(model.sha256)
            log.warning("%s: stays on the CPU: %s", model.path, error)
        except Exception:
            self._rejected.add(model.sha256)
            log.exception("%s: stays on the CPU: internal error (please report)", model.path)

    def _upgrade(self, job: _Candidate, model: Model, *, measure: bool) -> None:
        if not measure and not self._may_be_measured:
            self._waiting.append(job)
            return
        from agent.daemon.measurements import log_selection

        found = self._measurements.delegates()
        made = self._measurements.load_valid(model, found)
        if made is None and not measure:
            self._waiting.append(job)
            return
        if made is None:
            log.info("%s: measuring the backends of this board", model.path)
            made = self._measurements.measure_and_store(model, found, self._check_open)
            log_selection(model, self._measurements.select(made, found, job.options.threads))
        streams = 1 + len(self._others(model, job.options, job))
        selected = self._measurements.select(made, found, job.options.threads, streams)
        self._exchange(job, model, selected)

    def _check_open(self, what: str) -> None:
        log.debug("measuring %s", what)
        if self._closed:
            raise _ClosedError

    def _on_cpu(self, model: Model, plan: BackendSpec, options: SessionOptions) -> SwappableSession:
        threads = options.threads or plan.threads or default_threads(len(os.sched_getaffinity(0)))
        session = self._pools.open_cpu(model, replace(options, threads=threads), self.vetting)
        return SwappableSession(session, BackendSpec(threads=threads))

    def _failover(self, model: Model, plan: BackendSpec, options: SessionOptions, **more: float) -> Session:
        # Imports all that runs models in other processes, which most boards never need.
        from agent.compute.infer.failover import FailoverSession
        from agent.models.golden import golden

        inputs, vetting, pools = golden(model), self.vetting, self._pools
        return FailoverSession(model, plan, options, inputs=inputs, vetting=vetting, pools=pools, **more)

    def _exchange(self, job: _Candidate, model: Model, selected: Selection) -> None:
        """Move the session to the selected backend, if it does not run there yet."""
        session, plan = job.session(), selected.chosen
        if session is None or session.closed or session.plan == plan:
            return
        options = replace(job.options, threads=selected.cpu.threads)
        if plan == selected.cpu:
            session.swap_to(self._pools.open_cpu(model, options, self.vetting), plan)
        else:
            session.swap_to(self._failover(model, plan, options), plan)
