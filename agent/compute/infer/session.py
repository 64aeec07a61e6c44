"""Sessions: an opened model on a backend.

Backends never know a model family.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from msgspec import Struct

from agent.compute.manifest import Model
from agent.compute.tflite.model import TensorSpec
from agent.errors import ModelError
from agent.types import Array

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
"""Opens a model on the named backend, as `agent.compute.infer.backends.open_session` does."""


class NotYetError(ModelError):
    """The model's tensors are not known yet."""
