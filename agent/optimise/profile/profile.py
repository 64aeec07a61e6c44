"""What each operation of a model takes: measured in a process of its own, for LiteRT's profiler may crash."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from agent.compute.infer.advice import advice
from agent.compute.infer.case import Case
from agent.compute.infer.effort import multiply_adds_of
from agent.compute.infer.kernels import paired
from agent.compute.infer.modelfile import read_modelfile
from agent.compute.infer.process import Process
from agent.compute.infer.profiler import Event
from agent.compute.infer.structure import CUSTOM, Operation, Subgraph
from agent.compute.infer.wire import ClosedError, Failed, NonsenseError
from agent.errors import NO_JSON, BackendError, ModelError
from agent.manifest import Manifest, Model
from agent.plaintext import plain

PATIENCE_S = 120.0
_LARGEST = 16 * 1024**2
"""Bytes of what the profiler tells: a line for each operation and each kernel of a model."""
_WORST = 3


class Ask(Struct, frozen=True):
    """What the process is to do; the model's bytes follow.

    Attributes:
        manifest, path: of the model. rung: to profile. threads: 0: as `Options` has it.
        runs: with the profiler, and as many without.
    """

    manifest: Manifest
    path: str
    rung: str
    threads: int
    runs: int


class Told(Struct, frozen=True, tag=True):
    """What the process has measured.

    Attributes:
        runtime: name and version. threads: that were used.
        p50_ms: of an inference without the profiler, median.
        events: steps of an inference in order, see `agent.compute.infer.profile_main.quieter`.
    """

    runtime: str
    threads: int
    p50_ms: float
    events: tuple[Event, ...]


class Row(Struct, frozen=True):
    """One operation, or a kernel whose operation cannot be told.

    Attributes:
        name: of the operation, as in the schema, or the code of a custom one; empty: not known.
        kernel: of XNNPACK; empty: the operation is not delegated.
        tensor: name of its output. shape: of that.
        node: its index in the graph; -1: not known.
        ms: time that it took. share: of all operations, 0 to 1.
        multiply_adds: of one inference; 0: few, or not known.
        advice: in a line; only for the worst.
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


class Profile(Struct, frozen=True):
    """A model's time, by operation.

    Attributes:
        rung: that was run. runtime: name and version. threads: of the CPU. runs: that were measured.
        p50_ms: of an inference without the profiler, median. total_ms: of all operations.
        rows: in the order of execution.
        worst: those that take longest, the longest first, with advice.
    """

    rung: str
    runtime: str
    threads: int
    runs: int
    p50_ms: float
    total_ms: float
    rows: tuple[Row, ...]
    worst: tuple[Row, ...]


def profile(
    model: Model, rung: str = "", *, runs: int = 50, threads: int = 0, patience_s: float = PATIENCE_S
) -> Profile:
    """Profile one rung of a model on the CPU.

    Args:
        model: to run.
        rung: its name; empty: the first.
        runs: at least 1.
        threads: of the CPU; 0: as the daemon chooses by the number of cores.
        patience_s: for all of it, s.

    Raises:
        ModelError: the model is broken, or has no such rung.
        BackendError: it cannot run, this runtime has no profiler, or the process crashed or hung.
    """
    rung = rung or model.manifest.rungs[0].name
    signature = model.manifest.rung(rung).signature
    told = _told(Ask(model.manifest, plain(model.path), rung, threads, runs), model, patience_s)
    graph = read_modelfile(model.content).graph(signature)
    rows = rows_of(told.events, graph)
    total = sum(row.ms for row in rows)
    return Profile(rung, told.runtime, told.threads, runs, told.p50_ms, total, rows, worst_of(rows, graph))


def rows_of(events: Sequence[Event], graph: Subgraph) -> tuple[Row, ...]:
    """Steps by operation, in the order of execution; kernels of one operation together.

    Args:
        events: steps of an inference.
        graph: that ran.
    """
    count = len(graph.operations)
    steps = [event for event in events if event.node < count]  # those beyond are the delegate as a whole
    alone = {event.node for event in steps if event.node >= 0}
    taken = [node for node in range(count) if node not in alone]
    kernels = [event.name for event in steps if event.node < 0]
    places = iter(paired(kernels, [graph.operations[node].name for node in taken]))
    together: dict[int, list[Event]] = {}
    for number, event in enumerate(steps):
        place = next(places) if event.node < 0 else -1
        node = event.node if event.node >= 0 else taken[place] if place >= 0 else -1 - number
        together.setdefault(node, []).append(event)
    total = sum(event.ms for event in steps) or 1.0
    return tuple(_row(node, found, graph, total) for node, found in together.items())


def worst_of(rows: Sequence[Row], graph: Subgraph) -> tuple[Row, ...]:
    """The three rows that take longest, with advice."""
    rates = [row.multiply_adds / row.ms for row in rows if row.multiply_adds and row.share >= 0.005 and row.ms]
    found = sorted(rows, key=lambda row: -row.ms)[:_WORST]
    return tuple(
        msgspec.structs.replace(row, advice=advice(_case(row, graph, max(rates, default=0.0)))) for row in found
    )


def _case(row: Row, graph: Subgraph, best: float) -> Case:
    operation = graph.operations[row.node] if row.node >= 0 else None
    return Case(graph, operation, row.kernel, row.multiply_adds / row.ms / best if best and row.ms else 0.0)


def _row(node: int, events: Sequence[Event], graph: Subgraph, total: float) -> Row:
    ms = sum(event.ms for event in events)
    names = list(dict.fromkeys(event.name for event in events if event.node < 0))
    kernel = " + ".join(names) + (f" ×{len(events)}" if len(names) == 1 < len(events) else "")
    if node < 0:
        return Row("", kernel, "", (), -1, ms, ms / total)
    operation = graph.operations[node]
    out = graph.tensors[operation.outputs[0]] if operation.outputs else None
    tensor, shape = (out.name, out.shape) if out else ("", ())
    return Row(_name(operation), kernel, tensor, shape, node, ms, ms / total, multiply_adds_of(graph, operation))


def _name(operation: Operation) -> str:
    return operation.custom or CUSTOM if operation.name == CUSTOM else operation.name


def _told(ask: Ask, model: Model, patience_s: float) -> Told:
    answer = _answer(ask, model, patience_s)
    try:
        said = msgspec.json.decode(answer, type=Told | Failed)
    except NO_JSON as error:
        raise BackendError(f"{model.path}: the profiler answers nonsense: {error}") from error
    if isinstance(said, Failed):
        kind = ModelError if said.model else BackendError
        raise kind(said.text if said.text.startswith(plain(model.path)) else f"{model.path}: {said.text}")
    return said


def _answer(ask: Ask, model: Model, patience_s: float) -> bytes:
    process = Process("agent.compute.infer.profile_main")
    try:
        process.put(msgspec.json.encode(ask), patience_s)
        process.put(model.content, patience_s)
        return process.get(patience_s, _LARGEST)
    except TimeoutError:
        late = f"took longer than {patience_s:g} s: give it fewer runs or more patience"
        raise BackendError(f"{model.path}: profiling {late}{process.last_words()}") from None
    except ClosedError:
        raise BackendError(f"{model.path}: the profiler {process.death()}") from None
    except NonsenseError as error:
        raise BackendError(f"{model.path}: the profiler answers nonsense: {error}") from None
    finally:
        process.end()
