"""Streams with the same model share its sessions and take turns on them, one inference each.

A turn begins when a stream runs the inference. What the stream writes before and reads after that is its own
memory, so that pictures are prepared and answers decoded beside the inferences of others. A stream that shares
with nobody writes into the tensor's own memory: its turn begins with that.

An accelerator has one session. On the CPU, streams of one priority share. It has at most as many sessions as keep
it busy, and the second and further ones are opened only once streams have to wait for each other. Not shared are
models that keep a state between inferences, models of sound and models with exits, whose parts belong to one
input.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from agent.compute.infer.choice import side_by_side
from agent.compute.infer.pool import PoolRules, SessionPool, Ticket, described
from agent.compute.infer.session import BackendSpec, Session, SessionOptions
from agent.compute.tflite.model import RECURRENT
from agent.errors import ModelError

if TYPE_CHECKING:
    from agent.compute.infer.vetting import Vetting
    from agent.compute.manifest import Model
    from agent.compute.tflite.model import TensorSpec
    from agent.types import Array

_STATEFUL = RECURRENT | {"ASSIGN_VARIABLE", "CALL_ONCE", "READ_VARIABLE", "VAR_HANDLE"}
"""Operations that keep tensors from one inference to the next."""
_NUMBERS = frozenset(f"{kind}{bits}" for kind in ("float", "int", "uint") for bits in (8, 16, 32, 64)) | {"bool"}
_HANGS_S = 10.0
"""Shortest inference on the CPU that counts as hanging, s; far below the watchdog's timeout."""


class _Tensors:
    """Memory of one stream for the tensors of a variant.

    Attributes:
        is_filled: True if the input of the newest inference is in it.
    """

    def __init__(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        self.is_filled = False
        self._specs = inputs
        self._inputs: list[Array] = []
        self._outputs = [np.zeros(spec.shape, spec.dtype) for spec in outputs]

    def input(self, index: int) -> Array:
        """Return the memory of an input, which a stream without others never needs."""
        self.is_filled = True
        if not self._inputs:
            self._inputs = [np.zeros(spec.shape, spec.dtype) for spec in self._specs]
        return self._inputs[index]

    def output(self, index: int) -> Array:
        return self._outputs[index]

    def write_inputs(self, session: Session) -> None:
        for index, array in enumerate(self._inputs):
            np.copyto(session.input(index), array)

    def read_outputs(self, session: Session) -> None:
        for index, array in enumerate(self._outputs):
            found = session.output(index)
            if found.shape == array.shape:
                np.copyto(array, found)
            else:  # known only after an inference
                self._outputs[index] = np.array(found)


class SharedSession:
    """One stream's session among others of the same model. For one thread at a time.

    The inputs of a variant are written from the first on. They can be read after `invoke`, unless the pool is
    exclusive.
    """

    degraded = ""

    def __init__(self, pool: SessionPool, variant: str) -> None:
        self._pool, self._ticket = pool, Ticket()
        self._tensors: dict[str, _Tensors] = {}
        self._own: Session | None = None  # held while its input is written
        self._is_closed = False
        self._activate(variant)

    @property
    def backend(self) -> str:
        return self._pool.backend

    def select(self, variant: str) -> None:
        if variant != self.variant:
            self._give_back()
            self._activate(variant)

    def input(self, index: int) -> Array:
        if index == 0 and self._own is None and self._pool.is_exclusive:
            self._own, self._now.is_filled = self._take(), False
        return self._now.input(index) if self._own is None else self._own.input(index)

    def invoke(self) -> None:
        session, error = self._own or self._take(), ""
        try:
            if self._now.is_filled:
                self._now.write_inputs(session)
            session.invoke()
            self._now.read_outputs(session)
        except BaseException as caught:
            error = described(caught)
            raise
        finally:
            self._own = None
            self._pool.give_back(self._ticket, session, error)

    def output(self, index: int) -> Array:
        return self._now.output(index)

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._give_back()
            self._pool.leave()

    def _activate(self, variant: str) -> None:
        self.inputs, self.outputs = self._pool.ends(variant)
        self.variant = variant
        if variant not in self._tensors:
            self._tensors[variant] = _Tensors(self.inputs, self.outputs)
        self._now = self._tensors[variant]

    def _take(self) -> Session:
        session = self._pool.take(self._ticket)
        try:
            if session.variant != self.variant:
                session.select(self.variant)
        except BaseException as caught:
            self._pool.give_back(self._ticket, session, described(caught))
            raise
        return session

    def _give_back(self) -> None:
        session, self._own = self._own, None
        if session is not None:
            self._pool.give_back(self._ticket, session)


class _Key(Struct, frozen=True):
    """What streams must have in common to share sessions; `content` is the size of the opened content."""

    sha256: str
    content: int
    variants: tuple[tuple[str, str], ...]
    plan: tuple[str, str, str, tuple[tuple[str, str], ...]]
    threads: int
    priority: int = 0
    in_failover: bool = False


class SessionPools:
    """Opens sessions; streams with the same model, backend and options share them. Any thread may use it."""

    def __init__(self, cores: int = 0) -> None:
        """Open nothing. `cores`: of the CPU, 0: as many as this process may use."""
        self._cores = cores or len(os.sched_getaffinity(0))
        self._pools: dict[_Key, SessionPool] = {}
        self._lock = threading.Lock()

    def open_cpu(self, model: Model, options: SessionOptions, vetting: Vetting) -> Session:
        """Open a model on the CPU, or join those who have. Raises as `Vetting.open`."""
        from agent.compute.infer.litert import default_threads

        vetting.check(model, options)  # first: a broken file is refused there
        threads = options.threads or default_threads(self._cores)
        rules = PoolRules(side_by_side(self._cores, threads), hangs_s=_HANGS_S)
        # An inference of a less important stream runs with less weight: no other may wait for it.
        key = replace(_key(model, BackendSpec(threads=threads), options), priority=options.priority)
        return self._open(key, model, options, partial(vetting.open, model, options), rules)

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
        rules = PoolRules(reopens=not deadline_s)
        key = _key(model, plan, options, in_failover=deadline_s > 0.0)
        return self._open(key, model, options, opens, rules)

    def _open(
        self,
        key: _Key,
        model: Model,
        options: SessionOptions,
        opens: Callable[[], Session],
        rules: PoolRules,
    ) -> Session:
        if not _is_of_pictures(model):
            return opens()
        while True:
            with self._lock:
                self._pools = {other: pool for other, pool in self._pools.items() if not pool.is_over}
                is_first = key not in self._pools
                pool = self._pools.setdefault(key, SessionPool(model.path, opens, rules))
            if not is_first and not _is_stateless(model):  # reading the file again costs 10 ms
                return opens()
            if pool.join():
                return _shared(pool, options.variant or model.manifest.variants[0].name)


def _shared(pool: SessionPool, variant: str) -> SharedSession:
    try:
        return SharedSession(pool, variant)
    except BaseException:
        pool.leave()
        raise


def _key(model: Model, plan: BackendSpec, options: SessionOptions, *, in_failover: bool = False) -> _Key:
    variants = tuple((one.name, one.signature) for one in model.manifest.variants)
    settings = plan.backend, plan.kind, plan.library, tuple(sorted(plan.settings.items()))
    threads = options.threads or plan.threads
    return _Key(model.sha256, len(model.content), variants, settings, threads, in_failover=in_failover)


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
