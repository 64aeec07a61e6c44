"""Words and short sounds that are taught from a few examples, by the speech embedding of each.

An utterance becomes the mean of the embeddings of four windows around its end. A word is where the examples of it
are: distances are those of Mahalanobis with one shrunk covariance of all words, as in `agent.compute.states`. The
limit up to which an utterance is that word comes from the examples alone: how far each is from the others of its
word. No strange word is needed to choose it. Nothing here knows of devices, files or clocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from agent.compute.gate.utterances import Utterance
from agent.compute.manifest import FEATURES
from agent.compute.states import UNSURE, StateAnswer
from agent.compute.tflite.model import TensorSpec
from agent.errors import ModelError
from agent.types import Array

Floats = NDArray[np.float32]

AFTER_S = (0.0, 0.08, 0.16, 0.24)
"""Ends of the windows after the end of the utterance, s: the model was trained on steps of 80 ms."""
EXAMPLES_MIN = 5
"""Least number of examples of each word."""
SURE = 0.5
"""Least score of a word, by default: at the limit that the examples give."""
SIZE_MAX = 1024
"""Most numbers of an embedding: the covariance has as many rows."""
_SHRINKAGE = 0.3
"""Share of a common variance in the covariance."""
_REACH = 1.6
"""Limit of the distance, as a multiple of the median of the examples' own distances."""
_APART = 0.85
"""An utterance is unsure if it is so near to a second word: least distance, as a share of that to the second."""
_LEAST = 1e-9


def is_embedding(spec: TensorSpec) -> bool:
    """Return True for an output that words can be taught from: one row of numbers, `features` [1, …, size]."""
    return spec.name == FEATURES and 1 < spec.shape[-1] <= SIZE_MAX and int(np.prod(spec.shape)) == spec.shape[-1]


def embedding_output(outputs: Sequence[TensorSpec], path: str) -> int:
    """Return the index of the output that is an embedding. Raises ModelError if a model, at `path`, has none."""
    for index, spec in enumerate(outputs):
        if is_embedding(spec):
            return index
    found = ", ".join(map(str, outputs))
    raise ModelError(f"{path}: expected an output 'features' [1,size] to tell words by, found {found}")


def windows(utterance: Utterance, rows: int, hop_s: float, floor: float) -> list[Array]:
    """Return the windows of an utterance for the model, float32 [rows, columns] each.

    Args:
        utterance: with what is around it.
        rows: of a window.
        hop_s: from one row to the next, s.
        floor: value of a row in digital silence.
    """
    return [utterance.window(utterance.end + round(after / hop_s), rows, floor) for after in AFTER_S]


class WordHead:
    """Tells words from each other and from all else. Immutable.

    Attributes:
        values: the words that it knows.
    """

    def __init__(self, examples: Mapping[str, Floats]) -> None:
        """Learn from examples.

        Args:
            examples: embeddings [n, size] of each word, n ≥ 2.

        Raises:
            ValueError: no word, or examples that are all alike.
        """
        self.values = tuple(examples)
        if not self.values:
            raise ValueError("at least one word is needed")
        counts = np.array([len(one) for one in examples.values()])
        means = np.stack([one.mean(axis=0, dtype=np.float64) for one in examples.values()])
        rest = np.concatenate([one - mean for one, mean in zip(examples.values(), means, strict=True)])
        free = max(1, len(rest) - len(means))
        spread = float(np.square(rest).sum()) / (free * rest.shape[1])
        if not spread > _LEAST:
            raise ValueError("all examples of a word are the same")
        covariance = (1.0 - _SHRINKAGE) / free * (rest.T @ rest)
        covariance[np.diag_indices_from(covariance)] += _SHRINKAGE * spread
        whitener = np.linalg.inv(np.linalg.cholesky(covariance))
        own = np.square(rest @ whitener.T).sum(axis=1)
        self._limit = _REACH * _median(_left_out(own, counts.repeat(counts), free))
        self._whitener = np.asarray(whitener, np.float32)
        self._means = np.asarray(means @ whitener.T, np.float32)

    def classify(self, embedding: Floats, least: float = SURE) -> StateAnswer:
        """Return which word an embedding [size] is.

        Args:
            embedding: of an utterance.
            least: score from which it is sure. The score is 1 at the mean of the examples, 0.5 at the limit that
                they give, and 0 at twice that.
        """
        distances = np.linalg.norm(self._means - self._whitener @ embedding, axis=1)
        best = int(np.argmin(distances))
        score = max(0.0, 1.0 - float(distances[best]) / (2.0 * self._limit))
        others = np.delete(distances, best)
        between = bool(others.size) and float(distances[best]) > _APART * float(others.min())
        nearest, unlike = self.values[best], score < least
        return StateAnswer(UNSURE if unlike or between else nearest, nearest, score, unlike)


def _median(values: NDArray[np.float64]) -> float:
    """Return the median; `np.median` imports masked arrays, which take 10 MB."""
    middle = np.sort(values)[(len(values) - 1) // 2 : len(values) // 2 + 1]
    return float(middle.mean())


def _left_out(own: NDArray[np.float64], counts: NDArray[np.int64], free: int) -> NDArray[np.float64]:
    """Return the distance of each example from the others of its word, had it not been learned.

    Without an example with the rest r, of n of its word, the mean moves so that its rest is n / (n - 1) r, and
    the scatter loses n / (n - 1) r rᵀ, whose inverse the Sherman–Morrison formula gives.

    Args:
        own: squared distance of each example with all learned.
        counts: number of examples of its word.
        free: degrees of freedom of the covariance.
    """
    more = counts / np.maximum(counts - 1.0, 1.0)
    left = np.maximum(1.0 - (1.0 - _SHRINKAGE) / free * more * own, _LEAST)
    return np.asarray(more * np.sqrt(own / left), np.float64)
