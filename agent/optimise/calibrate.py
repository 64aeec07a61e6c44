"""Calibrate the exits of a sound model: run labelled recordings through every variant, and search thresholds.

Temperatures maximise the log-likelihood of the labels (Guo et al., On Calibration of Modern Neural Networks,
ICML 2017), of which one in n + 2 counts as the likeliest other class: where all n answers are right, confidence
would else be endless (Platt, Probabilistic Outputs for Support Vector Machines, 1999, on two classes).

Thresholds: for a given price of a multiply-add, the best threshold of each variant given those of the deeper ones
is found exactly, from the deepest to the shallowest. A sweep over prices gives a curve of accuracy against cost;
the cheapest point within the allowed loss is chosen.

Most windows of a stream hold half a word or none. For such inputs the prediction of the deepest variant counts as
right. They are used with less weight, and the cost is that of all inputs.

A choice must hold for each part of the inputs by itself, since a fit to all of them together may be luck.

Labels that are not published (silence, other words) count as one class: confusing them does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from agent.capture.audio_file import read_whole
from agent.compute.cascade import EarlyExitModel
from agent.compute.decode.decoder import softmax
from agent.compute.infer.audio_input import AudioInput, build_frontend
from agent.compute.infer.backends import open_for_command
from agent.compute.infer.session import SessionOptions
from agent.config import StreamConfig
from agent.errors import ModelError
from agent.models.library import open_whole_model, prefixed_errors
from agent.optimise.evaluate import check_accuracy
from agent.optimise.evaluation.sound_data import SOUNDS, read_sounds
from agent.types import Array, Samples

Logits = NDArray[np.float32]
"""Scores of every variant for every input, float32 [inputs, variants, classes]; shallow first."""

_PRICES = np.concatenate(([0.0], np.geomspace(1e-3, 3.0, 150)))
"""Errors that running all variants is worth."""
_BETWEEN = 8
_WEIGHT = 0.25
"""Weight of an input without a label, relative to a labelled one."""
_LOWEST, _HIGHEST, _STEPS = 0.05, 20.0, 60


class _Predictions(NamedTuple):
    """Predictions of every variant for every input.

    Attributes:
        confidence: of the predictions, [inputs, variants]; shallow first.
        right: correctness of the predictions, 0..1, of the same shape.
        known: True for inputs with a label, bool [inputs].
    """

    confidence: Array
    right: Array
    known: Array


class Point(Struct, frozen=True):
    """One choice of thresholds, and its effect on the data.

    Attributes:
        thresholds: least confidence of each variant but the last.
        accuracy: on labelled inputs, 0..1.
        cost: mean multiply-adds, as a share of those of all variants.
        used: share of inputs that end at each variant.
    """

    thresholds: tuple[float, ...]
    accuracy: float
    cost: float
    used: tuple[float, ...]


class Calibration(Struct, frozen=True):
    """Result of a search.

    Attributes:
        temperatures: one per variant.
        chosen: the cheapest point within the allowed loss.
        curve: all points, most expensive first.
        full: accuracy of the deepest variant alone.
        alone: accuracy of each variant alone.
    """

    temperatures: tuple[float, ...]
    chosen: Point
    curve: tuple[Point, ...]
    full: float
    alone: tuple[float, ...]


def calibrate(
    logits: Logits,
    labels: Array,
    costs: Sequence[float],
    loss: float,
    known: Array | None = None,
    wanted: Sequence[int] | None = None,
    parts: Array | None = None,
) -> Calibration:
    """Find temperatures and thresholds.

    Args:
        logits: see `Logits`.
        labels: the right class of each input, int [inputs].
        costs: multiply-adds of each variant by itself.
        loss: accuracy that may be lost, 0..1.
        known: True for inputs with a label, bool [inputs]; None: all.
        wanted: indices of the published classes, all others counting as one; None: all classes.
        parts: index of the part that each input belongs to, int [inputs]; None: there is one part.

    Raises:
        ModelError: there are no labelled inputs, or there is only one variant.
    """
    if logits.ndim != 3 or logits.shape[1] < 2 or len(costs) != logits.shape[1]:
        raise ModelError("a model of one variant has no thresholds to learn")
    if len(labels) != len(logits) or not len(labels):
        raise ModelError("there are no labelled answers to learn from")
    known = np.ones(len(labels), bool) if known is None else known
    temperatures = tuple(temperature(logits[known, variant], labels[known]) for variant in range(logits.shape[1]))
    answers = _predictions(logits, labels, temperatures, known, wanted)
    curve = _curve(answers, costs)
    parts = np.zeros(len(known), int) if parts is None else parts
    allowed = [one for one in curve if _most_lost(answers, one, parts) <= loss + 1e-9]
    never = _point(answers, costs, (1.0,) * (len(costs) - 1))
    chosen = min(allowed, key=lambda one: one.cost, default=never)
    alone = tuple(float(share) for share in answers.right[known].mean(axis=0))
    return Calibration(temperatures, chosen, tuple(curve), alone[-1], alone)


def temperature(logits: Array, labels: Array) -> float:
    """Return the divisor of one variant's logits [inputs, classes] at which confidence matches accuracy."""
    grid = np.geomspace(_LOWEST, _HIGHEST, _STEPS)
    logits = np.asarray(logits, np.float32)
    for _ in range(2):
        losses = [_loss(logits, labels, t) for t in grid]
        best = int(np.argmin(losses))
        grid = np.geomspace(grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)], 20)
    return float(grid[int(np.argmin([_loss(logits, labels, t) for t in grid]))])


def evaluate(
    logits: Logits,
    labels: Array,
    costs: Sequence[float],
    learned: Calibration,
    known: Array | None = None,
    wanted: Sequence[int] | None = None,
) -> tuple[Point, float]:
    """Evaluate the chosen thresholds on other data; arguments as for `calibrate`.

    Returns:
        Their effect, and the accuracy of the deepest variant alone.
    """
    known = np.ones(len(labels), bool) if known is None else known
    answers = _predictions(logits, labels, learned.temperatures, known, wanted)
    return _point(answers, costs, learned.chosen.thresholds), float(answers.right[known, -1].mean())


def _point(answers: _Predictions, costs: Sequence[float], thresholds: tuple[float, ...]) -> Point:
    answered = _exit_of(answers, thresholds)
    used = np.bincount(answered, minlength=len(costs)) / len(answered)
    cost = np.cumsum(costs)[answered].mean() / np.sum(costs)
    accuracy = float(answers.right[np.arange(len(answered)), answered][answers.known].mean())
    return Point(thresholds, accuracy, float(cost), tuple(map(float, used)))


def _loss(logits: NDArray[np.float32], labels: Array, t: float) -> float:
    """Return the mean cross-entropy at a temperature; one label in n + 2 is that of the likeliest other class."""
    scores = softmax(np.asarray(logits / np.float32(t), np.float32))
    own = np.arange(len(labels)), labels
    right = scores[own]
    scores[own] = 0.0
    wrong, logs = 1.0 / (len(labels) + 2), np.log(np.maximum((right, scores.max(axis=1)), 1e-30))
    return float(-((1.0 - wrong) * logs[0] + wrong * logs[1]).mean())


def _predictions(
    logits: Logits, labels: Array, temperatures: Sequence[float], known: Array, wanted: Sequence[int] | None
) -> _Predictions:
    scores = softmax(logits / np.asarray(temperatures, np.float32)[None, :, None])
    if wanted is not None and len(wanted) < scores.shape[2]:
        wanted, group = list(wanted), np.full(scores.shape[2], len(wanted))
        group[wanted] = np.arange(len(wanted))
        rest = scores.sum(axis=2, keepdims=True) - scores[..., wanted].sum(axis=2, keepdims=True)
        scores, labels = np.concatenate((scores[..., wanted], rest), axis=2), group[labels]
    best = scores.argmax(axis=2)
    labels = np.where(known, labels, best[:, -1])
    return _Predictions(scores.max(axis=2), best == labels[:, None], known)


def _curve(answers: _Predictions, costs: Sequence[float]) -> list[Point]:
    dear = np.asarray(costs, float)
    found = list(dict.fromkeys(_thresholds(answers, dear, price) for price in _PRICES))
    # Prices find the corners of the curve's hull only; points between two corners are added.
    for one, other in pairwise(found.copy()):
        steps = np.linspace(one, other, _BETWEEN + 2)[1:-1]
        found += [tuple(thresholds) for thresholds in steps.tolist()]
    return sorted((_point(answers, costs, thresholds) for thresholds in found), key=lambda one: -one.cost)


def _thresholds(answers: _Predictions, costs: Array, price: float) -> tuple[float, ...]:
    """Return the best thresholds for one price: each variant's given those of the deeper ones."""
    confidence, wrong = answers.confidence, (1.0 - answers.right) * np.where(answers.known, 1.0, _WEIGHT)[:, None]
    whole = costs.sum()
    later = wrong[:, -1] + price * costs[-1] / whole  # cost of the deeper variants, per input
    thresholds: list[float] = []
    for variant in range(confidence.shape[1] - 2, -1, -1):
        here = wrong[:, variant]
        order = np.argsort(-confidence[:, variant], kind="stable")
        # Inputs above the threshold stop here, those below continue: total cost for every place to cut.
        stop = np.concatenate(([0.0], np.cumsum(here[order])))
        proceed = np.concatenate((np.cumsum(later[order][::-1])[::-1], [0.0]))
        cut = int(np.argmin(stop + proceed))
        threshold = _between(confidence[order, variant], cut)
        thresholds.insert(0, threshold)
        later = np.where(confidence[:, variant] >= threshold, here, later) + price * costs[variant] / whole
    return tuple(thresholds)


def _between(falling: Array, cut: int) -> float:
    """Return a confidence that the first `cut` reach and the others do not; ties continue."""
    if cut == 0:
        return 1.0
    if cut == len(falling):
        return 0.0
    return float(min(1.0, (falling[cut - 1] + falling[cut]) / 2 + 1e-6))


def _exit_of(answers: _Predictions, thresholds: Sequence[float]) -> Array:
    """Return the index of the variant at which each input ends."""
    stops = answers.confidence[:, :-1] >= np.asarray(thresholds)
    answered: Array = np.column_stack((stops, np.ones(len(stops), bool))).argmax(axis=1)
    return answered


def _most_lost(answers: _Predictions, chosen: Point, parts: Array) -> float:
    """Return the accuracy lost in the part of the inputs where the loss is greatest."""
    inputs = np.arange(len(parts))
    gained = answers.right[inputs, _exit_of(answers, chosen.thresholds)].astype(float) - answers.right[:, -1]
    return -min(float(gained[answers.known & (parts == part)].mean()) for part in np.unique(parts[answers.known]))


_AFTER_S = 0.3
"""A window that holds a whole word and ends at most this long after it must detect the word, s."""
_PARTS = 4
"""The thresholds must hold in each quarter of the recordings."""
_SHORTEST_S = 0.1
"""Shortest recording of a word, s."""
_HEARD = "check that each lies in the folder of its label, and that it can be heard"
_SILENT = 0.1
"""Share of a recording, its quietest part, that counts as background."""


class CalibrationResult(Struct, frozen=True):
    """Calibrated thresholds, and their effect on recordings that they were not calibrated on.

    Attributes:
        variants: names, shallow first.
        costs: multiply-adds of each variant by itself.
        learned: calibration on all recordings.
        checked: calibration on every other recording, evaluated on the rest: what to expect.
        checked_full: accuracy of the deepest variant alone on the rest.
        recordings: number of recordings, or examples.
        windows: number of windows of sound that hold a recording, of which the accuracies are; None: the
            accuracies are of the examples.
    """

    variants: tuple[str, ...]
    costs: tuple[float, ...]
    learned: Calibration
    checked: Point
    checked_full: float
    recordings: int
    windows: int | None = None

    @property
    def lost(self) -> float:
        """Accuracy lost on recordings that were not used for calibration."""
        return self.checked_full - self.checked.accuracy

    @property
    def keys(self) -> dict[str, dict[str, float | None]]:
        """Return the keys for the manifest, by variant."""
        confidences = [*(round(found, 5) for found in self.learned.chosen.thresholds), None]
        temperatures = [round(found, 4) for found in self.learned.temperatures]
        return {
            variant: {"temperature": temperature, "confidence": confidence}
            for variant, temperature, confidence in zip(self.variants, temperatures, confidences, strict=True)
        }


def _labelled(folder: Path, labels: tuple[str, ...]) -> list[tuple[Path, int]]:
    """Return the recordings of a folder with a sub-folder for each label, and their labels."""
    recordings = [one for one in read_sounds(folder, (), labels, ()).recordings if not one.counts_time]
    found = [(one.path, labels.index(one.said[0].label)) for one in recordings]
    if missing := [label for number, label in enumerate(labels) if number not in {one for _, one in found}]:
        raise ModelError(f"{folder}: no recordings ({', '.join(SOUNDS)}) in {', '.join(missing)}")
    return found


class ExitCalibrator:
    """Runs a sound model with all its variants, until it is closed."""

    def __init__(self, model: str) -> None:
        """Open the model.

        Raises:
            ModelError: it cannot be opened, takes no sound, or detects no keywords.
        """
        self._model = open_whole_model(model)
        manifest = self._model.manifest
        if manifest.audio is None or manifest.output.decoder != "keyword" or len(manifest.variants) < 2:
            raise ModelError(f"{model}: thresholds can be learned for models of words with several depths only")
        self.labels = manifest.output.labels
        chain = manifest.chain(manifest.variants[0].name)
        self.variants = tuple(variant.name for variant in chain)
        self.costs = tuple(float(variant.multiply_adds or 1) for variant in chain)
        # Earlier thresholds must not influence the calibration.
        blank = replace(manifest, variants=tuple(replace(r, confidence=None) for r in manifest.variants))
        config = StreamConfig(source="wav:", model=model, variant=manifest.variants[0].name)
        self._session = open_for_command(replace(self._model, manifest=blank), "cpu", SessionOptions(threads=1))
        self._exits = EarlyExitModel(self._session, blank, config)
        assert self._exits.keyword is not None
        self.wanted = self._exits.keyword.wanted
        with prefixed_errors(model):
            self._frontend = build_frontend(manifest.audio)
            self._rows = AudioInput(self._session.inputs[0], manifest.audio, self._frontend)
        self.rate_hz = manifest.audio.rate_hz

    def close(self) -> None:
        """Close the model, which may run in another process."""
        self._session.close()

    def predict_windows(self, samples: Samples) -> Iterator[tuple[bool, list[Array]]]:
        """Run every variant on each window of a recording, int16 [n] at the model's rate.

        Yields:
            True if the window holds the recording, or as much of it as fits; and the scores of each variant.
        """
        hop_s, window = self._frontend.hop_s, self._rows.rows
        around = _background(samples, round(window * hop_s * self.rate_hz))
        self._frontend.reset()
        self._rows.reset()
        rows = self._frontend(np.concatenate((around, samples, around)))
        length = len(samples) / self.rate_hz / hop_s
        begins = window + min(window, length) - 1
        ends = window + max(length, min(window, length + _AFTER_S / hop_s))
        for left in self._rows.feed(rows):
            at = len(rows) - left
            if at >= window:
                yield (
                    begins <= at < max(ends, begins + self._rows.every),
                    self._exits.predict_all_exits(self._rows.fill),
                )


def calibrate_exits(
    calibrator: ExitCalibrator, folder: Path, loss: float, progress: Callable[[int], None] = lambda _: None
) -> CalibrationResult:
    """Find the thresholds at which a shallow variant's prediction is used.

    Args:
        calibrator: runs the model.
        folder: of a folder of recordings for every label.
        loss: accuracy that may be lost, 0..1.
        progress: called with the number of processed recordings.

    Raises:
        ModelError: there are no usable recordings, or the model is hardly better than a guess.
        SourceError: a recording cannot be read.
    """
    recordings = _labelled(folder, calibrator.labels)
    logits: list[list[Array]] = []
    windows: list[tuple[int, int, bool]] = []
    for number, (path, label) in enumerate(recordings):
        samples = read_whole(path, calibrator.rate_hz)
        if len(samples) < _SHORTEST_S * calibrator.rate_hz:
            raise ModelError(f"{path}: is shorter than {_SHORTEST_S} s: record it again, or remove it")
        for whole, answer in calibrator.predict_windows(samples):
            logits.append(answer)
            windows.append((number, label, whole))
        progress(number + 1)
    scores: Logits = np.array(logits, np.float32)
    numbers, labels, known = map(np.array, zip(*windows, strict=True))
    costs, wanted = calibrator.costs, calibrator.wanted
    learned = calibrate(scores, labels, costs, loss, known, wanted, numbers % _PARTS)
    check_accuracy(learned.full, labels, "recordings", folder, _HEARD)
    one, other = numbers % 2 == 0, numbers % 2 == 1
    half = calibrate(scores[one], labels[one], costs, loss, known[one], wanted, numbers[one] // 2 % _PARTS)
    checked, full = evaluate(scores[other], labels[other], costs, half, known[other], wanted)
    counts = len(recordings), int(known.sum())
    return CalibrationResult(calibrator.variants, costs, learned, checked, full, *counts)


def _background(samples: Samples, count: int) -> Samples:
    """Return noise as loud as the quietest part of a recording."""
    size = max(1, len(samples) // 50)
    blocks = samples[: len(samples) // size * size].reshape(-1, size).astype(np.float64)
    levels = np.sort(np.sqrt(np.square(blocks).mean(axis=1)))
    level = levels[: max(1, round(_SILENT * len(levels)))].mean()
    random = np.random.default_rng(len(samples))
    noise = np.rint(random.standard_normal(count) * level)
    return np.asarray(noise.clip(-32768, 32767), np.int16)
