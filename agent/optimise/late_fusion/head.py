"""A learned head for fused events: a small network of the terms' features, written as a `.tflite` file.

[1, terms × 3] → 16 with ReLU → the probability of the situation. Adam on the logistic loss with weight decay. In
each step every term is taken for unknown with some probability, so that the network copes with a source that is
away although the recording may have no outage (modality dropout: Neverova et al., ModDrop, 2016).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from agent.compute.track.fusion import FusionTimes
from agent.compute.track.fusion_odds import LOGIT_MAX, PER_TERM, FusionCalibration
from agent.compute.track.fusion_rule import Term
from agent.optimise.graph.layers import RELU, Convolution, Network
from agent.optimise.graph.writer import ModelWriter
from agent.optimise.late_fusion.calibration import (
    Floats,
    calibrate_stretches,
    calibration_error,
    checked_stretches,
    held_out_predictions,
    log_loss,
)
from agent.optimise.late_fusion.recording import Recorded, Span

INPUT, OUTPUT, SIGNATURE = "evidence", "probability", "serving_default"
HIDDEN = 16
_STEPS, _RATE, _DECAY, _UNKNOWN = 1500, 0.01, 1e-3, 0.1
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


class HeadWeights:
    """Weights of the network, float64: `layers` has a matrix [inputs, outputs] and a bias [outputs] for each."""

    def __init__(self, inputs: int, random: np.random.Generator) -> None:
        """Draw weights by He's rule."""
        first = random.standard_normal((inputs, HIDDEN)) * np.sqrt(2.0 / inputs)
        last = random.standard_normal((HIDDEN, 1)) * np.sqrt(2.0 / HIDDEN)
        self.layers: list[Floats] = [first, np.zeros(HIDDEN), last, np.zeros(1)]

    def hidden(self, x: Floats) -> Floats:
        made: Floats = np.maximum(x @ self.layers[0] + self.layers[1], 0.0)
        return made

    def predict(self, x: Floats) -> Floats:
        """Return the probability for features, [n, inputs] → [n]."""
        odds = (self.hidden(_scaled(x)) @ self.layers[2] + self.layers[3])[:, 0]
        made: Floats = 1.0 / (1.0 + np.exp(-np.clip(odds, -30.0, 30.0)))
        return made

    def gradients(self, x: Floats, y: NDArray[np.bool_]) -> list[Floats]:
        """Return the gradients of the mean logistic loss for scaled features, and of the decay."""
        hidden = self.hidden(x)
        odds = (hidden @ self.layers[2] + self.layers[3])[:, 0]
        wrong = (1.0 / (1.0 + np.exp(-np.clip(odds, -30.0, 30.0))) - y)[:, None] / len(y)
        back = (wrong @ self.layers[2].T) * (hidden > 0)
        decay = [_DECAY * self.layers[0], 0.0, _DECAY * self.layers[2], 0.0]
        found = [x.T @ back, back.sum(0), hidden.T @ wrong, wrong.sum(0)]
        return [one + less for one, less in zip(found, decay, strict=True)]


def _scaled(x: Floats) -> Floats:
    """Return features between -1 and 1: logits are divided by their largest."""
    made: Floats = x / np.tile([1.0, 1.0, LOGIT_MAX], x.shape[1] // PER_TERM)
    return made


def learn(x: Floats, y: NDArray[np.bool_], seed: int = 0) -> HeadWeights:
    """Train the network on features [n, inputs] and the truth [n]."""
    random = np.random.default_rng(seed)
    made, scaled = HeadWeights(x.shape[1], random), _scaled(x)
    means = [np.zeros_like(one) for one in made.layers]
    squares = [np.zeros_like(one) for one in made.layers]
    for step in range(1, _STEPS + 1):
        is_known = random.random((len(x), x.shape[1] // PER_TERM)) >= _UNKNOWN
        rate = _RATE * 0.5 * (1.0 + np.cos(np.pi * step / _STEPS))
        for number, slope in enumerate(made.gradients(scaled * np.repeat(is_known, PER_TERM, 1), y)):
            means[number] = _BETA1 * means[number] + (1 - _BETA1) * slope
            squares[number] = _BETA2 * squares[number] + (1 - _BETA2) * np.square(slope)
            mean, square = means[number] / (1 - _BETA1**step), squares[number] / (1 - _BETA2**step)
            made.layers[number] = made.layers[number] - rate * mean / (np.sqrt(square) + _EPSILON)
    return made


def emit(weights: HeadWeights) -> bytes:
    """Return the network as a `.tflite` file: float32 [1, inputs] → [1, 1]."""
    first, first_bias, last, last_bias = (one.astype(np.float32) for one in weights.layers)
    first = _scaled(first.T.astype(np.float64)).T.astype(np.float32)
    network = Network(INPUT, shapes={INPUT: (1, len(first))})
    hidden = network.connect(INPUT, Convolution(first[None, None], first_bias), activation=RELU)
    odds = network.connect(hidden, Convolution(last[None, None], last_bias))
    writer = ModelWriter("learned head of a fused event")
    writer.add(SIGNATURE, network, [network.each("LOGISTIC", odds, OUTPUT)])
    return writer.pack()


class TrainedHead(NamedTuple):
    """A trained head.

    Attributes:
        calibration: its figures are the head's, its weights are those of the sum, and do not count.
        content: of the `.tflite` file.
        sum: the calibration without a head, for comparison.
    """

    calibration: FusionCalibration
    content: bytes
    sum: FusionCalibration


def calibrate_head(
    recorded: Sequence[Recorded], truth: Sequence[Span], terms: Sequence[Term], times: FusionTimes, name: str
) -> TrainedHead:
    """Train a learned head on a recording, whose file will have this name.

    See `agent.optimise.late_fusion.calibration.calibrate` for the arguments and errors.
    """
    x, y = checked_stretches(recorded, truth, terms, times)
    content = emit(learn(x, y))
    held_out = held_out_predictions(x, y, lambda some, true: learn(some, true).predict)
    plain = calibrate_stretches(x, y, terms, times)
    own = replace(
        plain,
        log_loss=round(log_loss(held_out, y), 4),
        calibration_error=round(calibration_error(held_out, y), 4),
        model=name,
        sha256=hashlib.sha256(content).hexdigest(),
    )
    return TrainedHead(own, content, plain)
