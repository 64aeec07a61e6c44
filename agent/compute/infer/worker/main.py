"""The process of `agent.compute.infer.worker`: opens a model and runs it when told to, until its pipe closes.

It drops root's rights before the model comes, but for a device that only root may open.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import resource
import sys
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from agent.compute.infer import wire
from agent.compute.infer.backend import Options, Plan, Session
from agent.compute.infer.child import begin, forget_talk
from agent.compute.infer.litert import CpuBackend, load_runtime, runtime_version
from agent.compute.infer.turn import Turn, take
from agent.compute.infer.unprivileged import device_groups, drop_root, is_root
from agent.compute.infer.whole import Whole
from agent.errors import BackendError, ModelError, VedetteError
from agent.manifest import Model
from agent.messages import Array

_CPU = Plan()
_NEEDED = {
    "cpu": ("agent.compute.infer.modelfile",),
    "delegate": ("agent.compute.infer.modelfile",),
    "accelerator": (
        "agent.compute.infer.accelerator",
        "ai_edge_litert.compiled_model",
        "ai_edge_litert.gpu_options",
        "ai_edge_litert.options",
    ),
}
"""Modules that are imported when a model is opened, by the kind of its plan."""


def main(asked_by: int, answers_to: int, life: int, tensors: int) -> None:
    """Serve until the other end closes.

    Args:
        asked_by: descriptor of the pipe from the other end.
        answers_to: descriptor of the pipe to it.
        life: see `agent.compute.infer.child.begin`.
        tensors: descriptor of the memory that is shared.
    """
    begin(life)
    with contextlib.suppress(wire.ClosedError):
        _Server(asked_by, answers_to, tensors).serve()
    # Libraries that crash while they are taken down have done their work.
    os._exit(0)


class _Server:
    def __init__(self, asked_by: int, answers_to: int, tensors: int) -> None:
        self._from, self._to, self._tensors = asked_by, answers_to, tensors
        self._end = 0
        self._bound: dict[str, tuple[wire.Stretch, list[Array], list[Array]]] = {}

    def serve(self) -> None:
        """Answer every message.

        Raises:
            ClosedError: the other end is gone.
        """
        self._tell(self._open)
        while True:
            message = self._receive()
            if message == wire.RUN:
                self._run()
            else:
                self._tell(lambda message=message: self._asked(wire.requests.decode(message)))

    def _receive(self) -> bytes:
        return wire.get(self._from, largest=wire.LARGEST_REQUEST)

    def _open(self) -> wire.Answer:
        request = wire.requests.decode(self._receive())
        assert isinstance(request, wire.Open)
        if not request.as_root:
            give_up_root(request.plan)
        content = self._receive()
        model = Model(content, "", request.manifest, request.path)
        options = Options(request.rung, request.threads or request.plan.threads)
        self._manifest, self._path = model.manifest, request.path
        self._session, runtime, nodes, delegated = opened(model, request.plan, options)
        return wire.Opened(runtime, nodes, delegated, self._use(request.rung))

    def _asked(self, request: wire.Request) -> wire.Answer:
        if isinstance(request, wire.Use):
            return self._use(request.rung)
        if isinstance(request, wire.Time):
            return self._time(request)
        used = resource.getrusage(resource.RUSAGE_SELF)
        return wire.Usage(used.ru_utime + used.ru_stime, _resident_mb())

    def _use(self, rung: str) -> wire.Stretch:
        session = self._session
        session.use(rung)
        if rung not in self._bound:
            specs = (*session.inputs, *session.outputs)
            size = wire.size_of(specs)
            if not wire.fits(self._end, size):
                raise BackendError(
                    f"{self._path}: its tensors take {(self._end + size) / 1e6:.0f} MB; expected at most "
                    f"{wire.TENSORS_BYTES / 1e6:.0f} MB in a process of its own"
                )
            stretch = wire.Stretch(session.inputs, session.outputs, self._end, size)
            arrays = wire.mapped(self._tensors, stretch)
            self._end += size
            count = len(session.inputs)
            self._bound[rung] = (stretch, arrays[:count], arrays[count:])
        return self._bound[rung][0]

    def _time(self, request: wire.Time) -> Turn:
        rung, whole = self._session.rung, self._whole
        try:
            self._use(whole.first)
            whole.give(self._bound[whole.first][1])
            turn = Turn((), 0.0)
            if request.seconds:
                turn = take(whole, request.seconds, time.process_time)
            else:
                whole.invoke()
            self._use(whole.last)
            for index, taken in enumerate(self._bound[whole.last][2]):
                np.copyto(taken, self._session.output(index))
            return turn
        finally:
            self._session.use(rung)

    @cached_property
    def _whole(self) -> Whole:
        return Whole(self._session, self._manifest)

    def _run(self) -> None:
        _, inputs, outputs = self._bound[self._session.rung]
        session = self._session
        try:
            for index, given in enumerate(inputs):
                np.copyto(session.input(index), given)
            session.invoke()
            for index, taken in enumerate(outputs):
                np.copyto(taken, session.output(index))
        except Exception as error:
            wire.put(self._to, wire.encode(failed(error)))
        else:
            wire.put(self._to, wire.RUN)
        forget_talk()

    def _tell(self, answer: Any) -> None:
        try:
            told = answer()
        except wire.ClosedError:
            raise
        except Exception as error:
            told = failed(error)
        wire.put(self._to, wire.encode(told))


def give_up_root(plan: Plan = _CPU) -> None:
    """Drop root's rights, if this process has them. Call before it takes a model's bytes.

    Args:
        plan: what is to be opened. The runtime and the modules and library for it are loaded before: the other
            user need not be allowed to read where they lie.

    Raises:
        OSError: the kernel refuses.
    """
    if not is_root():
        return
    with contextlib.suppress(ImportError, VedetteError):
        runtime_version(load_runtime()[0])
        for module in _NEEDED[plan.kind]:
            importlib.import_module(module)
    if plan.kind == "delegate":
        with contextlib.suppress(OSError):  # loading the delegate tells why, and then finds it loaded
            ctypes.PyDLL(plan.library)
    drop_root([] if plan.kind == "cpu" else device_groups())


def opened(model: Model, plan: Plan, options: Options) -> tuple[Session, str, int, int]:
    """The session, the runtime's name, and how many nodes there are and have been delegated (-1: unknown).

    Raises:
        ModelError, BackendError: see `Backend.open`.
    """
    if plan.kind == "accelerator":
        from agent.compute.infer.accelerator import AcceleratorSession

        accelerated = AcceleratorSession(model, plan, options.rung)
        return accelerated, runtime_version("litert"), accelerated.nodes, -1
    cpu = CpuBackend(plan).open(model, options)
    return cpu, runtime_version(load_runtime()[0]), cpu.nodes, cpu.delegated


def failed(error: Exception) -> wire.Failed:
    """What to tell of an error."""
    text = str(error) if isinstance(error, VedetteError) else f"{type(error).__name__}: {error}"
    return wire.Failed(
        text[: wire.LONGEST_TEXT], isinstance(error, ModelError) and not isinstance(error, BackendError)
    )


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
