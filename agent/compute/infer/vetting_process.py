"""The process in which unknown models are opened and run for the first time.

It imports the runtime once, so that a fork takes milliseconds, and opens and runs each model in a fork of itself.
The model may crash, hang or take over the fork: that has limited memory and CPU time, never root's rights, and
only the pipe for its outcome.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import sys
import time

import numpy as np

from agent.child import (
    LARGEST_REQUEST,
    ClosedError,
    Failed,
    describe_failure,
    drop_root,
    encode,
    init_child,
    limit_memory,
    lower_limit,
    receive,
    run_fork,
    send,
    trim_log,
)
from agent.compute.infer.litert import (
    CpuBackend,
    CpuSession,
    keep_stderr,
    load_runtime,
    memory_max,
    runtime_version,
)
from agent.compute.infer.session import SessionOptions
from agent.compute.infer.vetting import Vet, VettingReply
from agent.compute.manifest import Model
from agent.errors import NO_JSON, BackendError, VedetteError
from agent.structs import from_json
from agent.types import Array

_OPENED, _RAN, _FAILED = b"o", b"r", b"f"
"""Written by a fork when the model is open, when it has run, and before an error."""
_LARGEST = 64 * 1024
"""Most bytes that are read from a fork."""
_MOST = 2**20
"""Most elements of an input that are filled, because noise takes time and memory."""
_RANGES = ((0.0, 1.0), (-3.0, 3.0), (0.0, 255.0), (0.0, 1.0))
"""Values of float inputs, an inference each: those of pictures and sound, by how they are normalised."""
_SHARE = 0.25
"""Share of the CPU time after which no further inference begins."""
_RANDOM = random.SystemRandom()


def main(asked_by: int, answers_to: int, life: int) -> None:
    """Serve requests until the parent closes the pipe. The arguments are descriptors, see `ChildProcess`."""
    init_child(life)
    keep_stderr()
    runtime = "the runtime"
    with contextlib.suppress(VedetteError):  # without one every fork reports that
        runtime = runtime_version(load_runtime()[0])
    drop_root()
    with contextlib.suppress(ClosedError):
        while True:
            request = from_json(receive(asked_by), Vet)
            reply = _vet(request, receive(asked_by, largest=LARGEST_REQUEST), runtime)
            trim_log()
            send(answers_to, encode(reply))
    os._exit(0)


def _vet(request: Vet, content: bytes, runtime: str) -> VettingReply:
    written, status = run_fork(lambda writer: _run_model(request, content, writer), _LARGEST)
    stages, is_failed, error = written.partition(_FAILED)  # a fork may write anything
    problem = None
    if is_failed:
        try:
            problem = from_json(error, Failed)
        except NO_JSON:
            problem = Failed("its error cannot be read")
    return VettingReply(runtime, _OPENED in stages, _RAN in stages and not status, status, problem)


def _run_model(request: Vet, content: bytes, writer: int) -> None:
    """Open and run the model."""
    try:
        limit_memory(request.memory or memory_max(len(content)))
        lower_limit(resource.RLIMIT_CPU, request.cpu_s, request.cpu_s + 1)
        model, options = (
            Model(content, "", request.manifest, request.path),
            SessionOptions(threads=request.threads),
        )
        session = CpuBackend().open(model, options)
        os.write(writer, _OPENED)
        for variant in request.manifest.variants:
            session.select(variant.name)
            for number, values in enumerate(_RANGES):
                if not number or time.process_time() < _SHARE * request.cpu_s:
                    _infer(session, values)
        os.write(writer, _RAN)
    except Exception as error:
        os.write(writer, _FAILED + encode(describe_failure(error)))
    finally:
        os._exit(0)


def _infer(session: CpuSession, values: tuple[float, float]) -> None:
    with contextlib.suppress(BackendError):  # another input may be accepted
        for index in range(len(session.inputs)):
            _fill(session.input(index), *values)
        session.invoke()


def _fill(tensor: Array, least: float, most: float) -> None:
    """Fill a tensor of numbers with noise whose mean and contrast the model cannot foresee."""
    values = tensor.reshape(-1)[:_MOST]
    low, high = sorted((_RANDOM.random(), _RANDOM.random()))
    noise = low + (high - low) / 255.0 * np.frombuffer(os.urandom(values.size), np.uint8)
    if tensor.dtype.kind == "f":
        values[...] = least + (most - least) * noise
    elif tensor.dtype.kind in "iu":
        values[...] = (255.0 * noise).astype(np.int16) - (0 if tensor.dtype.kind == "u" else 128)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
