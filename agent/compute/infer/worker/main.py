"""The worker process: runs a model, with its tensors in shared memory. See `worker.session`.

It drops root's rights before the model comes, but for a device that only root may open.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib
import logging
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from agent.compute.infer.chain import ModelChain, TimingRun, time_inference
from agent.compute.infer.litert import CpuBackend, keep_stderr, load_runtime, runtime_version
from agent.compute.infer.session import BackendSpec, Session, SessionOptions
from agent.compute.infer.vetting.unprivileged import device_groups, drop_root, is_root
from agent.compute.infer.worker import protocol
from agent.compute.infer.worker.process import LOG_BYTES
from agent.compute.manifest import Model
from agent.errors import BackendError, ModelError, VedetteError
from agent.types import Array

# What a process that `agent.compute.infer.worker.process` starts does first, and between its answers.

_OOM = "/proc/self/oom_score_adj"
_EXPENDABLE = b"500"
"""Of -1000 to 1000, see proc_pid_oom_score_adj(5): where memory runs out this ends before who started it."""


def init_child(life: int) -> None:
    """Live as long as the other end does, and be the first to go where memory is short.

    Args:
        life: descriptor of a pipe that the other end holds open as long as this process is to live.
    """
    end_with(life)
    with suppress(OSError), _opened(_OOM) as setting:
        os.write(setting, _EXPENDABLE)
    # What ends a terminal's programs is the other end's to judge.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable()
    keep_stderr()


def end_with(life: int) -> None:
    """Have the kernel kill this process when the other end of a pipe is closed, whatever it hangs in.

    PR_SET_PDEATHSIG would not do: it goes by the parent's thread, which may end before.

    Args:
        life: see `init_child`.
    """
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(life, fcntl.F_SETFL, os.O_ASYNC)
    if select.select([life], [], [], 0)[0]:  # it is closed already
        os._exit(0)


def trim_log() -> None:
    """Have what is said next overwrite the oldest, when half of the room for it is full."""
    if os.lseek(2, 0, os.SEEK_CUR) > LOG_BYTES // 2:
        os.lseek(2, 0, os.SEEK_SET)


@contextmanager
def _opened(setting: str) -> Iterator[int]:
    """One of the kernel's, to be written; nothing on a disk."""
    descriptor = os.open(setting, os.O_WRONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


_CPU = BackendSpec()
_NEEDED = {
    "cpu": ("agent.compute.tflite.read",),
    "delegate": ("agent.compute.tflite.read",),
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
        life: see `agent.compute.infer.worker.main.init_child`.
        tensors: descriptor of the memory that is shared.
    """
    init_child(life)
    with contextlib.suppress(protocol.ClosedError):
        _Server(asked_by, answers_to, tensors).serve()
    # Libraries that crash while they are taken down have done their work.
    os._exit(0)


class _Server:
    def __init__(self, asked_by: int, answers_to: int, tensors: int) -> None:
        self._from, self._to, self._tensors = asked_by, answers_to, tensors
        self._end = 0
        self._bound: dict[str, tuple[protocol.TensorRegion, list[Array], list[Array]]] = {}

    def serve(self) -> None:
        """Answer every message.

        Raises:
            ClosedError: the other end is gone.
        """
        self._tell(self._open)
        while True:
            message = self._receive()
            if message == protocol.RUN:
                self._run()
            else:
                self._tell(lambda message=message: self._asked(protocol.requests.decode(message)))

    def _receive(self) -> bytes:
        return protocol.get(self._from, largest=protocol.LARGEST_REQUEST)

    def _open(self) -> protocol.Answer:
        request = protocol.requests.decode(self._receive())
        assert isinstance(request, protocol.OpenModel)
        if not request.as_root:
            give_up_root(request.plan)
        content = self._receive()
        model = Model(content, "", request.manifest, request.path)
        options = SessionOptions(request.variant, request.threads or request.plan.threads)
        self._manifest, self._path = model.manifest, request.path
        self._session, runtime, nodes, delegated = opened(model, request.plan, options)
        return protocol.Opened(runtime, nodes, delegated, self._use(request.variant))

    def _asked(self, request: protocol.Request) -> protocol.Answer:
        if isinstance(request, protocol.SelectVariant):
            return self._use(request.variant)
        if isinstance(request, protocol.TimeModel):
            return self._time(request)
        used = resource.getrusage(resource.RUSAGE_SELF)
        return protocol.Usage(used.ru_utime + used.ru_stime, _resident_mb())

    def _use(self, variant: str) -> protocol.TensorRegion:
        session = self._session
        session.use(variant)
        if variant not in self._bound:
            specs = (*session.inputs, *session.outputs)
            size = protocol.size_of(specs)
            if not protocol.fits(self._end, size):
                raise BackendError(
                    f"{self._path}: its tensors take {(self._end + size) / 1e6:.0f} MB; expected at most "
                    f"{protocol.TENSORS_BYTES / 1e6:.0f} MB in a process of its own"
                )
            stretch = protocol.TensorRegion(session.inputs, session.outputs, self._end, size)
            arrays = protocol.mapped(self._tensors, stretch)
            self._end += size
            count = len(session.inputs)
            self._bound[variant] = (stretch, arrays[:count], arrays[count:])
        return self._bound[variant][0]

    def _time(self, request: protocol.TimeModel) -> TimingRun:
        variant, whole = self._session.variant, self._whole
        try:
            self._use(whole.first)
            whole.set_input(self._bound[whole.first][1])
            turn = TimingRun((), 0.0)
            if request.seconds:
                turn = time_inference(whole, request.seconds, time.process_time)
            else:
                whole.invoke()
            self._use(whole.last)
            for index, taken in enumerate(self._bound[whole.last][2]):
                np.copyto(taken, self._session.output(index))
            return turn
        finally:
            self._session.use(variant)

    @cached_property
    def _whole(self) -> ModelChain:
        return ModelChain(self._session, self._manifest)

    def _run(self) -> None:
        _, inputs, outputs = self._bound[self._session.variant]
        session = self._session
        try:
            for index, given in enumerate(inputs):
                np.copyto(session.input(index), given)
            session.invoke()
            for index, taken in enumerate(outputs):
                np.copyto(taken, session.output(index))
        except Exception as error:
            protocol.put(self._to, protocol.encode(failed(error)))
        else:
            protocol.put(self._to, protocol.RUN)
        trim_log()

    def _tell(self, answer: Any) -> None:
        try:
            told = answer()
        except protocol.ClosedError:
            raise
        except Exception as error:
            told = failed(error)
        protocol.put(self._to, protocol.encode(told))


def give_up_root(plan: BackendSpec = _CPU) -> None:
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


def opened(model: Model, plan: BackendSpec, options: SessionOptions) -> tuple[Session, str, int, int]:
    """The session, the runtime's name, and how many nodes there are and have been delegated (-1: unknown).

    Raises:
        ModelError, BackendError: see `Backend.open`.
    """
    if plan.kind == "accelerator":
        from agent.compute.infer.accelerator import AcceleratorSession

        accelerated = AcceleratorSession(model, plan, options.variant)
        return accelerated, runtime_version("litert"), accelerated.nodes, -1
    cpu = CpuBackend(plan).open(model, options)
    return cpu, runtime_version(load_runtime()[0]), cpu.nodes, cpu.delegated


def failed(error: Exception) -> protocol.Failed:
    """What to tell of an error."""
    text = str(error) if isinstance(error, VedetteError) else f"{type(error).__name__}: {error}"
    return protocol.Failed(
        text[: protocol.LONGEST_TEXT], isinstance(error, ModelError) and not isinstance(error, BackendError)
    )


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
