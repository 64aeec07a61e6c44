"""What runs a model: the session, how it is asked for, and what it promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from msgspec import Struct

from agent.compute.manifest import Model
from agent.compute.tensors import TensorSpec
from agent.types import Array

AUTO, CPU = "auto", "cpu"
CPU_FALLBACK = ",cpu"


class SessionOptions(Struct, frozen=True):
    """How to open a model.

    Attributes:
        variant: name of the first variant to use; empty: the manifest's first.
        threads: of the CPU; 0: chosen by the number of cores.
    """

    variant: str = ""
    threads: int = 0


class BackendSpec(Struct, frozen=True):
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
    def variant(self) -> str:
        """Name of the variant in use."""
        ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Tensors of the variant in use."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Tensors of the variant in use."""
        ...

    @property
    def degraded(self) -> str:
        """Why something else than what was asked for answers; empty: it does not."""
        ...

    def use(self, variant: str) -> None:
        """Change to another variant of the model. Cheap after the first time.

        Raises:
            ModelError: the model has no such variant.
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

    def open(self, model: Model, options: SessionOptions) -> Session:
        """Make a model ready to run.

        Raises:
            ModelError: the model is broken; BackendError: it is sound, but cannot run here.
        """
        ...


Opener = Callable[[Model, str, SessionOptions], Session]
"""Opens a model on the named backend, as `open_session` does."""
