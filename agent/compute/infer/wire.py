"""What passes between a session in a worker process and that process: messages by pipe, tensors by shared memory.

Each message is a length, u32 little-endian, and so many bytes: JSON, or nothing for "run" and "has run". Tensors
lie in one anonymous file that both map; each rung has its own stretch of it.
"""

from __future__ import annotations

import mmap
import os
import select
import struct
import time
from collections.abc import Sequence

import msgspec
import numpy as np
from msgspec import Struct

from agent.compute.infer.backend import Plan
from agent.compute.infer.turn import Turn
from agent.compute.tensors import TensorSpec
from agent.manifest import Manifest
from agent.messages import Array

_LENGTH = struct.Struct("<I")
_LARGEST = 2 * 1024**3
_SMALL = 4096
"""Bytes of a message that goes in one write with its length."""
_ALIGNED = 64
RUN = b""
"""The message "run", and the answer "has run"."""


class Open(Struct, frozen=True, tag=True):
    """The first message, followed by the model's bytes; answered by `Opened`.

    Attributes:
        plan: how. rung: the first one. threads: see `Options`. manifest, path: of the model.
    """

    plan: Plan
    rung: str
    threads: int
    manifest: Manifest
    path: str


class Use(Struct, frozen=True, tag=True):
    """Change to a rung; answered by `Stretch`."""

    rung: str


class Ask(Struct, frozen=True, tag=True):
    """Tell what was used; answered by `Usage`."""


class Time(Struct, frozen=True, tag=True):
    """Run the whole model, from the first rung's input to the deepest one's output; answered by `Turn`.

    Attributes:
        seconds: for how long, see `agent.compute.infer.turn.take`, s; 0: once, at once and untimed.
    """

    seconds: float


class Stretch(Struct, frozen=True, tag=True):
    """Where a rung's tensors lie.

    Attributes:
        inputs, outputs: of the rung.
        offset, size: of the stretch, bytes.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    offset: int
    size: int


class Opened(Struct, frozen=True, tag=True):
    """The model is open.

    Attributes:
        runtime: name and version of what runs it.
        nodes: operations of the rung's graph.
        delegated: of those, how many the delegate or accelerator has taken; -1: not known.
        stretch: of the first rung.
    """

    runtime: str
    nodes: int
    delegated: int
    stretch: Stretch


class Usage(Struct, frozen=True, tag=True):
    """What the process has used.

    Attributes:
        cpu_s: CPU time, s. rss_mb: resident memory, MB.
    """

    cpu_s: float
    rss_mb: float


class Failed(Struct, frozen=True, tag=True):
    """It went wrong, and the process lives on.

    Attributes:
        text: in one line. model: the model is to blame, and not the backend.
    """

    text: str
    model: bool = False


Request = Open | Use | Ask | Time
Answer = Opened | Stretch | Usage | Turn | Failed
encode = msgspec.json.Encoder().encode
requests: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
answers: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)


class ClosedError(Exception):
    """The other end is gone."""


def put(descriptor: int, message: bytes, until: float | None = None) -> None:
    """Send a message.

    Args:
        descriptor: of a pipe; one that does not block, for `until` to mean anything.
        message: at most 4 GiB.
        until: s of the monotonic clock; None: as long as it takes.

    Raises:
        ClosedError: nobody reads it. TimeoutError: it was not taken in time.
    """
    length = _LENGTH.pack(len(message))
    for part in (length + message,) if len(message) < _SMALL else (length, message):
        rest = memoryview(part)
        while rest:
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BlockingIOError:
                _wait(descriptor, select.POLLOUT, until)
            except OSError as error:
                raise ClosedError from error


def get(descriptor: int, until: float | None = None, watch: int = -1) -> bytes:
    """The next message.

    Args:
        descriptor: of a pipe.
        until: s of the monotonic clock; None: as long as it takes.
        watch: another descriptor, which is readable when nothing will come any more; -1: none.

    Raises:
        ClosedError: the other end is gone. TimeoutError: nothing came in time.
    """
    (length,) = _LENGTH.unpack(_read(descriptor, _LENGTH.size, until, watch))
    if length > _LARGEST:
        raise ClosedError
    return _read(descriptor, length, until, watch)


def _read(descriptor: int, count: int, until: float | None, watch: int) -> bytes:
    buffer = bytearray(count)
    rest = memoryview(buffer)
    while rest:
        if until is not None:
            _wait(descriptor, select.POLLIN, until, watch)
        got = os.readv(descriptor, [rest])
        if not got:
            raise ClosedError
        rest = rest[got:]
    return bytes(buffer)


def _wait(descriptor: int, what: int, until: float | None, watch: int = -1) -> None:
    poll = select.poll()
    poll.register(descriptor, what)
    if watch >= 0:
        poll.register(watch, select.POLLIN)
    ready = poll.poll(None if until is None else max(0.0, until - time.monotonic()) * 1e3)
    if not ready:
        raise TimeoutError
    if all(number == watch for number, _ in ready):
        raise ClosedError


def size_of(specs: Sequence[TensorSpec]) -> int:
    """Bytes of a stretch that holds these, in whole pages."""
    size = sum(-(-_bytes(spec) // _ALIGNED) * _ALIGNED for spec in specs)
    return max(1, -(-size // mmap.ALLOCATIONGRANULARITY)) * mmap.ALLOCATIONGRANULARITY


def views(memory: mmap.mmap, specs: Sequence[TensorSpec]) -> list[Array]:
    """The tensors of a stretch, inputs first."""
    found: list[Array] = []
    at = 0
    for spec in specs:
        count = int(np.prod(spec.shape))
        found.append(np.frombuffer(memory, spec.dtype, count, at).reshape(spec.shape))
        at += -(-_bytes(spec) // _ALIGNED) * _ALIGNED
    return found


def _bytes(spec: TensorSpec) -> int:
    return int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize
