"""What runs a model: `Backend.open` gives a `Session`. Backends never know a model family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from agent.compute.tensors import TensorSpec
from agent.errors import BackendError
from agent.manifest import Model
from agent.messages import Array


class Options(Struct, frozen=True):
    """How to open a model.

    Attributes:
        rung: name of the first rung to use; empty: the manifest's first.
        threads: of the CPU; 0: chosen by the number of cores.
    """

    rung: str = ""
    threads: int = 0


class Session(Protocol):
    """One model, ready to run. For one thread at a time.

    Attributes:
        backend: name of what runs it, for messages, such as `cpu`.
        rung: name of the rung in use.
        inputs, outputs: tensors of the rung in use.
    """

    backend: str
    rung: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

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


def open_session(model: Model, backend: str, options: Options) -> Session:
    """Open a model on the named backend. An explicit name never falls back; `auto` is the CPU.

    Raises:
        ModelError: see `Backend.open`.
    """
    try:
        make = BACKENDS[backend]
    except KeyError:
        raise BackendError(f"no backend {backend!r}; known: {', '.join(BACKENDS)}") from None
    return make().open(model, options)


def _cpu() -> Backend:
    from agent.compute.infer.litert import CpuBackend

    return CpuBackend()


def _null() -> Backend:
    from agent.compute.infer.null import NullBackend

    return NullBackend()


BACKENDS: dict[str, Callable[[], Backend]] = {"auto": _cpu, "cpu": _cpu, "null": _null}
