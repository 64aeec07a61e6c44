"""Opens models on the backend that a configuration or a command names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.compute.infer.session import AUTO, BACKENDS, CPU, CPU_FALLBACK, BackendSpec, Session, SessionOptions
from agent.compute.manifest import Model
from agent.errors import BackendError

if TYPE_CHECKING:
    from agent.compute.infer.vetting import Vetting


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
