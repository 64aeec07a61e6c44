"""Chooses which layers get 4 bits: their sensitivity on examples, and the best choice within a size.

The choice is a knapsack: the damage of all chosen layers together, taken as the sum of their own, is least among
all choices that save enough. It is found among all choices that no other beats in both (Nemhauser, Ullmann,
Discrete Dynamic Programming and Capital Allocation, Management Science 15, 1969).

The size of the file is measured, and what it still lacks is asked for as well. A limit of loss is met by
bisecting over the bytes that are saved. Time is not searched for: 4 bits hardly change it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from msgspec.structs import replace

from agent.errors import ModelError
from agent.optimise.graph.operations import Key, WeightedLayer
from agent.optimise.graph.runtime_graph import LayerValues, RuntimeGraph
from agent.optimise.quantisation.gptq import real_values, round_to_nearest
from agent.optimise.recipe.budget import Budget
from agent.types import Array

Quantiser = Any
QuantisedModel = Any
"""Those of `agent.optimise.quantise`, which imports this module."""


def fits_int4(layer: WeightedLayer) -> bool:
    """Return True if LiteRT runs a layer with INT4 weights: depthwise convolutions have no such kernel.

    Grouped ones are left out, too, and so are layers of fewer weights than scales pay for.
    """
    return layer.groups == 1 and layer.size >= 256


def sensitivities(
    graph: RuntimeGraph,
    examples: Sequence[Sequence[Array]],
    layers: Collection[WeightedLayer],
    progress: Callable[[str], None],
) -> dict[Key, float]:
    """Measure the change of the outputs when one layer alone has 4-bit weights, rounded to the nearest.

    Args:
        graph: float.
        examples: for each one array [1, …] per input.
        layers: those to measure.
        progress: called with a line of text for each layer.

    Returns:
        Mean square of the change as a share of the outputs' variance, summed over the outputs.
    """

    def outputs(changed: Mapping[Key, LayerValues]) -> list[Array]:
        whole = graph.piece(0, len(graph.operations), graph.inputs, graph.outputs, changed)
        return [np.concatenate(one) for one in zip(*(whole(*values) for values in examples), strict=True)]

    wanted, found = outputs({}), {}
    for number, layer in enumerate(layers, 1):
        values = graph.values(layer)
        narrow = real_values(layer, round_to_nearest(layer, values, 4))
        found[layer.key] = damage(outputs({layer.key: narrow}), wanted)
        progress(f"measuring the sensitivity of layers: {number} of {len(layers)}")
    return found


def damage(outputs: Sequence[Array], wanted: Sequence[Array]) -> float:
    """Return the mean square of the difference of outputs, as a share of their variance, summed over outputs."""
    return sum(
        float(np.square(one - other).mean() / max(float(other.var(ddof=1)), 1e-12))
        for one, other in zip(outputs, wanted, strict=True)
    )


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
    front: list[tuple[float, int, tuple[Any, ...]]] = [(0.0, 0, ())]  # cost, saved, and a chain of keys
    for key, cost in costs.items():
        more = [(lost + max(cost, 1e-9), saved + savings[key], (key, kept)) for lost, saved, kept in front]
        both, front = sorted(front + more, key=lambda one: (one[0], -one[1])), []
        for one in both:
            if not front or front[-1][1] < min(one[1], needed):
                front.append(one)
    chain, chosen = front[-1][2], set[Key]()
    while chain:
        chosen.add(chain[0])
        chain = chain[1]
    return chosen


Bits = Mapping[Key, int]
Evaluate = Callable[[bytes], float]
"""Returns the loss of a quantised file against the float model, 0..1: 0.005 is half a percentage point."""
DEFAULT_LOSS = 0.005
"""Score that `mixed` may lose beyond INT8 where there is no budget, 0..1."""
_LEVELS = 16
"""Steps of the share of bytes that a limit of loss is met in."""


class BitSearch:
    """Searches the bits of layers with which a model meets its budget.

    Attributes:
        costs: sensitivity of layers, as far as it was measured.
    """

    def __init__(
        self,
        quantiser: Quantiser,
        make: Callable[[Bits], QuantisedModel],
        budget: Budget,
        *,
        loss: Evaluate | None = None,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Prepare a search; nothing is measured yet.

        Args:
            quantiser: of the model.
            make: returns the model with these bits; a layer that is not named has 8.
            budget: to be met; 4 bits are for its size and loss.
            loss: measures the loss of a file; needed for a limit of loss, and without any limit.
            progress: told what is done.
        """
        self._quantiser, self._make, self._budget = quantiser, make, budget
        self._loss, self._progress = loss, progress
        self.costs: dict[Key, float] = {}

    def find(self, candidates: Sequence[WeightedLayer], fixed: Bits) -> QuantisedModel:
        """Return the model with 4 bits in as many layers as the size needs, or the loss permits.

        Args:
            candidates: layers that may get 4 bits.
            fixed: bits of others.

        Raises:
            ModelError: the size cannot be met; the message says what was reached.
        """
        limits, whole = self._budget, self._make(fixed)
        savings = {layer.key: layer.size // 2 for layer in candidates}
        if limits.size is not None and not limits.meets("size", len(whole.content)):
            self.costs |= self._quantiser.sensitivities(candidates)
            return self._within_size(whole, savings, fixed)
        if limits.size is not None or (limits.latency_ms is not None and limits.loss is None):
            return whole
        return self._within_loss(whole, candidates, savings, fixed)

    def _within_size(self, whole: QuantisedModel, savings: Mapping[Key, int], fixed: Bits) -> QuantisedModel:
        """Ask for what the file still lacks as well, until it meets the limit: scales take bytes, too."""
        limits, limit, most = self._budget, self._budget.size, sum(savings.values())
        assert limit is not None
        found, needed = whole, 0.0
        while not limits.meets("size", len(found.content)):
            if needed >= most:
                raise ModelError(
                    f"the budget {limits.told('size')} cannot be met: 4 bits in all layers that take them give "
                    f"{limits.amount('size', len(found.content))}: prune channels, or take a smaller network"
                )
            found, needed = self._chosen(savings, fixed, min(most, needed + max(1.0, len(found.content) - limit)))
        return found

    def _within_loss(
        self, whole: QuantisedModel, candidates: Sequence[WeightedLayer], savings: Mapping[Key, int], fixed: Bits
    ) -> QuantisedModel:
        """Bisect over the bytes that are saved; INT8 if even that loses more than the limit."""
        if self._loss is None:
            raise ModelError("a limit of loss needs examples to measure it on")
        lost = self._loss(whole.content)
        limits = self._budget
        if limits.loss is None:
            limits = replace(limits, loss=max(lost, 0.0) + DEFAULT_LOSS)
        if not limits.meets("loss", lost):
            return whole
        self.costs |= self._quantiser.sensitivities(candidates)
        low, high, best = 0, _LEVELS + 1, whole
        while high - low > 1:
            middle = (low + high) // 2
            self._progress(f"trying 4 bits for {middle / _LEVELS:.0%} of what they can save")
            tried, _ = self._chosen(savings, fixed, sum(savings.values()) * middle / _LEVELS)
            permitted = limits.meets("loss", self._loss(tried.content))
            low, high, best = (middle, high, tried) if permitted else (low, middle, best)
        return best

    def _chosen(self, savings: Mapping[Key, int], fixed: Bits, needed: float) -> tuple[QuantisedModel, int]:
        """Return the model with 4 bits where they cost least, and the bytes that the weights save so."""
        keys = choose({key: self.costs[key] for key in savings}, savings, needed)
        return self._make(dict.fromkeys(keys, 4) | dict(fixed)), sum(savings[key] for key in keys)
