"""Vetting: a model is opened and run in another process before this process opens it.

A file that our reader accepts may still crash or hang the runtime. The exact bytes that this process will open
are run by a fork of the vetting process (`agent.compute.infer.vetting_process`). A crash there is an error of
that model. One whose time or memory depends on its input could harm later: it always runs in a worker process.

Outcomes are cached in this process, and longer by a `Record`; a refusal expires after `HOLDS_S`. Temporary
errors, such as a lack of memory, are not cached.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from msgspec import Struct

from agent.compute.infer.litert import CpuBackend
from agent.compute.infer.session import BackendSpec, Session, SessionOptions
from agent.compute.manifest import Model
from agent.compute.tflite.read import read_modelfile
from agent.errors import ModelError

Identity = tuple[str, int, tuple[str, ...]]
HOLDS_S = 86_400.0
"""How long a refusal is cached, s: failing memory or an overheated board may have caused it."""


class Outcome(NamedTuple):
    """Outcome of vetting a model: the reason, as `Record.read` gives it, and the monotonic time, s."""

    reason: str
    at_s: float


KNOWN: dict[Identity, Outcome] = {}
"""Outcomes found in this process or read from its record, by model."""


class VettingLimits(Struct, frozen=True):
    """Limits for vetting one model.

    Attributes:
        within_s: wall time, s; less than the watchdog's timeout for a stream.
        cpu_s: CPU time, s; unlike wall time it does not depend on the board's load.
        memory: data memory, bytes; 0: see `agent.compute.infer.litert.memory_max`.
    """

    within_s: float = 120.0
    cpu_s: int = 60
    memory: int = 0


_LIMITS = VettingLimits()
OPEN_S = 20.0
"""Timeout for opening a vetted model in a worker process, and for its first inference there, s. Together with
vetting it stays below the watchdog's timeout for streams."""


class Record(Protocol):
    """Stores outcomes across restarts."""

    def read(self, model: Model) -> str | None:
        """Return the reason to refuse the model; empty: it runs; None: not known."""
        ...

    def write(self, model: Model, reason: str) -> None:
        """Store an outcome, as `read` returns it."""
        ...


class Vetting:
    """Opens models on the CPU after vetting them. Any thread may use it.

    Without a record, outcomes are cached in this process only. `clock` is monotonic, s; refusals expire by it.
    """

    def __init__(
        self,
        record: Record | None = None,
        limits: VettingLimits = _LIMITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._record, self._limits, self._clock = record, limits, clock

    def open(self, model: Model, options: SessionOptions) -> Session:
        """Open a model on the CPU, vetted as by `check`. Raises as `check` and `Backend.open`.

        It runs in this process if it is a packaged one, or if its time and memory cannot depend on its input.
        """
        self.check(model, options)
        if model.is_packaged or read_modelfile(model.content).has_fixed_cost:
            return CpuBackend().open(model, options)
        from agent.compute.infer.worker import PATIENCE_S, WorkerSession  # few models need it

        return WorkerSession(model, BackendSpec(), options, deadline_s=PATIENCE_S, patience_s=OPEN_S, learns=True)

    def check(self, model: Model, options: SessionOptions, within_s: float | None = None) -> bool:
        """Vet a model unless its outcome is known. Return True if it runs, False if that is not known in time.

        The vetting continues after `within_s`; None waits as long as it takes.

        Raises:
            ModelError: the model crashed the runtime, or cannot run.
            BackendError: it cannot be vetted now.
        """
        reason = self._known(model)
        if reason is None:
            from agent.compute.infer.vetting_process import outcome  # most starts need none of it

            try:
                reason = outcome(model, options, self._limits, self._record).result(within_s)
            except TimeoutError:
                return False
        if reason:
            raise ModelError(f"{model.path}: {reason}")
        return True

    def _known(self, model: Model) -> str | None:
        key = identity(model)
        found = KNOWN.get(key)
        if found is not None and (not found.reason or self._clock() - found.at_s < HOLDS_S):
            return found.reason
        reason = None if self._record is None else self._record.read(model)
        if reason == "":  # a refusal is read again each time, because the record decides when it expires
            KNOWN[key] = Outcome(reason, self._clock())
        return reason


VETTING = Vetting()
"""For programs without a state folder."""


def identity(model: Model) -> Identity:
    """Return the key of an outcome: hash of the file, size of the content that is opened, and its signatures."""
    sha256 = model.sha256 or hashlib.sha256(model.content).hexdigest()
    return sha256, len(model.content), tuple(variant.signature for variant in model.manifest.variants)
