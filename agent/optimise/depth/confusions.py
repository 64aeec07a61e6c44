"""Classes that a model takes for others: labels that may be swapped."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from agent.errors import ModelError
from agent.types import Array

_MOST = 0.5
"""Share of the inputs of a class from which on those that are taken for another one are most of them."""


class Confusion(Struct, frozen=True):
    """A class that the deepest variant takes for another one more often than for itself.

    Attributes:
        label, other: indices of the class, and of the one that it is taken for.
        right, wrong: shares of its inputs that are taken for either, 0..1.
    """

    label: int
    other: int
    right: float
    wrong: float


def confusions(logits: Array, labels: Array, wanted: Sequence[int] | None = None) -> tuple[Confusion, ...]:
    """Return the classes that are taken for another one more often than for themselves: labels may be swapped.

    Args:
        logits: of the deepest variant, [inputs, classes].
        labels: the right class of each input, int [inputs].
        wanted: indices of the published classes, the only ones that count; None: all.
    """
    count, best, found = logits.shape[1], logits.argmax(axis=1), []
    published = range(count) if wanted is None else wanted
    for label in published:
        shares = np.bincount(best[labels == label], minlength=count) / max(1, int((labels == label).sum()))
        other = max(published, key=lambda one: float(shares[one]))
        if shares[other] > shares[label]:
            found.append(Confusion(label, other, float(shares[label]), float(shares[other])))
    return tuple(found)


def check_labels(confused: Sequence[Confusion], count: int, where: object, hint: str) -> None:
    """Check that labels are not those of other inputs.

    Args:
        confused: see `confusions`.
        count: number of classes.
        where: the inputs are.
        hint: what to do.

    Raises:
        ModelError: most inputs of most classes are taken for those of another one.
    """
    swapped = sum(one.wrong >= _MOST for one in confused)
    if 2 * swapped > count:
        raise ModelError(
            f"{where}: most inputs of {swapped} of the {count} classes are taken for those of others: {hint}"
        )
