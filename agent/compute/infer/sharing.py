"""Streams with the same model share its sessions and take turns on them, one inference each.

Who has waited longest goes first. A stream writes its input into memory of its own, and reads its answer from
there: pictures are prepared and answers decoded beside the inferences of others.

An accelerator has one session. On the CPU, streams of one priority share, and have at most as many sessions as
keep it busy. Not shared are models that keep a state between inferences, models of sound and models with exits,
whose parts belong to one input.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from agent.compute.infer.litert import default_threads, side_by_side
from agent.compute.infer.session import BackendSpec, Session, SessionOptions
from agent.compute.tflite.model import RECURRENT
from agent.errors import BackendError, ModelError, VedetteError, reason_of

if TYPE_CHECKING:
    from agent.compute.infer.vetting import Vetting
    from agent.compute.manifest import Model
    from agent.compute.tflite.model import TensorSpec
    from agent.types import Array

    Ends = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]

log = logging.getLogger(__name__)
_STATEFUL = RECURRENT | {"ASSIGN_VARIABLE", "CALL_ONCE", "READ_VARIABLE", "VAR_HANDLE"}
"""Operations that keep tensors from one inference to the next."""
_NUMBERS = frozenset(f"{kind}{bits}" for kind in ("float", "int", "uint") for bits in (8, 16, 32, 64)) | {"bool"}
_HANGS_S = 10.0
"""An inference on the CPU hangs after so long, s, far below the watchdog's timeout."""
_CHECK_S = 0.5
_Turn = queue.SimpleQueue["Session | BackendError | None"]
"""A stream's place in the queue of a pool: it gets a session, or an error, or None to open a session."""


class SessionPool:
    """The sessions of one model on one backend. Any thread may use it.

    Attributes:
        backend: name of it.
        members: number of streams.
        is_over: True if nobody can join: its last member has left, or its session has failed.
    """

    def __init__(
        self,
        name: str,
        opens: Callable[[], Session],
        limit: int = 1,
        *,
        replaces: bool = True,
        hangs_s: float = math.inf,
    ) -> None:
        """Open nothing before the first `join`.

        Args:
            name: the model's path, for messages.
            opens: opens a session.
            limit: most sessions at once.
            replaces: a session that failed is replaced; else all streams get the error, until they open the
                model again.
            hangs_s: time after which a session is left to the stream that has it, s.
        """
        self.backend, self.members, self.is_over = "", 0, False
        self._name, self._opens, self._limit, self._replaces = name, opens, limit, replaces
        self._hangs_s = hangs_s
        self._lock, self._joining = threading.Lock(), threading.Lock()
        self._free: list[Session] = []
        self._failed: list[Session] = []
        self._held: dict[int, float] = {}  # sessions that streams have, by id, and since when
        self._count = 0  # sessions that are open or being opened, without those that hang
        self._waiting: deque[_Turn] = deque()
        self._error = ""
        self._ends: dict[str, Ends] = {}

    def join(self) -> bool:
        """Add a stream, for the first one with a session; return False if the pool is over. Raises as `opens`."""
        with self._joining:
            with self._lock:
                if self.is_over:
                    return False
                self.members += 1
            if not self.backend:
                try:
                    session = self._opens()
                except BaseException:
                    self.leave()
                    raise
                self.backend, self._ends[session.variant] = session.backend, (session.inputs, session.outputs)
                with self._lock:
                    self._count += 1
                    self._free.append(session)
        if self.members > 1:
            log.info("%s: %d streams share its sessions on %s", self._name, self.members, self.backend)
        return True

    def leave(self) -> None:
        """Remove a stream, which has no turn. Close the sessions that are no longer needed."""
        with self._lock:
            self.members -= 1
            if not self.members:
                self.is_over, self._opens = True, _closed  # frees the model
            unused, self._failed = self._failed, []
            while self._free and self._count > min(self._limit, self.members):
                unused.append(self._free.pop())
                self._count -= 1
        for session in unused:
            session.close()

    def ends(self, variant: str) -> Ends:
        """Return the inputs and outputs of a variant. Takes a turn if they are not known yet."""
        if variant not in self._ends:
            session, error = self.take(), ""
            try:
                session.select(variant)
                self._ends[variant] = session.inputs, session.outputs
            except BaseException as caught:
                is_refusal = isinstance(caught, ModelError) and not isinstance(caught, BackendError)
                error = "" if is_refusal else _described(caught)
                raise
            finally:
                self.give_back(session, error)
        return self._ends[variant]

    def take(self) -> Session:
        """Wait for a turn, and return the session to use until `give_back`.

        Raises:
            BackendError: there is no session, and none can be opened, or the turn did not come.
        """
        with self._lock:
            if self._error:
                raise BackendError(self._error)
            if self._free:
                return self._hand_out(self._free.pop())  # the one used last: its memory is still in the caches
            turn = _Turn()
            if self._count < min(self._limit, self.members):
                self._count += 1
                turn.put(None)
            else:
                self._waiting.append(turn)
        return self._wait(turn)

    def give_back(self, session: Session, error: str = "") -> None:
        """End a turn; `error`: why its session cannot be used again, empty: it can."""
        with self._lock:
            is_lost = self._held.pop(id(session), None) is None
            if error and not self._replaces:
                self._error, self.is_over = self._error or error, True
                self._failed.append(session)  # closing it may take long: whoever leaves does that
                self._refuse(self._error)
                return
            if not error and self._count + is_lost <= min(self._limit, self.members):
                self._count += is_lost
                if self._waiting:
                    self._waiting.popleft().put(self._hand_out(session))
                else:
                    self._free.append(session)
                return
            self._count -= not is_lost
        session.close()  # before another is opened: a device may have room for one
        with self._lock:
            self._replace_last()

    def _hand_out(self, session: Session) -> Session:
        self._held[id(session)] = time.monotonic()
        return session

    def _replace_last(self) -> None:
        """Let the first stream in the queue open a session if there is none."""
        if self._waiting and not self._count:
            self._count += 1
            self._waiting.popleft().put(None)

    def _revoke_hanging(self) -> None:
        """Leave sessions that hang to their streams."""
        since_s = time.monotonic() - self._hangs_s
        for key in [key for key, began_s in self._held.items() if began_s < since_s]:
            del self._held[key]
            self._count -= 1
            what = f"an inference on {self.backend} takes longer than {self._hangs_s:.0f} s"
            log.error("%s: %s; the other streams go on without its session", self._name, what)
        self._replace_last()

    def _wait(self, turn: _Turn) -> Session:
        while True:
            try:
                found = turn.get(timeout=_CHECK_S)
            except queue.Empty:
                with self._lock:
                    self._revoke_hanging()
                continue
            if isinstance(found, BackendError):
                raise found
            return self._open_another() if found is None else found

    def _open_another(self) -> Session:
        """Open a session, which is counted already, or wait for another one if that fails."""
        try:
            session = self._opens()
        except (VedetteError, OSError) as error:
            with self._lock:
                self._count -= 1
                if not self._count:
                    self._refuse(reason_of(error))
                    raise BackendError(reason_of(error)) from error
                self._limit = self._count  # what there is must do
            log.warning("%s: no other session on %s: %s", self._name, self.backend, reason_of(error))
            return self.take()
        with self._lock:
            return self._hand_out(session)

    def _refuse(self, error: str) -> None:
        """Let the turns of all who wait fail."""
        while self._waiting:
            self._waiting.popleft().put(BackendError(error))


def _closed() -> Session:
    raise BackendError("closed")


def _described(error: BaseException) -> str:
    return str(error) or type(error).__name__


class SharedSession:
    """One stream's session among others of the same model. For one thread at a time."""

    degraded = ""

    def __init__(self, pool: SessionPool, variant: str) -> None:
        self._pool = pool
        self._tensors: dict[str, tuple[list[Array], list[Array]]] = {}
        self._is_closed = False
        self.select(variant)

    @property
    def backend(self) -> str:
        return self._pool.backend

    def select(self, variant: str) -> None:
        self.inputs, self.outputs = self._pool.ends(variant)
        self.variant = variant
        if variant not in self._tensors:
            ends = self.inputs, self.outputs
            inputs, outputs = ([np.zeros(spec.shape, spec.dtype) for spec in specs] for specs in ends)
            self._tensors[variant] = inputs, outputs
        self._inputs, self._outputs = self._tensors[variant]

    def input(self, index: int) -> Array:
        return self._inputs[index]

    def invoke(self) -> None:
        session, error = self._pool.take(), ""
        try:
            if session.variant != self.variant:
                session.select(self.variant)
            for index, array in enumerate(self._inputs):
                np.copyto(session.input(index), array)
            session.invoke()
            for index, array in enumerate(self._outputs):
                found = session.output(index)
                if found.shape == array.shape:
                    np.copyto(array, found)
                else:  # known only after an inference
                    self._outputs[index] = np.array(found)
                del found
        except BaseException as caught:
            error = _described(caught)
            raise
        finally:
            self._pool.give_back(session, error)

    def output(self, index: int) -> Array:
        return self._outputs[index]

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._pool.leave()


class SessionPools:
    """Opens sessions; streams with the same model, backend and options share them. Any thread may use it."""

    def __init__(self, cores: int = 0) -> None:
        """Open nothing. `cores`: of the CPU, 0: as many as this process may use."""
        self._cores = cores or len(os.sched_getaffinity(0))
        self._pools: dict[object, SessionPool] = {}
        self._lock = threading.Lock()

    def open_cpu(self, model: Model, options: SessionOptions, vetting: Vetting) -> Session:
        """Open a model on the CPU, or join those who have. Raises as `Vetting.open`."""
        vetting.check(model, options)  # first: a broken file is refused there
        threads = options.threads or default_threads(self._cores)
        opens = partial(vetting.open, model, options)
        # An inference of a less important stream runs with less weight: no other may wait for it.
        settings = ("cpu", threads, options.priority)
        makes = partial(SessionPool, model.path, opens, side_by_side(self._cores, threads), hangs_s=_HANGS_S)
        return self._open(settings, model, options, makes, opens)

    def open_worker(
        self, model: Model, plan: BackendSpec, options: SessionOptions, deadline_s: float = 0.0
    ) -> Session:
        """Open a model in a worker process, or join those who have.

        Args:
            model: to run.
            plan: the backend.
            options: see `SessionOptions`.
            deadline_s: see `WorkerSession`, with CPU fallback: no stream waits for a process that failed, and all
                get the error. 0: without fallback, and a process that failed is replaced.

        Raises:
            ModelError, BackendError: see `WorkerSession`.
        """
        from agent.compute.infer.worker import DEADLINE_S, WorkerSession

        opens = partial(WorkerSession, model, plan, options, deadline_s=deadline_s or DEADLINE_S)
        named = plan.backend, plan.kind, plan.library, tuple(sorted(plan.settings.items()))
        settings = (named, options.threads or plan.threads, deadline_s > 0.0)
        makes = partial(SessionPool, model.path, opens, replaces=not deadline_s)
        return self._open(settings, model, options, makes, opens)

    def _open(
        self,
        settings: object,
        model: Model,
        options: SessionOptions,
        makes: Callable[[], SessionPool],
        opens: Callable[[], Session],
    ) -> Session:
        if not _is_of_pictures(model):
            return opens()
        variants = tuple((one.name, one.signature) for one in model.manifest.variants)
        key = model.sha256, len(model.content), variants, settings
        while True:
            with self._lock:
                self._pools = {other: pool for other, pool in self._pools.items() if not pool.is_over}
                is_first = key not in self._pools
                if is_first:
                    self._pools[key] = makes()
                pool = self._pools[key]
            if not is_first and not _is_stateless(model):  # reading the file again costs 10 ms
                return opens()
            if pool.join():
                break
        try:
            return SharedSession(pool, options.variant or model.manifest.variants[0].name)
        except BaseException:
            pool.leave()
            raise


def is_shareable(model: Model) -> bool:
    """Return True if streams can take turns on a model."""
    return _is_of_pictures(model) and _is_stateless(model)


def _is_of_pictures(model: Model) -> bool:
    """Return True if a model takes pictures and has no exits."""
    return model.manifest.audio is None and not any(one.after for one in model.manifest.variants)


def _is_stateless(model: Model) -> bool:
    """Return True if no inference depends on earlier ones, and all tensors are numbers."""
    from agent.compute.tflite.read import read_modelfile

    try:
        file = read_modelfile(model.content)
        ends = [spec for one in model.manifest.variants for side in file.ends(one.signature) for spec in side]
    except ModelError:
        return False  # opening it reports that
    stateful = any(operation.name in _STATEFUL for _, operation in file.steps())
    return not stateful and all(spec.dtype in _NUMBERS for spec in ends)


class SwappableSession:
    """Session that runs another one until a better backend is ready. A stateful model then loses its state.

    Attributes:
        plan: backend of the session that runs.
        closed: True after `close`.
    """

    def __init__(self, session: Session, plan: BackendSpec) -> None:
        self._session, self.plan = session, plan
        self._next: Session | None = None
        self._lock = threading.Lock()
        self.closed = False

    def swap_to(self, session: Session, plan: BackendSpec) -> None:
        """Use `session` from the next input on, or close it if this one is closed. Any thread may call this."""
        with self._lock:
            unused: Session | None = session
            if not self.closed:
                self.plan = plan
                unused, self._next = self._next, session
        if unused is not None:
            unused.close()

    @property
    def backend(self) -> str:
        return self._session.backend

    @property
    def variant(self) -> str:
        return self._session.variant

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._session.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._session.outputs

    @property
    def degraded(self) -> str:
        return self._session.degraded

    def select(self, variant: str) -> None:
        self._session.select(variant)

    def input(self, index: int) -> Array:
        if index == 0 and self._next is not None:
            self._swap()
        return self._session.input(index)

    def invoke(self) -> None:
        self._session.invoke()

    def output(self, index: int) -> Array:
        return self._session.output(index)

    def close(self) -> None:
        with self._lock:
            self.closed, after, self._next = True, self._next, None
        if after is not None:
            after.close()
        self._session.close()

    def _swap(self) -> None:
        with self._lock:
            session, self._next = self._next, None
        if session is None:
            return
        try:
            session.select(self._session.variant)
        except BaseException:
            session.close()
            raise
        before, self._session = self._session, session
        before.close()
