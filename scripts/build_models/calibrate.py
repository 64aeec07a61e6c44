"""Finds the range of every tensor of the float network on calibration samples.

Two passes: the first finds the extremes of each tensor, the second counts its values in a histogram. The range is
then the one whose rounding does the least squared damage *behind* the operation that reads the tensor: what
a LeakyReLU shrinks to a tenth needs no fine levels.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import quantise
from numpy.typing import NDArray
from tflite import File, Runner

from agent.optimise.graph.layers import Layer, Network

_SOURCES = frozenset({"ADD", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "MEAN", "MUL"})
"""Operations whose output needs a range of its own."""
_BINS = 2048
_MOST_VALUES = 100_000
"""Values taken of one tensor per sample, evenly spread over it."""
_CLIPS = np.linspace(0.1, 1.0, 91)
_DIGITS = 2
"""Significant digits of a range: few enough that another processor's float arithmetic finds the same ones."""

Effect = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def _nothing(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x


def _leaky(layer: Layer) -> Effect:
    return lambda x: np.where(x < 0, layer.alpha * x, x)


_EFFECTS: Mapping[str, Callable[[Layer], Effect]] = {"LEAKY_RELU": _leaky}
"""Effect of each operation on the tensor that it reads."""


Samples = Sequence[NDArray[Any]]
"""Inputs of a network, without the batch axis."""


def ranges(
    sets: Sequence[tuple[Network, Samples]], progress: Callable[[str], None]
) -> dict[str, tuple[float, float]]:
    """The range (low, high) of each group of tensors, by its leader; the networks differ in size only."""
    first = sets[0][0]
    leaders, found = quantise.groups(first), _Histograms()
    for measure in (found.widen, found.count):
        for network, samples in sets:
            for number, values in enumerate(_run(network, samples), 1):
                for name, array in values.items():
                    measure(leaders[name], array)
                if number % 16 == 0 or number == len(samples):
                    progress(f"{measure.__name__} {network.shapes[network.entry]}: {number} of {len(samples)}")
    effects = _effects(first, leaders)
    return {leader: found.best_range(leader, effects.get(leader, _nothing)) for leader in found.extremes}


def _run(network: Network, samples: Samples) -> Iterable[dict[str, NDArray[np.float32]]]:
    """The values of all source tensors, sample by sample; before a max-pool, only those that survive it."""
    producer = {layer.output: layer for layer in network.layers}
    names = {layer.output for layer in network.layers if layer.op in _SOURCES}
    for pool in (layer for layer in network.layers if layer.op == "MAX_POOL_2D"):
        names.remove(producer[pool.inputs[0]].inputs[0])
        names.add(pool.output)
    file = File()
    file.add("all", network, sorted(names))
    run = Runner(file.pack(), "all")
    for sample in samples:
        yield {name: _thinned(array.ravel()) for name, array in run(sample).items()}


def _thinned(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every n-th value; n is odd, so that all channels come in turn."""
    return values[:: (values.size // _MOST_VALUES) | 1]


def _effects(network: Network, leaders: Mapping[str, str]) -> dict[str, Effect]:
    effects: dict[str, Effect] = {}
    for layer in network.layers:
        if layer.op in _EFFECTS:
            effects[leaders[layer.inputs[0]]] = _EFFECTS[layer.op](layer)
    return effects


class _Histograms:
    """Extremes and counts of groups of tensors."""

    def __init__(self) -> None:
        self.extremes: dict[str, tuple[float, float]] = {}
        self._counts: dict[str, NDArray[np.int64]] = {}

    def widen(self, group: str, values: NDArray[np.float32]) -> None:
        """First pass: let the group's extremes hold `values`."""
        low, high = self.extremes.get(group, (0.0, 0.0))
        self.extremes[group] = min(low, float(values.min())), max(high, float(values.max()))

    def count(self, group: str, values: NDArray[np.float32]) -> None:
        """Second pass: count `values` in the group's histogram."""
        low, high = self.extremes[group]
        bins = np.minimum((values - low) * (_BINS / (high - low)), _BINS - 1).astype(np.int64)
        self._counts[group] = self._counts.get(group, 0) + np.bincount(bins, minlength=_BINS)

    def best_range(self, group: str, effect: Effect) -> tuple[float, float]:
        """The range, no wider than the extremes, whose rounding does the least squared damage behind `effect`."""
        low, high = (_rounded(end) for end in self.extremes[group])
        centres = low + (np.arange(_BINS) + 0.5) * (high - low) / _BINS
        wanted, counts = effect(centres), self._counts[group]

        def damage(end: tuple[float, float]) -> float:
            scale = quantise.from_range(*end)
            restored = (
                quantise.round_to_int8(centres, scale).astype(np.float64) - scale.zero_point
            ) * scale.scale
            return float(counts @ np.square(effect(restored) - wanted))

        return min(((_rounded(low * a), _rounded(high * b)) for a in _CLIPS for b in _CLIPS), key=damage)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
