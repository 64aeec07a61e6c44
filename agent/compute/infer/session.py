"""Protocols of sessions and backends, by which a model is opened and run, and a session that can be replaced."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal, Protocol

from msgspec import Struct

from agent.compute.manifest import Model
from agent.compute.tflite.model import TensorSpec
from agent.types import Array

AUTO, CPU = "auto", "cpu"
CPU_FALLBACK = ",cpu"


class SessionOptions(Struct, frozen=True):
    """How to open a model.

    Attributes:
        variant: name of the variant to select first; empty: the manifest's first.
        threads: of the CPU; 0: chosen by the number of cores.
        priority: of the stream; on the CPU, streams of different ones do not wait for each other.
    """

    variant: str = ""
    threads: int = 0
    priority: int = 0


class BackendSpec(Struct, frozen=True):
    """A backend and its settings.

    Attributes:
        backend: what messages call it.
        kind: `cpu`: the interpreter; `delegate`: the interpreter with an external delegate; `accelerator`:
            LiteRT's own, such as the GPU.
        library: of the delegate, a path or a name that the loader finds; of the accelerator its name, `GPU` or
            `NPU`.
        settings: options of the delegate or of the accelerator.
        threads: of the CPU; 0: chosen by the number of cores.
    """

    backend: str = CPU
    kind: Literal["cpu", "delegate", "accelerator"] = "cpu"
    library: str = ""
    settings: dict[str, str] = {}
    threads: int = 0


class Session(Protocol):
    """One model, ready to run. For one thread at a time."""

    @property
    def backend(self) -> str:
        """Name of the backend that answers, such as `cpu`."""
        ...

    @property
    def variant(self) -> str:
        """Name of the selected variant."""
        ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Input tensors of the selected variant."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Output tensors of the selected variant."""
        ...

    @property
    def degraded(self) -> str:
        """Why the CPU answers instead of the requested backend; empty: it does not."""
        ...

    def select(self, variant: str) -> None:
        """Select a variant; cheap after the first time. Raises ModelError if the model has no such variant."""
        ...

    def input(self, index: int) -> Array:
        """Return a view of an input tensor's own memory. Write it in place and drop it before `invoke`."""
        ...

    def invoke(self) -> None:
        """Run the selected variant once, without the GIL.

        Raises:
            BackendError: the inference failed, or a view of a tensor is still alive.
        """
        ...

    def output(self, index: int) -> Array:
        """Return a view of an output tensor's own memory. Drop it before the next `invoke`."""
        ...

    def close(self) -> None:
        """Release the memory."""
        ...


class Backend(Protocol):
    """Opens models."""

    def open(self, model: Model, options: SessionOptions) -> Session:
        """Open a model.

        Raises:
            ModelError: the model is broken.
            BackendError: the model is sound, but cannot run here.
        """
        ...


Opener = Callable[[Model, str, SessionOptions], Session]
"""Opens a model on the named backend, as `open_session` does."""


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
