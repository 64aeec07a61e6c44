"""Keywords: one probability per word of the current window of sound, or a single one for a wake word.

`agent.compute.track.keywords` turns them into events over time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from msgspec import Meta

from agent.compute.decode.decoder import (
    DecoderContext,
    DecoderOptions,
    Floats,
    Logits,
    activation,
    assign_scores,
    sigmoid,
    softmax,
)
from agent.compute.manifest import HIDDEN
from agent.types import Array, Detection

NO_WORD = -1


class KeywordOptions(DecoderOptions, frozen=True, forbid_unknown_fields=True):
    """Options of `keyword`.

    Attributes:
        logits: see `agent.compute.decode.classify.ClassifyOptions`; a single wake word needs `"sigmoid"`.
        mean_of: number of consecutive answers whose mean is compared with the threshold.
        refractory_s: shortest time between two events of one word, s. Its mean must fall to half the threshold in
            between.
        ignore: labels that are not words, which give no events.
    """

    logits: Logits = False
    mean_of: Annotated[int, Meta(ge=1, le=1000)] = 1
    refractory_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 1.0
    ignore: tuple[str, ...] = ("unknown", "silence")


OPTIONS = KeywordOptions


def build(context: DecoderContext) -> Keyword:
    """Build a decoder for scores [1,classes]. It ignores the output `hidden`, which the next exit continues."""
    options = context.options(KeywordOptions)
    hints = ("logit", "score", "prob", "class", "softmax")
    seen = tuple(spec for spec in context.outputs if spec.name != HIDDEN)
    place = assign_scores(len(context.labels()), seen, options.tensors, hints)
    return Keyword(context, options, context.outputs.index(seen[place]))


class Keyword:
    """Decoder of a keyword model.

    Attributes:
        threshold: least mean of an event, 0..1.
        wanted: numbers of the labels that are words and are wanted.
        scores_at: index of the output with the scores.
        is_softmax: True if the output is logits of which one label is right, which a temperature can divide.
    """

    def __init__(self, context: DecoderContext, options: KeywordOptions, place: int) -> None:
        self._place = self.scores_at = place
        self._spec, self._activation = context.outputs[place], activation(options.logits)
        self.options, self.threshold = options, context.score_threshold
        self.is_softmax = self._activation == "softmax"
        self._byte = self._spec.dtype in ("int8", "uint8")
        self._tables: dict[float, Floats] = {}
        known, count = context.labels(), self._spec.shape[-1]
        self.labels = tuple(known[number] for number in range(count))
        self._asked = frozenset(number for number in range(count) if known.wanted(number) is not None)
        self.wanted = tuple(number for number in sorted(self._asked) if self.labels[number] not in options.ignore)
        self._words = np.array(self.wanted, np.intp)

    def probabilities(self, outputs: Sequence[Array], temperature: float = 1.0) -> Floats:
        """Return the probability of each label, float32 [classes]; values that are not finite become 0."""
        stored = outputs[self._place].reshape(-1)
        if self._byte:
            answers = self._table(temperature).take(stored.view(np.uint8))
            return answers / np.add.reduce(answers) if self.is_softmax else answers
        real = np.asarray(self._spec.real(stored), np.float32)
        if self.is_softmax:
            return softmax(real / np.float32(temperature))
        if self._activation == "sigmoid":
            real = sigmoid(real / np.float32(temperature))
        return np.clip(np.nan_to_num(real, nan=0.0, posinf=0.0, neginf=0.0), 0.0, 1.0)

    def verdict(self, scores: Floats) -> tuple[int, float]:
        """Return the most probable word, or -1 for none, and its probability.

        All labels that are not wanted words together count as one answer.
        """
        words = scores[self._words]
        none = float(np.add.reduce(scores)) - float(np.add.reduce(words))
        best = int(words.argmax()) if words.size else 0
        if not words.size or none >= words[best]:
            return NO_WORD, none
        return self.wanted[best], float(words[best])

    def _table(self, temperature: float) -> Floats:
        """Return the probability of each stored byte; for a softmax, its power."""
        if temperature not in self._tables:
            real = self._spec.real(np.arange(256, dtype=np.uint8).view(self._spec.dtype))
            table = np.clip(real, 0.0, 1.0)
            if self._activation == "sigmoid":
                table = sigmoid(np.asarray(real / temperature, np.float32))
            elif self.is_softmax:
                table = np.maximum(np.exp((real - real.max()) / temperature), 1e-30)
            self._tables[temperature] = np.asarray(table, np.float32)
        return self._tables[temperature]

    def raw(self, outputs: Sequence[Array]) -> Floats:
        """Return a copy of the model's dequantised scores, float32 [classes]."""
        return np.array(self._spec.real(outputs[self._place]), np.float32).reshape(-1)

    def __call__(self, outputs: Sequence[Array]) -> list[Detection]:
        return self.best(self.probabilities(outputs))

    def best(self, probabilities: Floats) -> list[Detection]:
        """Return the best label of one inference if it is wanted, also if it is not a word.

        The threshold is not applied: it is for the mean of several answers.
        """
        number = int(probabilities.argmax())
        return [Detection(self.labels[number], float(probabilities[number]))] if number in self._asked else []
