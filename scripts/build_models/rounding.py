"""Rounds the kernels so that the errors of a convolution's weights cancel out on real samples.

Each weight is rounded in turn, and the weights not yet rounded take up its error, as far as their inputs go
together. Source: GPTQ, https://arxiv.org/abs/2210.17323. How inputs go together is counted on INT8
activations, in integers, so that it comes out the same on every processor.
"""

from collections.abc import Callable, Mapping

import numpy as np
import quantise
from calibrate import Samples
from numpy.typing import NDArray
from quantise import Quantisation
from tflite import File, Runner

from agent.optimise.graph.layers import Layer, Network

_PLACES = 200
"""Places of each sample at which a convolution's input is looked at."""
_DAMPING = 0.01
"""Share of the mean square added to every input's, so that inputs that hardly occur do no harm."""
_BLOCK = 64

Moments = NDArray[np.float64]
Kernels = dict[str, tuple[NDArray[np.int8], Quantisation]]


def round_kernels(
    network: Network,
    scales: Mapping[str, Quantisation],
    samples: Samples,
    progress: Callable[[str], None],
) -> Kernels:
    """Integers and scales of the kernel of every CONV_2D, by the name of its output."""
    kernels: Kernels = {}
    moments = _moments(network, scales, samples, progress)
    for layer in network.layers:
        if layer.output in moments and layer.convolution:
            scale = quantise.weight_scale(layer.convolution.kernel)
            integers = _round(layer.convolution.kernel, scale.scale, moments[layer.output])
            kernels[layer.output] = integers, scale
    return kernels


def _moments(
    network: Network,
    scales: Mapping[str, Quantisation],
    samples: Samples,
    progress: Callable[[str], None],
) -> dict[str, Moments]:
    """Sum over places of patch × patchᵀ for each convolution."""
    layers = [layer for layer in network.layers if layer.op == "CONV_2D"]
    names = sorted({layer.inputs[0] for layer in layers})
    file = File()
    file.add_int8("inputs", network, names, scales)
    run, sums = Runner(file.pack(), "inputs"), dict[str, Moments]()
    for number, sample in enumerate(samples, 1):
        values = run(sample)
        for layer in layers:
            name = layer.inputs[0]
            patches = _patches(layer, values[name][0].astype(np.float64) - scales[name].zero_point)
            sums[layer.output] = sums.get(layer.output, 0) + patches.T @ patches
        if number % 16 == 0 or number == len(samples):
            progress(f"rounding: {number} of {len(samples)}")
    return sums


def _patches(layer: Layer, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the kernel's inputs at evenly spread places: [places, height × width × channels of the kernel]."""
    assert layer.convolution is not None
    size = layer.convolution.kernel.shape[:2]
    if layer.stride == (1, 1) and max(size) > 1:
        values = np.pad(values, ((size[0] // 2,) * 2, (size[1] // 2,) * 2, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(values, size, axis=(0, 1))
    windows = windows[:: layer.stride[0], :: layer.stride[1]].reshape(-1, values.shape[2], *size)
    step = max(1, len(windows) // _PLACES) | 1
    return windows[step // 2 :: step].transpose(0, 2, 3, 1).reshape(-1, size[0] * size[1] * values.shape[2])


def _round(kernel: NDArray[np.float32], scale: NDArray[np.float32], moments: Moments) -> NDArray[np.int8]:
    """Round a kernel [height, width, in, out] for inputs with these moments; the busiest inputs come first."""
    order = np.argsort(-np.diag(moments), kind="stable")
    weights = kernel.reshape(-1, kernel.shape[3]).astype(np.float64)[order]
    damped = moments[np.ix_(order, order)] + np.eye(len(order)) * _DAMPING * np.trace(moments) / len(order)
    spread = np.linalg.cholesky(np.linalg.inv(damped)).T
    integers = np.empty(weights.shape, np.int8)
    for start in range(0, len(order), _BLOCK):
        stop = min(start + _BLOCK, len(order))
        errors = np.empty((stop - start, weights.shape[1]))
        for row in range(start, stop):
            integers[row] = quantise.round_weights(weights[row], scale)
            errors[row - start] = (weights[row] - integers[row] * scale) / spread[row, row]
            weights[row + 1 : stop] -= np.outer(spread[row, row + 1 : stop], errors[row - start])
        weights[stop:] -= spread[start:stop, stop:].T @ errors
    rounded = np.empty_like(integers)
    rounded[order] = integers
    return rounded.reshape(kernel.shape)
