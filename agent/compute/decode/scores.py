"""Compares stored scores with a threshold and dequantises only those that pass.

`real = scale * (stored - zero_point)` is monotone, so `real >= t` is `stored >= q` for a `q` found once.
Source: https://ai.google.dev/edge/litert/models/quantization_spec
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.compute.decode.decoder import ShapeMismatchError
from agent.compute.tflite.model import TensorSpec
from agent.types import Array

Floats = NDArray[np.float32]
Indices = NDArray[np.intp]

_LOGIT_LIMIT = 100.0
"""Raw scores are clipped to ±100 before the sigmoid, as MediaPipe does (`score_clipping_thresh`)."""
_TABLED = 16
"""Integer types up to so many bits are searched value by value; no model has scores in wider ones."""


def sigmoid(logits: Floats) -> Floats:
    """Return the logistic function of float32 logits, which are clipped first."""
    clipped = np.clip(logits, -_LOGIT_LIMIT, _LOGIT_LIMIT)
    return np.asarray(1.0 / (1.0 + np.exp(-clipped)), np.float32)


def logit(score: float) -> float:
    """Return the inverse of `sigmoid` for a score 0..1."""
    if score <= 0.0:
        return -_LOGIT_LIMIT
    return _LOGIT_LIMIT if score >= 1.0 else math.log(score / (1.0 - score))


def stored_threshold(spec: TensorSpec, threshold: float) -> Any | None:
    """Return the smallest stored value whose real is at least `threshold`, in its own dtype; None: there is none.

    Raises:
        ShapeMismatchError: numpy cannot compare values of the dtype, such as `int4` or `string`.
    """
    try:
        kind = np.dtype(spec.dtype)
    except TypeError:
        raise ShapeMismatchError(f"expected scores of a numpy dtype, found {spec}") from None
    if kind.kind == "f":
        return kind.type(threshold)
    limits = np.iinfo(kind)
    if limits.bits > _TABLED:
        least = max(math.ceil(spec.stored_threshold(threshold)), limits.min)
        return None if least > limits.max else kind.type(least)
    values = np.arange(limits.min, limits.max + 1).astype(kind)
    enough = np.flatnonzero(spec.real(values) >= np.float32(threshold))
    return values[enough[0]] if enough.size else None


_MOST = 1 << 27
"""Most scores of one tensor: half a gigabyte in float32."""


class ScoreFilter:
    """Finds the scores at or above a threshold in a tensor, or in a part of it of constant shape.

    The comparison writes into preallocated memory. Searching it for hits in words of eight is twice as fast as
    searching byte by byte.
    """

    def __init__(
        self, spec: TensorSpec, shape: tuple[int, ...], threshold: float, *, logits: bool = False, skip: int = 0
    ) -> None:
        """Allocate memory for arrays of one shape.

        Args:
            spec: of the tensor.
            shape: of the arrays to come.
            threshold: least score, 0..1.
            logits: whether the stored scores are logits, which need a sigmoid.
            skip: columns at the start of each row that are not scores.

        Raises:
            ShapeMismatchError: the size of the tensor is not fixed, or larger than any board computes.
        """
        self._real = spec.real
        self._logits = logits
        self._threshold = stored_threshold(spec, logit(threshold) if logits else threshold)
        self._float = np.dtype(spec.dtype).kind == "f"
        size = math.prod(shape)
        if min(shape, default=0) < 0 or size > _MOST:
            raise ShapeMismatchError(f"expected scores of a fixed size, at most {_MOST:,}; found {spec}")
        hits = np.zeros(-(-size // 8) * 8, np.bool_)
        self._hits = hits[:size].reshape(shape)
        self._skipped = self._hits[:, :skip] if skip else self._hits[:0]
        self._words = hits.view(np.uint64)
        self._octets = hits.reshape(-1, 8)
        self._nonzero = np.empty(self._words.size, np.bool_)

    def __call__(self, stored: Array) -> tuple[Indices, Floats]:
        """Return the flat indices of the finite scores that pass, and these scores, 0..1."""
        if self._threshold is None:
            return np.empty(0, np.intp), np.empty(0, np.float32)
        np.greater_equal(stored, self._threshold, out=self._hits)
        self._skipped[...] = False
        np.not_equal(self._words, 0, out=self._nonzero)
        words = self._nonzero.nonzero()[0]
        inner = self._octets.take(words, axis=0).reshape(-1).nonzero()[0]
        indices = words.take(inner >> 3) * 8 + (inner & 7)
        passed = stored.reshape(-1).take(indices) if stored.flags.c_contiguous else stored[self._hits]
        if self._float and not (finite := np.isfinite(passed)).all():
            indices, passed = indices[finite], passed[finite]
        scores = np.asarray(self._real(passed), np.float32)
        return indices, sigmoid(scores) if self._logits else scores


def top_k(scores: Floats, limit: int) -> Indices | None:
    """Return the indices of the `limit` highest scores, unordered; None if there are no more than that."""
    if scores.size <= limit:
        return None
    return np.argpartition(scores, scores.size - limit)[scores.size - limit :]
