"""The process of `agent.compute.infer.vetting.process`: opens and runs each model that comes in a fork of itself.

The runtime is imported once; a fork then takes milliseconds. It may crash, hang or be taken over by the model: it
has no more rights than this process, which are never root's, less memory and CPU time, and of the pipes only the
one for its outcome.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import sys
from pathlib import Path

import msgspec
import numpy as np

from agent.compute.infer.litert import CpuBackend, load_runtime, runtime_version
from agent.compute.infer.session import SessionOptions
from agent.compute.infer.vetting.process import Vet, VettingReply, requests
from agent.compute.infer.worker import protocol
from agent.compute.infer.worker.main import end_with, failed, give_up_root, init_child, trim_log
from agent.compute.manifest import Model
from agent.errors import NO_JSON, BackendError, VedetteError
from agent.types import Array

_OPENED, _RAN, _FAILED = b"o", b"r", b"f"
"""What a fork writes when the model is open, when it has run, and before an error."""
_LARGEST = 64 * 1024
"""Bytes that a fork may write."""
_MOST = 2**20
"""Elements of an input that are filled: noise takes time and memory."""


_failures: msgspec.json.Decoder[protocol.Failed] = msgspec.json.Decoder(protocol.Failed)


def main(asked_by: int, answers_to: int, life: int) -> None:
    """Serve until the other end closes.

    Args:
        asked_by: descriptor of the pipe from the other end.
        answers_to: descriptor of the pipe to it.
        life: see `agent.compute.infer.worker.main.init_child`.
    """
    init_child(life)
    runtime = _runtime()
    give_up_root()
    with contextlib.suppress(protocol.ClosedError):
        while True:
            request, content = (
                requests.decode(protocol.get(asked_by)),
                protocol.get(asked_by, largest=protocol.LARGEST_REQUEST),
            )
            told = _tried(request, content, (asked_by, answers_to), life, runtime)
            del content
            trim_log()
            protocol.put(answers_to, protocol.encode(told))
    os._exit(0)


def _tried(request: Vet, content: bytes, ours: tuple[int, ...], life: int, runtime: str) -> VettingReply:
    """Fork, and tell how the fork ended."""
    outcome, told = os.pipe()
    pid = os.fork()
    if not pid:
        for descriptor in (outcome, *ours):
            os.close(descriptor)
        _try(request, content, told, life)
    os.close(told)
    with os.fdopen(outcome, "rb") as file:
        said = file.read(_LARGEST)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    end_with(life)  # which followed the fork
    return _understood(said, status, runtime)


def _try(request: Vet, content: bytes, told: int, life: int) -> None:
    """In the fork; does not return."""
    try:
        end_with(life)
        _limit(request)
        model, options = (
            Model(content, "", request.manifest, request.path),
            SessionOptions(threads=request.threads),
        )
        session = CpuBackend().open(model, options)
        os.write(told, _OPENED)
        for variant in request.manifest.variants:
            session.use(variant.name)
            with contextlib.suppress(BackendError):  # that this input is refused says nothing about others
                for index in range(len(session.inputs)):
                    _fill(session.input(index))
                session.invoke()
        os.write(told, _RAN)
    except Exception as error:
        os.write(told, _FAILED + protocol.encode(failed(error)))
    finally:
        os._exit(0)


def _fill(tensor: Array) -> None:
    """With noise in the range of pictures and sound; what holds no numbers stays as it is."""
    some = tensor.reshape(-1)[:_MOST]
    noise = np.frombuffer(random.Random(20).randbytes(some.size), np.uint8)
    if tensor.dtype.kind == "f":
        some[...] = noise / 255.0
    elif tensor.dtype.kind in "iu":
        some[...] = noise if tensor.dtype.kind == "u" else noise.astype(np.int16) - 128


def _limit(request: Vet) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (request.cpu_s, request.cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_AS, (request.memory, request.memory))
    data = _data_kib() * 1024 + request.data
    resource.setrlimit(resource.RLIMIT_DATA, (data, data))


def _data_kib() -> int:
    """Memory of its own that this process has, as RLIMIT_DATA counts it, KiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmData:")), 0)


def _understood(said: bytes, status: int, runtime: str) -> VettingReply:
    """What a fork wrote, which may be anything, and how it ended."""
    stages, is_failed, error = said.partition(_FAILED)
    problem = None
    if is_failed:
        try:
            problem = _failures.decode(error)
        except NO_JSON:
            problem = protocol.Failed("its error cannot be read")
    opened, ran = _OPENED in stages, _RAN in stages and not status
    return VettingReply(runtime, opened, ran, max(0, -status), max(0, status), problem)


def _runtime() -> str:
    """Import the runtime, and give its name and version; without one every fork says so."""
    with contextlib.suppress(VedetteError):
        return runtime_version(load_runtime()[0])
    return "the runtime"


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
