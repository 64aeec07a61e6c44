"""The memory of normal places: chosen far apart, so that few of them cover all that was seen.

Adds the comparison with a memory to the graph of a backbone.

With z = (x - mean) / std of a place's features x, its squared distance to the nearest place c_k of the memory is
|z|² - max_k (2 c_k·z - |c_k|²): two convolutions of 1×1 and a maximum over channels, in float.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from agent.errors import ModelError
from agent.optimise.graph.additions import Additions, conv_options, reducer_options
from agent.optimise.graph.objects import Graph, dump, input_names, load, make_signature
from agent.text import plural

Floats = NDArray[np.float32]

CANDIDATES = 20_000
"""Places that the memory is chosen from, at most: some of each picture, so that many pictures fit into memory."""
_NARROW = 0.1
"""Channels that hardly vary on sound parts count as if they varied by this share of what is usual."""


class PatchMemory(NamedTuple):
    """Features of places of sound parts, against which places of other pictures are compared.

    Attributes:
        mean, std: of each channel on sound parts, float32 [C].
        places: normalised by these, float32 [K, C].
    """

    mean: Floats
    std: Floats
    places: Floats

    def distances(self, features: Floats) -> Floats:
        """Return the squared distance of each place to the nearest one in memory.

        Args:
            features: of a picture, float32 [..., C].

        Returns:
            float32 [...].
        """
        known = (features.reshape(-1, features.shape[-1]) - self.mean) / self.std
        nearest = (2.0 * known @ self.places.T - np.square(self.places).sum(1)).max(1)
        found = np.maximum(np.square(known).sum(1) - nearest, 0.0)
        return np.asarray(found.reshape(features.shape[:-1]), np.float32)


def some_places(features: Floats, pictures: int, random: np.random.Generator) -> Floats:
    """Return some places of one of so many pictures, float32 [n, C], of features float32 [H, W, C]."""
    rows = features.reshape(-1, features.shape[-1])
    count = max(1, CANDIDATES // pictures)
    return rows if count >= len(rows) else rows[random.permutation(len(rows))[:count]]


def learn(rows: Floats, size: int) -> PatchMemory:
    """Choose the memory: each next place is the one farthest from those that were chosen.

    Source: Gonzalez, Clustering to minimize the maximum intercluster distance, 1985.

    Args:
        rows: features of places of sound parts, float32 [n, C].
        size: places to keep, at most.
    """
    mean, std = rows.mean(0), rows.std(0)
    std = np.maximum(std, max(_NARROW * float(np.median(std)), 1e-6))
    known = np.asarray((rows - mean) / std, np.float32)
    squares = np.square(known).sum(1)
    chosen, left = [0], np.full(len(known), np.inf, np.float32)
    while len(chosen) < min(size, len(known)):
        newest = chosen[-1]
        left = np.minimum(left, squares - 2.0 * (known @ known[newest]) + squares[newest])
        farthest = int(left.argmax())
        if left[farthest] <= 1e-6 * max(float(squares[farthest]), 1e-6):  # all that is left is there already
            break
        chosen.append(farthest)
    return PatchMemory(mean.astype(np.float32), std.astype(np.float32), known[chosen])


def limit_of(scores: Floats, false_alarms: float) -> float:
    """Return the score that so many new sound parts will exceed at most, if they are like these.

    Of n parts the one of rank ⌈(n + 1) (1 - false_alarms)⌉ is taken (split conformal prediction; Vovk et al.,
    Algorithmic learning in a random world, 2005); the largest, if n is too small for that rank.

    Args:
        scores: of sound parts that are not in memory, at least one.
        false_alarms: share, 0..1.
    """
    rank = math.ceil((len(scores) + 1) * (1.0 - false_alarms))
    return float(np.sort(scores)[min(rank, len(scores)) - 1])


def roc_area(sound: Floats, faulty: Floats) -> float:
    """Return the probability that a faulty part has a larger score than a sound one (AUROC); ties count half."""
    ordered = np.sort(sound)
    below = np.searchsorted(ordered, faulty, "left") + np.searchsorted(ordered, faulty, "right")
    return float(below.mean() / (2.0 * len(sound)))


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
    entry, output = input_names(model, graph)[0], graph.outputs[0]
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
