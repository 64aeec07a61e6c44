"""What runs a model: `Backend.open` gives a `Session`. Backends never know a model family."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from agent.compute.infer.session import AUTO, CPU, CPU_FALLBACK, Backend, BackendSpec, Session, SessionOptions
from agent.compute.manifest import Model
from agent.errors import BackendError

if TYPE_CHECKING:
    from agent.compute.infer.vetting.vetting import Vetting


def open_session(model: Model, backend: str, options: SessionOptions, vetting: Vetting | None = None) -> Session:
    """Open a model on the named backend. An explicit name never falls back.

    Here `auto` is the CPU: only `agent.daemon.autoselect` knows what was measured.

    With `NAME,cpu` the CPU stands by, and answers when the other fails. Everything but the CPU runs in a process
    of its own, for it may crash or hang; what runs in this process has run in another before.

    Args:
        model: to run.
        backend: its name.
        options: see `SessionOptions`.
        vetting: knows which models run; None: that of programs without a state folder.

    Raises:
        ModelError, BackendError: see `Backend.open` and `Vetting.open`.
    """
    if backend in BACKENDS:
        return BACKENDS[backend](vetting).open(model, options)
    if (plan := fallback_spec(backend)) is not None:
        from agent.compute.infer.failover import FailoverSession

        return FailoverSession(model, plan, options, wait_s=0.0, vetting=vetting)
    from agent.compute.infer.worker.session import WorkerSession

    return WorkerSession(model, resolve_backend(backend), options)


def open_for_command(model: Model, backend: str, options: SessionOptions) -> Session:
    """Open a model for a command, as `open_session` does; root's in a process that has none of root's rights.

    Args:
        model: to run.
        backend: its name.
        options: see `SessionOptions`.

    Raises:
        ModelError, BackendError: see `open_session`.
    """
    from agent.compute.infer.vetting.unprivileged import is_root

    if not opens_at_once(backend) or not is_root():
        return open_session(model, backend, options)
    from agent.compute.infer.vetting.vetting import VETTING
    from agent.compute.infer.worker.session import PATIENCE_S, WorkerSession

    VETTING.check(model, options)  # first: it limits CPU time and memory, which a worker does not
    return WorkerSession(model, BackendSpec(), options, deadline_s=PATIENCE_S)


def opens_at_once(backend: str) -> bool:
    """True if the named backend opens models in this process, on the CPU, and waits for no device."""
    return backend in BACKENDS or backend.endswith(CPU_FALLBACK)


def fallback_spec(backend: str) -> BackendSpec | None:
    """How to open what the CPU stands by for; None: it does not.

    Raises:
        BackendError: see `resolve_backend`.
    """
    name = backend.removesuffix(CPU_FALLBACK)
    return resolve_backend(name) if name != backend else None


def resolve_backend(backend: str) -> BackendSpec:
    """How to open a model on the named backend.

    Raises:
        BackendError: there is no such backend, or it is not on this board.
    """
    from agent.compute.infer.delegates import probe_delegates

    if backend in BACKENDS:
        return BackendSpec()
    (found,) = probe_delegates([backend.removesuffix(CPU_FALLBACK)], besides=(AUTO, CPU))
    if found.plan is None:
        raise BackendError(f"backend {backend!r} cannot be used here: {found.missing}")
    return found.plan


def _cpu(vetting: Vetting | None) -> Backend:
    from agent.compute.infer.vetting.vetting import VETTING

    return vetting or VETTING


BACKENDS: dict[str, Callable[[Vetting | None], Backend]] = {AUTO: _cpu, CPU: _cpu}
