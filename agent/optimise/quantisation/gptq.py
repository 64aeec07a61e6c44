"""Quantise the weights of a network layer by layer, each on what the quantised layers before it give (GPTQ).

Each weight is rounded in turn, and the weights not yet rounded take up its error, as far as their inputs go
together. Source: Frantar et al., GPTQ, https://arxiv.org/abs/2210.17323.

Two copies of the network go side by side over the same examples, one float and one quantised so far: the network
is cut before each layer, and the runtime computes each piece twice. Weights and bias of each layer are first
corrected towards the outputs of the float network, then rounded.

Weights are matrices [groups, out, in]: `in` is the kernel's height × width × channels of one group. Moments are
mean products of inputs, [groups, in, in].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agent.optimise.graph.integers import INT8_MAX, INT8_MIN, IntegerWeights, Scale
from agent.optimise.graph.operations import Key, WeightedLayer, dilations, paddings, strides
from agent.optimise.graph.runtime_graph import GraphPiece, LayerValues, RuntimeGraph
from agent.types import Array

Matrix = NDArray[np.float64]
_DAMPING = 0.01
"""Share of the mean square that is added to every input's, so that inputs that hardly occur do no harm."""
_BLOCK = 64
_LEAST_CLIP, _CLIPS = 0.4, 61


class Moments(NamedTuple):
    """Moments of the inputs of one layer, at the same places of the float and of the quantised network.

    Attributes:
        products: mean of quantised input × quantised inputᵀ, float64 [groups, in, in].
        crossed: mean of float input × quantised inputᵀ, of the same shape.
        float_mean, mean: of float and quantised input, float64 [groups, in].
    """

    products: Matrix
    crossed: Matrix
    float_mean: Matrix
    mean: Matrix


def limits(bits: int) -> tuple[int, int]:
    """Return least and greatest integer of a weight; -128 is left out, as kernels for INT8 want it."""
    return (-8, 7) if bits == 4 else (-127, 127)


def as_matrix(layer: WeightedLayer, weights: Array) -> Array:
    """Return the weights of a layer, in the file's shape, as [groups, out of a group, in of a group]."""
    if layer.channel_axis == 3:
        return weights.reshape(-1, layer.groups, weights.shape[3] // layer.groups).transpose(1, 2, 0)
    return weights.reshape(layer.groups, weights.shape[0] // layer.groups, -1)


def from_matrix(layer: WeightedLayer, matrix: Array) -> Array:
    """Undo `as_matrix`."""
    return (matrix.transpose(2, 0, 1) if layer.channel_axis == 3 else matrix).reshape(layer.shape)


def patches(layer: WeightedLayer, x: Array, most: int, seed: int) -> Array:
    """Return what a layer's kernel sees at random places: [groups, batch × places, in of a group].

    Args:
        layer: the layer.
        x: its input [batch, …, in].
        most: places of an example, at most.
        seed: the same gives the same places.
    """
    random = np.random.default_rng(seed)
    if layer.operation.kind == "FULLY_CONNECTED":
        rows = x.reshape(len(x), -1, layer.shape[-1])
        return rows[:, random.permutation(rows.shape[1])[:most]].reshape(1, -1, layer.shape[-1])
    options, (height, width) = layer.operation.options, layer.shape[1:3]
    stride, dilation = strides(options), dilations(options)
    pads = paddings((x.shape[1], x.shape[2]), options.padding, (height, width), stride, dilation)
    padded = np.pad(x, ((0, 0), *pads, (0, 0)))
    counts = [
        (padded.shape[1 + axis] - (size - 1) * dilation[axis] - 1) // stride[axis] + 1
        for axis, size in enumerate((height, width))
    ]
    chosen = random.permutation(counts[0] * counts[1])[:most]
    rows, columns = chosen // counts[1] * stride[0], chosen % counts[1] * stride[1]
    taps = [
        padded[:, rows + down * dilation[0], columns + right * dilation[1]]
        for down in range(height)
        for right in range(width)
    ]
    seen = np.stack(taps, 2).reshape(len(x) * len(chosen), height * width, layer.groups, -1)
    return seen.transpose(2, 0, 1, 3).reshape(layer.groups, len(seen), -1)


def best_scales(matrix: Array, bits: int, squares: Matrix | None = None) -> Array:
    """Find for each output channel the scale whose clipping and rounding does the least squared damage.

    Args:
        matrix: weights [groups, out, in].
        bits: 4 or 8.
        squares: mean squares of the inputs, which weigh the damage of 4 bits, [groups, in]; None: all inputs
            count alike, as always for 8 bits, whose weights are hardly clipped. Rare inputs keep a part of their
            weight.

    Returns:
        float32 [groups, out, 1], greater than 0.
    """
    low, high = limits(bits)
    matrix = matrix.astype(np.float32)
    peaks: Array = np.maximum(np.abs(matrix).max(2, keepdims=True), 1e-12) / high
    weights = np.ones_like(matrix[:, :1])
    if squares is not None and bits == 4:
        weights = (squares[:, None] + squares.mean(1)[:, None, None]).astype(np.float32)
    best, least = peaks.copy(), np.full_like(peaks, np.inf)
    for clip in np.linspace(_LEAST_CLIP if bits == 4 else 0.6, 1.0, _CLIPS, dtype=np.float32):
        scales = peaks * clip
        damage = (np.square(nearest(matrix, scales, low, high) * scales - matrix) * weights).sum(2, keepdims=True)
        best, least = np.where(damage < least, scales, best), np.minimum(damage, least)
    return best


def nearest(matrix: Array, scales: Array, low: int, high: int) -> Array:
    """Return the nearest integers of weights."""
    found: Array = np.clip(np.rint(matrix / scales), low, high)
    return found


def round_weights(matrix: Array, scales: Array, bits: int, products: Matrix) -> Matrix:
    """Round weights to integers, so that the errors cancel out on inputs with these moments.

    Args:
        matrix: weights [groups, out, in].
        scales: [groups, out, 1].
        bits: 4 or 8.
        products: moments of the inputs [groups, in, in].

    Returns:
        Integers as floats, of the matrix' shape.
    """
    low, high = limits(bits)
    order = np.argsort(-_diagonal(products), axis=1, kind="stable")
    spread = _spread(products, order)
    work = np.take_along_axis(matrix.astype(np.float64), order[:, None], 2)
    integers, steps = np.empty_like(work), scales[..., 0].astype(np.float64)
    for start in range(0, work.shape[2], _BLOCK):
        stop = min(start + _BLOCK, work.shape[2])
        errors = np.empty((*work.shape[:2], stop - start))
        for at in range(start, stop):
            integers[..., at] = nearest(work[..., at], steps, low, high)
            error = (work[..., at] - integers[..., at] * steps) / spread[:, None, at, at]
            errors[..., at - start] = error
            work[..., at + 1 : stop] -= error[..., None] * spread[:, None, at, at + 1 : stop]
        work[..., stop:] -= errors @ spread[:, start:stop, stop:]
    return np.take_along_axis(integers, np.argsort(order, axis=1)[:, None], 2)


def _diagonal(products: Matrix) -> Matrix:
    return np.diagonal(products, axis1=1, axis2=2)


def _damping(products: Matrix, share: float) -> Matrix:
    """Return a share of the mean square of the inputs of each group, [groups]."""
    found: Matrix = np.maximum(_diagonal(products).mean(1), 1e-12) * share
    return found


def _spread(products: Matrix, order: NDArray[np.intp]) -> Matrix:
    """Return the upper Cholesky factor of the inverse of the damped moments, inputs in the given order."""
    ordered = np.take_along_axis(np.take_along_axis(products, order[:, :, None], 1), order[:, None], 2)
    damped = ordered + np.eye(products.shape[1]) * _damping(products, _DAMPING)[:, None, None]
    # With the inputs in reverse order it is the inverse of a lower factor: no inverse is factored.
    return _inverse(np.linalg.cholesky(damped[:, ::-1, ::-1])[:, ::-1, ::-1].astype(np.float64, copy=False))


def _inverse(upper: Matrix) -> Matrix:
    """Return the inverse of upper triangular matrices [groups, n, n]."""
    count = upper.shape[1]
    half, found = count // 2, np.zeros_like(upper)
    if count <= _BLOCK:
        found[...] = np.linalg.inv(upper)
        return found
    found[:, :half, :half] = first = _inverse(upper[:, :half, :half])
    found[:, half:, half:] = second = _inverse(upper[:, half:, half:])
    found[:, :half, half:] = -first @ upper[:, :half, half:] @ second
    return found


def corrected(matrix: Array, moments: Moments, ridge: float) -> tuple[Matrix, Matrix]:
    """Return weights and a change of the bias that bring the outputs close to those of the float network.

    The least squares solution, with a ridge that keeps both near the float ones: what few examples say about rare
    inputs counts little. The bias is the weight of an input that is always 1.

    Args:
        matrix: float weights [groups, out, in].
        moments: of the layer's inputs.
        ridge: share of the mean square that is added to every input's.

    Returns:
        Weights of the matrix' shape, and the change of the bias, float64 [out].
    """
    products = _with_one(moments.products, moments.mean, moments.mean)
    crossed = _with_one(moments.crossed, moments.float_mean, moments.mean)
    damping = np.repeat(_damping(moments.products, ridge)[:, None], products.shape[1], 1)
    damping[:, -1] = ridge
    # What the float weights give is W × crossed; with a bias of 0, its row does not count.
    missing = (crossed - products)[:, :-1].transpose(0, 2, 1)
    solved = np.linalg.solve(products + np.eye(products.shape[1]) * damping[:, None], missing)
    change = solved @ matrix.astype(np.float64).transpose(0, 2, 1)
    return matrix + change[:, :-1].transpose(0, 2, 1), change[:, -1].reshape(-1)


def _with_one(products: Matrix, left: Matrix, right: Matrix) -> Matrix:
    """Return moments with an input that is always 1, given the means of both sides: [groups, in + 1, in + 1]."""
    above = np.concatenate([products, left[:, :, None]], 2)
    below = np.concatenate([right[:, None], np.ones((len(products), 1, 1))], 2)
    return np.concatenate([above, below], 1)


def corrected_bias(matrix: Array, rounded: Array, bias: Array, moments: Moments) -> Matrix:
    """Return the bias that undoes what rounding does to the mean output, float64 [out].

    Args:
        matrix: weights before rounding, [groups, out, in].
        rounded: weights after it.
        bias: [out].
        moments: of the layer's inputs.
    """
    lost: Matrix = (matrix.astype(np.float64) - rounded) @ moments.mean[..., None]
    return bias.astype(np.float64) + lost.reshape(-1)


_SLICE = 8
"""Examples whose patches are gathered at a time."""
_EXAMPLES = 96
"""Examples that the two networks go over, at most: each is seen at many places."""
_ROWS = (1024, 12_800)
"""Least and greatest number of places that the moments of a layer are of, in all examples together."""
_ROWS_PER_INPUT = 64
_RIDGE = 0.2
"""Share of the mean square of the inputs that keeps corrected weights near the float ones."""
_MEMORY = 3 << 30
"""Bytes that the activations of all examples may take."""


class RoundedLayer(NamedTuple):
    """One layer after `quantise_layers`.

    Attributes:
        layer: the layer.
        weights: its integers; None: it stays float.
    """

    layer: WeightedLayer
    weights: IntegerWeights | None


def fake_quantised(x: Array, scale: Scale) -> Array:
    """Return the values that INT8 integers of a scale stand for."""
    integers = np.clip(np.rint(x / np.float32(scale.scale)) + scale.zero_point, INT8_MIN, INT8_MAX)
    found: Array = ((integers - scale.zero_point) * scale.scale).astype(np.float32)
    return found


def real_values(layer: WeightedLayer, found: IntegerWeights) -> LayerValues:
    """Return what integer weights stand for."""
    sizes = [1] * len(layer.shape)
    sizes[layer.channel_axis] = -1
    bias = None if found.bias is None else found.bias.astype(np.float32)
    return LayerValues(found.integers.astype(np.float32) * found.scales.reshape(sizes), bias)


def most_examples(graph: RuntimeGraph) -> int:
    """Return over how many examples the two networks go: as many as fit into memory, and no more than help."""
    live = {index: 4 * int(np.prod(graph.shape(index))) for index in graph.inputs}
    peak = 0
    for at, operation in enumerate(graph.operations):
        live.update({index: 4 * int(np.prod(graph.shape(index))) for index in operation.outputs})
        peak = max(peak, sum(live.values()))
        live = {index: size for index, size in live.items() if graph.last_use.get(index, -1) > at}
    return max(8, min(_EXAMPLES, _MEMORY // (2 * max(1, peak))))


def quantise_layers(
    graph: RuntimeGraph,
    examples: Sequence[Sequence[Array]],
    scales: Mapping[str, Scale],
    bits: Mapping[Key, int],
    progress: Callable[[str], None],
) -> dict[Key, RoundedLayer]:
    """Quantise the weights of every layer.

    Args:
        graph: float.
        examples: for each one array [1, …] per input.
        scales: of activations by name; none: activations stay float.
        bits: of the weights of each layer, by its key; a layer without has 8, and one of 32 stays float.
        progress: called with a line of text for each layer.

    Raises:
        ModelError: the runtime cannot run the model.
    """
    walk = _Walk(graph, examples, scales, bits)
    cuts = graph.cuts()
    for number, (start, stop) in enumerate(zip(cuts, [*cuts[1:], len(graph.operations)], strict=True), 1):
        progress(f"quantising layers: {number} of {len(cuts)}")
        walk.pass_piece(start, stop)
    return walk.done()


def round_to_nearest(layer: WeightedLayer, values: LayerValues, bits: int) -> IntegerWeights:
    """Quantise a layer of which no inputs are known."""
    matrix = as_matrix(layer, values.weights)
    scales = best_scales(matrix, bits)
    integers = from_matrix(layer, nearest(matrix, scales, *limits(bits))).astype(np.int8)
    bias = None if values.bias is None else values.bias.astype(np.float64)
    return IntegerWeights(integers, scales.reshape(-1), bits, bias)


class _Walk:
    """The two networks on their way through the pieces."""

    def __init__(
        self,
        graph: RuntimeGraph,
        examples: Sequence[Sequence[Array]],
        scales: Mapping[str, Scale],
        bits: Mapping[Key, int],
    ) -> None:
        self._graph, self._scales, self._bits = graph, scales, bits
        self._count = len(examples)
        self._weights: dict[Key, IntegerWeights] = {}
        inputs = list(zip(graph.inputs, map(list, zip(*examples, strict=True)), strict=True))
        self._float: dict[int, list[Array]] = dict(inputs)
        self._quantised = {index: [self._fake(index, one) for one in values] for index, values in inputs}

    def _fake(self, index: int, value: Array) -> Array:
        scale = self._scales.get(self._graph.name(index))
        return fake_quantised(value, scale) if scale else value

    def done(self) -> dict[Key, RoundedLayer]:
        """Return the layers that were passed."""
        return {one.key: RoundedLayer(one, self._weights.get(one.key)) for one in self._graph.layers}

    def pass_piece(self, start: int, stop: int) -> None:
        """Quantise the layers of a piece, the first on its inputs, and compute what comes after the piece."""
        graph, operations = self._graph, self._graph.operations[start:stop]
        layers = [layer for one in operations if one.outputs and (layer := graph.layer_at.get(one.outputs[0]))]
        for layer in layers:
            bits = self._bits.get(layer.key, 8)
            if layer.key not in self._weights and bits != 32:
                is_first = layer.operation is operations[0]
                self._weights[layer.key] = (self._rounded if is_first else self._nearest)(layer, bits)
        taken = sorted({index for one in operations for index in one.inputs} & self._float.keys())
        made = [index for one in operations for index in one.outputs]
        given = [index for index in made if graph.last_use.get(index, -1) >= stop]
        rounded = {
            one.key: real_values(one, self._weights[one.key]) for one in layers if one.key in self._weights
        }
        before = graph.piece(start, stop, taken, given)
        after = graph.piece(start, stop, taken, given, rounded, self._scales)
        for piece, values in ((before, self._float), (after, self._quantised)):
            values |= self._run(piece, taken, given, values)
            for index in [one for one in values if graph.last_use.get(one, -1) < stop]:
                del values[index]

    def _run(
        self, piece: GraphPiece, taken: Sequence[int], outputs: Sequence[int], values: Mapping[int, list[Array]]
    ) -> dict[int, list[Array]]:
        results = [piece(*(values[index][at] for index in taken)) for at in range(self._count)]
        return dict(zip(outputs, map(list, zip(*results, strict=True)), strict=True))

    def _nearest(self, layer: WeightedLayer, bits: int) -> IntegerWeights:
        return round_to_nearest(layer, self._graph.values(layer), bits)

    def _rounded(self, layer: WeightedLayer, bits: int) -> IntegerWeights:
        moments, values = self._moments(layer), self._graph.values(layer)
        matrix = as_matrix(layer, values.weights)
        wanted, change = corrected(matrix, moments, _RIDGE)
        scales = best_scales(wanted, bits, _diagonal(moments.products))
        integers = round_weights(wanted, scales, bits, moments.products)
        bias = values.bias
        if bias is not None:
            bias = corrected_bias(wanted, integers * scales, bias + change, moments)
        return IntegerWeights(from_matrix(layer, integers).astype(np.int8), scales.reshape(-1), bits, bias)

    def _moments(self, layer: WeightedLayer) -> Moments:
        index = layer.operation.inputs[0]
        rows = np.clip(_ROWS_PER_INPUT * layer.size // layer.shape[layer.channel_axis], *_ROWS)
        count, sums, places = 0, [np.zeros(())] * 4, -(-int(rows) // self._count)
        for start in range(0, len(self._float[index]), _SLICE):
            real, quantised = (
                patches(layer, np.concatenate(values[index][start : start + _SLICE]), places, index + start)
                for values in (self._float, self._quantised)
            )
            across = quantised.transpose(0, 2, 1)
            found = (across @ quantised, real.transpose(0, 2, 1) @ quantised, real.sum(1), quantised.sum(1))
            sums = [total + part.astype(np.float64) for total, part in zip(sums, found, strict=True)]
            count += real.shape[1]
        return Moments(*(total / count for total in sums))
