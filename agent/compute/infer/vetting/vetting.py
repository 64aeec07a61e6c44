"""Vetting: a model is opened and run once in a process of its own before this process opens it.

A file that our reader accepts may still crash or hang the runtime. The exact bytes that this process will open go
to `agent.compute.infer.vetting.process`, which has a fork run them. A crash there is an error of that model.

Outcomes are kept for the life of this process, and longer by a `Record`; a refusal is kept for `HOLDS_S`. What
says nothing lasting about the model, such as a lack of memory, is kept nowhere: it is tried again the next time.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from msgspec import Struct

from agent.compute.infer.litert import CpuBackend, CpuSession
from agent.compute.infer.session import SessionOptions
from agent.compute.manifest import Model
from agent.errors import ModelError

Identity = tuple[str, int, tuple[str, ...]]
HOLDS_S = 86_400.0
"""How long a refusal counts, s: a failing memory or an overheated board may have been the reason."""


class Outcome(NamedTuple):
    """How the trial of a model ended.

    Attributes:
        reason: as `Record.read` gives it.
        at_s: when it was found, s of the monotonic clock.
    """

    reason: str
    at_s: float


KNOWN: dict[Identity, Outcome] = {}
"""Outcomes of the trials of this process, and of models that ran before, by model."""


class VettingLimits(Struct, frozen=True):
    """What one model may take.

    Attributes:
        within_s: wall time, s; below the time after which the daemon takes a stream's thread for stuck.
        cpu_s: CPU time, s. Unlike wall time it does not depend on what else the board does.
        memory: address space, bytes; 0: as the board's memory allows.
    """

    within_s: float = 120.0
    cpu_s: int = 60
    memory: int = 0


_LIMITS = VettingLimits()


class Record(Protocol):
    """Keeps outcomes from one start of the program to the next."""

    def read(self, model: Model) -> str | None:
        """Why the model cannot be used; empty: it runs; None: not known."""
        ...

    def write(self, model: Model, reason: str) -> None:
        """Keep an outcome, as `read` gives it."""
        ...


class Vetting:
    """Opens models in this process that have run in another. Any thread may use it."""

    def __init__(
        self,
        record: Record | None = None,
        limits: VettingLimits = _LIMITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is started before the first unknown model.

        Args:
            record: keeps the outcomes; None: only this process does.
            limits: for each model.
            clock: gives the time by which refusals expire, s of the monotonic clock.
        """
        self._record, self._limits, self._clock = record, limits, clock

    def open(self, model: Model, options: SessionOptions) -> CpuSession:
        """Open a model on the CPU in this process; an unknown model is vetted first.

        Raises:
            ModelError: it crashed the runtime, or see `Backend.open`. BackendError: it could not be vetted now.
        """
        self.check(model, options)
        return CpuBackend().open(model, options)

    def check(self, model: Model, options: SessionOptions, within_s: float | None = None) -> bool:
        """Vet a model unless its outcome is known.

        Args:
            model: see `Backend.open`.
            options: as it will be opened with.
            within_s: to wait for the outcome, s; None: as long as it takes. The vetting goes on after that.

        Returns:
            True: it runs. False: that is not known yet.

        Raises:
            ModelError: it crashed the runtime, or cannot run. BackendError: it could not be vetted now.
        """
        reason = self._known(model)
        if reason is None:
            from agent.compute.infer.vetting.process import outcome  # most starts need none of it

            try:
                reason = outcome(model, options, self._limits, self._record).result(within_s)
            except TimeoutError:
                return False
        if reason:
            raise ModelError(f"{model.path}: {reason}")
        return True

    def try_again(self, model: Model, options: SessionOptions) -> None:
        """Vet a model whatever is known of it, and keep no outcome.

        Raises:
            ModelError, BackendError: see `check`.
        """
        from agent.compute.infer.vetting.process import outcome

        try:
            reason = outcome(model, options, self._limits, None).result()
        finally:
            KNOWN.pop(identity(model), None)
        if reason:
            raise ModelError(f"{model.path}: {reason}")

    def _known(self, model: Model) -> str | None:
        key = identity(model)
        found = KNOWN.get(key)
        if found is not None and (not found.reason or self._clock() - found.at_s < HOLDS_S):
            return found.reason
        reason = None if self._record is None else self._record.read(model)
        if reason == "":  # a refusal is read again each time: the record knows how long it holds
            KNOWN[key] = Outcome(reason, self._clock())
        return reason


VETTING = Vetting()
"""For programs without a state folder."""


def identity(model: Model) -> Identity:
    """What an outcome is about: the file by its hash, how much of it was kept, and the signatures that run."""
    sha256 = model.sha256 or hashlib.sha256(model.content).hexdigest()
    return sha256, len(model.content), tuple(variant.signature for variant in model.manifest.variants)
