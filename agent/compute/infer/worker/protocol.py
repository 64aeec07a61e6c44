"""Protocol between a `WorkerSession` and its process: messages by pipe, tensors by shared memory.

Each message is a length, u32 little-endian, and so many bytes: JSON, or nothing for "run" and "has run". Tensors
lie in one anonymous file that both processes map; each variant has its own region of it.

The process runs an untrusted model in an untrusted library. Its lengths and answers are checked before anything
is allocated or mapped, and it cannot change the size of the file.
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
from agent.compute.tflite.model import TensorSpec
from agent.errors import NO_JSON
from agent.structs import json_decoder
from agent.types import Array

_LENGTH = struct.Struct("<I")
LARGEST_REQUEST = 2 * 1024**3
"""Bytes of a message to the worker process: a model."""
LARGEST_ANSWER = 1024**2
"""Bytes of a message from the worker process: specs of a variant's tensors, or the times of one measurement."""
LONGEST_TEXT = 500
"""Characters of an error's text."""
TENSORS_BYTES = 512 * 1024**2
"""Size of the shared file. Only pages that are written take memory."""
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_MOST_DIMENSIONS = 16
_LARGEST_INT = 2**31 - 1
"""TFLite stores sides of tensors and zero points in 32 bits."""
_DTYPES = frozenset({np.dtype(code).name for code in "?bBhHiIlLqQefdFD"} | {"bool", "bool_"})
"""Names of numbers in all versions of numpy."""
_SMALL = 4096
"""Messages shorter than this are written together with their length, bytes."""
_ALIGNED = 64
RUN = b""
"""The message "run", and the answer "has run"."""


class OpenModel(Struct, frozen=True, tag=True):
    """The first message, followed by the model's bytes; answered by `ModelOpened`.

    Attributes:
        plan: the backend.
        variant: to select first.
        threads: see `SessionOptions`.
        manifest, path: of the model.
        as_root: keep root's rights, for a device that only root may open.
    """

    plan: BackendSpec
    variant: str
    threads: int
    manifest: Manifest
    path: str
    as_root: bool = False


class SelectVariant(Struct, frozen=True, tag=True):
    """Select a variant; answered by `TensorRegion`."""

    variant: str


class GetUsage(Struct, frozen=True, tag=True):
    """Report the process's usage; answered by `Usage`."""


class TimeModel(Struct, frozen=True, tag=True):
    """Run all exits of the model, as `ModelChain` does; answered by `TimingRun`.

    Attributes:
        seconds: see `agent.compute.infer.chain.time_inference`, s; 0: run once, untimed.
    """

    seconds: float


class TimeTurn(Struct, frozen=True, tag=True):
    """Run the selected variant on its inputs for a while; answered by `TimingRun`. Its outputs are not copied.

    Attributes:
        seconds: see `agent.compute.infer.chain.time_turn`, s.
    """

    seconds: float


class TensorRegion(Struct, frozen=True, tag=True):
    """Region of the shared file that holds a variant's tensors.

    Attributes:
        inputs, outputs: of the variant.
        offset, size: bytes.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    offset: int
    size: int


class ModelOpened(Struct, frozen=True, tag=True):
    """The model is open.

    Attributes:
        runtime: name and version.
        nodes: operations of the variant's graph.
        delegated: operations that the delegate or accelerator runs; -1: not known.
        region: of the first variant.
    """

    runtime: str
    nodes: int
    delegated: int
    region: TensorRegion


class Usage(Struct, frozen=True, tag=True):
    """CPU time, s, and resident memory, MB, of the process."""

    cpu_s: float
    rss_mb: float


class Failed(Struct, frozen=True, tag=True):
    """A request failed; the process continues. `model` is True if the model is to blame, not the backend."""

    text: str
    model: bool = False


Request = OpenModel | SelectVariant | GetUsage | TimeModel | TimeTurn
Answer = ModelOpened | TensorRegion | Usage | TimingRun | Failed
encode = msgspec.json.Encoder().encode
requests: msgspec.json.Decoder[Request] = json_decoder(Request)
answers: msgspec.json.Decoder[Answer] = json_decoder(Answer)


class ClosedError(Exception):
    """The other end has closed."""


class InvalidMessageError(Exception):
    """The other end sent no valid message, or an answer that cannot be true."""


def send(descriptor: int, message: bytes, until: float | None = None) -> None:
    """Send a message.

    Args:
        descriptor: of a pipe; it must be non-blocking for `until` to have effect.
        message: at most 4 GiB.
        until: s of the monotonic clock; None: as long as it takes.

    Raises:
        ClosedError: the other end has closed.
        TimeoutError: the message was not read in time.
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


def receive(descriptor: int, until: float | None = None, watch: int = -1, largest: int = LARGEST_ANSWER) -> bytes:
    """Receive the next message.

    Args:
        descriptor: of a pipe.
        until: s of the monotonic clock; None: as long as it takes.
        watch: descriptor that becomes readable when no message will come any more; -1: none.
        largest: bytes of the message, at most.

    Raises:
        ClosedError: the other end has closed.
        TimeoutError: the message did not come in time.
        InvalidMessageError: the message is announced as larger than `largest`; nothing was allocated for it.
    """
    (length,) = _LENGTH.unpack(_read(descriptor, _LENGTH.size, until, watch))
    if length > largest:
        raise InvalidMessageError(f"it announces a message of {length} bytes; expected at most {largest}")
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


def _wait(descriptor: int, events: int, until: float | None, watch: int = -1) -> None:
    poll = select.poll()
    poll.register(descriptor, events)
    if watch >= 0:
        poll.register(watch, select.POLLIN)
    ready = poll.poll(None if until is None else max(0.0, until - time.monotonic()) * 1e3)
    if not ready:
        raise TimeoutError
    if all(number == watch for number, _ in ready):
        raise ClosedError


def decode_answer(message: bytes) -> Answer:
    """Decode an answer of a worker process and check its tensors.

    Raises:
        InvalidMessageError: the message is no answer, or its tensors do not fit into the shared file.
    """
    try:
        answer = answers.decode(message)
    except NO_JSON as error:
        raise InvalidMessageError(str(error)[:LONGEST_TEXT]) from error
    if isinstance(answer, ModelOpened):
        _check(answer.region)
    elif isinstance(answer, TensorRegion):
        _check(answer)
    return answer


def _check(region: TensorRegion) -> None:
    """Refuse what the shared file cannot hold: numpy and mmap would raise other errors, or allocate it."""
    for spec in (*region.inputs, *region.outputs):
        if spec.dtype not in _DTYPES:
            raise InvalidMessageError(f"a tensor's type is {spec.dtype[:50]!r}")
        if not _is_possible(spec.shape):
            raise InvalidMessageError(f"a tensor's shape is {str(spec.shape)[:LONGEST_TEXT]}")
        if abs(spec.zero_point) > _LARGEST_INT:
            raise InvalidMessageError(f"a tensor's zero point is {str(spec.zero_point)[:LONGEST_TEXT]}")
    size = region_bytes((*region.inputs, *region.outputs))
    if region.size != size or not fits(region.offset, size) or region.offset % mmap.ALLOCATIONGRANULARITY:
        raise InvalidMessageError(
            f"tensors of {size} bytes lie at {region.offset} in {region.size}, of {TENSORS_BYTES} bytes"
        )


def _is_possible(shape: Sequence[int]) -> bool:
    """Return True if numpy accepts the shape. It also multiplies the sides of an empty array that are not 0."""
    if len(shape) > _MOST_DIMENSIONS or not all(0 <= side <= _LARGEST_INT for side in shape):
        return False
    return math.prod(side for side in shape if side) <= TENSORS_BYTES


def fits(offset: int, size: int) -> bool:
    """Return True if a region of `size` bytes at `offset` lies within the shared file."""
    return 0 <= offset <= TENSORS_BYTES - size


def create_shared_memory() -> int:
    """Create the file for the tensors of a session, and return its descriptor.

    Its size is sealed: if one side could truncate it, the other would end with SIGBUS.
    """
    descriptor = os.memfd_create("tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, TENSORS_BYTES)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def map_tensors(descriptor: int, region: TensorRegion) -> list[Array]:
    """Map a region of the shared file and return its tensors, inputs first.

    Raises:
        InvalidMessageError: the file's size is not sealed, or numpy refuses a tensor. OSError: it cannot be
            mapped.
    """
    if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        raise InvalidMessageError("the memory for tensors is not sealed")
    try:
        memory = mmap.mmap(descriptor, region.size, offset=region.offset)
        return views(memory, (*region.inputs, *region.outputs))
    except (ValueError, OverflowError) as error:
        raise InvalidMessageError(f"its tensors cannot be mapped: {error}") from error


def region_bytes(specs: Sequence[TensorSpec]) -> int:
    """Return the size of a region that holds these tensors, bytes in whole pages."""
    size = sum(-(-_bytes(spec) // _ALIGNED) * _ALIGNED for spec in specs)
    return max(1, -(-size // mmap.ALLOCATIONGRANULARITY)) * mmap.ALLOCATIONGRANULARITY


def views(memory: mmap.mmap, specs: Sequence[TensorSpec]) -> list[Array]:
    """Return the tensors of a mapped region, inputs first."""
    found: list[Array] = []
    at = 0
    for spec in specs:
        count = math.prod(spec.shape)
        found.append(np.frombuffer(memory, spec.dtype, count, at).reshape(spec.shape))
        at += -(-_bytes(spec) // _ALIGNED) * _ALIGNED
    return found


def _bytes(spec: TensorSpec) -> int:
    return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize  # numpy's own product would overflow
