"""Text: characters along one axis, as readers of plates, meters and labels give them.

A reader scores each character, and none (the blank), at each of T steps from left to right. Its text is the best
character of each step; with `collapse` neighbours that are equal count once, and a blank between them separates
them. Without it each step is a slot with one character or padding, as some readers of plates have.
Source: Graves et al., Connectionist Temporal Classification, ICML 2006.

The score is the probability of the text: that of all ways in which the steps can spell it, the forward variable
of the same paper. It tells right from wrong texts better than the mean of the best characters' probabilities,
since a character that is left out counts as well. If the best characters do not match a `pattern`, less likely
ones are tried.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agent.compute.decode.decoder import (
    DecoderContext,
    DecoderOptions,
    Floats,
    Indices,
    Logits,
    ShapeMismatchError,
    activation,
)
from agent.compute.manifest import HIDDEN
from agent.compute.tflite.model import TensorSpec
from agent.errors import ModelError
from agent.text import plain, plural
from agent.types import Array, Detection

STEPS_MAX, CLASSES_MAX = 2000, 100_000
"""Most steps, and most characters to choose from; Chinese dictionaries have 18,000."""
LONGEST = 256
"""Characters of a text that are told."""
_LABEL_MAX = 8
"""Most characters of a label: one, or a few that are written together."""
_SPACES = ("", "???")
"""Labels that stand for a space: lists of labels lose it at the end of a line."""
_CERTAIN = 0.9999
"""Steps whose blank is more probable than this are one."""
_FAINT, _TRIED, _COMBINATIONS, _PLACES = 0.02, 6, 100, 40
"""For a pattern: least probability of a character at a step, characters tried there, texts tried, and most
characters of one that is searched: noise has more."""


class CtcOptions(DecoderOptions, frozen=True, forbid_unknown_fields=True):
    """Options of `ctc`.

    Attributes:
        logits: `true` or `"softmax"`: the output is logits that need a softmax; `false`: probabilities. Left out:
            found from the model, see `agent.compute.decode.completion`.
        blank: place of the blank, or of the padding, among the model's characters.
        collapse: equal neighbours are one character; `false` for a model with a slot for each.
    """

    logits: Logits = False
    blank: Literal["first", "last"] = "last"
    collapse: bool = True


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ModelError(f"the pattern {pattern!r} cannot be used: {error}") from None


class TextReading(NamedTuple):
    """A text and its score, 0..1."""

    text: str
    score: float


def _place(context: DecoderContext, options: CtcOptions) -> int:
    """Return the index of the output. Raises ShapeMismatchError if there is none, or more than one."""
    name, labels = options.tensors.get("text"), len(context.output.labels)
    seen = [
        (number, spec)
        for number, spec in enumerate(context.outputs)
        if spec.name != HIDDEN and name in (None, spec.name)
    ]
    fitting = [number for number, spec in seen if _axes(spec, labels)]
    if len(fitting) == 1:
        return fitting[0]
    found = ", ".join(str(spec) for _, spec in seen) or "nothing"
    raise ShapeMismatchError(
        f"expected one output of steps × characters, [1,steps,{labels + 1}] for {plural(labels, 'label')} and a "
        f"blank, or [1,steps,{labels}] if one label is the blank; found {found}"
    )


class _Axes(NamedTuple):
    steps: int
    classes: int
    is_transposed: bool


def _axes(spec: TensorSpec, labels: int) -> _Axes | None:
    sizes = [size for size in spec.shape if size != 1]
    if len(sizes) == 1 and len(spec.shape) >= 2:  # a single step
        sizes = [1, *sizes]
    if len(sizes) != 2 or min(sizes) < 1:
        return None
    wanted = range(labels, labels + 3)
    if sizes[1] in wanted and sizes[0] <= STEPS_MAX and sizes[1] <= CLASSES_MAX:
        return _Axes(sizes[0], sizes[1], False)
    if sizes[0] in wanted and sizes[1] <= STEPS_MAX and sizes[0] <= CLASSES_MAX:
        return _Axes(sizes[1], sizes[0], True)
    return None


def _characters(labels: Sequence[str], classes: int, blank: str) -> tuple[str, ...]:
    """Return the text of each of the model's classes; the blank's is empty."""
    cleaned = [_cleaned(number, label) for number, label in enumerate(labels)]
    if classes == len(labels):
        cleaned[0 if blank == "first" else -1] = ""
        return tuple(cleaned)
    if classes == len(labels) + 2:
        cleaned.append(" ")
    return ("", *cleaned) if blank == "first" else (*cleaned, "")


def _cleaned(number: int, label: str) -> str:
    if label in _SPACES:
        return " "
    if len(label) > _LABEL_MAX:
        raise ModelError(
            f"decoder 'ctc': label {number + 1}, {plain(label[:20])!r}, has {len(label)} characters; expected one"
        )
    return "\ufffd" if plain(label) != label else label


class Ctc:
    """Decoder of a reader. A picture gives one detection without a box, whose label is the text, or none.

    It takes one output of T steps × C characters, in whatever order, all other axes of length 1. C is the number
    of labels, and one more for the blank if no label stands for it, and another for a space that the labels lack,
    as with PaddleOCR's dictionaries.

    Attributes:
        characters: text of each class; the blank's is empty.
    """

    Options = CtcOptions

    def __init__(self, context: DecoderContext) -> None:
        options = context.options(CtcOptions)
        if options.logits == "sigmoid":
            raise ModelError("decoder 'ctc': options: `logits`: one character of a step is right: true or false")
        if not context.output.labels:
            raise ModelError(
                "decoder 'ctc' needs [output] labels: the characters in the model's order, in a list, or in a "
                'file with one a line: labels = "characters.txt"'
            )
        self.scores_at = _place(context, options)
        self._spec = spec = context.outputs[self.scores_at]
        axes = _axes(spec, len(context.output.labels))
        assert axes is not None
        self._axes = axes
        self.characters = _characters(context.output.labels, axes.classes, options.blank)
        self._blank = 0 if options.blank == "first" else axes.classes - 1
        self._softmax = activation(options.logits) == "softmax"
        self._collapse = options.collapse
        # The stream's alone: that of a manifest, which a stranger may have written, could take hours.
        pattern = context.config.pattern
        self._pattern = _compiled(pattern) if pattern else None
        self._threshold, self._wanted = context.score_threshold, frozenset(context.config.labels)

    def __call__(self, outputs: Sequence[Array]) -> list[Detection]:
        found = self.read(outputs)
        if found is None or found.score < self._threshold or (self._wanted and found.text not in self._wanted):
            return []
        return [Detection(found.text, found.score)]

    def read(self, outputs: Sequence[Array]) -> TextReading | None:
        """Return the text and its score, whatever the threshold; None: there is no text that matches."""
        stored = self._steps(outputs[self.scores_at])
        best = np.asarray(stored.argmax(axis=1))
        places = self._places(best)
        text = self._text(best[places])
        if not self._matches(text):
            return self._search(stored) if self._pattern is not None else None
        return TextReading(text, self._score(stored, best, places))

    def _steps(self, output: Array) -> Array:
        """Return the output as [steps, characters], with the lowest number in place of NaN."""
        shape = self._axes.classes, self._axes.steps
        steps = output.reshape(shape).T if self._axes.is_transposed else output.reshape(shape[::-1])
        if steps.dtype.kind != "f":
            return steps
        with np.errstate(all="ignore"):
            if np.isfinite(np.add.reduce(steps, axis=None)):
                return steps
            return np.nan_to_num(steps.astype(np.float32), nan=-1e30, posinf=1e30, neginf=-1e30)

    def _places(self, best: Indices) -> Indices:
        """Return the steps at which a character begins."""
        begins = best != self._blank
        if self._collapse:
            begins[1:] &= best[1:] != best[:-1]
        return np.flatnonzero(begins)

    def _text(self, classes: Sequence[int] | Indices) -> str:
        characters = self.characters
        return "".join([characters[number] for number in classes])[:LONGEST].strip()

    def _score(self, stored: Array, best: Indices, places: Indices) -> float:
        """Return the probability of the text of some steps."""
        if not self._collapse:
            found = self._probabilities(stored)[np.arange(best.size), best]
            return float(np.multiply.reduce(found, dtype=np.float64))
        states = np.full(2 * places.size + 1, self._blank)
        states[1::2] = best[places]
        found = self._probabilities(stored, states)
        return min(1.0, _forward(_shortened(found), states[2:] != states[:-2]))

    def _probabilities(self, stored: Array, states: Indices | None = None) -> Floats:
        """Return the probabilities of some classes at each step; without `states` of all."""
        if not self._softmax:
            return np.clip(np.asarray(self._spec.real(_some(stored, states)), np.float32), 0.0, 1.0)
        real = np.asarray(self._spec.real(stored), np.float32)
        powers = np.exp(real - real.max(axis=1, keepdims=True))
        sums = np.add.reduce(powers, axis=1, keepdims=True)
        return np.asarray(_some(powers, states) / sums, np.float32)

    def _search(self, stored: Array) -> TextReading | None:
        """Return the likeliest text that matches, of less likely characters; None: none was found."""
        rows = np.maximum(self._probabilities(stored), 1e-12, dtype=np.float64)
        starts, ends = self._uncertain(rows)
        if len(starts) > _PLACES:
            return None
        ranked = [self._ranked(rows[first:end]) for first, end in zip(starts, ends, strict=True)]
        for chosen in _likeliest(ranked):
            classes = np.array(chosen, np.intp)
            text = self._text(classes)
            if self._matches(text):
                read = np.full(len(rows), self._blank)
                read[starts] = classes
                return TextReading(text, self._score(stored, read, starts[classes != self._blank]))
        return None

    def _uncertain(self, rows: NDArray[np.float64]) -> tuple[Indices, Indices]:
        """Return the first steps of all characters that may be there, and the steps after their last ones."""
        if not self._collapse:
            return np.arange(len(rows)), np.arange(1, len(rows) + 1)
        letters = rows.copy()
        letters[:, self._blank] = 0.0
        best = np.where(letters.max(axis=1) >= _FAINT, letters.argmax(axis=1), self._blank)
        edges = np.flatnonzero(np.diff(best, prepend=-1, append=-1))
        there = best[edges[:-1]] != self._blank
        return edges[:-1][there], edges[1:][there]

    def _ranked(self, rows: NDArray[np.float64]) -> list[tuple[float, int]]:
        """Return the cost and the number of the likeliest classes of the steps of a character, or of none."""
        likely = rows.max(axis=0)
        likely[self._blank] = rows[:, self._blank].min()
        best = np.argsort(-likely, kind="stable")[:_TRIED]
        return [(-math.log(likely[one]), int(one)) for one in best]

    def _matches(self, text: str) -> bool:
        return bool(text) and (self._pattern is None or bool(self._pattern.fullmatch(text)))


def _likeliest(ranked: Sequence[Sequence[tuple[float, int]]]) -> Iterator[tuple[int, ...]]:
    """Yield one class of each place, likeliest combinations first, at most `_COMBINATIONS`."""
    waiting = [(sum(one[0][0] for one in ranked), (0,) * len(ranked), 0)]
    for _ in range(_COMBINATIONS):
        if not waiting:
            return
        cost, ranks, from_place = heapq.heappop(waiting)
        yield tuple(ranked[place][rank][1] for place, rank in enumerate(ranks))
        for place in range(from_place, len(ranks)):
            rank = ranks[place] + 1
            if rank < len(ranked[place]):
                more = cost + ranked[place][rank][0] - ranked[place][rank - 1][0]
                heapq.heappush(waiting, (more, (*ranks[:place], rank, *ranks[place + 1 :]), place))


def _some(steps: Array, states: Indices | None) -> Array:
    return steps if states is None else steps[:, states]


def _shortened(rows: Floats) -> NDArray[np.float64]:
    """Join neighbouring steps that are certainly blank, [steps, states] with the blank as first state."""
    certain = rows[:, 0] >= _CERTAIN
    repeats = certain.copy()
    repeats[1:] &= certain[:-1]
    repeats[0] = False
    return np.asarray(rows[~repeats], np.float64)


def _forward(rows: NDArray[np.float64], skips: NDArray[np.bool_]) -> float:
    """Return the probability of passing through the states in order, of which every second is the blank.

    Args:
        rows: probability of each state at each step, [steps, states].
        skips: states that can follow the last but one before them, from the third on: other characters than that.
    """
    reached = np.zeros(rows.shape[1])
    reached[:2] = rows[0, :2]
    for row in rows[1:]:
        after = reached.copy()
        after[1:] += reached[:-1]
        after[2:] += reached[:-2] * skips
        reached = after * row
    return float(reached[-1] + reached[-2])


class SteadyText:
    """Turns the readings of one place over time into one steady text. For one thread.

    A reader errs now and then, and differs from picture to picture while a drum turns or a hand passes. A text
    counts when it has been read so often in a row; until another has been, or as many pictures had none of it,
    the old one stays.
    """

    def __init__(self, hits: int) -> None:
        """Start without a text; `hits` readings in a row make one."""
        self._hits = hits
        self._current: Detection | None = None
        self._label, self._run, self._away = "", 0, 0

    @property
    def is_undecided(self) -> bool:
        """True while further pictures are needed: a text has been read that does not count yet."""
        return self._run > 0

    def update(self, found: Sequence[Detection]) -> Sequence[Detection]:
        """Add the readings of one picture, strongest first, of which one counts; return the text that stands."""
        read = found[0] if found else None
        if read is None:
            self._label, self._run = "", 0
            return self._without()
        if self._current is not None and read.label == self._current.label:
            self._stand(read)
            return (read,)
        self._run = self._run + 1 if read.label == self._label else 1
        self._label = read.label
        if self._run >= self._hits:
            self._stand(read)
            return (read,)
        return self._without()

    def reset(self) -> None:
        """Forget all readings, as after a stall."""
        self._current = None
        self._label, self._run, self._away = "", 0, 0

    def _stand(self, read: Detection) -> None:
        self._current = read
        self._label, self._run, self._away = "", 0, 0

    def _without(self) -> Sequence[Detection]:
        """Return the old text, unless it has been missing too often."""
        self._away += 1
        if self._current is None or self._away >= self._hits:
            self._current = None
            return ()
        return (self._current,)
