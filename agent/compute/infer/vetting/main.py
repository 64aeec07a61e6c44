"""The vetting process: opens and runs each model in a fork of itself.

The runtime is imported once, so that a fork takes milliseconds. The model may crash, hang or take over the
fork: that has limited memory and CPU time, never root's rights, and only the pipe for its outcome.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import sys
import time

import msgspec
import numpy as np

from agent.compute.infer.litert import CpuBackend, CpuSession, load_runtime, runtime_version
from agent.compute.infer.session import SessionOptions
from agent.compute.infer.vetting.process import Vet, VettingReply, requests
from agent.compute.infer.worker import protocol
from agent.compute.infer.worker.main import (
    describe_failure,
    drop_root_rights,
    exit_with_parent,
    init_child,
    limit_memory,
    lower_limit,
    trim_log,
)
from agent.compute.manifest import Model
from agent.errors import NO_JSON, BackendError, VedetteError
from agent.structs import json_decoder
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
_failures: msgspec.json.Decoder[protocol.Failed] = json_decoder(protocol.Failed)


def main(asked_by: int, answers_to: int, life: int) -> None:
    """Serve requests until the parent closes the pipe. The arguments are descriptors, see `ChildProcess`."""
    init_child(life)
    runtime = _runtime()
    drop_root_rights()
    with contextlib.suppress(protocol.ClosedError):
        while True:
            request, content = (
                requests.decode(protocol.receive(asked_by)),
                protocol.receive(asked_by, largest=protocol.LARGEST_REQUEST),
            )
            reply = _vet(request, content, (asked_by, answers_to), life, runtime)
            del content
            trim_log()
            protocol.send(answers_to, protocol.encode(reply))
    os._exit(0)


def _vet(request: Vet, content: bytes, ours: tuple[int, ...], life: int, runtime: str) -> VettingReply:
    outcome, writer = os.pipe()
    pid = os.fork()
    if not pid:
        for descriptor in (outcome, *ours):
            os.close(descriptor)
        _run_in_fork(request, content, writer, life)
    os.close(writer)
    with os.fdopen(outcome, "rb") as file:
        written = file.read(_LARGEST)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    exit_with_parent(life)  # the fork has taken the signal over
    return _reply(written, status, runtime)


def _run_in_fork(request: Vet, content: bytes, writer: int, life: int) -> None:
    """Open and run the model; does not return."""
    try:
        exit_with_parent(life)
        limit_memory(len(content), request.memory)
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
        os.write(writer, _FAILED + protocol.encode(describe_failure(error)))
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


def _reply(written: bytes, status: int, runtime: str) -> VettingReply:
    """Decode what a fork wrote, which may be anything, and its exit status."""
    stages, is_failed, error = written.partition(_FAILED)
    problem = None
    if is_failed:
        try:
            problem = _failures.decode(error)
        except NO_JSON:
            problem = protocol.Failed("its error cannot be read")
    opened, ran = _OPENED in stages, _RAN in stages and not status
    return VettingReply(runtime, opened, ran, max(0, -status), max(0, status), problem)


def _runtime() -> str:
    """Import the runtime and return its name and version; without one every fork reports that."""
    with contextlib.suppress(VedetteError):
        return runtime_version(load_runtime()[0])
    return "the runtime"


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
