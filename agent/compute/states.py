"""State sensors that are taught from a few pictures: a gate is open or closed, a bin is out, a light is on.

A region of the detector's feature map is averaged in 3×3 cells, and the largest values of all of it are
taken: the embedding. Values are told apart by linear discriminant analysis with a shrunk covariance, learned
from 5 to 20 examples of each value in milliseconds. A picture between two values, or unlike all examples, is
unsure, and so is every picture of a value that its own examples do not tell from another, see `confused_values`.
Nothing here knows of devices, files or clocks.

Source of the shrinkage: Friedman, "Regularized Discriminant Analysis", JASA 84 (1989).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.compute.tflite.model import TensorSpec
from agent.types import Array, Box, Image

Floats = NDArray[np.float32]

UNSURE = "unsure"
"""In place of a value: no value can be called like this."""
GRID = 3
"""Cells along each side of a region."""
EMBEDDING_CELLS = GRID * GRID + 1
"""Numbers of an embedding per channel: the means of the cells, and the largest value."""
EXAMPLES_MIN = 5
"""Least number of examples of each value."""
_SHRINKAGE = 0.1
"""Share of a common variance in the covariance: more trusts the few examples less."""
_BAND = 0.3
"""Share of the way from the middle between two values to one of them, below which a picture is unsure."""
_FAR, _FAR_MIN = 2.0, 0.6
"""A picture is unlike its value if it is farther from the mean than this times the farthest example, and than
this times the distance between two values."""
_TOLD = 0.7
"""Least share of the examples of two values that the others must tell rightly. Of those without any difference
less than half are right, since what is left out moves its own mean away; so many are in a few of a hundred cases
at most."""
_LEAST = 1e-9


def pool_region(features: Array, spec: TensorSpec, region: Box) -> Floats:
    """Return the embedding of a region, float32 [10 * channels].

    Means over 3×3 cells of the region tell how it looks, and the largest values over the whole of it what is
    somewhere in it, such as a person.

    Args:
        features: map [1, height, width, channels] as stored in the tensor.
        spec: of that tensor.
        region: as fractions of the map. A cell that is smaller than a place of the map is that place.
    """
    height, width = features.shape[1:3]
    rows = _bounds(region[1], region[3], height)
    columns = _bounds(region[0], region[2], width)
    means = [
        features[0, top:bottom, left:right].mean(axis=(0, 1), dtype=np.float32)
        for top, bottom in rows
        for left, right in columns
    ]
    inside = features[0, rows[0][0] : rows[-1][1], columns[0][0] : columns[-1][1]]
    pooled = np.concatenate([*means, inside.max(axis=(0, 1)).astype(np.float32)])
    if spec.quantised:
        pooled = (pooled - np.float32(spec.zero_point)) * np.float32(spec.scale)
    return np.asarray(pooled, np.float32)


def _bounds(first: float, last: float, places: int) -> list[tuple[int, int]]:
    """Return the first and the end of the places of each cell along one side."""
    edges = [(first + (last - first) * number / GRID) * places for number in range(GRID + 1)]
    found = []
    for begin, end in itertools.pairwise(edges):
        start = min(places - 1, max(0, int(begin)))
        found.append((start, min(places, max(start + 1, int(np.ceil(end - _LEAST))))))
    return found


class StateAnswer(NamedTuple):
    """Answer to a picture: the value that it shows.

    Attributes:
        value: that it shows; `unsure`: none for sure.
        nearest: the value that fits best.
        score: 0 in the middle between two values, 1 where the examples are.
        unlike: True if it is unlike all examples.
    """

    value: str
    nearest: str
    score: float
    unlike: bool = False


class Head(Protocol):
    """Tells values apart: `StateHead`, or `agent.compute.listening.WordHead`."""

    @property
    def values(self) -> tuple[str, ...]: ...

    def classify(self, embedding: Floats) -> StateAnswer: ...


class StateHead:
    """Tells the values of one state apart. Immutable.

    Attributes:
        values: that it knows.
    """

    def __init__(self, examples: Mapping[str, Floats], confused: Collection[str] = ()) -> None:
        """Learn from examples.

        Args:
            examples: embeddings [n, size] of each value, n ≥ 1.
            confused: values that are never told: a picture that looks like one is unsure.

        Raises:
            ValueError: fewer than two values, or values that no embedding tells apart.
        """
        self.values, self._confused = tuple(examples), frozenset(confused)
        if len(self.values) < 2:
            raise ValueError(f"at least two values are needed, there is {len(self.values)}")
        means = np.stack([one.mean(axis=0) for one in examples.values()])
        rest = np.concatenate([one - mean for one, mean in zip(examples.values(), means, strict=True)])
        solved = _inverse(rest, len(self.values), means)
        self._means, self._solved = means, solved
        self._offsets = 0.5 * np.einsum("kd,kd->k", means, solved)
        gaps = means[:, None] - means[None]
        apart = 0.5 * np.einsum("abd,abd->ab", gaps, solved[:, None] - solved[None])
        np.fill_diagonal(apart, np.inf)
        self._apart = apart
        between = np.linalg.norm(gaps, axis=2) + np.diag(np.full(len(means), np.inf))
        if not apart.min() > _LEAST or not between.min() > _LEAST:
            one, other = np.unravel_index(int(np.argmin(between)), between.shape)
            raise ValueError(
                f"{self.values[one]!r} and {self.values[other]!r} look the same: their examples are alike"
            )
        farthest = float(np.linalg.norm(rest, axis=1).max())
        self._reach = np.maximum(_FAR * farthest, _FAR_MIN * between.min(axis=1))

    def classify(self, embedding: Floats) -> StateAnswer:
        """Return what an embedding [size] shows."""
        scores = self._solved @ embedding - self._offsets
        best = int(np.argmax(scores))
        share = float(((scores[best] - scores) / self._apart[best]).min(where=self._others(best), initial=np.inf))
        score = min(1.0, max(0.0, share))
        is_far = bool(np.linalg.norm(embedding - self._means[best]) > self._reach[best])
        nearest = self.values[best]
        unsure = is_far or score < _BAND or nearest in self._confused
        return StateAnswer(UNSURE if unsure else nearest, nearest, score, is_far)

    def _others(self, index: int) -> NDArray[np.bool_]:
        return np.asarray(np.arange(len(self.values)) != index)


def _inverse(rest: Floats, values: int, means: Floats) -> Floats:
    """Return means [k, size] times the inverse of the shrunk covariance of `rest` [n, size].

    By the Woodbury identity a matrix of n×n is solved; the covariance, size×size, is never built.
    """
    count = max(1, len(rest) - values)
    exact, wanted = rest.astype(np.float64), means.astype(np.float64)
    base = max(_SHRINKAGE * float(np.square(exact).sum()) / (count * rest.shape[1]), _LEAST)
    inner = exact @ exact.T
    inner[np.diag_indices_from(inner)] += base * count / (1.0 - _SHRINKAGE)
    along = np.linalg.solve(inner, exact @ wanted.T)
    return np.asarray((wanted - along.T @ exact) / base, np.float32)


class LeftOut(Struct, frozen=True):
    """Answers to examples by heads that have not learned from them.

    Attributes:
        right, unsure, wrong: number of examples.
    """

    right: int = 0
    unsure: int = 0
    wrong: int = 0

    @property
    def count(self) -> int:
        """Number of examples."""
        return self.right + self.unsure + self.wrong


Learn = Callable[[Mapping[str, Floats]], Head]
"""Makes a head of the embeddings [n, size] of each value. Raises ValueError if it cannot."""
Pictures = Mapping[str, Sequence[Floats]]
"""Examples of each value, each the embeddings [n, size] of one picture, of which the first is the picture itself,
and the others are its variations."""


def leave_one_out(examples: Pictures, learn: Learn = StateHead) -> dict[str, LeftOut]:
    """Check each example by a head that learns from all others. A picture is left out with its variations."""
    found = {}
    for value, answers in _left_out_answers(examples, learn).items():
        told = [one.value if one else UNSURE for one in answers]
        right, unsure = told.count(value), told.count(UNSURE)
        found[value] = LeftOut(right, unsure, len(told) - right - unsure)
    return found


def confused_values(examples: Pictures) -> tuple[str, ...]:
    """Return the values that the examples do not tell from another one.

    Each picture is told by a head that learns from all others, see `leave_one_out`. Two values are confused if
    fewer than `_TOLD` of their pictures that are nearest to either of them are nearest to their own.
    """
    answers = _left_out_answers(examples, StateHead)
    nearest = {value: [one.nearest if one else "" for one in some] for value, some in answers.items()}
    found = set[str]()
    for pair in itertools.combinations(examples, 2):
        told = [one == value for value in pair for one in nearest[value] if one in (*pair, "")]
        if sum(told) < _TOLD * len(told):
            found.update(pair)
    return tuple(value for value in examples if value in found)


def _left_out_answers(examples: Pictures, learn: Learn) -> dict[str, list[StateAnswer | None]]:
    """Return the answer to each picture by a head without it; None: nothing could be learned."""
    return {
        value: [_answer_without(examples, value, number, learn) for number in range(len(pictures))]
        for value, pictures in examples.items()
    }


def _answer_without(examples: Pictures, value: str, left_out: int, learn: Learn) -> StateAnswer | None:
    others = {
        name: np.concatenate([one for number, one in enumerate(some) if name != value or number != left_out])
        for name, some in examples.items()
        if name != value or len(some) > 1
    }
    try:
        return learn(others).classify(examples[value][left_out][0])
    except ValueError:
        return None


_VARIATIONS = ((0.45, 1.0), (1.3, 0.85))
"""Gain and exponent of pictures that are learned beside each example: at night, and in the sun."""


def vary(image: Image) -> Iterator[Image]:
    """Yield a picture, H×W×3 uint8, darker and brighter: what no example shows, and the light will."""
    for gain, exponent in _VARIATIONS:
        levels = 255.0 * gain * np.power(np.arange(256) / 255.0, exponent)
        yield np.clip(np.rint(levels), 0, 255).astype(np.uint8)[image]


SETTLE_S, UNSURE_S = 1.0, 5.0
"""Time for which answers must agree before a value is taken, and for which none is sure before it is unsure, s: a
person who passes by covers the region for a moment."""


class StateSensor:
    """Follows the value of one state over time. For one thread.

    Attributes:
        value: now; empty before the first answer.
        score: of the newest answer with this value, 0..1.
    """

    def __init__(self, settle_s: float = SETTLE_S, unsure_s: float = UNSURE_S) -> None:
        self.value, self.score = "", 0.0
        self._settle_ns, self._unsure_ns = round(settle_s * 1e9), round(unsure_s * 1e9)
        self._candidate, self._since_ns = "", 0

    def update(self, answer: StateAnswer, now_ns: int) -> bool:
        """Take an answer to a picture that was captured at `now_ns`; return True if the value changes."""
        if answer.value == self.value:
            self._candidate, self.score = "", answer.score
            return False
        if answer.value != self._candidate:
            self._candidate, self._since_ns = answer.value, now_ns
        wait_ns = self._unsure_ns if answer.value == UNSURE else self._settle_ns
        if now_ns - self._since_ns < wait_ns:
            return False
        self.value, self.score, self._candidate = answer.value, answer.score, ""
        return True

    @property
    def is_settling(self) -> bool:
        """True if newer answers differ from the value: more pictures are needed to tell."""
        return bool(self._candidate)
