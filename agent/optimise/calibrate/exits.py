"""Calibrate the exits of a sound model: run labelled recordings through every variant and find the thresholds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from agent.capture.audio_file import read_whole
from agent.compute.cascade import EarlyExitModel
from agent.compute.infer.audio_input import AudioInput, build_frontend
from agent.compute.infer.backends import open_for_command
from agent.compute.infer.session import SessionOptions
from agent.config.stream import StreamConfig
from agent.errors import ModelError
from agent.models.library import open_whole_model, prefixed_errors
from agent.optimise.calibrate.search import Calibration, Logits, Point, calibrate, evaluate
from agent.types import Array, Samples

SUFFIXES = (".wav", ".flac", ".ogg")
_AFTER_S = 0.3
"""A window that holds a whole word and ends at most this long after it must detect the word, s."""
_PARTS = 4
"""The thresholds must hold in each quarter of the recordings."""
_NEVER = 2.0
"""Confidence above that of any prediction."""
_SHORTEST_S = 0.1
"""Shortest recording of a word, s."""
_ACCURACY_MIN = 0.5
"""Accuracy of the deepest variant on labelled inputs below which nothing is calibrated."""
_SILENT = 0.1
"""Share of a recording, its quietest part, that counts as background."""


class LabelledClip(Struct, frozen=True):
    """A recording and the index of its label."""

    path: Path
    label: int


class CalibrationResult(Struct, frozen=True):
    """Calibrated thresholds, and their effect on recordings that they were not calibrated on.

    Attributes:
        variants: names, shallow first.
        costs: multiply-adds of each variant by itself.
        learned: calibration on all recordings.
        checked: calibration on every other recording, evaluated on the rest: what to expect.
        checked_full: accuracy of the deepest variant alone on the rest.
        recordings: number of recordings.
    """

    variants: tuple[str, ...]
    costs: tuple[float, ...]
    learned: Calibration
    checked: Point
    checked_full: float
    recordings: int

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


def find_labelled(folder: Path, labels: tuple[str, ...]) -> list[LabelledClip]:
    """Return the recordings of a folder with one subfolder per label. Hidden subfolders do not count.

    Raises:
        ModelError: a label has no recording, or a subfolder is named after no label.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder; expected one with a folder per label: {', '.join(labels)}")
    found = [
        LabelledClip(path, number)
        for number, label in enumerate(labels)
        for path in sorted((folder / label).glob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    missing = [label for number, label in enumerate(labels) if number not in {one.label for one in found}]
    if missing:
        raise ModelError(f"{folder}: no recordings ({', '.join(SUFFIXES)}) in {', '.join(missing)}")
    folders = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    strange = sorted(folders - set(labels))
    if strange:
        raise ModelError(f"{folder}: no label is called {', '.join(strange)}; they are: {', '.join(labels)}")
    return found


class ExitCalibrator:
    """Runs a sound model with all its variants."""

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
        self._rate_hz = manifest.audio.rate_hz

    def predict_windows(self, recording: LabelledClip) -> Iterator[tuple[bool, list[Array]]]:
        """Run every variant on each window of a recording.

        Yields:
            True if the window holds the recording, or as much of it as fits; and the scores of each variant.

        Raises:
            SourceError: the recording cannot be read. ModelError: it is too short for a word.
        """
        samples = read_whole(recording.path, self._rate_hz)
        length_s = len(samples) / self._rate_hz
        if length_s < _SHORTEST_S:
            raise ModelError(
                f"{recording.path}: {length_s:.3f} s of sound; expected at least {_SHORTEST_S} s: "
                "record it again, or remove it"
            )
        yield from self.predict_samples(samples)

    def predict_newest(self, samples: Samples) -> list[Array]:
        """Run every variant on the newest window of samples, int16 [n] at the model's rate."""
        self._frontend.reset()
        self._rows.reset()
        for _ in self._rows.feed(self._frontend(samples)):
            pass
        return self._exits.predict_all_exits(self._rows.fill)

    def predict_samples(self, samples: Samples) -> Iterator[tuple[bool, list[Array]]]:
        """Like `predict_windows`, for samples, int16 [n] at the model's rate."""
        hop_s, window = self._frontend.hop_s, self._rows.rows
        around = _background(samples, round(window * hop_s * self._rate_hz))
        self._frontend.reset()
        self._rows.reset()
        rows = self._frontend(np.concatenate((around, samples, around)))
        length = len(samples) / self._rate_hz / hop_s
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
    calibrator: ExitCalibrator,
    recordings: list[LabelledClip],
    loss: float,
    progress: Callable[[int], None] = lambda _: None,
) -> CalibrationResult:
    """Find the thresholds at which a shallow variant's prediction is used.

    Args:
        calibrator: runs the model.
        recordings: of every label.
        loss: accuracy that may be lost, 0..1.
        progress: called with the number of processed recordings.

    Raises:
        ModelError: there are no usable recordings, or the model is wrong about most of them.
        SourceError: a recording cannot be read.
    """
    logits: list[list[Array]] = []
    windows: list[tuple[int, int, bool]] = []
    for number, recording in enumerate(recordings):
        for whole, answer in calibrator.predict_windows(recording):
            logits.append(answer)
            windows.append((number, recording.label, whole))
        progress(number + 1)
    scores: Logits = np.array(logits, np.float32)
    numbers, labels, known = map(np.array, zip(*windows, strict=True))
    costs, wanted = calibrator.costs, calibrator.wanted
    learned = calibrate(scores, labels, costs, loss, known, wanted, numbers % _PARTS)
    _check_accuracy(learned, recordings)
    one, other = numbers % 2 == 0, numbers % 2 == 1
    half = calibrate(scores[one], labels[one], costs, loss, known[one], wanted, numbers[one] // 2 % _PARTS)
    checked = evaluate(scores[other], labels[other], costs, half, known[other], wanted)
    never = replace(half, chosen=replace(half.chosen, thresholds=(_NEVER,) * (len(costs) - 1)))
    full = evaluate(scores[other], labels[other], costs, never, known[other], wanted).accuracy
    return CalibrationResult(calibrator.variants, costs, learned, checked, full, len(recordings))


def _check_accuracy(learned: Calibration, recordings: list[LabelledClip]) -> None:
    if learned.full < _ACCURACY_MIN:
        raise ModelError(
            f"the model is wrong about most recordings: {recordings[0].path.parent.parent}: its deepest variant "
            f"alone is right for {learned.full:.1%} of them, expected at least {_ACCURACY_MIN:.0%}; check that "
            "each lies in the folder of its label, and that it can be heard"
        )


def _background(samples: Samples, count: int) -> Samples:
    """Return noise as loud as the quietest part of a recording."""
    size = max(1, len(samples) // 50)
    blocks = samples[: len(samples) // size * size].reshape(-1, size).astype(np.float64)
    levels = np.sort(np.sqrt(np.square(blocks).mean(axis=1)))
    level = levels[: max(1, round(_SILENT * len(levels)))].mean()
    random = np.random.default_rng(len(samples))
    noise = np.rint(random.standard_normal(count) * level)
    return np.asarray(noise.clip(-32768, 32767), np.int16)
