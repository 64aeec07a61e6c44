"""Matches texts by their meaning: how alike a text and a phrase are, as the cosine of their vectors.

A message of several sentences is compared as a whole and sentence by sentence, and the most alike counts: what
one sentence asks for would be lost in the mean of all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from agent.compute.text_vectors.table import Floats, TextVectors

LONGEST, SENTENCES_MAX = 4096, 64
"""Characters of a text, and sentences, that are compared; more are left out."""
_END = re.compile(r"(?<=[.!?…])\s+|[\n;。！？]+")


def sentences_in(text: str) -> list[str]:
    """Return the sentences of a text, at most `SENTENCES_MAX`."""
    return [part.strip() for part in _END.split(text) if part.strip()][:SENTENCES_MAX]


class PhraseMatcher:
    """Compares texts with some phrases.

    Attributes:
        phrases: in order.
        sha256: of the file of vectors.
    """

    def __init__(self, vectors: TextVectors, phrases: Iterable[str]) -> None:
        self._vectors, self.phrases = vectors, tuple(phrases)
        self.sha256 = vectors.sha256
        made = [vectors.embed(phrase) for phrase in self.phrases]
        self._wanted: Floats = np.stack(made) if made else np.zeros((0, vectors.dimensions), np.float32)

    def compare(self, text: str) -> dict[str, float]:
        """Return how alike a text is to each phrase, 0..1: the cosine, 0 where that is negative."""
        bounded = text[:LONGEST]
        parts = dict.fromkeys((bounded, *sentences_in(bounded)))
        cosines = self._wanted @ np.stack([self._vectors.embed(part) for part in parts]).T
        best = np.clip(cosines.max(1), 0.0, 1.0)
        return {phrase: float(one) for phrase, one in zip(self.phrases, best, strict=True)}
