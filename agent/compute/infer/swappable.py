"""A session that can be exchanged for a better one while it runs: what was measured to be best may come later."""

from __future__ import annotations

import threading

from agent.compute.infer.session import BackendSpec, Session
from agent.compute.tensors import TensorSpec
from agent.types import Array


class SwappableSession:
    """See `Session`. A model that keeps a state inside itself begins with a new one after an exchange.

    Attributes:
        plan: how what runs was opened.
        closed: it has been.
    """

    def __init__(self, session: Session, plan: BackendSpec) -> None:
        self._session, self.plan = session, plan
        self._next: Session | None = None
        self._lock = threading.Lock()
        self.closed = False

    def swap_to(self, session: Session, plan: BackendSpec) -> None:
        """From any thread: take this one from the next input on; if it is too late for that, close it."""
        with self._lock:
            unused: Session | None = session
            if not self.closed:
                self.plan = plan
                unused, self._next = self._next, session
        if unused is not None:
            unused.close()

    @property
    def backend(self) -> str:
        """See `Session`."""
        return self._session.backend

    @property
    def variant(self) -> str:
        """See `Session`."""
        return self._session.variant

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """See `Session`."""
        return self._session.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """See `Session`."""
        return self._session.outputs

    @property
    def degraded(self) -> str:
        """See `Session`."""
        return self._session.degraded

    def use(self, variant: str) -> None:
        """See `Session.use`."""
        self._session.use(variant)

    def input(self, index: int) -> Array:
        """See `Session.input`."""
        if index == 0 and self._next is not None:
            self._exchange()
        return self._session.input(index)

    def invoke(self) -> None:
        """See `Session.invoke`."""
        self._session.invoke()

    def output(self, index: int) -> Array:
        """See `Session.output`."""
        return self._session.output(index)

    def close(self) -> None:
        """See `Session.close`."""
        with self._lock:
            self.closed, after, self._next = True, self._next, None
        if after is not None:
            after.close()
        self._session.close()

    def _exchange(self) -> None:
        with self._lock:
            session, self._next = self._next, None
        if session is None:
            return
        try:
            session.use(self._session.variant)
        except BaseException:
            session.close()
            raise
        before, self._session = self._session, session
        before.close()
