"""A session whose model runs in a process of its own: a library that crashes, hangs or exits takes nothing along.

Pictures are written straight into memory that both processes share. An inference that takes longer than its
deadline ends the process. The process ends with this one, however this one ends. It has none of root's rights,
but where it opens a device that only root may open.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TypeVar

from agent.compute.infer.chain import TimingRun
from agent.compute.infer.session import BackendSpec, SessionOptions
from agent.compute.infer.vetting.unprivileged import is_root, only_for_root
from agent.compute.infer.worker import protocol
from agent.compute.infer.worker.process import ChildProcess
from agent.compute.manifest import Model
from agent.errors import BackendError, ModelError, reason_of
from agent.text import plain
from agent.types import Array

log = logging.getLogger(__name__)

PATIENCE_S = 120.0
"""A GPU may have to compile every kernel when a model is opened, or first run."""
DEADLINE_S = 2.0
_OPENING = "opening the model"

_Told = TypeVar("_Told", protocol.Opened, protocol.TensorRegion, protocol.Usage, TimingRun)


class WorkerSession:
    """See `Session`, and the module. Views stay valid until the session is closed.

    Attributes:
        opened: what the process told of the model.
        deadline_s: of an inference, but for the first of each variant, s.
    """

    def __init__(
        self,
        model: Model,
        plan: BackendSpec,
        options: SessionOptions,
        *,
        deadline_s: float = DEADLINE_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Start the process and open the model there.

        Args:
            model: to run.
            plan: how.
            options: see `SessionOptions`; the plan's threads count where these say nothing.
            deadline_s: see the class.
            patience_s: for opening the model, and for the first inference of each variant, s.

        Raises:
            ModelError, BackendError: it could not be opened: refused, crashed or hung.
        """
        self.backend, self.deadline_s, self._patience_s = plan.backend, deadline_s, patience_s
        self.degraded = ""
        self._path = model.path
        self._stretches: dict[str, _Mapped] = {}
        variant = self._there = options.variant or model.manifest.variants[0].name
        try:
            self._tensors = protocol.shared_memory()
            try:
                self._process = ChildProcess("agent.compute.infer.worker.main", [self._tensors])
            except OSError:
                os.close(self._tensors)
                raise
        except OSError as error:
            raise BackendError(f"{model.path}: no process for {plan.backend}: {reason_of(error)}") from error
        try:
            path, as_root = plain(model.path), _needs_root(model, plan)
            request = protocol.OpenModel(plan, variant, options.threads, model.manifest, path, as_root)
            self.opened = self._ask(request, protocol.Opened, patience_s, model.content)
            self._take(variant, self.opened.stretch)
        except BaseException:
            self.close()
            raise

    def use(self, variant: str) -> None:
        """See `Session.use`."""
        if variant not in self._stretches:
            self._take(
                variant, self._ask(protocol.SelectVariant(variant), protocol.TensorRegion, self._patience_s)
            )
        self._in_use(
            variant
        )  # the process changes when it is to run: what it has answered can be read without it

    def input(self, index: int) -> Array:
        """See `Session.input`."""
        return self._mapped.inputs[index]

    def invoke(self) -> None:
        """See `Session.invoke`."""
        if self._there != self.variant:
            self._ask(
                protocol.SelectVariant(self.variant), protocol.TensorRegion, self.deadline_s
            )  # it knows this one: that takes no time
            self._there = self.variant
        mapped = self._mapped
        within_s = self.deadline_s if mapped.has_run else self._patience_s
        answer = self._exchange([protocol.RUN], within_s, "an inference")
        mapped.has_run = True
        if answer != protocol.RUN:
            self._said(answer)

    def output(self, index: int) -> Array:
        """See `Session.output`."""
        return self._mapped.outputs[index]

    def usage(self) -> protocol.Usage:
        """What the process has used so far.

        Raises:
            BackendError: it is gone.
        """
        return self._ask(protocol.GetUsage(), protocol.Usage, self._patience_s)

    def timed(self, seconds: float) -> TimingRun:
        """Run the whole model there, from the first variant's input to the deepest one's output, timed there.

        Args:
            seconds: see `agent.compute.infer.chain.time_inference`.

        Raises:
            BackendError: it failed or hung.
        """
        turn = self._ask(
            protocol.TimeModel(seconds), TimingRun, seconds + 2.0 * self.deadline_s, what="timing it"
        )
        if not turn.ms or min(turn.ms) <= 0.0:
            raise self._nonsense(f"it tells of {len(turn.ms)} inferences, or of one that took no time")
        return turn

    def invoke_whole(self) -> None:
        """Run the whole model once, from the first variant's input to the deepest one's output.

        Raises:
            BackendError: it failed or hung.
        """
        self._ask(protocol.TimeModel(0.0), TimingRun, self.deadline_s, what="an inference")

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def close(self) -> None:
        """See `Session.close`."""
        if not self._process.ended:
            self._process.end()
            os.close(self._tensors)

    def _take(self, variant: str, stretch: protocol.TensorRegion) -> None:
        try:
            self._stretches[variant] = _Mapped(self._tensors, stretch)
        except (OSError, protocol.NonsenseError) as error:
            raise BackendError(f"{self._path}: {self.backend}: tensors: {reason_of(error)}") from error
        self._there = variant
        self._in_use(variant)

    def _in_use(self, variant: str) -> None:
        self.variant = variant
        self._mapped = self._stretches[variant]
        self.inputs, self.outputs = self._mapped.stretch.inputs, self._mapped.stretch.outputs

    def _ask(
        self, request: protocol.Request, kind: type[_Told], within_s: float, *more: bytes, what: str = _OPENING
    ) -> _Told:
        said = self._said(self._exchange([protocol.encode(request), *more], within_s, what))
        if not isinstance(said, kind):
            raise self._nonsense(f"it answers {type(said).__name__}; expected {kind.__name__}")
        return said

    def _exchange(self, messages: Sequence[bytes], within_s: float, what: str) -> bytes:
        """What the process answers to these.

        Raises:
            BackendError: it died, or hangs: then it is killed.
        """
        if self._process.ended:
            raise BackendError(f"{self._path}: {self.backend} has ended")
        try:
            for message in messages:
                self._process.put(message, within_s)
            return self._process.get(within_s)
        except TimeoutError:
            said = self._process.last_log_line()
            self._process.kill()  # and `close` waits for it: who waits for an answer has waited long enough
            raise BackendError(
                f"{self._path}: {self.backend} hangs: {what} took longer than {within_s:g} s{said}"
            ) from None
        except protocol.ClosedError:
            raise BackendError(f"{self._path}: {self.backend} {self._process.exit_reason()}") from None
        except protocol.NonsenseError as error:
            raise self._nonsense(str(error)) from None

    def _said(self, answer: bytes) -> protocol.Answer:
        try:
            said = protocol.answer_of(answer)
        except protocol.NonsenseError as error:
            raise self._nonsense(str(error)) from None
        if isinstance(said, protocol.Failed):
            kind = ModelError if said.model else BackendError
            raise kind("".join(filter(str.isprintable, said.text))[: protocol.LONGEST_TEXT])
        return said

    def _nonsense(self, why: str) -> BackendError:
        """Kill the process, whose next answers mean nothing, and describe what it answered."""
        self._process.kill()
        return BackendError(f"{self._path}: {self.backend} answers nonsense: {why}")


def _needs_root(model: Model, plan: BackendSpec) -> bool:
    """True if this is root and nobody else may open the device of a plan, which is logged."""
    if plan.kind == "cpu" or not is_root() or (node := only_for_root(plan.backend)) is None:
        return False
    log.warning(
        "%s: is opened as root on %s: only root may open %s; let a group read and write it, as "
        "systemd/60-vedette.rules does, so that models have no rights of root's",
        model.path,
        plan.backend,
        node,
    )
    return True


class _Mapped:
    """A variant's tensors in this process."""

    def __init__(self, descriptor: int, stretch: protocol.TensorRegion) -> None:
        self.stretch, self.has_run = stretch, False
        arrays = protocol.mapped(descriptor, stretch)
        self.inputs, self.outputs = arrays[: len(stretch.inputs)], arrays[len(stretch.inputs) :]
