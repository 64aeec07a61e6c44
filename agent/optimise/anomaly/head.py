"""Adds the comparison with a memory to the graph of a backbone.

With z = (x - mean) / std of a place's features x, its squared distance to the nearest place c_k of the memory is
|z|² - max_k (2 c_k·z - |c_k|²): two convolutions of 1×1 and a maximum over channels, in float.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from agent.errors import ModelError
from agent.optimise.anomaly.memory import PatchMemory
from agent.optimise.graph.additions import Additions, conv_options, reducer_options
from agent.optimise.graph.objects import Graph, dump, input_name, load, make_signature
from agent.text import plural

OUTPUT, SIGNATURE = "anomaly", "serving_default"
_TYPES = schema.TensorType


def features_of(content: bytes) -> tuple[int, int, int]:
    """Return height, width and channels of a backbone's features.

    Raises:
        ModelError: the file has more than one graph, input or output, or its output is no map of features.
    """
    return _checked(load(content))[1]


def _checked(model: Any) -> tuple[Graph, tuple[int, int, int]]:
    if len(model.subgraphs) != 1:
        raise ModelError(f"the model has {len(model.subgraphs)} graphs: a backbone has one")
    graph = Graph(model, model.subgraphs[0])
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        found = f"{plural(len(graph.inputs), 'input')} and {plural(len(graph.outputs), 'output')}"
        raise ModelError(f"the model has {found}: a backbone takes a picture and gives features")
    output = graph.outputs[0]
    shape, kind = graph.shape(output), graph.tensor(output).type
    if shape[3:] == (1,) and graph.name(output) == OUTPUT:
        raise ModelError("it is a model of anomalies already: give the backbone that it was made of")
    if len(shape) != 4 or shape[0] != 1 or shape[1] * shape[2] < 4 or shape[3] < 2 or graph.is_open(output):
        raise ModelError(
            f"output {graph.name(output)!r} is {list(shape)}: expected features of places, [1, height, width, "
            "channels]: give a network without the layers that sum up the picture"
        )
    if kind not in (_TYPES.FLOAT32, _TYPES.INT8, _TYPES.UINT8):
        raise ModelError(f"output {graph.name(output)!r} has a type that is neither float32 nor 8 bits")
    return graph, (shape[1], shape[2], shape[3])


def add_memory(content: bytes, memory: PatchMemory) -> bytes:
    """Return the file of a backbone that gives squared distances, float32 [1, height, width, 1], as `anomaly`.

    Args:
        content: of the backbone; see `features_of` for what it raises.
        memory: of its features.
    """
    model = load(content)
    graph, (height, width, channels) = _checked(model)
    entry, output = input_name(model, graph), graph.outputs[0]
    made = Additions(graph, output, "memory")
    model.description = f"anomalies, {len(memory.places)} normal places"
    whole = [1, height, width]
    features = output
    if graph.tensor(output).type != _TYPES.FLOAT32:
        features = made.add("DEQUANTIZE", [output], [*whole, channels], "features")
    size = [*whole, channels]
    factor, offset = 1.0 / memory.std, -memory.mean / memory.std
    scaled = made.add("MUL", [features, made.constant("factor", factor)], size, "scaled")
    centred = made.add("ADD", [scaled, made.constant("offset", offset)], size, "centred")
    squares = made.add("MUL", [centred, centred], size, "squares")
    norm = _point(made, squares, np.ones((1, channels)), np.zeros(1), whole, "norm")
    bias = -np.square(memory.places, dtype=np.float64).sum(1)
    nearest = _point(made, centred, 2.0 * memory.places, bias, whole, "places")
    axis = made.constant("axis", (3,))
    largest = made.add("REDUCE_MAX", [nearest, axis], [*whole, 1], "nearest", reducer_options(keep_axes=True))
    options = schema.SubOptionsT()
    options.fusedActivationFunction = schema.ActivationFunctionType.RELU
    distances = made.add("SUB", [norm, largest], [*whole, 1], "distances", options)
    graph.tensor(distances).name = OUTPUT
    graph.table.outputs = [distances]
    model.signatureDefs = [make_signature(SIGNATURE, 0, {entry: graph.inputs[0]}, {OUTPUT: distances})]
    return dump(model)


def _point(made: Additions, source: int, weights: Any, bias: Any, whole: list[int], name: str) -> int:
    """Add a convolution of 1×1 with weights [outputs, inputs]."""
    kernel = made.constant(f"{name}/kernel", np.asarray(weights[:, None, None], np.float32))
    offset = made.constant(f"{name}/bias", np.asarray(bias, np.float32))
    return made.add("CONV_2D", [source, kernel, offset], [*whole, len(weights)], name, conv_options())
