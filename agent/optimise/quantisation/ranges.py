"""Ranges of activations: the INT8 scale of every tensor, found on examples.

The runtime computes the network with every tensor as an output. The range is the one whose rounding does the
least squared damage behind the operations that read the tensor: what a LeakyReLU shrinks to a tenth needs no fine
steps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agent.errors import ModelError
from agent.optimise.graph.integers import FIXED, INT8_MAX, INT8_MIN, Scale, from_range
from agent.optimise.graph.operations import GraphOperation
from agent.optimise.graph.runtime_graph import RuntimeGraph
from agent.types import Array

_SAME = """
AVERAGE_POOL_2D CONCATENATION DEPTH_TO_SPACE EXPAND_DIMS LEAKY_RELU MAXIMUM MAX_POOL_2D MINIMUM PAD PADV2
REDUCE_MAX RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR SLICE SPLIT SQUEEZE STRIDED_SLICE TRANSPOSE
"""
SAME_SCALE = frozenset(_SAME.split())
"""Operations whose output has the scale of their inputs: those that only move values, and LeakyReLU, so that the
positive values pass it unrounded."""
_BINS = 2048
_MOST_VALUES = 100_000
"""Values counted of one tensor in all examples together, evenly spread over them."""
_TOLD = 16
"""Examples after which progress is told."""
_CLIPS = np.linspace(0.1, 1.0, 46)
LOGITS, _LEAST_HIGH = (-6.3, 6.3), 4.0
"""Range of the inputs of a sigmoid: probabilities from 0.002, below which a score rounds to 0, to at least 0.98,
which few examples may reach."""
_DIGITS = 3
"""Significant digits of a range: few enough that another processor's arithmetic finds the same."""

Effect = Callable[[NDArray[np.float64]], NDArray[np.float64]]
Inputs = Sequence[Sequence[Array]]
"""For each example one array [1, …] per input."""


class ActivationScales(NamedTuple):
    """INT8 scales of all tensors of activations.

    Attributes:
        leaders: by name of a tensor, the one that stands for all that must share its scale.
        by_leader: their scales.
    """

    leaders: dict[str, str]
    by_leader: dict[str, Scale]

    def by_name(self) -> dict[str, Scale]:
        """Return the scale of every tensor by name."""
        return {name: self.by_leader[leader] for name, leader in self.leaders.items()}


def find_scales(
    graphs: Sequence[RuntimeGraph],
    examples: Sequence[Inputs],
    inputs: Mapping[str, Scale],
    progress: Callable[[str], None],
    logits: Collection[int] = (),
) -> ActivationScales:
    """Find the INT8 scale of every tensor of activations.

    Args:
        graphs: of one file. Tensors of one name have one scale in all of them.
        examples: of each graph.
        inputs: scales that are known beforehand, by name of the tensor.
        progress: called with a line of text now and then.
        logits: places of the outputs of which a decoder takes the sigmoid; their range is that of a LOGISTIC's.

    Raises:
        ModelError: an activation is not a number, or the runtime cannot run the model.
    """
    groups, histograms = _Groups(graphs), _Histograms()
    for number, (graph, given) in enumerate(zip(graphs, examples, strict=True), 1):
        for name, value in groups.constants(graph):
            histograms.add(groups.leader(name), value.reshape(-1))
        sources = [one for one in sorted(_sources(graph)) if graph.name(one) in groups]
        inner = [one for one in sources if one not in graph.inputs]
        whole = graph.piece(0, len(graph.operations), graph.inputs, inner)
        most = max(1, _MOST_VALUES // len(given))
        for done, values in enumerate(given, 1):
            found = dict(zip(graph.inputs, values, strict=True))
            found |= zip(inner, whole.views(*values), strict=True)
            for index in sources:
                histograms.add(groups.leader(graph.name(index)), found[index].reshape(-1), most)
            if done % _TOLD == 0 or done == len(given):
                progress(f"measuring ranges of graph {number}: example {done} of {len(given)}")
    known = groups.fixed(graphs) | {groups.leader(name): scale for name, scale in inputs.items()}
    for leader in {groups.leader(graph.name(graph.outputs[place])) for graph in graphs for place in logits}:
        known.setdefault(leader, _of_logits(histograms, leader))
    readers, leaders = groups.readers(graphs), dict(groups.items())
    by_leader = {
        leader: known.get(leader) or _scale(histograms, leader, readers.get(leader, {}))
        for leader in dict.fromkeys(leaders.values())
    }
    ends = {graph.name(index) for graph in graphs for index in graph.outputs} & leaders.keys()
    for leader in set(map(groups.leader, ends)) - set(known):
        by_leader[leader] = histograms.opened(leader, by_leader[leader])
    return ActivationScales(leaders, by_leader)


def _scale(histograms: _Histograms, leader: str, readers: Mapping[str, GraphOperation]) -> Scale:
    """Return the scale of a group that these operations read, by kind."""
    if set(readers) == {"LOGISTIC"}:
        return _of_logits(histograms, leader)
    if "LEAKY_RELU" in readers:
        alpha = float(readers["LEAKY_RELU"].options.alpha)
        return histograms.best(leader, lambda values: np.where(values < 0, alpha * values, values))
    return histograms.best(leader, lambda values: values)


def _of_logits(histograms: _Histograms, leader: str) -> Scale:
    low, high = histograms.extremes[leader]
    return from_range(max(low, LOGITS[0]), min(max(high, _LEAST_HIGH), LOGITS[1]))


def _sources(graph: RuntimeGraph) -> frozenset[int]:
    """Return the tensors whose values count: before a max-pool, only those that survive it."""
    readers: dict[int, list[GraphOperation]] = {}
    for operation in graph.operations:
        for index in operation.inputs:
            readers.setdefault(index, []).append(operation)
    counted = set(graph.inputs)
    for operation in graph.operations:
        if operation.kind not in SAME_SCALE:
            counted.update(operation.outputs)
    for index in list(counted):
        pools = readers.get(index, [])
        if pools and all(one.kind == "MAX_POOL_2D" for one in pools) and index not in graph.outputs:
            counted.remove(index)
            counted.update(one.outputs[0] for one in pools)
    return frozenset(counted)


class _Groups:
    """Tensors that must share a scale, by name."""

    def __init__(self, graphs: Sequence[RuntimeGraph]) -> None:
        self._leaders: dict[str, str] = {}
        for graph in graphs:
            for index in filter(graph.is_activation, graph.inputs):
                self._add(graph, index)
            for operation in filter(graph.takes_integers, graph.operations):
                for index in (*operation.inputs, *operation.outputs):
                    if index >= 0 and graph.is_activation(index):
                        self._add(graph, index)
                if operation.kind in SAME_SCALE:
                    for index, _ in self._float_constants(graph, operation):
                        self._add(graph, index)
                    self._join(graph, operation)

    def __contains__(self, name: str) -> bool:
        return name in self._leaders

    def leader(self, name: str) -> str:
        """Return the tensor that stands for all of a group."""
        while self._leaders[name] != name:
            name = self._leaders[name]
        return name

    def items(self) -> Iterable[tuple[str, str]]:
        """Return every tensor with its leader."""
        return [(name, self.leader(name)) for name in self._leaders]

    def fixed(self, graphs: Sequence[RuntimeGraph]) -> dict[str, Scale]:
        """Return the scale of groups that operations compute which all know the same one only, by leader."""
        found: dict[str, set[Scale | None]] = {}
        for graph in graphs:
            for operation in graph.operations:
                if operation.kind not in SAME_SCALE:
                    for name in filter(self.__contains__, map(graph.name, operation.outputs)):
                        found.setdefault(self.leader(name), set()).add(FIXED.get(operation.kind))
        return {leader: scale for leader, (scale, *others) in found.items() if scale and not others}

    def readers(self, graphs: Sequence[RuntimeGraph]) -> dict[str, dict[str, GraphOperation]]:
        """Return by leader and kind the operations that read a group, but for those that only move values."""
        found: dict[str, dict[str, GraphOperation]] = {}
        for graph in graphs:
            for operation in graph.operations:
                names = [graph.name(index) for index in operation.inputs if index >= 0]
                if operation.kind not in SAME_SCALE - {"LEAKY_RELU"}:
                    for leader in {self.leader(name) for name in names if name in self._leaders}:
                        found.setdefault(leader, {})[operation.kind] = operation
        return found

    def constants(self, graph: RuntimeGraph) -> Iterable[tuple[str, Array]]:
        """Yield name and value of the constants that share a scale with what is computed."""
        for operation in graph.operations:
            if operation.kind in SAME_SCALE:
                for index, value in self._float_constants(graph, operation):
                    yield graph.name(index), value

    @staticmethod
    def _float_constants(graph: RuntimeGraph, operation: GraphOperation) -> list[tuple[int, Array]]:
        constants = ((index, graph.graph.constant(index)) for index in operation.inputs)
        return [(index, one) for index, one in constants if one is not None and one.dtype == np.float32]

    def _add(self, graph: RuntimeGraph, index: int) -> None:
        self._leaders.setdefault(graph.name(index), graph.name(index))

    def _join(self, graph: RuntimeGraph, operation: GraphOperation) -> None:
        ends = [*operation.inputs, *operation.outputs]
        names = [graph.name(index) for index in ends if index >= 0 and graph.name(index) in self._leaders]
        for name in names[1:]:
            self._leaders[self.leader(name)] = self.leader(names[0])


class _Histograms:
    """Extremes of the values of groups, and some of the values."""

    def __init__(self) -> None:
        self.extremes: dict[str, tuple[float, float]] = {}
        self._values: dict[str, list[Array]] = {}

    def add(self, group: str, values: Array, most: int = _MOST_VALUES) -> None:
        """Take `values` [n] in, and keep about so many: every n-th, n odd, so that all channels come in turn."""
        low, high = self.extremes.get(group, (0.0, 0.0))
        least, greatest = float(values.min(initial=0.0)), float(values.max(initial=0.0))
        if not np.isfinite([least, greatest]).all():
            raise ModelError(f"tensor {group!r} holds values that are no numbers: check weights and examples")
        self.extremes[group] = min(low, least), max(high, greatest)
        self._values.setdefault(group, []).append(values[:: (len(values) // most) | 1].copy())

    def _counted(self, group: str, low: float, high: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the centres of the bins that hold values, and how many."""
        counts, edges = np.histogram(np.concatenate(self._values[group]), _BINS, (low, high))
        used = counts > 0
        return ((edges[:-1] + edges[1:]) / 2)[used], counts[used].astype(np.float64)

    def opened(self, group: str, scale: Scale) -> Scale:
        """Return the scale of an output: one that only negative logits were seen of holds positive ones, too.

        A detector gives none where the examples show nothing that it knows.
        """
        low, high = self.extremes[group]
        return from_range(low, min(-low, _LEAST_HIGH)) if low < high <= 0.0 else scale

    def best(self, group: str, effect: Effect) -> Scale:
        """Return the scale, of a range no wider than the extremes, that does the least damage behind `effect`."""
        low, high = (_rounded(end) for end in self.extremes[group])
        if high - low < 1e-9:
            return from_range(0.0, 1.0)
        centres, counts = self._counted(group, low, high)
        wanted = effect(centres)

        def damage(scale: Scale) -> float:
            integers = np.clip(np.round(centres / scale.scale) + scale.zero_point, INT8_MIN, INT8_MAX)
            return float(counts @ np.square(effect((integers - scale.zero_point) * scale.scale) - wanted))

        lows = [0.0] if low == 0.0 else [_rounded(low * clip) for clip in _CLIPS]
        highs = [0.0] if high == 0.0 else [_rounded(high * clip) for clip in _CLIPS]
        return min((from_range(a, b) for a in lows for b in highs), key=damage)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
