"""What passes between a session in a worker process and that process: messages by pipe, tensors by shared memory.

Each message is a length, u32 little-endian, and so many bytes: JSON, or nothing for "run" and "has run". Tensors
lie in one anonymous file that both map; each variant has its own stretch of it.

The process runs an untrusted model in an untrusted library: lengths and answers that come from it are checked
before anything is allocated or mapped, and it cannot change the size of the file.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import select
import struct
import time
from collections.abc import Sequence

import msgspec
import numpy as np
from msgspec import Struct

from agent.compute.infer.chain import TimingRun
from agent.compute.infer.session import BackendSpec
from agent.compute.manifest import Manifest
from agent.compute.tensors import TensorSpec
from agent.errors import NO_JSON
from agent.types import Array

_LENGTH = struct.Struct("<I")
LARGEST_REQUEST = 2 * 1024**3
"""Bytes of a message to the worker process: a model."""
LARGEST_ANSWER = 1024**2
"""Bytes of a message from it: names and shapes of a variant's tensors, or the times of one measurement."""
LONGEST_TEXT = 500
"""Characters of an error's text."""
TENSORS_BYTES = 512 * 1024**2
"""Size of the shared file. Only what is written takes memory."""
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_MOST_DIMENSIONS = 16
_LARGEST_INT = 2**31 - 1
"""TFLite stores sides of tensors and zero points in 32 bits."""
_DTYPES = frozenset({np.dtype(code).name for code in "?bBhHiIlLqQefdFD"} | {"bool", "bool_"})
"""Names of numbers in all versions of numpy."""
_SMALL = 4096
"""Bytes of a message that goes in one write with its length."""
_ALIGNED = 64
RUN = b""
"""The message "run", and the answer "has run"."""


class OpenModel(Struct, frozen=True, tag=True):
    """The first message, followed by the model's bytes; answered by `Opened`.

    Attributes:
        plan: how. variant: the first one. threads: see `Options`. manifest, path: of the model.
        as_root: keep root's rights, for a device that nobody else may open.
    """

    plan: BackendSpec
    variant: str
    threads: int
    manifest: Manifest
    path: str
    as_root: bool = False


class SelectVariant(Struct, frozen=True, tag=True):
    """Change to a variant; answered by `TensorRegion`."""

    variant: str


class GetUsage(Struct, frozen=True, tag=True):
    """Tell what was used; answered by `Usage`."""


class TimeModel(Struct, frozen=True, tag=True):
    """Run the whole model, from the first variant's input to the deepest one's output; answered by `TimingRun`.

    Attributes:
        seconds: for how long, see `agent.compute.infer.chain.time_inference`, s; 0: once, at once and untimed.
    """

    seconds: float


class TensorRegion(Struct, frozen=True, tag=True):
    """Where a variant's tensors lie.

    Attributes:
        inputs, outputs: of the variant.
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
        nodes: operations of the variant's graph.
        delegated: of those, how many the delegate or accelerator has taken; -1: not known.
        stretch: of the first variant.
    """

    runtime: str
    nodes: int
    delegated: int
    stretch: TensorRegion


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


Request = OpenModel | SelectVariant | GetUsage | TimeModel
Answer = Opened | TensorRegion | Usage | TimingRun | Failed
encode = msgspec.json.Encoder().encode
requests: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
answers: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)


class ClosedError(Exception):
    """The other end is gone."""


class NonsenseError(Exception):
    """The other end sent what is no message, or no answer that can be true."""


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


def get(descriptor: int, until: float | None = None, watch: int = -1, largest: int = LARGEST_ANSWER) -> bytes:
    """Receive the next message.

    Args:
        descriptor: of a pipe.
        until: s of the monotonic clock; None: as long as it takes.
        watch: another descriptor, which is readable when nothing will come any more; -1: none.
        largest: bytes of the message, at most.

    Raises:
        ClosedError: the other end is gone. TimeoutError: nothing came in time. NonsenseError: the message is
            announced as larger than `largest`; nothing was allocated for it.
    """
    (length,) = _LENGTH.unpack(_read(descriptor, _LENGTH.size, until, watch))
    if length > largest:
        raise NonsenseError(f"it announces a message of {length} bytes; expected at most {largest}")
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


def answer_of(message: bytes) -> Answer:
    """Decode an answer of a worker process, and check where it says that tensors lie.

    Raises:
        NonsenseError: it is no answer, or its tensors do not lie where it says.
    """
    try:
        answer = answers.decode(message)
    except NO_JSON as error:
        raise NonsenseError(str(error)[:LONGEST_TEXT]) from error
    if isinstance(answer, Opened):
        _check(answer.stretch)
    elif isinstance(answer, TensorRegion):
        _check(answer)
    return answer


def _check(stretch: TensorRegion) -> None:
    """Refuse what the shared file cannot hold: numpy and mmap would raise anything, or allocate it."""
    for spec in (*stretch.inputs, *stretch.outputs):
        if spec.dtype not in _DTYPES:
            raise NonsenseError(f"a tensor's type is {spec.dtype[:50]!r}")
        if not _is_possible(spec.shape):
            raise NonsenseError(f"a tensor's shape is {str(spec.shape)[:LONGEST_TEXT]}")
        if abs(spec.zero_point) > _LARGEST_INT:
            raise NonsenseError(f"a tensor's zero point is {str(spec.zero_point)[:LONGEST_TEXT]}")
    size = size_of((*stretch.inputs, *stretch.outputs))
    if stretch.size != size or not fits(stretch.offset, size) or stretch.offset % mmap.ALLOCATIONGRANULARITY:
        raise NonsenseError(
            f"tensors of {size} bytes lie at {stretch.offset} in {stretch.size}, of {TENSORS_BYTES} bytes"
        )


def _is_possible(shape: Sequence[int]) -> bool:
    """Return True if numpy can have an array of this shape: it multiplies the sides that are not 0, too."""
    if len(shape) > _MOST_DIMENSIONS or not all(0 <= side <= _LARGEST_INT for side in shape):
        return False
    return math.prod(side for side in shape if side) <= TENSORS_BYTES


def fits(offset: int, size: int) -> bool:
    """True if a stretch of `size` bytes at `offset` lies within the shared file."""
    return 0 <= offset <= TENSORS_BYTES - size


def shared_memory() -> int:
    """Create the file for the tensors of a session, and return its descriptor.

    Its size is sealed: neither side can cut off what the other has mapped, which would end that with SIGBUS.

    Raises:
        OSError: no descriptor is left.
    """
    descriptor = os.memfd_create("tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, TENSORS_BYTES)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def mapped(descriptor: int, stretch: TensorRegion) -> list[Array]:
    """Map a stretch of the shared file; gives its tensors, inputs first.

    Raises:
        NonsenseError: the file's size is not sealed, or numpy refuses a tensor. OSError: it cannot be mapped.
    """
    if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        raise NonsenseError("the memory for tensors is not sealed")
    try:
        memory = mmap.mmap(descriptor, stretch.size, offset=stretch.offset)
        return views(memory, (*stretch.inputs, *stretch.outputs))
    except (ValueError, OverflowError) as error:
        raise NonsenseError(f"its tensors cannot be mapped: {error}") from error


def size_of(specs: Sequence[TensorSpec]) -> int:
    """Bytes of a stretch that holds these, in whole pages."""
    size = sum(-(-_bytes(spec) // _ALIGNED) * _ALIGNED for spec in specs)
    return max(1, -(-size // mmap.ALLOCATIONGRANULARITY)) * mmap.ALLOCATIONGRANULARITY


def views(memory: mmap.mmap, specs: Sequence[TensorSpec]) -> list[Array]:
    """The tensors of a stretch, inputs first."""
    found: list[Array] = []
    at = 0
    for spec in specs:
        count = math.prod(spec.shape)
        found.append(np.frombuffer(memory, spec.dtype, count, at).reshape(spec.shape))
        at += -(-_bytes(spec) // _ALIGNED) * _ALIGNED
    return found


def _bytes(spec: TensorSpec) -> int:
    return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize  # numpy's product would overflow
