"""From ranges to integers: scales that the INT8 kernels accept, and numbers rounded to them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.optimise.graph.layers import Layer, Network

SAME_SCALE = frozenset(
    {"CONCATENATION", "LEAKY_RELU", "MAX_POOL_2D", "PAD", "RESHAPE", "RESIZE_BILINEAR", "SLICE"}
)
"""Operations whose output has the scale of their input: those that only move values, and LeakyReLU, so that the
positive values pass it unrounded."""
INT8_MIN, INT8_MAX = -128, 127
_WEIGHT_CLIPS = np.linspace(0.6, 1.0, 81)


@dataclass(frozen=True, slots=True)
class Quantisation:
    """real = scale × (integer - zero_point); one scale, or one per output channel."""

    scale: NDArray[np.float32]
    zero_point: int


def from_range(low: float, high: float) -> Quantisation:
    """The asymmetric INT8 scale of the real range low..high, which is widened to hold 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (INT8_MAX - INT8_MIN)
    zero_point = min(max(round(INT8_MIN - low / scale), INT8_MIN), INT8_MAX)
    return Quantisation(np.array([scale], np.float32), zero_point)


PIXELS = Quantisation(np.array([1.0], np.float32), INT8_MIN)
PROBABILITIES = Quantisation(np.array([1 / 256], np.float32), INT8_MIN)
LOGITS = from_range(-6.3, 4.0)
"""Range of probabilities from 0.002, below which a score rounds to 0, to 0.98: pictures have few sure scores."""
FIXED = {"image": PIXELS, "logits": LOGITS, "scores": PROBABILITIES, "distances": PROBABILITIES}
"""Tensors whose range is known beforehand."""


def groups(network: Network) -> dict[str, str]:
    """Map each tensor to the one that stands for all tensors that must share its scale."""
    leader = {name: name for name in network.shapes}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    for layer in network.layers:
        if layer.op in SAME_SCALE:
            for name in layer.inputs:
                leader[find(layer.output)] = find(name)
    return {name: find(name) for name in network.shapes}


def scales(
    network: Network, ranges: Mapping[str, tuple[float, float]], fixed: Mapping[str, Quantisation]
) -> dict[str, Quantisation]:
    """The scale of every tensor: the fixed one of its group, or else that of the range of the group's leader."""
    leaders = groups(network)
    known = {leaders[name]: quantisation for name, quantisation in fixed.items()}
    return {name: known.get(leader) or from_range(*ranges[leader]) for name, leader in leaders.items()}


def round_to_int8(values: NDArray[np.floating], to: Quantisation) -> NDArray[np.int8]:
    """The nearest integers of one scale, clipped."""
    integers = np.round(values / to.scale) + to.zero_point
    clipped: NDArray[np.int8] = np.clip(integers, INT8_MIN, INT8_MAX).astype(np.int8)
    return clipped


def weight_scale(kernel: NDArray[np.float32]) -> Quantisation:
    """A scale per output channel of a kernel [height, width, in, out], clipped for the least squared error."""
    peak = np.maximum(np.abs(kernel).max(axis=(0, 1, 2)), 1e-12)
    best, error = peak / INT8_MAX, np.full(peak.shape, np.inf)
    for clip in _WEIGHT_CLIPS:
        scale = clip * peak / INT8_MAX
        rounded = round_weights(kernel, scale) * scale
        squared = np.square(rounded - kernel, dtype=np.float64).sum(axis=(0, 1, 2))
        best, error = np.where(squared < error, scale, best), np.minimum(squared, error)
    return Quantisation(best.astype(np.float32), 0)


def nearest(layer: Layer) -> tuple[NDArray[np.int8], Quantisation]:
    """The kernel of a layer rounded to the nearest; FULLY_CONNECTED has one scale for all of it."""
    assert layer.convolution is not None
    kernel = layer.convolution.kernel
    scale = weight_scale(kernel.reshape(1, 1, -1, 1) if layer.op == "FULLY_CONNECTED" else kernel)
    return round_weights(kernel, scale.scale), scale


def round_weights(values: NDArray[np.floating], scale: NDArray[np.float32]) -> NDArray[np.int8]:
    """The nearest integers of weights [..., out]; symmetric, as the kernels want them."""
    integers: NDArray[np.int8] = np.clip(np.round(values / scale), -INT8_MAX, INT8_MAX).astype(np.int8)
    return integers


def bias(values: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.int32]:
    """Round a bias to the scale of the products that it is added to."""
    return np.round(values.astype(np.float64) / scale.astype(np.float64)).astype(np.int32)
