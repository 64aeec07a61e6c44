"""Chooses which layers get 4 bits: their sensitivity on examples, and the best choice within a size.

The choice is a knapsack: the damage of all chosen layers together, taken as the sum of their own, is least among
all choices that save enough. HiGHS solves it as an integer program.

Chooses the layers that get 4 bits, so that a model meets its budget.

What a layer saves, in bytes or in time, is measured on a file in which it alone has 4 bits. The choice is the
knapsack of `allocation`. Its file is measured, and what it still lacks is asked for as well, until it meets the
limit.

A limit of latency comes first. Only layers that run with INT4 kernels of their own can be faster than as INT8;
whether they are is measured.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from msgspec.structs import replace

from agent.compute.tflite.expand import expand_int4
from agent.compute.tflite.read import read_modelfile
from agent.errors import ModelError
from agent.models.library import installed_runtime
from agent.optimise.graph.operations import Key, WeightedLayer
from agent.optimise.graph.runtime_graph import LayerValues, RuntimeGraph
from agent.optimise.quantisation.gptq import RoundedLayer, real_values, round_to_nearest
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


Bits = Mapping[Key, int]
Evaluate = Callable[[bytes], float]
"""Returns the loss of a quantised file against the float model, 0..1: 0.005 is half a percentage point."""
Times = Callable[[Sequence[bytes]], list[float]]
"""Returns the time of an inference of each file, ms; they take turns."""
DEFAULT_LOSS = 0.005
"""Score that `mixed` may lose beyond INT8 where there is no budget, 0..1."""
_LEVELS = 16
"""Steps of the share of bytes that a limit of loss is met in."""
_NOISE = 0.03
"""Share of the time of an inference by which 4 bits have to make it faster."""
_NS = 1e6
"""Nanoseconds in a millisecond."""


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
        times: Times | None = None,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Prepare a search; nothing is measured yet.

        Args:
            quantiser: of the model.
            make: returns the model with these bits; a layer that is not named has 8.
            budget: to be met.
            loss: measures the loss of a file; needed for a limit of loss, and without any limit.
            times: measures files; needed for a limit of latency.
            progress: told what is done.
        """
        self._quantiser, self._make, self._budget = quantiser, make, budget
        self._loss, self._times, self._progress = loss, times, progress
        self.costs: dict[Key, float] = {}

    def find(self, candidates: Sequence[WeightedLayer], fixed: Bits) -> QuantisedModel:
        """Return the model with 4 bits in as many layers as the budget needs, or permits.

        Args:
            candidates: layers that may get 4 bits.
            fixed: bits of others.

        Raises:
            ModelError: the latency or the size cannot be met; the message says what was reached.
        """
        limits, whole = self._budget, self._make(fixed)
        if limits.latency_ms is not None and not self._is_fast(whole.content):
            faster = self._within_latency(whole, candidates, fixed)
            if limits.size is None and faster is not whole:
                return faster
            whole, fixed = faster, _narrow(faster) | dict(fixed)
            candidates = [layer for layer in candidates if layer.key not in fixed]
        if limits.size is not None:
            return self._within_size(whole, candidates, fixed)
        if limits.latency_ms is not None and limits.loss is None:
            return whole
        return self._within_loss(whole, candidates, fixed)

    def _is_fast(self, content: bytes) -> bool:
        if self._budget.latency_ms is None:
            return True
        self._progress("measuring the time")
        return self._budget.meets("latency", *self._timed(content))

    def _timed(self, *contents: bytes) -> list[float]:
        if self._times is None:
            raise ModelError("a limit of latency needs a way to measure it")
        return self._times(contents)

    def _within_latency(
        self, whole: QuantisedModel, candidates: Sequence[WeightedLayer], fixed: Bits
    ) -> QuantisedModel:
        """Return a model that 4 bits make fast enough."""
        limits, limit = self._budget, self._budget.latency_ms
        assert limit is not None
        savings = {key: ns for key, ns in self._saved_ns(whole, candidates).items() if ns > 0}
        int8, least = self._timed(whole.content, _stand_in(self._quantiser, whole, savings))
        if limits.meets("latency", int8):  # something else had slowed it down before
            return whole
        if not limits.meets("latency", least):
            raise ModelError(_too_slow(limits, int8, least))
        self._measure([layer for layer in candidates if layer.key in savings])

        def lack(content: bytes) -> float:
            _, ms = self._timed(whole.content, content)
            return 0.0 if limits.meets("latency", ms) else max(1.0, (ms - limit) * _NS)

        return self._least(savings, fixed, max(1.0, (int8 - limit) * _NS), lack)

    def _saved_ns(self, whole: QuantisedModel, candidates: Sequence[WeightedLayer]) -> dict[Key, int]:
        """Measure the time that 4 bits in each layer alone save, of those with INT4 kernels of their own."""
        everywhere = _stand_in(self._quantiser, whole, [layer.key for layer in candidates])
        names = _with_kernels(everywhere)
        layers, found = [layer for layer in candidates if layer.name in names], {}
        for number, layer in enumerate(layers, 1):
            self._progress(f"measuring the time with 4 bits in layer {number} of {len(layers)}")
            before, after = self._timed(whole.content, _stand_in(self._quantiser, whole, [layer.key]))
            found[layer.key] = round((before - after) * _NS)
        return found

    def _within_size(
        self, whole: QuantisedModel, candidates: Sequence[WeightedLayer], fixed: Bits
    ) -> QuantisedModel:
        limits, limit = self._budget, self._budget.size
        assert limit is not None

        def lack(content: bytes) -> float:
            return 0.0 if limits.meets("size", len(content)) else max(1.0, len(content) - limit)

        if not (needed := lack(whole.content)):
            return whole
        saved = {
            layer.key: len(whole.content) - len(_stand_in(self._quantiser, whole, [layer.key]))
            for layer in candidates
        }
        savings = {key: count for key, count in saved.items() if count > 0}
        least = len(_stand_in(self._quantiser, whole, savings))
        if not limits.meets("size", least):
            raise ModelError(
                f"the budget {limits.told('size')} cannot be met: 4 bits in all layers that take them give "
                f"{limits.amount('size', least)}: prune channels, or take a smaller network"
            )
        self._measure(candidates)
        return self._least(savings, fixed, needed, lack)

    def _within_loss(
        self, whole: QuantisedModel, candidates: Sequence[WeightedLayer], fixed: Bits
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
        self._measure(candidates)
        savings = {layer.key: layer.size // 2 for layer in candidates}
        low, high, best = 0, _LEVELS + 1, whole
        while high - low > 1:
            middle = (low + high) // 2
            self._progress(f"trying 4 bits for {middle / _LEVELS:.0%} of what they can save")
            tried = self._chosen(savings, fixed, sum(savings.values()) * middle / _LEVELS)
            permitted = limits.meets("loss", self._loss(tried.content)) and self._is_fast(tried.content)
            low, high, best = (middle, high, tried) if permitted else (low, middle, best)
        return best

    def _measure(self, layers: Sequence[WeightedLayer]) -> None:
        self.costs |= self._quantiser.sensitivities(layers) if layers else {}

    def _chosen(self, savings: Mapping[Key, int], fixed: Bits, needed: float) -> QuantisedModel:
        keys = choose({key: self.costs[key] for key in savings}, savings, needed)
        return self._make(dict.fromkeys(keys, 4) | dict(fixed))

    def _least(
        self, savings: Mapping[Key, int], fixed: Bits, needed: float, lack: Callable[[bytes], float]
    ) -> QuantisedModel:
        """Return the model with the least damage that lacks nothing, else that with 4 bits in all layers.

        Args:
            savings: of each layer.
            fixed: bits of others.
            needed: what 8 bits lack, in the unit of `savings`.
            lack: measures what a file still lacks; 0: nothing.
        """
        while True:
            found = self._chosen(savings, fixed, min(needed, sum(savings.values())))
            chosen = savings.keys() & _narrow(found).keys()
            if chosen == savings.keys() or not (missing := lack(found.content)):
                return found
            needed = sum(savings[key] for key in chosen) + missing


def _narrow(found: QuantisedModel) -> dict[Key, int]:
    """Return the layers of 4 bits."""
    return {key: 4 for key, one in found.rounded.items() if one.weights and one.weights.bits == 4}


def _stand_in(quantiser: Quantiser, whole: QuantisedModel, keys: Collection[Key]) -> bytes:
    """Return a file with 4 bits in these layers. Its size and time are right, its answers are not."""
    rounded = {key: _cut(one) if key in keys else one for key, one in whole.rounded.items()}
    content: bytes = quantiser.file(rounded)
    return content


def _cut(one: RoundedLayer) -> RoundedLayer:
    if one.weights is None:
        return one
    return one._replace(weights=one.weights._replace(integers=np.clip(one.weights.integers, -8, 7), bits=4))


def _with_kernels(content: bytes) -> set[str]:
    """Return the names of layers that the runtime computes with INT4 weights, which are not expanded."""
    found = set()
    for graph in read_modelfile(expand_int4(content, installed_runtime())).subgraphs:
        for one in graph.operations:
            if len(one.inputs) > 1 and graph.tensors[one.inputs[1]].dtype == "int4":
                found.add(graph.tensors[one.outputs[0]].name)
    return found


def _too_slow(limits: Budget, int8: float, least: float) -> str:
    """Say that a limit of latency cannot be met."""
    told = f"the budget {limits.told('latency')} cannot be met: INT8 takes {limits.amount('latency', int8)}, and"
    if least >= int8 * (1 - _NOISE):
        told += " 4 bits do not make it faster"
    else:
        told += f" 4 bits in the layers that they make faster {limits.amount('latency', least)}"
    return f"{told}: prune channels, or take a smaller network"
