"""Compare the answers of two processors; see `answers` for the names."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from msgspec import Struct

from agent.types import Array

Answers = Mapping[str, Array]

KNOWN = {
    "SOFTMAX by the runtime itself": "on ARM the runtime looks exponentials up, and rounds up from 0.4967",
    "MEAN by XNNPACK": "it scales the sum in float32: within 1e-5 of a half either neighbour may come out",
}
"""Operations that may be one off, and why. Every other must answer the same to the last bit."""


class Difference(Struct, frozen=True):
    """Comparison of two arrays.

    Attributes:
        name: of both.
        values: how many there are.
        different: how many of them differ.
        largest: the largest difference; of integers in steps of the last bit.
    """

    name: str
    values: int = 0
    different: int = 0
    largest: float = 0.0

    def __str__(self) -> str:
        return f"{self.name}: {self.different} of {self.values} values, by at most {self.largest:g}"


def difference(name: str, ours: Answers, theirs: Answers) -> Difference:
    """Compare the arrays of that name; other shapes or dtypes, or none there, are infinitely far apart."""
    one, other = ours[name], theirs.get(name)
    if other is None or one.shape != other.shape or one.dtype != other.dtype:
        return Difference(name, one.size, one.size, float("inf"))
    apart = np.abs(one.astype(np.float64) - other)
    apart[np.isnan(apart)] = np.inf
    return Difference(name, one.size, int(np.count_nonzero(apart)), float(apart.max(initial=0.0)))


def differences(part: str, ours: Answers, theirs: Answers) -> list[Difference]:
    """Compare every array that has `part` in its name."""
    return [difference(name, ours, theirs) for name in ours if part in name]


def outputs(ours: Answers, theirs: Answers) -> list[Difference]:
    """Compare the answers of each variant, all cases of an output together."""
    cases: dict[str, list[Difference]] = {}
    for one in differences("/output ", ours, theirs):
        model, variant, _, output = one.name.split("/", 3)
        cases.setdefault(f"{model}/{variant}/{output}", []).append(one)
    return [
        Difference(
            name, sum(d.values for d in each), sum(d.different for d in each), max(d.largest for d in each)
        )
        for name, each in cases.items()
    ]


def to_blame(ours: Answers, theirs: Answers) -> list[tuple[str, Difference]]:
    """Return the titles of the operations with different answers to the same input."""
    found = {d.name: d for d in differences("/answer", ours, theirs) if d.different}
    blamed = []
    for name, differs in found.items():
        place, number, _ = name.rsplit("/", 2)
        needs = [f"{place}/{need}/answer" for need in ours[f"{place}/{number}/needs"]]
        if not any(need in found for need in needs):
            blamed.append((str(ours[f"{place}/{number}/title"]), differs))
    return blamed


def delegation(answers: Answers) -> list[tuple[str, int, int]]:
    """Return for each variant its place, its number of operations, and how many of them XNNPACK runs."""
    counted = [(name.removesuffix("/nodes"), array) for name, array in answers.items() if name.endswith("/nodes")]
    return [(place, int(nodes), int(taken)) for place, (nodes, taken) in counted]
