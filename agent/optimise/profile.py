"""Profile a model: the time of each operation, measured in another process, since LiteRT's profiler may crash.

XNNPACK's kernels carry no number of their operation, so they are matched by kind and order. XNNPACK keeps the
order of the operations, but fuses some, leaves some out, and makes several kernels of others. Names of kernels
are those of `xnn_operator_type_to_string` in google/XNNPACK, src/operator-utils.c.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
from msgspec import Struct

from agent.child import ChildError, ChildProcess, Failed, encode
from agent.compute.manifest import Manifest, Model
from agent.compute.tflite.model import CUSTOM, Subgraph, multiply_adds_of
from agent.compute.tflite.read import read_modelfile
from agent.errors import NO_JSON, BackendError
from agent.optimise.advice import OperatorContext, advice, context_of
from agent.structs import from_json
from agent.text import plain

_WORST = 3
"""Operations of a model whose share of the time is told."""
_KERNELS_LARGEST = 2_000_000
"""Kernels times operations beyond which matching would take seconds; then no kernel is matched."""
_WEIGHTED, _ADVANCE, _SHARED = 10, 3, 1
"""Scores of a match: convolutions are anchors; a further kernel of the same operation scores least."""
_UNARY = (
    *("ABS", "CEIL", "COS", "DEQUANTIZE", "ELU", "EXP", "FLOOR", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOG"),
    *("LOGISTIC", "NEG", "QUANTIZE", "RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "ROUND", "RSQRT", "SIN"),
    *("SQRT", "SQUARE", "TANH"),
)
"""Operations of one input, some of whose kernels XNNPACK has no name for."""
_KINDS: dict[str, tuple[str, ...]] = {
    "Convolution": ("CONV_2D", "DEPTHWISE_CONV_2D"),
    "Fully Connected": ("CONV_2D", "FULLY_CONNECTED"),
    "Deconvolution": ("TRANSPOSE_CONV",),
    "Batch Matrix Multiply": ("BATCH_MATMUL",),
    "Max Pooling": ("MAX_POOL_2D",),
    "Average Pooling": ("AVERAGE_POOL_2D", "MEAN"),
    "Global Average Pooling": ("AVERAGE_POOL_2D", "MEAN"),
    "Mean": ("MEAN",),
    "Sum": ("SUM", "MEAN"),
    "Add": ("ADD",),
    "Subtract": ("SUB",),
    "Multiply": ("MUL",),
    "Divide": ("DIV",),
    "Maximum": ("MAXIMUM",),
    "Minimum": ("MINIMUM",),
    "Squared Difference": ("SQUARED_DIFFERENCE",),
    "LeakyReLU": ("LEAKY_RELU",),
    "Leaky ReLU": ("LEAKY_RELU",),
    "PReLU": ("PRELU",),
    "Sigmoid": ("LOGISTIC",),
    "Tanh": ("TANH",),
    "HardSwish": ("HARD_SWISH",),
    "ELU": ("ELU",),
    "GELU": ("GELU",),
    "Softmax": ("SOFTMAX",),
    "Static Reshape": ("RESHAPE", "EXPAND_DIMS", "SQUEEZE", "MEAN", "FULLY_CONNECTED"),
    "Invalid Unary Op": _UNARY,
    "Constant Pad": ("PAD", "PADV2"),
    "Transpose": ("TRANSPOSE",),
    "Resize Bilinear": ("RESIZE_BILINEAR",),
    "Depth To Space": ("DEPTH_TO_SPACE",),
    "Space To Depth": ("SPACE_TO_DEPTH",),
    "Copy": ("CONCATENATION", "RESHAPE", "EXPAND_DIMS", "SQUEEZE", "SPLIT", "PACK"),
    "Slice": ("SLICE", "STRIDED_SLICE", "SPLIT"),
    "Convert": ("QUANTIZE", "DEQUANTIZE"),
    "Clamp": ("RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "ADD", "SUB", "MUL", "DIV", "CONCATENATION"),
}
"""Operations that a kernel may belong to, by the beginning of its name."""
OTHER = "other"
"""Name of kernels whose operation is unknown."""
_MULTIPLYING = {"Convolution", "Fully Connected", "Deconvolution", "Batch Matrix Multiply"}
_SEVERAL = {"Copy", "Slice", "Clamp", "Static Reshape"}
"""Kernels of which an operation may have several, or one after its own."""


def match_kernels(kernels: Sequence[str], operations: Sequence[str]) -> list[int]:
    """Return for each kernel the index of its operation, ascending; -1: unknown.

    The matching has the greatest score without crossings, found like the longest common subsequence.

    Args:
        kernels: names, in order of execution.
        operations: names of the delegated operations, in the graph's order.
    """
    found = [-1] * len(kernels)
    if not kernels or not operations or len(kernels) * len(operations) > _KERNELS_LARGEST:
        return found
    kinds = [_kind(name) for name in kernels]
    best = _table(kinds, operations)
    kernel, operation = len(kinds), len(operations)
    while kernel and operation:
        here = best[kernel][operation]
        if here == best[kernel][operation - 1]:
            operation -= 1
        elif here == best[kernel - 1][operation]:
            kernel -= 1
        else:
            kernel -= 1
            found[kernel] = operation - 1
            if here == best[kernel][operation - 1] + _score(kinds[kernel], operations[operation - 1]):
                operation -= 1
    return found


def _table(kinds: Sequence[str], operations: Sequence[str]) -> list[list[int]]:
    """Return the scores of the best matchings of the first kernels with the first operations."""
    best = [[0] * (len(operations) + 1)]
    for kind in kinds:
        before, row = best[-1], [0]
        for place, name in enumerate(operations):
            one = max(before[place + 1], row[place])
            if name in _KINDS.get(kind, ()):
                shared = before[place + 1] + _SHARED if kind in _SEVERAL else 0
                one = max(one, before[place] + _score(kind, name), shared)
            row.append(one)
        best.append(row)
    return best


def _score(kind: str, operation: str) -> int:
    if operation not in _KINDS.get(kind, ()):
        return 0
    return _WEIGHTED if kind in _MULTIPLYING else _ADVANCE


def _kind(name: str) -> str:
    """Return a kernel's name without the bracket with layout and types."""
    return name.partition(" (")[0]


PATIENCE_S = 120.0
_REPLY_MAX = 16 * 1024**2
"""Largest reply, bytes: a line for each operation and each kernel of a model."""


class ProfilerEvent(Struct, frozen=True):
    """One step of an inference.

    Attributes:
        name: of the kernel, as XNNPACK has it, or of the operation.
        node: index of the operation; -1 for a kernel of a delegate.
        ms: time that it took.
    """

    name: str
    node: int
    ms: float


class ProfileRequest(Struct, frozen=True):
    """Request to the worker process; the model's bytes follow.

    Attributes:
        manifest, path: of the model.
        variant: to profile.
        threads: of the CPU; 0: the daemon's default.
        runs: number of runs with the profiler, and as many without.
    """

    manifest: Manifest
    path: str
    variant: str
    threads: int
    runs: int


class ProfileReply(Struct, frozen=True, tag=True):
    """Reply of the worker process.

    Attributes:
        runtime: name and version.
        threads: that were used.
        p50_ms: median time of an inference without the profiler, ms.
        events: steps of an inference in order, see `agent.optimise.profile_worker.mean_steps`.
    """

    runtime: str
    threads: int
    p50_ms: float
    events: tuple[ProfilerEvent, ...]


class OperatorRow(Struct, frozen=True):
    """One operation, or a kernel whose operation is unknown.

    Attributes:
        name: of the operation, as in the schema, or the code of a custom one; empty: unknown.
        kernel: of XNNPACK; empty: the operation is not delegated.
        tensor: name of the output.
        shape: of the output.
        node: index in the graph; -1: unknown.
        ms: time of the operation, ms.
        share: of the time of all operations, 0..1.
        multiply_adds: of one inference; 0: few, or unknown.
        advice: in a line; for the slowest only.
    """

    name: str
    kernel: str
    tensor: str
    shape: tuple[int, ...]
    node: int
    ms: float
    share: float
    multiply_adds: int = 0
    advice: str = ""


class ModelProfile(Struct, frozen=True):
    """A model's time by operation.

    Attributes:
        variant: that was run.
        runtime: name and version.
        threads: of the CPU.
        runs: number of measured runs.
        p50_ms: median time of an inference without the profiler, ms.
        total_ms: of all operations, ms.
        rows: operations in order of execution.
        worst: the slowest operations, slowest first, with advice.
    """

    variant: str
    runtime: str
    threads: int
    runs: int
    p50_ms: float
    total_ms: float
    rows: tuple[OperatorRow, ...]
    worst: tuple[OperatorRow, ...]


def profile(
    model: Model, variant: str = "", *, runs: int = 50, threads: int = 0, patience_s: float = PATIENCE_S
) -> ModelProfile:
    """Profile one variant of a model on the CPU.

    Args:
        model: to run.
        variant: its name; empty: the first.
        runs: at least 1.
        threads: of the CPU; 0: the daemon's default for the number of cores.
        patience_s: longest time of the whole profile, s.

    Raises:
        ModelError: the model is broken, or has no such variant.
        BackendError: the model cannot run, this runtime has no profiler, or the process crashed or hung.
    """
    variant = variant or model.manifest.variants[0].name
    signature = model.manifest.variant(variant).signature
    reply = _ask(ProfileRequest(model.manifest, plain(model.path), variant, threads, runs), model, patience_s)
    graph = read_modelfile(model.content).graph(signature)
    rows = rows_of(reply.events, graph)
    total = sum(row.ms for row in rows)
    return ModelProfile(
        variant, reply.runtime, reply.threads, runs, reply.p50_ms, total, rows, worst_of(rows, graph)
    )


def rows_of(events: Sequence[ProfilerEvent], graph: Subgraph) -> tuple[OperatorRow, ...]:
    """Group the steps of an inference by operation, in order of execution."""
    count = len(graph.operations)
    steps = [event for event in events if event.node < count]  # higher numbers stand for the whole delegate
    alone = {event.node for event in steps if event.node >= 0}
    taken = [node for node in range(count) if node not in alone]
    kernels = [event.name for event in steps if event.node < 0]
    places = iter(match_kernels(kernels, [graph.operations[node].name for node in taken]))
    together: dict[int, list[ProfilerEvent]] = {}
    for number, event in enumerate(steps):
        place = next(places) if event.node < 0 else -1
        node = event.node if event.node >= 0 else taken[place] if place >= 0 else -1 - number
        together.setdefault(node, []).append(event)
    total = sum(event.ms for event in steps) or 1.0
    return tuple(_row(node, found, graph, total) for node, found in together.items())


def worst_of(rows: Sequence[OperatorRow], graph: Subgraph) -> tuple[OperatorRow, ...]:
    """Return the three slowest rows, with advice."""
    rates = [row.multiply_adds / row.ms for row in rows if row.multiply_adds and row.share >= 0.005 and row.ms]
    found = sorted(rows, key=lambda row: -row.ms)[:_WORST]
    return tuple(
        msgspec.structs.replace(row, advice=advice(_context(row, graph, max(rates, default=0.0))))
        for row in found
    )


def _context(row: OperatorRow, graph: Subgraph, best: float) -> OperatorContext:
    operation = graph.operations[row.node] if row.node >= 0 else None
    return context_of(graph, operation, row.kernel, row.multiply_adds / row.ms / best if best and row.ms else 0.0)


def _row(node: int, events: Sequence[ProfilerEvent], graph: Subgraph, total: float) -> OperatorRow:
    ms = sum(event.ms for event in events)
    names = list(dict.fromkeys(event.name for event in events if event.node < 0))
    kernel = " + ".join(names) + (f" ×{len(events)}" if len(names) == 1 < len(events) else "")
    if node < 0:
        return OperatorRow("", kernel, "", (), -1, ms, ms / total)
    operation = graph.operations[node]
    out = graph.tensors[operation.outputs[0]] if operation.outputs else None
    tensor, shape = (out.name, out.shape) if out else ("", ())
    name = operation.custom or CUSTOM if operation.name == CUSTOM else operation.name
    return OperatorRow(name, kernel, tensor, shape, node, ms, ms / total, multiply_adds_of(graph, operation))


def _ask(request: ProfileRequest, model: Model, patience_s: float) -> ProfileReply:
    process = ChildProcess("agent.optimise.profile_worker")
    try:
        answer = process.ask(
            encode(request), model.content, within_s=patience_s, what="profiling", largest=_REPLY_MAX
        )
        reply = from_json(answer, ProfileReply | Failed)
    except ChildError as error:
        raise BackendError(f"{model.path}: the profiler {error}") from None
    except NO_JSON as error:
        raise BackendError(f"{model.path}: the profiler sent an invalid reply: {error}") from error
    finally:
        process.end()
    if isinstance(reply, Failed):
        failure = reply.error()
        raise failure if str(failure).startswith(plain(model.path)) else type(failure)(f"{model.path}: {failure}")
    return reply


def operation_times(profiles: Sequence[ModelProfile | str]) -> Iterator[tuple[str, float | None, float | None]]:
    """Yield kind and time of all operations of one kind, ms, slowest first; None: the model has none of the kind.

    Args:
        profiles: of a model before and after, or of one; a text says why there is none.
    """
    sums: list[dict[str, float]] = []
    for one in profiles:
        sums.append({})
        for row in () if isinstance(one, str) else one.rows:
            name = row.name or OTHER
            sums[-1][name] = sums[-1].get(name, 0.0) + row.ms
    for name in sorted(set().union(*sums), key=lambda name: -max(one.get(name, 0.0) for one in sums)):
        yield name, sums[0].get(name), sums[-1].get(name)


def bottlenecks(profiles: Sequence[ModelProfile | str]) -> Iterator[str]:
    """Yield where the time goes, before and after; `profiles` as of `operation_times`."""
    for name, found in zip(("before", "after"), profiles, strict=False):
        if isinstance(found, str):
            yield f"no profile: {found}"
            continue
        for row in found.worst[:_WORST]:
            what = f"{row.name or f'{OTHER} ({row.kernel})'} {row.tensor}".strip()
            told = f"{name}: {what} takes {row.share:.0%} of the time of all operations"
            yield f"{told}{f': {row.advice}' if row.advice else ''}"
