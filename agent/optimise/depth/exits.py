"""Gives a classifier early exits: chooses where its graph can be cut, and adds a head at each place.

A head is a mean over each cell of a grid and a fully connected layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from agent.compute.manifest import HIDDEN
from agent.errors import ModelError
from agent.optimise.depth.stages import SCORES, WHOLE, Cut, Stage, cuts
from agent.optimise.graph.additions import Additions, pool_options
from agent.optimise.graph.objects import Graph, dump, input_names, load, make_signature
from agent.optimise.quantise import float_file

_SHOWN = 12
_OPERATORS = schema.BuiltinOperator
_APART = math.log(1.2)
"""Least distance of two exits, unless there are not enough places: the logarithm of the ratio of their costs."""
_LARGEST_HEAD = 0.5
"""Multiply-adds of a head, as a share of those that an exit there can save."""


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
