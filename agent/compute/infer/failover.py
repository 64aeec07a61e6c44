"""A session on an accelerator with CPU fallback: every input gets an answer.

If the device fails, hangs, crashes or answers wrongly, the CPU answers the same input. The device is reopened in
the background, with growing pauses, and used again when its answers are right.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from agent.backoff import Backoff
from agent.compute.infer.benchmark import Inputs, describe_error, golden_inputs, output_error, tolerance
from agent.compute.infer.chain import ModelChain
from agent.compute.infer.session import BackendSpec, Session, SessionOptions
from agent.compute.infer.sharing import SessionPools
from agent.compute.infer.vetting import VETTING, Vetting
from agent.compute.infer.worker import DEADLINE_S, PATIENCE_S, WorkerSession
from agent.compute.manifest import Model
from agent.compute.tflite.model import TensorSpec
from agent.errors import BackendError, ModelError, VedetteError, reason_of
from agent.types import Array

log = logging.getLogger(__name__)


class DeviceReopener:
    """Opens one device in a thread of its own until it succeeds.

    Attributes:
        reason: why the device is not in use; empty: it is, or will be with the next `take_ready`.
    """

    def __init__(
        self,
        opens: Callable[[], Session],
        name: str,
        retry_s: float,
        longest_pause_s: float = 300.0,
        stable_s: float = 60.0,
    ) -> None:
        """Open nothing before `start`.

        Args:
            opens: returns the device if its answers are right, else raises.
            name: of the device, for messages.
            retry_s: first pause before it is opened again, s; the following pauses grow.
            longest_pause_s: to which they grow, s.
            stable_s: use after which a device that fails gets the first pause again, s.
        """
        self.reason = f"{name} is being opened"
        self._opens, self._name = opens, name
        self._backoff, self._stable_s = Backoff(retry_s, longest_pause_s, jitter=0.0), stable_s
        self._ready: Session | None = None
        self._to_close: list[Session] = []
        self._lock, self._closed, self._tried = threading.Lock(), threading.Event(), threading.Event()
        self._pause_s, self._taken_at = 0.0, time.monotonic()

    def start(self, wait_s: float) -> None:
        """Begin to open the device, and wait up to so long for the first result, s."""
        self._start_thread()
        self._tried.wait(wait_s)

    def reopen(self, session: Session | None, reason: str) -> None:
        """Close a failed session and open the device again after a pause."""
        if session is not None:
            self._to_close.append(session)
        if time.monotonic() - self._taken_at > self._stable_s:
            self._backoff.reset()
        self._pause_s = self._backoff.next_s()
        self._log_loss(reason)
        self._start_thread()

    @property
    def is_ready(self) -> bool:
        """True if `take_ready` would return the device. Costs nothing."""
        return self._ready is not None

    def take_ready(self) -> Session | None:
        """Return the reopened device once; None: it is not open."""
        with self._lock:
            session, self._ready = self._ready, None
        if session is not None:
            log.info("%s %s", self._name, "is in use again" if self._pause_s else "is in use")
            self.reason, self._taken_at = "", time.monotonic()
        return session

    def close(self) -> None:
        """Stop opening the device."""
        with self._lock:
            self._closed.set()
            session, self._ready = self._ready, None
        if session is not None:
            session.close()
        self._close_lost()
        self._opens = _closed  # break the reference cycle with the session, which is large

    def _start_thread(self) -> None:
        threading.Thread(target=self._retry, name="recovery", daemon=True).start()

    def _retry(self) -> None:
        while not self._closed.wait(self._pause_s):
            self._close_lost()
            try:
                session = self._opens()
            except Exception as error:
                self._failed(error)
            else:
                self._hand_over(session)
                return

    def _failed(self, error: Exception) -> None:
        """Log the first failure; only `close` ends the retries."""
        if not isinstance(error, VedetteError | OSError):
            log.error("%s: internal error (please report)", self._name, exc_info=error)
        if self._pause_s:
            self.reason = reason_of(error)
        else:
            self._log_loss(reason_of(error))
        self._pause_s = self._backoff.next_s()
        self._tried.set()

    def _log_loss(self, reason: str) -> None:
        self.reason = reason
        log.warning("%s; the CPU answers until it comes back", reason)

    def _hand_over(self, session: Session) -> None:
        with self._lock:
            if not self._closed.is_set():
                self._ready = session
                self._tried.set()
                return
        session.close()

    def _close_lost(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._to_close.pop().close()


def _closed() -> Session:
    raise BackendError("closed")


_FIRST_S = 5.0
_CHECK_S = 30.0
_GOLDEN = 2
"""Golden inputs that the device must answer each time that it is opened."""
_HANGS = 20.0
"""The deadline is so many times the CPU's latency, if that is above `DEADLINE_S`."""


class FailoverSession:
    """Session on an accelerator with CPU fallback."""

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
        pools: SessionPools | None = None,
    ) -> None:
        """Open the model on the CPU and begin to open it on the device.

        Args:
            model: to run.
            plan: the device.
            options: see `SessionOptions`.
            inputs: that the device must answer as the CPU does when it is opened.
            deadline_s: timeout of an inference on the device, s; 0: `DEADLINE_S`, or more if the CPU is slow.
            check_s: interval at which the CPU checks an answer of the device, s.
            retry_s: pause before the device is reopened for the first time, s.
            wait_s: time to wait for the device, s. The CPU answers until it is open.
            vetting: see `agent.compute.infer.backends.open_session`.
            pools: of the sessions that streams share, both on the CPU and on the device; None: it shares none.

        Raises:
            ModelError: not even the CPU runs the model. A device that cannot be opened is tried again later.
        """
        self._model, self._plan, self._options = model, plan, options
        self._check_s = check_s
        self._pools, vetting = pools, vetting or VETTING
        self._cpu = vetting.open(model, options) if pools is None else pools.open_cpu(model, options, vetting)
        self._first_variant = self._cpu.variant
        mean_s = self._compute_reference(inputs)
        self._deadline_s = deadline_s or max(DEADLINE_S, _HANGS * mean_s)
        self._device: Session | None = None
        self._checked = time.monotonic()
        self._reopener = DeviceReopener(self._open_device, f"{model.path}: {plan.backend}", retry_s)
        self._reopener.start(wait_s)
        self._switch_back()

    def _compute_reference(self, inputs: Inputs) -> float:
        """Compute the CPU's answers, which the device must repeat; return the mean time of one, s."""
        chain = ModelChain(self._cpu, self._model.manifest)
        self._chain_specs = chain.inputs, chain.outputs
        self._golden = inputs(chain.inputs)[:_GOLDEN]
        self._tolerance = tolerance(self._model.manifest, chain.outputs)
        began = time.monotonic()
        self._reference = chain.run_cases(self._golden)
        took_s = time.monotonic() - began
        self._cpu.select(self._first_variant)
        return took_s / max(1, len(self._golden))

    @property
    def backend(self) -> str:
        """Name of the backend that answers now."""
        return self._active.backend

    @property
    def degraded(self) -> str:
        return self._reopener.reason if self._device is None else ""

    @property
    def variant(self) -> str:
        return self._cpu.variant

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._cpu.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._cpu.outputs

    def select(self, variant: str) -> None:
        self._cpu.select(variant)
        if self._device is not None:
            try:
                self._select_on(self._device)
            except ModelError as error:
                self._fall_back(str(error))

    def input(self, index: int) -> Array:
        if index == 0 and self._reopener.is_ready:
            self._switch_back()
        try:
            return self._active.input(index)
        except ModelError as error:  # a device that is shared may fail before it is this stream's turn
            if self._device is None:
                raise
            self._fall_back(str(error))
            return self._cpu.input(index)

    def invoke(self) -> None:
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
            self._invoke_cpu(device)

    def output(self, index: int) -> Array:
        return self._active.output(index)

    def close(self) -> None:
        self._reopener.close()
        if self._device is not None:
            self._device.close()
            self._device = None
        self._cpu.close()

    @property
    def _active(self) -> Session:
        return self._cpu if self._device is None else self._device

    def _invoke_cpu(self, device: Session) -> None:
        """Run the CPU on the device's inputs, which lie in this process's memory."""
        for index in range(len(self.inputs)):
            np.copyto(self._cpu.input(index), device.input(index))
        self._cpu.invoke()

    def _check(self, device: Session) -> None:
        self._checked = time.monotonic()
        self._invoke_cpu(device)
        outputs = range(len(self.outputs))
        right = [np.array(self.outputs[n].real(self._cpu.output(n))) for n in outputs]
        given = [np.array(self.outputs[n].real(device.output(n))) for n in outputs]
        self._check_error(output_error([right], [given], self.outputs))

    def _check_error(self, off: float) -> None:
        if reason := describe_error(off, self._tolerance):
            raise BackendError(f"{self._plan.backend} {reason}")

    def _fall_back(self, reason: str) -> None:
        device, self._device = self._device, None
        self._reopener.reopen(device, reason)

    def _switch_back(self) -> None:
        device = self._reopener.take_ready()
        if device is None:
            return
        try:
            self._select_on(device)
        except ModelError as error:
            self._reopener.reopen(device, str(error))
        else:
            self._device, self._checked = device, time.monotonic()

    def _select_on(self, device: Session) -> None:
        """Select the CPU's variant on the device. Raises ModelError if it lacks that or has other tensors."""
        device.select(self.variant)
        self._check_alike((*device.inputs, *device.outputs), (*self.inputs, *self.outputs))

    def _check_alike(self, there: Sequence[TensorSpec], here: Sequence[TensorSpec]) -> None:
        if [(one.shape, one.dtype) for one in there] != [(one.shape, one.dtype) for one in here]:
            found = ", ".join(map(str, there))
            raise BackendError(f"{self._plan.backend} has other tensors than the CPU: {found}")

    def _open_device(self) -> Session:
        """Open the device and check its answers. Raises BackendError if it fails or answers wrongly."""
        options = SessionOptions(self._first_variant, self._options.threads)
        opens = WorkerSession if self._pools is None else self._pools.open_worker
        session = opens(self._model, self._plan, options, deadline_s=self._deadline_s)
        try:
            chain = ModelChain(session, self._model.manifest)
            self._check_alike((*chain.inputs, *chain.outputs), (*self._chain_specs[0], *self._chain_specs[1]))
            self._check_error(output_error(self._reference, chain.run_cases(self._golden), chain.outputs))
            for variant in self._model.manifest.variants:  # the first inference of each may take long
                session.select(variant.name)
                session.invoke()
            session.select(self._first_variant)
        except BaseException:
            session.close()
            raise
        return session
