"""Sessions: an opened model on a backend, and how one is opened on the backend that a user names.

Backends never know a model family.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol

from msgspec import Struct

from agent.compute.manifest import Model
from agent.compute.tflite.model import TensorSpec
from agent.errors import BackendError, ModelError
from agent.types import Array

if TYPE_CHECKING:
    from agent.compute.infer.vetting import Vetting

AUTO, CPU = "auto", "cpu"
CPU_FALLBACK = ",cpu"
BACKENDS = (AUTO, CPU)
"""Names of the CPU."""


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


Opener = Callable[[Model, str, SessionOptions], Session]
"""Opens a model on the named backend, as `open_session` does."""


class NotYetError(ModelError):
    """The model's tensors are not known yet."""


def open_session(model: Model, backend: str, options: SessionOptions, vetting: Vetting | None = None) -> Session:
    """Open a model on the named backend. An explicit name never falls back.

    `auto` is the CPU here; the daemon replaces it by what was measured. With `NAME,cpu` the CPU answers when NAME
    fails. Every backend but the CPU runs in a worker process, because it may crash or hang. A model on the CPU
    has run in a vetting process before; without `vetting` its outcome is not recorded on disk.

    Raises:
        ModelError: the model is broken. BackendError: the model is sound, but cannot run here.
    """
    if backend in BACKENDS:
        from agent.compute.infer.vetting import VETTING

        return (vetting or VETTING).open(model, options)
    if (spec := fallback_spec(backend)) is not None:
        from agent.compute.infer.failover import FailoverSession

        return FailoverSession(model, spec, options, wait_s=0.0, vetting=vetting)
    from agent.compute.infer.worker import WorkerSession

    return WorkerSession(model, resolve_backend(backend), options)


def open_for_command(model: Model, backend: str, options: SessionOptions) -> Session:
    """Open a model for a command like `open_session`, but for root in a worker without root's rights."""
    from agent.child import is_root

    if not opens_at_once(backend) or not is_root():
        return open_session(model, backend, options)
    from agent.compute.infer.vetting import VETTING
    from agent.compute.infer.worker import PATIENCE_S, WorkerSession

    VETTING.check(model, options)  # first: it limits CPU time, which a worker does not
    return WorkerSession(model, BackendSpec(), options, deadline_s=PATIENCE_S)


def opens_at_once(backend: str) -> bool:
    """Return True if the backend opens without waiting for an accelerator (CPU, or CPU fallback)."""
    return backend in BACKENDS or backend.endswith(CPU_FALLBACK)


def fallback_spec(backend: str) -> BackendSpec | None:
    """Resolve the accelerator of a backend with CPU fallback; None: it has none. Raises as `resolve_backend`."""
    name = backend.removesuffix(CPU_FALLBACK)
    return resolve_backend(name) if name != backend else None


def resolve_backend(backend: str) -> BackendSpec:
    """Find the named backend on this board. Raises BackendError if it is unknown or not on this board."""
    from agent.compute.infer.delegates import probe_delegates

    if backend in BACKENDS:
        return BackendSpec()
    (found,) = probe_delegates([backend.removesuffix(CPU_FALLBACK)], besides=(AUTO, CPU))
    if found.plan is None:
        raise BackendError(f"backend {backend!r} cannot be used here: {found.missing}")
    return found.plan
