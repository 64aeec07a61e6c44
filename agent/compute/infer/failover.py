"""A session on a device that may fail, with the CPU standing by: no input goes without an answer.

What fails, hangs, dies or answers wrongly is left at once, the CPU answers the same input, and the device is
tried again in the background, less and less often; it comes back when its answers are right.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from agent.compute.infer.chain import ModelChain
from agent.compute.infer.choice import Inputs, describe_error, golden_inputs, output_error, tolerance
from agent.compute.infer.session import BackendSpec, Session, SessionOptions
from agent.compute.infer.vetting.vetting import VETTING, Vetting
from agent.compute.infer.worker.session import DEADLINE_S, PATIENCE_S, WorkerSession
from agent.compute.manifest import Model
from agent.compute.tensors import TensorSpec
from agent.errors import BackendError, ModelError, VedetteError, reason_of
from agent.types import Array

# Opens a device that something else stands in for, again and again in a thread of its own, until it is right.

log = logging.getLogger(__name__)

_LAST_S = 300.0
_STABLE_S = 60.0
"""A device that answered for so long is tried again soon; one that fails before that, later each time."""


class DeviceReopener:
    """One device. For one thread at a time, but for its own.

    Attributes:
        reason: why it is not there; empty: it is, or will be with the next `take`.
    """

    def __init__(self, opens: Callable[[], WorkerSession], name: str, retry_s: float) -> None:
        """Nothing is opened before `begin`.

        Args:
            opens: gives the device when its answers are right; raises else.
            name: of the device.
            retry_s: pause before it is tried again for the first time, s.
        """
        self.reason = f"{name} is being opened"
        self._opens, self._name, self._retry_s = opens, name, retry_s
        self._ready: WorkerSession | None = None
        self._left: list[WorkerSession] = []
        self._lock, self._closed, self._tried = threading.Lock(), threading.Event(), threading.Event()
        self._pause_s, self._since = 0.0, time.monotonic()

    def begin(self, wait_s: float) -> None:
        """Open it for the first time.

        Args:
            wait_s: how long to wait whether it succeeds, s.
        """
        self._start()
        self._tried.wait(wait_s)

    def lost(self, session: WorkerSession | None, reason: str) -> None:
        """It has failed: try it again some time, and close what is left of it.

        Args:
            session: what is left.
            reason: why.
        """
        if session is not None:
            self._left.append(session)
        stable = time.monotonic() - self._since > _STABLE_S
        self._pause_s = self._retry_s if stable else self._longer()
        self._tell(reason)
        self._start()

    @property
    def has_any(self) -> bool:
        """Whether `take` would give it. Costs nothing."""
        return self._ready is not None

    def take(self) -> WorkerSession | None:
        """The device, once; None: it is not there yet."""
        with self._lock:
            session, self._ready = self._ready, None
        if session is not None:
            log.info("%s %s", self._name, "is back" if self._pause_s else "answers")
            self.reason, self._since = "", time.monotonic()
        return session

    def close(self) -> None:
        """Try no more."""
        with self._lock:
            self._closed.set()
            session, self._ready = self._ready, None
        if session is not None:
            session.close()
        self._drain()
        self._opens = _closed  # whoever refers to this is referred to by it, and large

    def _start(self) -> None:
        threading.Thread(target=self._try, name="recovery", daemon=True).start()

    def _try(self) -> None:
        while not self._closed.wait(self._pause_s):
            self._drain()
            try:
                session = self._opens()
            except Exception as error:
                self._failed(error)
            else:
                self._hand_over(session)
                return

    def _failed(self, error: Exception) -> None:
        """Say it the first time; only `close` may end the trying."""
        if not isinstance(error, VedetteError | OSError):
            log.error("%s: a defect in Vedette", self._name, exc_info=error)
        if self._pause_s:
            self.reason = reason_of(error)
        else:
            self._tell(reason_of(error))
        self._pause_s = self._longer()
        self._tried.set()

    def _tell(self, reason: str) -> None:
        self.reason = reason
        log.warning("%s; the CPU answers until it comes back", reason)

    def _longer(self) -> float:
        return min(_LAST_S, max(self._retry_s, self._pause_s * 2.0))

    def _hand_over(self, session: WorkerSession) -> None:
        with self._lock:
            if not self._closed.is_set():
                self._ready = session
                self._tried.set()
                return
        session.close()

    def _drain(self) -> None:
        """Close what was left, each by one thread only."""
        with contextlib.suppress(IndexError):
            while True:
                self._left.pop().close()


def _closed() -> WorkerSession:
    raise BackendError("closed")


_FIRST_S = 5.0
_CHECK_S = 30.0
_GOLDEN = 2
"""Golden inputs are answered each time that the device is opened: no more than this."""
_HANGS = 20.0
"""So many times what the CPU takes is no inference any more, where that is above `DEADLINE_S`."""


class FailoverSession:
    """See `Session`, and the module."""

    def __init__(
        self,
        model: Model,
        plan: BackendSpec,
        options: SessionOptions,
        *,
        inputs: Inputs = golden_inputs,
        deadline_s: float = 0.0,
        check_s: float = _CHECK_S,
        retry_s: float = _FIRST_S,
        wait_s: float = PATIENCE_S,
        vetting: Vetting | None = None,
    ) -> None:
        """Open the model on the CPU, and begin to open it on the device.

        Args:
            model: to run.
            plan: the device.
            options: see `SessionOptions`.
            inputs: that the device must answer as the CPU does when it is opened.
            deadline_s: of an inference on the device, s; 0: `DEADLINE_S`, or more where the CPU is slow.
            check_s: how often the CPU checks an answer of the device, s.
            retry_s: pause before the device is tried again for the first time, s.
            wait_s: how long to wait for the device, s. The CPU answers until it is there.
            vetting: see `agent.compute.infer.backends.open_session`.

        Raises:
            ModelError: not even the CPU runs it. A device that cannot be opened now is tried again.
        """
        self._model, self._plan, self._options = model, plan, options
        self._check_s = check_s
        self._cpu = (vetting or VETTING).open(model, options)
        self._first_variant = self._cpu.variant
        whole = ModelChain(self._cpu, model.manifest)
        self._ends = whole.inputs, whole.outputs
        self._golden = inputs(whole.inputs)[:_GOLDEN]
        self._tolerance = tolerance(model.manifest, whole.outputs)
        began = time.monotonic()
        self._right = whole.run_cases(self._golden)
        slowest_s = time.monotonic() - began
        self._deadline_s = deadline_s or max(DEADLINE_S, _HANGS * slowest_s / max(1, len(self._golden)))
        self._cpu.use(self._first_variant)
        self._device: WorkerSession | None = None
        self._checked = time.monotonic()
        self._recovery = DeviceReopener(self._opened, f"{model.path}: {plan.backend}", retry_s)
        self._recovery.begin(wait_s)
        self._switch_back()

    @property
    def backend(self) -> str:
        """What answers now."""
        return self._active.backend

    @property
    def degraded(self) -> str:
        """See `Session`."""
        return self._recovery.reason if self._device is None else ""

    @property
    def variant(self) -> str:
        """See `Session`."""
        return self._cpu.variant

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """See `Session`."""
        return self._cpu.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """See `Session`."""
        return self._cpu.outputs

    def use(self, variant: str) -> None:
        """See `Session.use`."""
        self._cpu.use(variant)
        if self._device is not None:
            try:
                self._follow(self._device)
            except ModelError as error:
                self._fall_back(str(error))

    def input(self, index: int) -> Array:
        """See `Session.input`."""
        if index == 0 and self._recovery.has_any:
            self._switch_back()
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
        except ModelError as error:
            self._fall_back(str(error))
            self._on_cpu(device)

    def output(self, index: int) -> Array:
        """See `Session.output`."""
        return self._active.output(index)

    def close(self) -> None:
        """See `Session.close`."""
        self._recovery.close()
        if self._device is not None:
            self._device.close()
            self._device = None
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
        self._judge(output_error([right], [given], self.outputs))

    def _judge(self, off: float) -> None:
        if reason := describe_error(off, self._tolerance):
            raise BackendError(f"{self._plan.backend} {reason}")

    def _fall_back(self, reason: str) -> None:
        """Go on with the CPU; the device is tried again later."""
        device, self._device = self._device, None
        self._recovery.lost(device, reason)

    def _switch_back(self) -> None:
        device = self._recovery.take()
        if device is None:
            return
        try:
            self._follow(device)
        except ModelError as error:
            self._recovery.lost(device, str(error))
        else:
            self._device, self._checked = device, time.monotonic()

    def _follow(self, device: WorkerSession) -> None:
        """Change the device to the CPU's variant.

        Raises:
            ModelError: the device does not have it, or with other tensors.
        """
        device.use(self.variant)
        self._check_alike((*device.inputs, *device.outputs), (*self.inputs, *self.outputs))

    def _check_alike(self, there: Sequence[TensorSpec], here: Sequence[TensorSpec]) -> None:
        if [(one.shape, one.dtype) for one in there] != [(one.shape, one.dtype) for one in here]:
            told = ", ".join(map(str, there))
            raise BackendError(f"{self._plan.backend} tells of other tensors than the CPU: {told}")

    def _opened(self) -> WorkerSession:
        """The device, with right answers.

        Raises:
            BackendError: it cannot be opened, fails or answers wrongly.
        """
        options = SessionOptions(self._first_variant, self._options.threads)
        session = WorkerSession(self._model, self._plan, options, deadline_s=self._deadline_s)
        try:
            whole = ModelChain(session, self._model.manifest)
            self._check_alike((*whole.inputs, *whole.outputs), (*self._ends[0], *self._ends[1]))
            self._judge(output_error(self._right, whole.run_cases(self._golden), whole.outputs))
            for (
                variant
            ) in self._model.manifest.variants:  # the first inference of each may take long: now nobody waits
                session.use(variant.name)
                session.invoke()
            session.use(self._first_variant)
        except BaseException:
            session.close()
            raise
        return session
