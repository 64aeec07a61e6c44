"""Give a model one more output, `features`: a map of its backbone, from which states can be taught.

The output is a tensor that the model computes anyway, so it costs a copy and no operation. Weights, other outputs
and their order stay as they are.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from agent.compute.manifest import FEATURES
from agent.errors import ModelError
from agent.optimise.graph.objects import Graph, dump, graphs, load, make_signature, text

STRIDE = 16
"""Pixels of the input per place of the map: coarser ones lose small regions, finer ones know less of things."""


class FeatureMap(Struct, frozen=True):
    """A tensor that became an output.

    Attributes:
        signature: whose output it is; empty: the file had none.
        tensor: its name.
        shape: [1, height, width, channels].
    """

    signature: str
    tensor: str
    shape: tuple[int, ...]


class FeaturedModel(Struct, frozen=True):
    """A model with features.

    Attributes:
        content: the `.tflite` file.
        maps: by graph.
    """

    content: bytes
    maps: list[FeatureMap]


def add_features(content: bytes, tensor: str = "") -> FeaturedModel:
    """Return the file with an output `features` in each graph that takes a picture.

    Args:
        content: the `.tflite` file.
        tensor: name of the map; empty: the last one at a sixteenth of the input's size before a smaller one is
            computed, which is the end of that stage of a backbone.

    Raises:
        ModelError: the file is damaged, has such an output already, or no graph has such a tensor.
    """
    model = load(content)
    chosen = [_add(model, graph, tensor) for graph in graphs(model) if _takes_picture(graph)]
    if not chosen:
        raise ModelError("no graph takes one picture: features are maps of a picture")
    return FeaturedModel(dump(model), chosen)


def _takes_picture(graph: Graph) -> bool:
    return len(graph.inputs) == 1 and len(graph.shape(graph.inputs[0])) == 4


def _add(model: Any, graph: Graph, tensor: str) -> FeatureMap:
    signatures = [one for one in model.signatureDefs or () if one.subgraphIndex == graph.number]
    names = [text(end.name) for one in signatures for end in one.outputs] or [
        graph.name(index) for index in graph.outputs
    ]
    if FEATURES in names:
        raise ModelError(f"the model has an output called {FEATURES!r} already")
    index = _named(graph, tensor) if tensor else _last_of_stage(graph)
    if not signatures:
        ends = {graph.name(one): one for one in graph.inputs}, {graph.name(one): one for one in graph.outputs}
        signatures = [make_signature("serving_default", graph.number, *ends)]
        model.signatureDefs = [*(model.signatureDefs or ()), *signatures]
    graph.outputs.append(index)
    for one in signatures:
        one.outputs = [*one.outputs, *make_signature("", 0, {}, {FEATURES: index}).outputs]
    return FeatureMap(text(signatures[0].signatureKey), graph.name(index), graph.shape(index))


def _named(graph: Graph, tensor: str) -> int:
    for index in range(len(graph.table.tensors)):
        if graph.name(index) == tensor:
            if graph.producer(index) is None or len(graph.shape(index)) != 4 or index in graph.outputs:
                raise ModelError(f"tensor {tensor!r} is no inner map [1, height, width, channels]")
            return index
    raise ModelError(f"no tensor is called {tensor!r}: `vedette profile` lists the operations with their tensors")


def _last_of_stage(graph: Graph) -> int:
    height = graph.shape(graph.inputs[0])[1]
    found = -1
    for operator in graph.operators:
        index = operator.outputs[0]
        shape = graph.shape(index)
        if len(shape) != 4 or index in graph.outputs or min(shape) < 1:
            continue
        if shape[1] * STRIDE < height - STRIDE and found >= 0:
            break
        if abs(shape[1] * STRIDE - height) < STRIDE and shape[3] > 1 and not _is_padding(graph, index):
            found = index
    if found < 0:
        raise ModelError(f"no map has a {STRIDE}th of the input's height, {height}: name one with --tensor")
    return found


def _is_padding(graph: Graph, index: int) -> bool:
    """Return True for a map that only the border tells from the one before."""
    producer = graph.producer(index)
    source = graph.shape(producer.inputs[0]) if producer is not None else ()
    return len(source) == 4 and source[3] == graph.shape(index)[3] and source[1] < graph.shape(index)[1]
