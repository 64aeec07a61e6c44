"""A session whose model runs in a worker process: a library that crashes, hangs or exits ends only that.

Inputs are written straight into memory that both processes share: one anonymous file, of which each variant has a
region. A process whose inference takes longer than the deadline is killed. It never has root's rights. Messages
are JSON, but nothing for "run" and "has run".

The process runs an untrusted model in an untrusted library. Its answers are checked before anything is allocated
or mapped, and it cannot change the size of the file. `agent.compute.infer.worker_main` is its program.
"""

from __future__ import annotations

import fcntl
import logging
import math
import mmap
import os
from collections.abc import Sequence
from typing import TypeVar

import msgspec
import numpy as np
from msgspec import Struct

from agent.child import LONGEST_TEXT, ChildError, ChildProcess, Failed, InvalidMessageError, encode
from agent.compute.infer.chain import TimingRun
from agent.compute.infer.session import BackendSpec, SessionOptions
from agent.compute.manifest import Manifest, Model
from agent.compute.tflite.model import TensorSpec
from agent.errors import NO_JSON, BackendError, reason_of
from agent.structs import json_decoder
from agent.text import plain
from agent.types import Array

log = logging.getLogger(__name__)
PATIENCE_S = 120.0
"""Timeout for opening a model and for its first inference, s: a GPU may have to compile every kernel."""
DEADLINE_S = 2.0
_OPENING = "opening the model"
TENSORS_BYTES = 512 * 1024**2
"""Size of the shared file. Only pages that are written take memory."""
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_MOST_DIMENSIONS = 16
_LARGEST_INT = 2**31 - 1
"""TFLite stores sides of tensors and zero points in 32 bits."""
_DTYPES = frozenset({np.dtype(code).name for code in "?bBhHiIlLqQefdFD"} | {"bool", "bool_"})
"""Names of numbers in all versions of numpy."""
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
    """

    plan: BackendSpec
    variant: str
    threads: int
    manifest: Manifest
    path: str


class SelectVariant(Struct, frozen=True, tag=True):
    """Select a variant; answered by `TensorRegion`."""

    variant: str


class GetUsage(Struct, frozen=True, tag=True):
    """Report the process's usage; answered by `Usage`."""


class TimeModel(Struct, frozen=True, tag=True):
    """Run all exits of the model, as `ModelChain` does; answered by `TimingRun`.

    Attributes:
        seconds: see `agent.compute.infer.chain.time_runs`, s.
    """

    seconds: float


class TimeTurn(Struct, frozen=True, tag=True):
    """Run the selected variant on its inputs for a while; answered by `TimingRun`. Its outputs are not copied.

    Attributes:
        seconds: see `agent.compute.infer.chain.time_runs`, s.
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


Request = OpenModel | SelectVariant | GetUsage | TimeModel | TimeTurn
Answer = ModelOpened | TensorRegion | Usage | TimingRun | Failed
requests: msgspec.json.Decoder[Request] = json_decoder(Request)
answers: msgspec.json.Decoder[Answer] = json_decoder(Answer)
_AnswerT = TypeVar("_AnswerT", ModelOpened, TensorRegion, Usage, TimingRun)


class WorkerSession:
    """Session in a worker process. Views of tensors stay valid until it is closed.

    Attributes:
        opened: the process's answer to opening the model.
        deadline_s: timeout of an inference, but for the first of each variant, s.
    """

    def __init__(
        self,
        model: Model,
        plan: BackendSpec,
        options: SessionOptions,
        *,
        deadline_s: float = DEADLINE_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Start the process and open the model there, with the threads of the plan unless the options have some.

        Args:
            model: to run.
            plan: the backend.
            options: see `SessionOptions`.
            deadline_s: see the class.
            patience_s: timeout for opening the model and for the first inference of each variant, s.

        Raises:
            ModelError, BackendError: the model was refused, or the process crashed or hung.
        """
        self.backend, self.deadline_s, self._patience_s = plan.backend, deadline_s, patience_s
        self.degraded = ""
        self._path = model.path
        self._regions: dict[str, _Mapped] = {}
        variant = self._remote_variant = options.variant or model.manifest.variants[0].name
        self._start_process()
        try:
            request = OpenModel(plan, variant, options.threads, model.manifest, plain(model.path))
            self.opened = self._request(request, ModelOpened, patience_s, model.content)
            self._map(variant, self.opened.region)
        except BaseException:
            self.close()
            raise

    def _start_process(self) -> None:
        try:
            self._tensors = create_shared_memory()
            try:
                self._process = ChildProcess("agent.compute.infer.worker_main", [self._tensors])
            except OSError:
                os.close(self._tensors)
                raise
        except OSError as error:
            what = f"{self._path}: cannot start a process for {self.backend}"
            raise BackendError(f"{what}: {reason_of(error)}") from error

    def select(self, variant: str) -> None:
        if variant not in self._regions:
            self._map(variant, self._request(SelectVariant(variant), TensorRegion, self._patience_s))
        self._activate(variant)  # the process follows at the next `invoke`: its last outputs stay readable

    def input(self, index: int) -> Array:
        return self._mapped.inputs[index]

    def invoke(self) -> None:
        self._select_remotely()
        mapped = self._mapped
        within_s = self.deadline_s if mapped.has_run else self._patience_s
        answer = self._exchange([RUN], within_s, "an inference")
        mapped.has_run = True
        if answer != RUN:
            self._decode(answer)

    def output(self, index: int) -> Array:
        return self._mapped.outputs[index]

    def usage(self) -> Usage:
        """Return what the process has used so far. Raises BackendError if it has ended."""
        return self._request(GetUsage(), Usage, self._patience_s)

    def time_model(self, seconds: float) -> TimingRun:
        """Time inferences of all exits of the model in the worker process, with pauses, see `time_runs`."""
        return self._timed(TimeModel(seconds), seconds)

    def time_turn(self, seconds: float) -> TimingRun:
        """Time inferences of the selected variant in the worker process, see `time_runs`."""
        self._select_remotely()
        return self._timed(TimeTurn(seconds), seconds)

    def _timed(self, request: TimeModel | TimeTurn, seconds: float) -> TimingRun:
        run = self._request(request, TimingRun, seconds + 2.0 * self.deadline_s, what="timing the model")
        if not run.ms or min(run.ms) <= 0.0:
            raise self._invalid(f"{len(run.ms)} inferences, or one that took no time")
        return run

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    def close(self) -> None:
        if not self._process.ended:
            self._process.end()
            os.close(self._tensors)

    def _map(self, variant: str, region: TensorRegion) -> None:
        try:
            self._regions[variant] = _Mapped(self._tensors, region)
        except (OSError, InvalidMessageError) as error:
            raise BackendError(f"{self._path}: {self.backend}: tensors: {reason_of(error)}") from error
        self._remote_variant = variant
        self._activate(variant)

    def _select_remotely(self) -> None:
        if self._remote_variant != self.variant:
            self._request(SelectVariant(self.variant), TensorRegion, self.deadline_s)
            self._remote_variant = self.variant

    def _activate(self, variant: str) -> None:
        self.variant = variant
        self._mapped = self._regions[variant]
        self.inputs, self.outputs = self._mapped.region.inputs, self._mapped.region.outputs

    def _request(
        self, request: Request, kind: type[_AnswerT], within_s: float, *more: bytes, what: str = _OPENING
    ) -> _AnswerT:
        answer = self._decode(self._exchange([encode(request), *more], within_s, what))
        if not isinstance(answer, kind):
            raise self._invalid(f"{type(answer).__name__} in place of {kind.__name__}")
        return answer

    def _exchange(self, messages: Sequence[bytes], within_s: float, what: str) -> bytes:
        if self._process.ended:
            raise BackendError(f"{self._path}: {self.backend} has ended")
        try:
            return self._process.ask(*messages, within_s=within_s, what=what)
        except ChildError as error:  # `close` waits for its end
            raise BackendError(f"{self._path}: {self.backend} {error}") from None

    def _decode(self, message: bytes) -> Answer:
        try:
            answer = decode_answer(message)
        except InvalidMessageError as error:
            raise self._invalid(str(error)) from None
        if isinstance(answer, Failed):
            raise answer.error()
        return answer

    def _invalid(self, why: str) -> BackendError:
        """Kill the process, whose answers cannot be trusted, and return the error."""
        self._process.kill()
        return BackendError(f"{self._path}: {self.backend} sent an invalid answer: {why}")


class _Mapped:
    def __init__(self, descriptor: int, region: TensorRegion) -> None:
        self.region, self.has_run = region, False
        arrays = map_tensors(descriptor, region)
        self.inputs, self.outputs = arrays[: len(region.inputs)], arrays[len(region.inputs) :]


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
