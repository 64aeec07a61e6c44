"""The memory of normal places: chosen far apart, so that few of them cover all that was seen."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

CANDIDATES = 20_000
"""Places that the memory is chosen from, at most: some of each picture, so that many pictures fit into memory."""
_NARROW = 0.1
"""Channels that hardly vary on sound parts count as if they varied by this share of what is usual."""


class PatchMemory(NamedTuple):
    """Features of places of sound parts, against which places of other pictures are compared.

    Attributes:
        mean, std: of each channel on sound parts, float32 [C].
        places: normalised by these, float32 [K, C].
    """

    mean: Floats
    std: Floats
    places: Floats

    def distances(self, features: Floats) -> Floats:
        """Return the squared distance of each place to the nearest one in memory.

        Args:
            features: of a picture, float32 [..., C].

        Returns:
            float32 [...].
        """
        known = (features.reshape(-1, features.shape[-1]) - self.mean) / self.std
        nearest = (2.0 * known @ self.places.T - np.square(self.places).sum(1)).max(1)
        found = np.maximum(np.square(known).sum(1) - nearest, 0.0)
        return np.asarray(found.reshape(features.shape[:-1]), np.float32)


def some_places(features: Floats, pictures: int, random: np.random.Generator) -> Floats:
    """Return some places of one of so many pictures, float32 [n, C], of features float32 [H, W, C]."""
    rows = features.reshape(-1, features.shape[-1])
    count = max(1, CANDIDATES // pictures)
    return rows if count >= len(rows) else rows[random.permutation(len(rows))[:count]]


def learn(rows: Floats, size: int) -> PatchMemory:
    """Choose the memory: each next place is the one farthest from those that were chosen.

    Source: Gonzalez, Clustering to minimize the maximum intercluster distance, 1985.

    Args:
        rows: features of places of sound parts, float32 [n, C].
        size: places to keep, at most.
    """
    mean, std = rows.mean(0), rows.std(0)
    std = np.maximum(std, max(_NARROW * float(np.median(std)), 1e-6))
    known = np.asarray((rows - mean) / std, np.float32)
    squares = np.square(known).sum(1)
    chosen, left = [0], np.full(len(known), np.inf, np.float32)
    while len(chosen) < min(size, len(known)):
        newest = chosen[-1]
        left = np.minimum(left, squares - 2.0 * (known @ known[newest]) + squares[newest])
        farthest = int(left.argmax())
        if left[farthest] <= 1e-6 * max(float(squares[farthest]), 1e-6):  # all that is left is there already
            break
        chosen.append(farthest)
    return PatchMemory(mean.astype(np.float32), std.astype(np.float32), known[chosen])


def limit_of(scores: Floats, false_alarms: float) -> float:
    """Return the score that so many new sound parts will exceed at most, if they are like these.

    Of n parts the one of rank ⌈(n + 1) (1 - false_alarms)⌉ is taken (split conformal prediction; Vovk et al.,
    Algorithmic learning in a random world, 2005); the largest, if n is too small for that rank.

    Args:
        scores: of sound parts that are not in memory, at least one.
        false_alarms: share, 0..1.
    """
    rank = math.ceil((len(scores) + 1) * (1.0 - false_alarms))
    return float(np.sort(scores)[min(rank, len(scores)) - 1])


def roc_area(sound: Floats, faulty: Floats) -> float:
    """Return the probability that a faulty part has a larger score than a sound one (AUROC); ties count half."""
    ordered = np.sort(sound)
    below = np.searchsorted(ordered, faulty, "left") + np.searchsorted(ordered, faulty, "right")
    return float(below.mean() / (2.0 * len(sound)))
