"""Chooses which layers get 4 bits: their sensitivity on examples, and the best choice within a size.

The choice is a knapsack: the damage of all chosen layers together, taken as the sum of their own, is least among
all choices that save enough. HiGHS solves it as an integer program.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from agent.errors import ModelError
from agent.optimise.graph.torch_graph import GraphOverrides, Key, TorchGraph, WeightedLayer
from agent.optimise.quantisation import gptq

Tensor = Any


def fits_int4(layer: WeightedLayer) -> bool:
    """Return True if LiteRT runs a layer with INT4 weights: depthwise convolutions have no such kernel.

    Grouped ones are left out, too, and so are layers of fewer weights than scales pay for.
    """
    return layer.groups == 1 and layer.size >= 256


def sensitivities(
    graph: TorchGraph,
    inputs: Sequence[Tensor],
    layers: Collection[WeightedLayer],
    progress: Callable[[str], None],
) -> dict[Key, float]:
    """Measure the change of the outputs when one layer alone has 4-bit weights, rounded to the nearest.

    Args:
        graph: float.
        inputs: one tensor [examples, …] per input.
        layers: those to measure.
        progress: called with a line of text for each layer.

    Returns:
        Mean square of the change as a share of the outputs' variance, summed over the outputs.
    """
    with torch.inference_mode():
        squares = _mean_squares(graph, inputs, {layer.key for layer in layers})
        wanted, found = graph(*inputs), {}
        for number, layer in enumerate(layers, 1):
            outputs = graph(
                *inputs, overrides=GraphOverrides({layer.key: _rounded(graph, layer, squares[layer.key])})
            )
            found[layer.key] = damage(outputs, wanted)
            progress(f"measuring the sensitivity of layers: {number} of {len(layers)}")
    return found


def _rounded(graph: TorchGraph, layer: WeightedLayer, squares: Tensor) -> Tensor:
    """Return the weights of a layer rounded to 4 bits, in the file's shape."""
    matrix = gptq.as_matrix(layer, graph.weights(layer))
    scales = gptq.best_scales(matrix, 4, torch.diag_embed(squares))
    return gptq.from_matrix(layer, gptq.nearest(matrix, scales, *gptq.limits(4)) * scales)


def damage(outputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Return the mean square of the difference of outputs, as a share of their variance, summed over outputs."""
    return sum(
        float((one - other).square().mean() / other.var().clamp_min(1e-12))
        for one, other in zip(outputs, wanted, strict=True)
    )


def _mean_squares(graph: TorchGraph, inputs: Sequence[Tensor], keys: Collection[Key]) -> dict[Key, Tensor]:
    """Return the mean square of what each weight of a layer is multiplied with, [groups, in]."""
    generator, found = torch.Generator().manual_seed(0), {}
    values = dict(zip(graph.inputs, inputs, strict=True))
    layers = {layer.operation.outputs[0]: layer for layer in graph.layers}
    for operation in graph.operations:
        layer = layers.get(operation.outputs[0])
        if layer and layer.key in keys:
            seen = gptq.patches(layer, values[operation.inputs[0]], 200, generator)
            found[layer.key] = seen.square().mean(1)
        graph.step(operation, values)
        for index in operation.inputs:
            if index in values and graph.is_last_use(operation, index):
                values.pop(index)
    return found


def choose(costs: Mapping[Key, float], savings: Mapping[Key, int], needed: float) -> set[Key]:
    """Choose the layers that get 4 bits, so that the sum of costs is least and the savings suffice.

    Args:
        costs: sensitivity by layer.
        savings: bytes that each layer gets smaller; same keys.
        needed: bytes to save.

    Raises:
        ModelError: all layers together do not save enough.
    """
    if sum(savings.values()) < needed:
        most = sum(savings.values())
        raise ModelError(f"4 bits in all {len(savings)} layers that take them save {most} of {needed:.0f} bytes")
    if needed <= 0:
        return set()
    solver = _solver()
    keys = list(costs)
    chosen = [solver.addBinary(obj=max(costs[key], 1e-9)) for key in keys]
    weights = [float(savings[key]) for key in keys]
    solver.addConstr(sum(weight * one for weight, one in zip(weights, chosen, strict=True)) >= float(needed))
    solver.run()
    values = np.asarray(solver.getSolution().col_value)
    return {key for key, value in zip(keys, values, strict=True) if value > 0.5}


def _solver() -> Any:
    """Return a silent solver. It prints its name when it is made, from C, where a command may print JSON."""
    import highspy

    with _silenced_stdout():
        solver = highspy.Highs()
    solver.silent()
    return solver


@contextmanager
def _silenced_stdout() -> Iterator[None]:
    sys.stdout.flush()
    kept, (end, start) = os.dup(1), os.pipe()
    try:
        os.dup2(start, 1)
        yield
    finally:
        os.dup2(kept, 1)
        for one in (kept, start, end):
            os.close(one)
