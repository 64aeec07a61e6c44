"""Gives a classifier early exits, and cuts its graph into chained signatures, each behind the one before it.

An exit is a tensor of scores: a mean over each cell of a grid, and a fully connected layer. A cut is a tensor
that every path from the input to the answer passes: a dominator of the answer. What lies behind it then needs
nothing else that lies before it. `split` and `join` move operations only: no number changes, and weights stay
stored once.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from agent.compute.manifest import HIDDEN, Variant
from agent.compute.tflite.model import multiply_adds, multiply_adds_of
from agent.compute.tflite.read import read_modelfile
from agent.errors import ModelError
from agent.optimise.graph.additions import Additions, pool_options
from agent.optimise.graph.objects import Graph, compact, dump, input_names, load, make_signature, text
from agent.optimise.graph.operations import KINDS, WEIGHTED
from agent.optimise.quantise import float_file

_SHOWN = 12
_OPERATORS = schema.BuiltinOperator
_APART = math.log(1.2)
"""Least distance of two exits, unless there are not enough places: the logarithm of the ratio of their costs."""
_LARGEST_HEAD = 0.5
"""Multiply-adds of a head, as a share of those that an exit there can save."""


class Cut(NamedTuple):
    """A place where a graph can be cut in two: all that the rest needs is one tensor.

    Attributes:
        tensor: its index.
        name: of the tensor.
        shape: of the tensor, batch first.
        multiply_adds: of all operations that it is computed by.
        share: of those of the whole graph, 0..1.
    """

    tensor: int
    name: str
    shape: tuple[int, ...]
    multiply_adds: int
    share: float


def cuts(content: bytes) -> list[Cut]:
    """Return the tensors between input and output that every path passes, in the order of execution.

    Each has axes besides batch and channels, so that a head can average over them.

    Args:
        content: of a `.tflite` file of one graph with one input, whose last output is the model's answer.
    """
    model, same = load(content), read_modelfile(content).graph("")
    graph = Graph(model, model.subgraphs[0])
    pairs = zip(graph.operators, same.operations, strict=True)
    costs = {id(one): multiply_adds_of(same, operation) for one, operation in pairs}
    whole = sum(costs.values())
    found = []
    for index in _passed(graph):
        done = sum(costs[id(one)] for one in operations_before(graph, [index]))
        shape = graph.shape(index)
        if len(shape) > 2 and math.prod(shape[1:-1]) > 1 and 0 < done < whole:
            found.append(Cut(index, graph.name(index), shape, done, done / whole))
    return found


def _passed(graph: Graph) -> list[int]:
    """Return the tensors on all paths from the input to the last output: its dominators."""
    passed: dict[int, frozenset[int]] = {graph.inputs[0]: frozenset()}
    for operator in graph.operators:
        sources = [passed[index] for index in operator.inputs if index in passed]
        common = frozenset.intersection(*sources) if sources else frozenset[int]()
        for index in operator.outputs if sources else ():
            passed[index] = common | {index}
    wanted = passed.get(graph.outputs[-1], frozenset()) - {graph.outputs[-1]}
    return [index for one in graph.operators for index in one.outputs if index in wanted]


def operations_before(graph: Graph, tensors: Iterable[int], entry: int = -1) -> list[Any]:
    """Return the operations that compute some tensors, from tensor `entry` on, in the order of execution."""
    wanted, found = {*tensors} - {entry}, []
    for operator in reversed(graph.operators):
        if not wanted.isdisjoint(operator.outputs):
            found.append(operator)
            wanted.update(index for index in operator.inputs if index != entry)
    return found[::-1]


def weighted_layers(content: bytes, tensors: Sequence[str]) -> list[int]:
    """Return the number of layers with weights up to each of some tensors, and of all."""
    model = load(content)
    graph = Graph(model, model.subgraphs[0])
    known = {graph.name(index): index for one in graph.operators for index in one.outputs}
    ends = [*(known[name] for name in tensors), graph.outputs[-1]]
    return [
        sum(KINDS.get(graph.kind(one)) in WEIGHTED for one in operations_before(graph, [end])) for end in ends
    ]


SCORES = "logits"
"""Name of the scores in the signatures of all exits."""
WHOLE = "serving_default"
"""Signature of a graph that is not cut."""


class Stage(NamedTuple):
    """One exit of a graph.

    Attributes:
        signature: its name in the cut file.
        scores: output of the whole graph with its scores, by the name in the signature or that of the tensor.
        hidden: output of the whole graph from which the next exit continues; empty: it is the last one.
    """

    signature: str
    scores: str
    hidden: str = ""


def split(content: bytes, stages: Sequence[Stage]) -> bytes:
    """Cut a graph into one signature per exit.

    Each signature gives `logits` and, but for the last, `hidden`; all but the first take `hidden` as their input.

    Args:
        content: a `.tflite` file of one graph with one input, float or quantised.
        stages: exits, shallow first.

    Raises:
        ModelError: there is no such output, or a tensor is no cut: the message names what else would be needed.
    """
    model = load(content)
    if len(model.subgraphs) != 1 or len(model.subgraphs[0].inputs) != 1:
        found = f"{len(model.subgraphs)} graphs, and {len(model.subgraphs[0].inputs)} inputs in the first"
        raise ModelError(f"the model has {found}: only one graph with one input can be cut into exits")
    whole, names = Graph(model, model.subgraphs[0]), _outputs(model)
    entry, made, signatures = whole.inputs[0], [], []
    for number, stage in enumerate(stages):
        ends = {SCORES: _find(whole, names, stage.scores)}
        if stage.hidden:
            ends[HIDDEN] = _find(whole, names, stage.hidden)
        made.append(_part(whole, entry, list(ends.values()), stage.signature))
        own = input_names(model, whole)[0] if number == 0 else HIDDEN
        signatures.append(make_signature(stage.signature, number, {own: entry}, ends))
        entry = ends.get(HIDDEN, entry)
    model.subgraphs, model.signatureDefs = made, signatures
    compact(model)
    return dump(model)


def join(content: bytes, signatures: Sequence[str]) -> tuple[bytes, tuple[Stage, ...]]:
    """Make one graph of chained signatures: the reverse of `split`.

    Args:
        content: a `.tflite` file.
        signatures: of its exits, shallow first.

    Returns:
        A file of one signature with the outputs of all exits, and the stages that cut it again.

    Raises:
        ModelError: there is no such signature, or it does not continue the one before it.
    """
    model = load(content)
    known = {text(one.signatureKey): one for one in model.signatureDefs or ()}
    tensors, operators, stages, outputs = list[Any](), list[Any](), list[Stage](), dict[str, int]()
    names, entry = set[str](), -1
    for number, name in enumerate(signatures, 1):
        if name not in known:
            raise ModelError(f"the model has no signature {name!r}; it has: {', '.join(known) or 'none'}")
        part = model.subgraphs[known[name].subgraphIndex]
        places = {-1: -1}
        if stages:
            if entry < 0 or len(part.inputs) != 1 or not _alike(tensors[entry], part.tensors[part.inputs[0]]):
                raise ModelError(
                    f"signature {name!r} does not continue the output {HIDDEN!r} of the one before it"
                )
            places[part.inputs[0]] = entry
        for index, tensor in enumerate(part.tensors):
            if index not in places:
                places[index] = len(tensors)
                tensors.append(_renamed(tensor, names))
        for operator in part.operators:
            operators.append(copy.copy(operator))
            operators[-1].inputs = [places[index] for index in operator.inputs]
            operators[-1].outputs = [places[index] for index in operator.outputs]
        ends = {text(one.name): places[int(one.tensorIndex)] for one in known[name].outputs}
        entry = ends.pop(HIDDEN, -1)
        if len(ends) != 1:
            raise ModelError(f"signature {name!r} has {len(ends)} outputs besides {HIDDEN!r}: one can be an exit")
        last = number == len(signatures)
        stages.append(Stage(name, f"{SCORES}{number}", "" if last else f"{HIDDEN}{number}"))
        outputs[stages[-1].scores] = next(iter(ends.values()))
        if not last:
            outputs[stages[-1].hidden] = entry
    first = known[signatures[0]]
    table = copy.copy(model.subgraphs[first.subgraphIndex])  # its tensors come first, in their places
    table.tensors, table.operators, table.outputs = tensors, operators, list(outputs.values())
    model.subgraphs = [table]
    given = {text(first.inputs[0].name): int(first.inputs[0].tensorIndex)}
    model.signatureDefs = [make_signature(WHOLE, 0, given, outputs)]
    compact(model)
    return dump(model), tuple(stages)


def _alike(given: Any, taken: Any) -> bool:
    """Return True if one tensor can go on as another."""
    return given.type == taken.type and list(map(int, given.shape)) == list(map(int, taken.shape))


def _renamed(tensor: Any, known: set[str]) -> Any:
    """Return a copy whose name is not yet known, since ranges are found by name."""
    added, name = copy.copy(tensor), text(tensor.name)
    while name in known:
        name += "_"
    known.add(name)
    added.name = name
    return added


def deepest(content: bytes) -> bytes:
    """Return a file of one graph with several exits that gives the scores of the last one only."""
    model = load(content)
    graph = Graph(model, model.subgraphs[0])
    last, name = graph.outputs[-1], input_names(model, graph)[0]
    model.subgraphs = [_part(graph, graph.inputs[0], [last], WHOLE)]
    model.signatureDefs = [make_signature(WHOLE, 0, {name: graph.inputs[0]}, {SCORES: last})]
    compact(model)
    return dump(model)


def chain_of(variants: Sequence[Variant]) -> tuple[str, ...]:
    """Return the signatures of a cascade, shallow first; empty: the variants are no cascade."""
    ordered = list(reversed(variants))
    chained = all(one.after == before.name for before, one in pairwise(ordered))
    return tuple(one.signature for one in ordered) if chained and len(ordered) > 1 else ()


def _outputs(model: Any) -> dict[str, int]:
    """Return the outputs of the first graph by their names in its signature."""
    found = (one for one in model.signatureDefs or () if one.subgraphIndex == 0)
    return {text(end.name): int(end.tensorIndex) for one in found for end in one.outputs or ()}


def _find(graph: Graph, outputs: Mapping[str, int], name: str) -> int:
    tensors = {graph.name(index): index for index in graph.outputs}
    found = outputs.get(name, tensors.get(name))
    if found is None:
        known = ", ".join([*outputs] or [*tensors])
        raise ModelError(f"the model has no output {name!r}; it has: {known}")
    return found


def _part(whole: Graph, entry: int, ends: Sequence[int], name: str) -> Any:
    """Return the graph that computes some tensors from one."""
    operators = operations_before(whole, ends, entry)
    if any(index in whole.inputs and index != entry for one in operators for index in one.inputs):
        raise ModelError(f"{whole.name(entry)!r} is no cut: {name} needs what is computed before it, too")
    part = copy.copy(whole.table)
    part.name, part.tensors = name, [copy.deepcopy(tensor) for tensor in whole.table.tensors]
    part.operators = [copy.deepcopy(operator) for operator in operators]
    part.inputs, part.outputs = [entry], list(ends)
    return part


def stage_multiply_adds(content: bytes) -> dict[str, int]:
    """Return the multiply-adds of each signature of a file by itself: those of kernels and matrices."""
    file = read_modelfile(content)
    return {one.name: multiply_adds(file, one.name) for one in file.signatures}


def backbone(content: bytes) -> bytes:
    """Return the float file of a classifier without the softmax at its end.

    Raises:
        ModelError: it is quantised, is no classifier of one graph, one input and one output, or scores each class
            by itself.
    """
    model = load(float_file(content))
    if len(model.subgraphs) != 1:
        raise ModelError(
            f"the model has {len(model.subgraphs)} graphs: give a model of one, which has no exits yet"
        )
    graph = Graph(model, model.subgraphs[0])
    ends = len(graph.inputs), len(graph.outputs)
    if ends != (1, 1):
        raise ModelError(
            "the model has {} inputs and {} outputs: exits need a classifier of one each".format(*ends)
        )
    shape, last = graph.shape(graph.outputs[0]), graph.producer(graph.outputs[0])
    if math.prod(shape[:-1]) != 1 or len(shape) < 2 or last is None:
        raise ModelError(f"output {graph.name(graph.outputs[0])!r} is {list(shape)}: expected [1, classes]")
    if graph.kind(last) == _OPERATORS.LOGISTIC:
        raise ModelError("the model scores each class by itself (LOGISTIC): exits need one class for each input")
    if graph.kind(last) == _OPERATORS.SOFTMAX:
        graph.replace_end(last.outputs[0], last.inputs[0])
        graph.remove(last, last.inputs[0])
    return dump(model)


def choose_exits(content: bytes, exits: int, at: Sequence[str] = ()) -> list[Cut]:
    """Return the places of the early exits, shallow first.

    Args:
        content: of `backbone`.
        exits: number of exits with the last one, which is there already. The early ones lie near 1/2, 1/4, 1/8 …
            of the multiply-adds.
        at: names of the tensors instead.

    Raises:
        ModelError: there are fewer places, or a name is none of them; the message lists those that are.
    """
    model = load(content)
    graph = Graph(model, model.subgraphs[0])
    found = [one for one in cuts(content) if _saves(graph, one)]
    if not found:
        raise ModelError("the graph cannot be cut: no tensor of a picture lies on all paths to the answer")
    best = _smallest(found)
    for name in at:
        if name not in {one.name for one in found}:
            raise ModelError(f"{name!r} is no place for an exit; it can be cut at: {_listed(best)}")
    if at:
        return [one for one in found if one.name in at]
    if exits - 1 > len(best):
        raise ModelError(f"{exits} exits: the graph can be cut at {len(best)} places only: {_listed(best)}")
    chosen: list[Cut] = []
    for number in range(1, exits):
        share = 0.5**number
        free = [one for one in best if one not in chosen]
        apart = [one for one in free if all(_distance(one.share, other.share) > _APART for other in chosen)]
        chosen.append(min(apart or free, key=lambda one: _distance(one.share, share)))
    return sorted(chosen, key=lambda one: one.multiply_adds)


def _distance(share: float, other: float) -> float:
    return abs(math.log(share / other))


def _saves(graph: Graph, cut: Cut) -> bool:
    """Return True if an exit there saves more than its head costs."""
    head = cut.shape[-1] * graph.shape(graph.outputs[-1])[-1]
    return head < _LARGEST_HEAD * cut.multiply_adds * (1 / cut.share - 1)


def _smallest(found: Sequence[Cut]) -> list[Cut]:
    """Return of those with the same multiply-adds the smallest tensor: it is copied to the next exit."""
    best: dict[int, Cut] = {}
    for one in found:
        known = best.get(one.multiply_adds)
        if known is None or math.prod(one.shape) < math.prod(known.shape):
            best[one.multiply_adds] = one
    return list(best.values())


def _listed(found: Sequence[Cut]) -> str:
    names = [f"{one.name} ({one.share:.0%})" for one in found]
    more = f" … and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def add_exits(content: bytes, places: Sequence[Cut], *, grid: int = 1) -> tuple[bytes, tuple[Stage, ...]]:
    """Add heads to a graph, whose weights are zero until they are trained.

    Args:
        content: of `backbone`.
        places: from `choose_exits`.
        grid: cells along each side of the picture whose means a head sees; fewer where the picture is smaller.

    Returns:
        The file with the outputs of all exits, and the stages that cut it.
    """
    model = load(content)
    graph = Graph(model, model.subgraphs[0])
    classes, last = graph.shape(graph.outputs[0])[-1], graph.outputs[0]
    stages, outputs = [], dict[str, int]()
    for number, place in enumerate(places, 1):
        stages.append(Stage(f"exit{number}", f"{SCORES}{number}", f"{HIDDEN}{number}"))
        outputs[stages[-1].scores] = _head(graph, place, number, classes, grid)
        outputs[stages[-1].hidden] = place.tensor
    stages.append(Stage(f"exit{len(places) + 1}", f"{SCORES}{len(places) + 1}"))
    outputs[stages[-1].scores] = last
    graph.table.outputs = list(outputs.values())
    entry = {input_names(model, graph)[0]: graph.inputs[0]}
    model.signatureDefs = [make_signature(WHOLE, 0, entry, outputs)]
    return dump(model), tuple(stages)


def _head(graph: Graph, place: Cut, number: int, classes: int, grid: int) -> int:
    """Add the operations of an exit behind a tensor, and return the tensor of its scores."""
    made, (batch, *sides, channels) = Additions(graph, place.tensor, f"exit{number}"), place.shape
    cells = min(grid, *sides)
    if cells > 1 and len(sides) == 2:  # cells overlap where their number is no divisor of the side
        strides = sides[0] // cells, sides[1] // cells
        size = sides[0] - (cells - 1) * strides[0], sides[1] - (cells - 1) * strides[1]
        shape, options = [1, cells, cells, channels], pool_options(size, strides)
        means = made.add("AVERAGE_POOL_2D", [place.tensor], shape, "means", options)
        target = made.constant("shape", (1, math.prod(shape)))
        means = made.add("RESHAPE", [means, target], [1, math.prod(shape)], "pooled")
    else:
        axes = made.constant("axes", tuple(range(1, len(place.shape) - 1)))
        means = made.add("MEAN", [place.tensor, axes], [batch, channels], "mean")
    features = graph.shape(means)[1]
    weights = made.constant("weights", np.zeros((classes, features), np.float32))
    bias = made.constant("bias", np.zeros(classes, np.float32))
    return made.add("FULLY_CONNECTED", [means, weights, bias], [1, classes], "scores")
