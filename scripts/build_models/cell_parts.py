"""How the pictures of BCCD are divided: the bundled model has learned from all parts but the first."""

from __future__ import annotations

import numpy as np

from agent.optimise.data import Examples

PARTS = 3


def divided(examples: Examples, number: int, parts: int = PARTS) -> tuple[Examples, Examples]:
    """Examples to learn from, and those of one part, by a fixed rule."""
    part = np.random.default_rng(0).permutation(len(examples)) % parts
    return examples.take(np.flatnonzero(part != number)), examples.take(np.flatnonzero(part == number))
