"""Keywords: one probability per word for the sound that the model hears now, or a single one for a wake word.

What follows over time (means, thresholds, a word told once) is `agent.compute.track.keywords`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from msgspec import Meta

from agent.compute.decode.classify import softmax
from agent.compute.decode.decoder import DecoderContext, DecoderOptions, Logits, activation, cast_scores
from agent.compute.decode.scores import Floats, sigmoid
from agent.compute.manifest import HIDDEN
from agent.types import Array, Detection

"""Name of the output that a deeper variant goes on from."""
NO_WORD = -1


class KeywordOptions(DecoderOptions, frozen=True, forbid_unknown_fields=True):
    """Options of `keyword`.

    Attributes:
        logits: see `agent.compute.decode.classify.ClassifyOptions`; a wake word alone has a sigmoid.
        mean_of: the mean of so many answers in a row is compared with the threshold.
        refractory_s: a word that goes on is told once. It is told again when its mean has fallen to half the
            threshold, at the earliest so long after it was told before, s.
        ignore: labels that are no words: they are never told as events.
    """

    logits: Logits = False
    mean_of: Annotated[int, Meta(ge=1, le=1000)] = 1
    refractory_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 1.0
    ignore: tuple[str, ...] = ("unknown", "silence")


OPTIONS = KeywordOptions


def build(setting: DecoderContext) -> Keyword:
    """A decoder for scores [1,classes]; an output called `hidden` is left to the cascade.

    Raises:
        MisfitError: the tensors are others.
    """
    options = setting.options(KeywordOptions)
    hints = ("logit", "score", "prob", "class", "softmax")
    seen = tuple(spec for spec in setting.outputs if spec.name != HIDDEN)
    place = cast_scores(len(setting.labels()), seen, options.tensors, hints)
    return Keyword(setting, options, setting.outputs.index(seen[place]))


class Keyword:
    """See the module.

    Attributes:
        options: see `KeywordOptions`.
        labels: names in order.
        threshold: least mean that tells a word, 0..1.
        wanted: numbers of the labels that are words and are asked for.
        scores_at: index of the output with the scores.
    """

    def __init__(self, setting: DecoderContext, options: KeywordOptions, place: int) -> None:
        self._place = self.scores_at = place
        self._spec, self._activation = setting.outputs[place], activation(options.logits)
        self.options, self.threshold = options, setting.score_threshold
        self._byte = self._spec.dtype in ("int8", "uint8")
        self._tables: dict[float, Floats] = {}
        known, count = setting.labels(), self._spec.shape[-1]
        self.labels = tuple(known[number] for number in range(count))
        self._asked = frozenset(number for number in range(count) if known.wanted(number) is not None)
        self.wanted = tuple(number for number in sorted(self._asked) if self.labels[number] not in options.ignore)
        self._words = np.array(self.wanted, np.intp)

    def probabilities(self, outputs: Sequence[Array], temperature: float = 1.0) -> Floats:
        """Probability of each label, float32 [classes]; zeros where the model gives nothing finite.

        Args:
            outputs: as for `Decoder`.
            temperature: that logits are divided by.
        """
        stored = outputs[self._place].reshape(-1)
        if self._byte:
            answers = self._table(temperature).take(stored.view(np.uint8))
            return answers / np.add.reduce(answers) if self._activation == "softmax" else answers
        real = np.asarray(self._spec.real(stored), np.float32)
        if self._activation == "softmax":
            return softmax(real / np.float32(temperature))
        if self._activation == "sigmoid":
            real = sigmoid(real / np.float32(temperature))
        return np.clip(np.nan_to_num(real, nan=0.0, posinf=0.0, neginf=0.0), 0.0, 1.0)

    def verdict(self, scores: Floats) -> tuple[int, float]:
        """The word that is told, or -1 for none of them, and how sure that is.

        All labels that are no words, or are not asked for, are one answer: which of them it is matters to nobody.

        Args:
            scores: probabilities, float32 [classes].
        """
        words = scores[self._words]
        none = float(np.add.reduce(scores)) - float(np.add.reduce(words))
        best = int(words.argmax()) if words.size else 0
        if not words.size or none >= words[best]:
            return NO_WORD, none
        return self.wanted[best], float(words[best])

    def _table(self, temperature: float) -> Floats:
        """By the bits of a stored byte: its probability; for a softmax, the power that it sums up."""
        if temperature not in self._tables:
            real = self._spec.real(np.arange(256, dtype=np.uint8).view(self._spec.dtype))
            table = np.clip(real, 0.0, 1.0)
            if self._activation == "sigmoid":
                table = sigmoid(np.asarray(real / temperature, np.float32))
            elif self._activation == "softmax":
                table = np.maximum(np.exp((real - real.max()) / temperature), 1e-30)
            self._tables[temperature] = np.asarray(table, np.float32)
        return self._tables[temperature]

    def raw(self, outputs: Sequence[Array]) -> Floats:
        """The scores as the model gives them, in reals, float32 [classes]: a copy."""
        return np.array(self._spec.real(outputs[self._place]), np.float32).reshape(-1)

    def __call__(self, outputs: Sequence[Array]) -> list[Detection]:
        return self.best(self.probabilities(outputs))

    def best(self, probabilities: Floats) -> list[Detection]:
        """The best label of one inference, also one that is no word; none where only others are asked for.

        The threshold does not count here: it is for the mean of several answers.
        """
        number = int(probabilities.argmax())
        return [Detection(self.labels[number], float(probabilities[number]))] if number in self._asked else []
