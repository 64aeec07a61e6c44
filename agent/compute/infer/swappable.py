"""A session that can be replaced while it runs, when a better backend has been measured."""

from __future__ import annotations

import threading

from agent.compute.infer.session import BackendSpec, Session
from agent.compute.tensors import TensorSpec
from agent.types import Array


class SwappableSession:
    """Session that delegates to another one. A stateful model loses its state when that is replaced.

    Attributes:
        plan: backend of the session that runs.
        closed: whether `close` was called.
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
