"""What runs a model: `Backend.open` gives a `Session`. Backends never know a model family."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol

from msgspec import Struct

from agent.compute.tensors import TensorSpec
from agent.errors import BackendError
from agent.manifest import Model
from agent.messages import Array

if TYPE_CHECKING:
    from agent.compute.infer.vetting import Vetting

AUTO, CPU = "auto", "cpu"
STANDBY = ",cpu"


class Options(Struct, frozen=True):
    """How to open a model.

    Attributes:
        rung: name of the first rung to use; empty: the manifest's first.
        threads: of the CPU; 0: chosen by the number of cores.
    """

    rung: str = ""
    threads: int = 0


class Plan(Struct, frozen=True):
    """How a model is to be opened.

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
        """Name of what runs it, for messages, such as `cpu`."""
        ...

    @property
    def rung(self) -> str:
        """Name of the rung in use."""
        ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Tensors of the rung in use."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Tensors of the rung in use."""
        ...

    @property
    def degraded(self) -> str:
        """Why something else than what was asked for answers; empty: it does not."""
        ...

    def use(self, rung: str) -> None:
        """Change to another rung of the model. Cheap after the first time.

        Raises:
            ModelError: the model has no such rung.
        """
        ...

    def input(self, index: int) -> Array:
        """A view of an input tensor's own memory, to be written in place and dropped before `invoke`."""
        ...

    def invoke(self) -> None:
        """Run the model once. The GIL is free meanwhile.

        Raises:
            BackendError: it failed, or a view of a tensor is still alive.
        """
        ...

    def output(self, index: int) -> Array:
        """A view of an output tensor's own memory, valid until it is dropped before the next `invoke`."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


class Backend(Protocol):
    """A way to run models."""

    def open(self, model: Model, options: Options) -> Session:
        """Make a model ready to run.

        Raises:
            ModelError: the model is broken; BackendError: it is sound, but cannot run here.
        """
        ...


Opener = Callable[[Model, str, Options], Session]
"""Opens a model on the named backend, as `open_session` does."""


def open_session(model: Model, backend: str, options: Options, vetting: Vetting | None = None) -> Session:
    """Open a model on the named backend. An explicit name never falls back.

    Here `auto` is the CPU: only `agent.chooser` knows what was measured.

    With `NAME,cpu` the CPU stands by, and answers when the other fails. Everything but the CPU runs in a process
    of its own, for it may crash or hang; what runs in this process has run in another before.

    Args:
        model: to run.
        backend: its name.
        options: see `Options`.
        vetting: knows which models run; None: that of programs without a state folder.

    Raises:
        ModelError, BackendError: see `Backend.open` and `Vetting.open`.
    """
    if backend in BACKENDS:
        return BACKENDS[backend](vetting).open(model, options)
    if (plan := standing_by(backend)) is not None:
        from agent.compute.infer.failover import FailoverSession

        return FailoverSession(model, plan, options, wait_s=0.0, vetting=vetting)
    from agent.compute.infer.worker import WorkerSession

    return WorkerSession(model, plan_of(backend), options)


def open_for_command(model: Model, backend: str, options: Options) -> Session:
    """Open a model for a command, as `open_session` does; root's in a process that has none of root's rights.

    Args:
        model: to run.
        backend: its name.
        options: see `Options`.

    Raises:
        ModelError, BackendError: see `open_session`.
    """
    from agent.compute.infer.unprivileged import is_root

    if not opens_at_once(backend) or not is_root():
        return open_session(model, backend, options)
    from agent.compute.infer.vetting import VETTING
    from agent.compute.infer.worker import PATIENCE_S, WorkerSession

    VETTING.check(model, options)  # first: it limits CPU time and memory, which a worker does not
    return WorkerSession(model, Plan(), options, deadline_s=PATIENCE_S)


def opens_at_once(backend: str) -> bool:
    """True if the named backend opens models in this process, on the CPU, and waits for no device."""
    return backend in BACKENDS or backend.endswith(STANDBY)


def standing_by(backend: str) -> Plan | None:
    """How to open what the CPU stands by for; None: it does not.

    Raises:
        BackendError: see `plan_of`.
    """
    name = backend.removesuffix(STANDBY)
    return plan_of(name) if name != backend else None


def plan_of(backend: str) -> Plan:
    """How to open a model on the named backend.

    Raises:
        BackendError: there is no such backend, or it is not on this board.
    """
    from agent.compute.infer.finding import candidates

    if backend in BACKENDS:
        return Plan()
    (found,) = candidates([backend.removesuffix(STANDBY)], besides=(AUTO, CPU))
    if found.plan is None:
        raise BackendError(f"backend {backend!r} cannot be used here: {found.missing}")
    return found.plan


def _cpu(vetting: Vetting | None) -> Backend:
    from agent.compute.infer.vetting import VETTING

    return vetting or VETTING


BACKENDS: dict[str, Callable[[Vetting | None], Backend]] = {AUTO: _cpu, CPU: _cpu}
