"""A session on a device that may fail, with the CPU standing by: no input goes without an answer.

What fails, hangs, dies or answers wrongly is left at once, the CPU answers the same input, and the device is
tried again in the background, less and less often; it comes back when its answers are right.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time

import numpy as np

from agent.compute.infer.backend import Options, Plan, Session
from agent.compute.infer.litert import CpuBackend
from agent.compute.infer.measure import Inputs, distance, golden_inputs, tolerance
from agent.compute.infer.whole import Whole
from agent.compute.infer.worker import DEADLINE_S, WorkerSession
from agent.compute.tensors import TensorSpec
from agent.errors import BackendError
from agent.manifest import Model
from agent.messages import Array

log = logging.getLogger(__name__)

_FIRST_S, _LAST_S = 5.0, 300.0
_CHECK_S = 30.0
_GOLDEN = 2
"""Golden inputs are answered each time that the device is opened: no more than this."""


class FailoverSession:
    """See `Session`, and the module."""

    def __init__(
        self,
        model: Model,
        plan: Plan,
        options: Options,
        *,
        inputs: Inputs = golden_inputs,
        deadline_s: float = DEADLINE_S,
        check_s: float = _CHECK_S,
        retry_s: float = _FIRST_S,
    ) -> None:
        """Open the model on both.

        Args:
            model: to run.
            plan: the device.
            options: see `Options`.
            inputs: that the device must answer as the CPU does when it is opened.
            deadline_s: of an inference on the device, s.
            check_s: how often the CPU checks an answer of the device, s.
            retry_s: pause before the device is tried again for the first time, s.

        Raises:
            ModelError: not even the CPU runs it. A device that cannot be opened now is tried again.
        """
        self._model, self._plan, self._options = model, plan, options
        self._deadline_s, self._check_s, self._retry_s = deadline_s, check_s, retry_s
        self.degraded = ""
        self._cpu = CpuBackend().open(model, options)
        self._first_rung = self._cpu.rung
        whole = Whole(self._cpu, model.manifest)
        self._golden = inputs(whole.inputs)[:_GOLDEN]
        self._tolerance = tolerance(model.manifest, whole.outputs)
        self._right = whole.answers(self._golden)
        self._cpu.use(self._first_rung)
        self._device: WorkerSession | None = None
        self._ready: WorkerSession | None = None
        self._left: list[WorkerSession] = []
        self._closed = threading.Event()
        self._checked = time.monotonic()
        try:
            self._device = self._opened()
        except BackendError as error:
            self._leave(str(error))

    @property
    def backend(self) -> str:
        """What answers now."""
        return self._active.backend

    @property
    def rung(self) -> str:
        """See `Session`."""
        return self._cpu.rung

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """See `Session`."""
        return self._cpu.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """See `Session`."""
        return self._cpu.outputs

    def use(self, rung: str) -> None:
        """See `Session.use`."""
        self._cpu.use(rung)
        if self._device is not None:
            try:
                self._device.use(rung)
            except BackendError as error:
                self._leave(str(error))

    def input(self, index: int) -> Array:
        """See `Session.input`."""
        if self._ready is not None and index == 0:
            self._come_back()
        return self._active.input(index)

    def invoke(self) -> None:
        """See `Session.invoke`."""
        device = self._device
        if device is None:
            self._cpu.invoke()
            return
        try:
            device.invoke()
            if time.monotonic() - self._checked >= self._check_s:
                self._check(device)
        except BackendError as error:
            self._leave(str(error))
            self._on_cpu(device)

    def output(self, index: int) -> Array:
        """See `Session.output`."""
        return self._active.output(index)

    def close(self) -> None:
        """See `Session.close`."""
        self._closed.set()
        self._drain()
        for session in (self._device, self._ready):
            if session is not None:
                session.close()
        self._device = self._ready = None
        self._cpu.close()

    @property
    def _active(self) -> Session:
        return self._cpu if self._device is None else self._device

    def _on_cpu(self, device: WorkerSession) -> None:
        """The CPU answers what the device was given: its input lies in memory of our own."""
        for index in range(len(self.inputs)):
            np.copyto(self._cpu.input(index), device.input(index))
        self._cpu.invoke()

    def _check(self, device: WorkerSession) -> None:
        """Compare the answer that the device has just given.

        Raises:
            BackendError: it is wrong.
        """
        self._checked = time.monotonic()
        self._on_cpu(device)
        outputs = range(len(self.outputs))
        right = [np.array(self.outputs[n].real(self._cpu.output(n))) for n in outputs]
        given = [np.array(self.outputs[n].real(device.output(n))) for n in outputs]
        self._judge(distance([right], [given], self.outputs))

    def _judge(self, off: float) -> None:
        if off > self._tolerance:
            allowed = f"{self._tolerance:.1%} are allowed"
            raise BackendError(f"{self._plan.backend} answers wrongly: off by {off:.1%} where {allowed}")

    def _leave(self, reason: str) -> None:
        """Go on with the CPU, and try the device again later."""
        device, self._device = self._device, None
        self.degraded = reason
        log.warning("%s; the CPU answers until it comes back", reason)
        if device is not None:
            self._left.append(device)
        threading.Thread(target=self._try_again, name="recovery", daemon=True).start()

    def _come_back(self) -> None:
        session, self._ready = self._ready, None
        assert session is not None
        try:
            session.use(self.rung)
        except BackendError as error:
            self._left.append(session)
            self._leave(str(error))
            return
        self._device, self.degraded = session, ""
        self._checked = time.monotonic()
        log.info("%s: %s is back", self._model.path, self._plan.backend)

    def _try_again(self) -> None:
        """In a thread of its own, until the device answers rightly."""
        pause_s = self._retry_s
        while not self._closed.wait(pause_s):
            self._drain()
            try:
                session = self._opened()
            except BackendError as error:
                self.degraded = str(error)
                pause_s = min(_LAST_S, pause_s * 2.0)
                continue
            if self._closed.is_set():
                session.close()
            else:
                self._ready = session
            return

    def _drain(self) -> None:
        """Close what was left, each by one thread only."""
        with contextlib.suppress(IndexError):
            while True:
                self._left.pop().close()

    def _opened(self) -> WorkerSession:
        """The device, with right answers.

        Raises:
            BackendError: it cannot be opened, fails or answers wrongly.
        """
        options = Options(self._first_rung, self._options.threads)
        session = WorkerSession(self._model, self._plan, options, deadline_s=self._deadline_s)
        try:
            whole = Whole(session, self._model.manifest)
            self._judge(distance(self._right, whole.answers(self._golden), whole.outputs))
            session.use(self._first_rung)
        except BackendError:
            session.close()
            raise
        return session
