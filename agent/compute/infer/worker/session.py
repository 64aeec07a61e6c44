"""A session whose model runs in a worker process: a library that crashes, hangs or exits ends only that.

Inputs are written straight into memory that both processes share. A process whose inference takes longer than the
deadline is killed. It ends with this process, and has root's rights only if nobody else may open its device.
"""

from __future__ import annotations

import logging
import os
import time
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
"""Timeout for opening a model and for its first inference, s: a GPU may have to compile every kernel."""
DEADLINE_S = 2.0
HANGS_S, _HANGS = 10.0, 50.0
"""Least deadline that is learned, s, and how often it is longer than the slowest first inference."""
_OPENING = "opening the model"

_AnswerT = TypeVar("_AnswerT", protocol.ModelOpened, protocol.TensorRegion, protocol.Usage, TimingRun)


class WorkerSession:
    """Session in a worker process. Views of tensors stay valid until it is closed.

    Attributes:
        opened: the process's answer to opening the model.
        deadline_s: timeout of an inference, but for the first of each variant, s.
    """

    def __init__(
        self,
        model: Model,
        plan: BackendSpec,
        options: SessionOptions,
        *,
        deadline_s: float = DEADLINE_S,
        patience_s: float = PATIENCE_S,
        learns: bool = False,
    ) -> None:
        """Start the process and open the model there, with the threads of the plan unless the options have some.

        Args:
            model: to run.
            plan: the backend.
            options: see `SessionOptions`.
            deadline_s: see the class.
            patience_s: timeout for opening the model and for the first inference of each variant, s.
            learns: `deadline_s` becomes shorter by the first inference: for models of which nothing is known.

        Raises:
            ModelError, BackendError: the model was refused, or the process crashed or hung.
        """
        self.backend, self.deadline_s, self._patience_s = plan.backend, deadline_s, patience_s
        self._longest_s, self._learns, self._first_s = deadline_s, learns, 0.0
        self.degraded = ""
        self._path = model.path
        self._regions: dict[str, _Mapped] = {}
        variant = self._remote_variant = options.variant or model.manifest.variants[0].name
        self._start_process()
        try:
            path, as_root = plain(model.path), _needs_root(model, plan)
            request = protocol.OpenModel(plan, variant, options.threads, model.manifest, path, as_root)
            self.opened = self._request(request, protocol.ModelOpened, patience_s, model.content)
            self._map(variant, self.opened.region)
        except BaseException:
            self.close()
            raise

    def _start_process(self) -> None:
        try:
            self._tensors = protocol.create_shared_memory()
            try:
                self._process = ChildProcess("agent.compute.infer.worker.main", [self._tensors])
            except OSError:
                os.close(self._tensors)
                raise
        except OSError as error:
            what = f"{self._path}: cannot start a process for {self.backend}"
            raise BackendError(f"{what}: {reason_of(error)}") from error

    def select(self, variant: str) -> None:
        if variant not in self._regions:
            self._map(
                variant, self._request(protocol.SelectVariant(variant), protocol.TensorRegion, self._patience_s)
            )
        self._activate(variant)  # the process follows at the next `invoke`: its last outputs stay readable

    def input(self, index: int) -> Array:
        return self._mapped.inputs[index]

    def invoke(self) -> None:
        self._select_remotely()
        mapped = self._mapped
        within_s = self.deadline_s if mapped.has_run else self._patience_s
        begun = time.monotonic()
        answer = self._exchange([protocol.RUN], within_s, "an inference")
        if self._learns and not mapped.has_run:
            self._learn_deadline(time.monotonic() - begun)
        mapped.has_run = True
        if answer != protocol.RUN:
            self._decode(answer)

    def _learn_deadline(self, first_s: float) -> None:
        self._first_s = max(first_s, self._first_s)
        self.deadline_s = min(self._longest_s, max(HANGS_S, _HANGS * self._first_s))

    def output(self, index: int) -> Array:
        return self._mapped.outputs[index]

    def usage(self) -> protocol.Usage:
        """Return what the process has used so far. Raises BackendError if it has ended."""
        return self._request(protocol.GetUsage(), protocol.Usage, self._patience_s)

    def time_model(self, seconds: float) -> TimingRun:
        """Time inferences of all exits of the model in the worker process, see `time_inference`."""
        return self._timed(protocol.TimeModel(seconds), seconds)

    def time_turn(self, seconds: float) -> TimingRun:
        """Time inferences of the selected variant in the worker process, see `chain.time_turn`."""
        self._select_remotely()
        return self._timed(protocol.TimeTurn(seconds), seconds)

    def _timed(self, request: protocol.TimeModel | protocol.TimeTurn, seconds: float) -> TimingRun:
        run = self._request(request, TimingRun, seconds + 2.0 * self.deadline_s, what="timing the model")
        if not run.ms or min(run.ms) <= 0.0:
            raise self._invalid(f"{len(run.ms)} inferences, or one that took no time")
        return run

    def invoke_chain(self) -> None:
        """Run all exits of the model once. Raises BackendError if that fails or hangs."""
        self._request(protocol.TimeModel(0.0), TimingRun, self.deadline_s, what="an inference")

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    def close(self) -> None:
        if not self._process.ended:
            self._process.end()
            os.close(self._tensors)

    def _map(self, variant: str, region: protocol.TensorRegion) -> None:
        try:
            self._regions[variant] = _Mapped(self._tensors, region)
        except (OSError, protocol.InvalidMessageError) as error:
            raise BackendError(f"{self._path}: {self.backend}: tensors: {reason_of(error)}") from error
        self._remote_variant = variant
        self._activate(variant)

    def _select_remotely(self) -> None:
        if self._remote_variant != self.variant:
            self._request(protocol.SelectVariant(self.variant), protocol.TensorRegion, self.deadline_s)
            self._remote_variant = self.variant

    def _activate(self, variant: str) -> None:
        self.variant = variant
        self._mapped = self._regions[variant]
        self.inputs, self.outputs = self._mapped.region.inputs, self._mapped.region.outputs

    def _request(
        self, request: protocol.Request, kind: type[_AnswerT], within_s: float, *more: bytes, what: str = _OPENING
    ) -> _AnswerT:
        answer = self._decode(self._exchange([protocol.encode(request), *more], within_s, what))
        if not isinstance(answer, kind):
            raise self._invalid(f"{type(answer).__name__} in place of {kind.__name__}")
        return answer

    def _exchange(self, messages: Sequence[bytes], within_s: float, what: str) -> bytes:
        if self._process.ended:
            raise BackendError(f"{self._path}: {self.backend} has ended")
        try:
            for message in messages:
                self._process.send(message, within_s)
            return self._process.receive(within_s)
        except TimeoutError:
            log_line = self._process.last_log_line()
            self._process.kill()  # `close` waits for its end
            raise BackendError(
                f"{self._path}: {self.backend} hangs: {what} took longer than {within_s:g} s{log_line}"
            ) from None
        except protocol.ClosedError:
            raise BackendError(f"{self._path}: {self.backend} {self._process.exit_reason()}") from None
        except protocol.InvalidMessageError as error:
            raise self._invalid(str(error)) from None

    def _decode(self, message: bytes) -> protocol.Answer:
        try:
            answer = protocol.decode_answer(message)
        except protocol.InvalidMessageError as error:
            raise self._invalid(str(error)) from None
        if isinstance(answer, protocol.Failed):
            kind = ModelError if answer.model else BackendError
            raise kind("".join(filter(str.isprintable, answer.text))[: protocol.LONGEST_TEXT])
        return answer

    def _invalid(self, why: str) -> BackendError:
        """Kill the process, whose answers cannot be trusted, and return the error."""
        self._process.kill()
        return BackendError(f"{self._path}: {self.backend} sent an invalid answer: {why}")


def _needs_root(model: Model, plan: BackendSpec) -> bool:
    """Return True if this process is root and only root may open the plan's device; log that."""
    if plan.kind == "cpu" or not is_root() or (node := only_for_root(plan.backend)) is None:
        return False
    log.warning(
        "%s: is opened as root on %s, because only root may open %s; give a group read and write access, as "
        "systemd/60-vedette.rules does, so that models run without root's rights",
        model.path,
        plan.backend,
        node,
    )
    return True


class _Mapped:
    def __init__(self, descriptor: int, region: protocol.TensorRegion) -> None:
        self.region, self.has_run = region, False
        arrays = protocol.map_tensors(descriptor, region)
        self.inputs, self.outputs = arrays[: len(region.inputs)], arrays[len(region.inputs) :]
