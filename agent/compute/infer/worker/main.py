"""The worker process of `WorkerSession`: runs one model, with its tensors in shared memory.

It drops root's rights before it receives the model, unless only root may open the device.
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

from agent.compute.infer.chain import ModelChain, TimingRun, time_inference, time_turn
from agent.compute.infer.litert import CpuBackend, keep_stderr, load_runtime, runtime_version, tensors_max
from agent.compute.infer.session import BackendSpec, Session, SessionOptions
from agent.compute.infer.vetting.unprivileged import device_groups, drop_root, is_root
from agent.compute.infer.worker import protocol
from agent.compute.infer.worker.process import LOG_BYTES
from agent.compute.manifest import Model
from agent.errors import BackendError, ModelError, VedetteError
from agent.types import Array

_OOM = "/proc/self/oom_score_adj"
_EXPENDABLE = b"500"
"""OOM score adjustment, -1000 to 1000, see proc_pid_oom_score_adj(5): when memory runs out, the kernel kills this
process before its parent."""
_COPIES, _STACKS = 4, 128 * 2**20
"""Copies of the weights, and bytes for the stacks of threads: small models need some 60 MB."""


def init_child(life: int) -> None:
    """Set up a process that `ChildProcess` started: it is killed if memory runs out, and logs nothing.

    It ends with its parent, which holds the other end of the pipe `life` open.
    """
    exit_with_parent(life)
    with suppress(OSError), _opened(_OOM) as setting:
        os.write(setting, _EXPENDABLE)
    # Ctrl-C is the parent's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable()
    keep_stderr()


def exit_with_parent(life: int) -> None:
    """Have the kernel kill this process when the other end of a pipe is closed, even in a driver call.

    PR_SET_PDEATHSIG would not do: it follows the parent's thread, which may end earlier.
    """
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(life, fcntl.F_SETFL, os.O_ASYNC)
    if select.select([life], [], [], 0)[0]:  # it is closed already
        os._exit(0)


def limit_memory(model_bytes: int, data: int = 0) -> None:
    """Limit the memory that this process may add to open and run a model; it leaves no core dump.

    Args:
        model_bytes: size of the model. Runtimes copy its weights, unpacked to 8 bits or more.
        data: limit, bytes; 0: `tensors_max`, a few copies of the weights, and stacks of threads.
    """
    most = _data_kib() * 1024 + (data or tensors_max() + _COPIES * model_bytes + _STACKS)
    lower_limit(resource.RLIMIT_CORE, 0, 0)
    lower_limit(resource.RLIMIT_DATA, most, most)


def lower_limit(kind: int, soft: int, hard: int) -> None:
    """Set limits of this process, see setrlimit(2), without exceeding its hard one, which nobody may raise."""
    most = resource.getrlimit(kind)[1]
    limits = (soft, hard) if most == resource.RLIM_INFINITY else (min(soft, most), min(hard, most))
    resource.setrlimit(kind, limits)


def _data_kib() -> int:
    """Return this process's data memory, as RLIMIT_DATA counts it, KiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmData:")), 0)


def trim_log() -> None:
    """Continue the log from its start when it is half full."""
    if os.lseek(2, 0, os.SEEK_CUR) > LOG_BYTES // 2:
        os.lseek(2, 0, os.SEEK_SET)


@contextmanager
def _opened(setting: str) -> Iterator[int]:
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
"""Modules that opening a model imports, by the kind of its plan."""


def main(asked_by: int, answers_to: int, life: int, tensors: int) -> None:
    """Serve requests until the parent closes the pipe. The arguments are descriptors, see `ChildProcess`."""
    init_child(life)
    with contextlib.suppress(protocol.ClosedError):
        _Server(asked_by, answers_to, tensors).serve()
    # Skip the libraries' cleanup, in which some crash.
    os._exit(0)


class _Server:
    def __init__(self, asked_by: int, answers_to: int, tensors: int) -> None:
        self._from, self._to, self._tensors = asked_by, answers_to, tensors
        self._end = 0
        self._mapped: dict[str, tuple[protocol.TensorRegion, list[Array], list[Array]]] = {}

    def serve(self) -> None:
        self._reply(self._open)
        while True:
            message = self._receive()
            if message == protocol.RUN:
                self._run()
            else:
                self._reply(lambda message=message: self._handle(protocol.requests.decode(message)))

    def _receive(self) -> bytes:
        return protocol.receive(self._from, largest=protocol.LARGEST_REQUEST)

    def _open(self) -> protocol.Answer:
        request = protocol.requests.decode(self._receive())
        assert isinstance(request, protocol.OpenModel)
        if not request.as_root:
            drop_root_rights(request.plan)
        content = self._receive()
        if request.plan.kind == "cpu":
            limit_memory(len(content))
        model = Model(content, "", request.manifest, request.path)
        options = SessionOptions(request.variant, request.threads or request.plan.threads)
        self._manifest, self._path = model.manifest, request.path
        self._session, runtime, nodes, delegated = open_model(model, request.plan, options)
        return protocol.ModelOpened(runtime, nodes, delegated, self._select(request.variant))

    def _handle(self, request: protocol.Request) -> protocol.Answer:
        if isinstance(request, protocol.SelectVariant):
            return self._select(request.variant)
        if isinstance(request, protocol.TimeModel):
            return self._time(request)
        if isinstance(request, protocol.TimeTurn):
            self._write_inputs()
            return time_turn(self._session, request.seconds, time.process_time)
        used = resource.getrusage(resource.RUSAGE_SELF)
        return protocol.Usage(used.ru_utime + used.ru_stime, _resident_mb())

    def _select(self, variant: str) -> protocol.TensorRegion:
        session = self._session
        session.select(variant)
        if variant not in self._mapped:
            specs = (*session.inputs, *session.outputs)
            size = protocol.region_bytes(specs)
            if not protocol.fits(self._end, size):
                raise BackendError(
                    f"{self._path}: its tensors take {(self._end + size) / 1e6:.0f} MB; a worker process "
                    f"may have at most {protocol.TENSORS_BYTES / 1e6:.0f} MB"
                )
            region = protocol.TensorRegion(session.inputs, session.outputs, self._end, size)
            arrays = protocol.map_tensors(self._tensors, region)
            self._end += size
            count = len(session.inputs)
            self._mapped[variant] = (region, arrays[:count], arrays[count:])
        return self._mapped[variant][0]

    def _time(self, request: protocol.TimeModel) -> TimingRun:
        variant, chain = self._session.variant, self._chain
        try:
            self._select(chain.first)
            chain.set_input(self._mapped[chain.first][1])
            run = TimingRun((), 0.0)
            if request.seconds:
                run = time_inference(chain, request.seconds, time.process_time)
            else:
                chain.invoke()
            self._select(chain.last)
            for index, target in enumerate(self._mapped[chain.last][2]):
                self._copy(self._session.output(index), target, index)
            return run
        finally:
            self._session.select(variant)

    @cached_property
    def _chain(self) -> ModelChain:
        return ModelChain(self._session, self._manifest)

    def _run(self) -> None:
        session = self._session
        try:
            self._write_inputs()
            session.invoke()
            for index, target in enumerate(self._mapped[session.variant][2]):
                self._copy(session.output(index), target, index)
        except Exception as error:
            protocol.send(self._to, protocol.encode(describe_failure(error)))
        else:
            protocol.send(self._to, protocol.RUN)
        trim_log()

    def _copy(self, output: Array, target: Array, index: int) -> None:
        if output.shape != target.shape:
            sizes = f"{list(output.shape)}, and had {list(target.shape)} before"
            raise ModelError(f"{self._path}: output {index} has the shape {sizes}: expected fixed sizes")
        np.copyto(target, output)

    def _write_inputs(self) -> None:
        for index, source in enumerate(self._mapped[self._session.variant][1]):
            np.copyto(self._session.input(index), source)

    def _reply(self, handler: Any) -> None:
        try:
            answer = handler()
        except protocol.ClosedError:
            raise
        except Exception as error:
            answer = describe_failure(error)
        protocol.send(self._to, protocol.encode(answer))


def drop_root_rights(plan: BackendSpec = _CPU) -> None:
    """Drop root's rights, if this process has them. Call before receiving a model's bytes.

    The plan's modules and library are loaded first, because the other user may not be allowed to read them.
    """
    if not is_root():
        return
    with contextlib.suppress(ImportError, VedetteError):
        runtime_version(load_runtime()[0])
        for module in _NEEDED[plan.kind]:
            importlib.import_module(module)
    if plan.kind == "delegate":
        with contextlib.suppress(OSError):  # loading the delegate later reports why
            ctypes.PyDLL(plan.library)
    drop_root([] if plan.kind == "cpu" else device_groups())


def open_model(model: Model, plan: BackendSpec, options: SessionOptions) -> tuple[Session, str, int, int]:
    """Open a model as `Backend.open`; return session, runtime, nodes and delegated nodes (-1: unknown)."""
    if plan.kind == "accelerator":
        from agent.compute.infer.accelerator import AcceleratorSession

        accelerated = AcceleratorSession(model, plan, options.variant)
        return accelerated, runtime_version("litert"), accelerated.nodes, -1
    cpu = CpuBackend(plan).open(model, options)
    return cpu, runtime_version(load_runtime()[0]), cpu.nodes, cpu.delegated


def describe_failure(error: Exception) -> protocol.Failed:
    """Describe an error for the parent."""
    text = str(error) if isinstance(error, VedetteError) else f"{type(error).__name__}: {error}"
    return protocol.Failed(
        text[: protocol.LONGEST_TEXT], isinstance(error, ModelError) and not isinstance(error, BackendError)
    )


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
