"""Recordings with known words, put through every variant of a model, so that it can be learned when to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from agent.capture.audio_file import read_whole
from agent.compute.cascade.early_exit import EarlyExitModel
from agent.compute.infer.audio_input import AudioInput, build_frontend
from agent.compute.infer.backends import open_for_command
from agent.compute.infer.session import SessionOptions
from agent.config.stream import StreamConfig
from agent.errors import ModelError
from agent.models.library import open_whole_model, prefixed_errors
from agent.optimise.calibrate.search import Calibration, Logits, Point, calibrate, tried
from agent.types import Array, Samples

SUFFIXES = (".wav", ".flac", ".ogg")
_AFTER_S = 0.3
"""A window that ends up to so long after a word, and holds all of it, must tell it."""
_PARTS = 4
"""What is learned must hold in each quarter of the recordings."""
_NEVER = 2.0
"""A confidence that no answer reaches."""
_SHORTEST_S = 0.1
"""No word is shorter."""
_LEAST = 0.5
"""Share of known inputs that the deepest variant must be right for, to be taught by."""
_SILENT = 0.1
"""Share of a recording that is taken for its background."""


class LabelledClip(Struct, frozen=True):
    """A recording and the number of its label."""

    path: Path
    label: int


class CalibrationResult(Struct, frozen=True):
    """What was learned, and what it does on recordings that it was not learned from.

    Attributes:
        variants: names, shallow first.
        costs: multiply-adds of each variant by itself.
        learned: from all recordings.
        checked: thresholds from every other recording, tried on the others: what to expect.
        checked_full: accuracy of the deepest variant alone on these others.
        recordings: how many.
    """

    variants: tuple[str, ...]
    costs: tuple[float, ...]
    learned: Calibration
    checked: Point
    checked_full: float
    recordings: int

    @property
    def lost(self) -> float:
        """Accuracy that is given away on recordings that nothing was learned from."""
        return self.checked_full - self.checked.accuracy

    @property
    def keys(self) -> dict[str, dict[str, float | None]]:
        """Keys for the manifest, by variant."""
        confidences = [*(round(found, 5) for found in self.learned.chosen.thresholds), None]
        temperatures = [round(found, 4) for found in self.learned.temperatures]
        return {
            variant: {"temperature": temperature, "confidence": confidence}
            for variant, temperature, confidence in zip(self.variants, temperatures, confidences, strict=True)
        }


def labelled(folder: Path, labels: tuple[str, ...]) -> list[LabelledClip]:
    """The recordings of a folder with one folder per label.

    Raises:
        ModelError: a label has no recording, or a folder is called as no label is. Those whose names begin with
            a dot do not count.
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
    """A model of sound with all its variants."""

    def __init__(self, model: str) -> None:
        """Open the model.

        Raises:
            ModelError: it cannot be opened, takes no sound, or tells no words.
        """
        self._model = open_whole_model(model)
        manifest = self._model.manifest
        if manifest.audio is None or manifest.output.decoder != "keyword" or len(manifest.variants) < 2:
            raise ModelError(f"{model}: thresholds can be learned for models of words with several depths only")
        self.labels = manifest.output.labels
        chain = manifest.chain(manifest.variants[0].name)
        self.variants = tuple(variant.name for variant in chain)
        self.costs = tuple(float(variant.multiply_adds or 1) for variant in chain)
        # Whatever was learned before must not decide what is learned from.
        blank = replace(manifest, variants=tuple(replace(r, confidence=None) for r in manifest.variants))
        config = StreamConfig(source="wav:", model=model, variant=manifest.variants[0].name)
        self._session = open_for_command(replace(self._model, manifest=blank), "cpu", SessionOptions(threads=1))
        self._climb = EarlyExitModel(self._session, blank, config)
        assert self._climb.keyword is not None
        self.told = self._climb.keyword.wanted
        with prefixed_errors(model):
            self._frontend = build_frontend(manifest.audio)
            self._rows = AudioInput(self._session.inputs[0], manifest.audio, self._frontend)
        self._rate_hz = manifest.audio.rate_hz

    def answers(self, recording: LabelledClip) -> Iterator[tuple[bool, list[Array]]]:
        """What every variant says of each window as the recording passes by.

        Yields:
            whether the window holds the recording, or as much of it as fits; and the scores of each variant.

        Raises:
            SourceError: it cannot be read. ModelError: it is too short for a word.
        """
        samples = read_whole(recording.path, self._rate_hz)
        length_s = len(samples) / self._rate_hz
        if length_s < _SHORTEST_S:
            raise ModelError(
                f"{recording.path}: {length_s:.3f} s of sound; expected at least {_SHORTEST_S} s: "
                "record it anew, or take it away"
            )
        yield from self.answers_to(samples)

    def answer_to(self, samples: Samples) -> list[Array]:
        """What every variant says of the newest window of int16 [n] at the model's rate."""
        self._frontend.reset()
        self._rows.reset()
        for _ in self._rows.feed(self._frontend(samples)):
            pass
        return self._climb.predict_all_exits(self._rows.fill)

    def answers_to(self, samples: Samples) -> Iterator[tuple[bool, list[Array]]]:
        """The same for int16 [n] at the model's rate."""
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
                    self._climb.predict_all_exits(self._rows.fill),
                )


def calibrate_exits(
    pupil: ExitCalibrator,
    recordings: list[LabelledClip],
    loss: float,
    progress: Callable[[int], None] = lambda _: None,
) -> CalibrationResult:
    """Learn when to stop.

    Args:
        pupil: the model.
        recordings: of every label.
        loss: accuracy that may be given away, 0..1.
        progress: is told how many recordings have been heard.

    Raises:
        ModelError: there is nothing to learn from, or the model does not know what it hears. SourceError: a
            recording cannot be read.
    """
    logits: list[list[Array]] = []
    heard: list[tuple[int, int, bool]] = []
    for number, recording in enumerate(recordings):
        for whole, answer in pupil.answers(recording):
            logits.append(answer)
            heard.append((number, recording.label, whole))
        progress(number + 1)
    said: Logits = np.array(logits, np.float32)
    numbers, labels, known = map(np.array, zip(*heard, strict=True))
    costs, told = pupil.costs, pupil.told
    learned = calibrate(said, labels, costs, loss, known, told, numbers % _PARTS)
    _check_known(learned, recordings)
    one, other = numbers % 2 == 0, numbers % 2 == 1
    half = calibrate(said[one], labels[one], costs, loss, known[one], told, numbers[one] // 2 % _PARTS)
    checked = tried(said[other], labels[other], costs, half, known[other], told)
    never = replace(half, chosen=replace(half.chosen, thresholds=(_NEVER,) * (len(costs) - 1)))
    full = tried(said[other], labels[other], costs, never, known[other], told).accuracy
    return CalibrationResult(pupil.variants, costs, learned, checked, full, len(recordings))


def _check_known(learned: Calibration, recordings: list[LabelledClip]) -> None:
    if learned.full < _LEAST:
        raise ModelError(
            f"the model does not know these recordings: {recordings[0].path.parent.parent}: its deepest variant "
            f"alone is right for {learned.full:.1%} of them, expected at least {_LEAST:.0%}; check that each "
            "lies in the folder of its label, and that it can be heard"
        )


def _background(samples: Samples, count: int) -> Samples:
    """Noise as loud as the quietest part of a recording."""
    size = max(1, len(samples) // 50)
    blocks = samples[: len(samples) // size * size].reshape(-1, size).astype(np.float64)
    levels = np.sort(np.sqrt(np.square(blocks).mean(axis=1)))
    level = levels[: max(1, round(_SILENT * len(levels)))].mean()
    random = np.random.default_rng(len(samples))
    noise = np.rint(random.standard_normal(count) * level)
    return np.asarray(noise.clip(-32768, 32767), np.int16)
