"""Keywords over time: turns probabilities of consecutive inferences into `keyword` events, one per spoken word.

A word gives an event when the mean of the last N answers exceeds the threshold. The next event of the same word
needs a mean that has fallen to half the threshold in between, and comes at least `refractory_s` later.
Source: Chen, Parada and Heigold, Small-footprint keyword spotting using deep neural networks, ICASSP 2014

`StuckOutputDetector` finds models whose answers never change: a broken conversion, or a wrong front end. A
constant answer alone is no fault, because a wake word's score may be 0 through minutes of other sound. After
300 s of sound with one answer it checks the input: the model is stuck if that was constant too, or if made inputs
over the whole range of the input tensor do not change an answer either.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import numpy as np

from agent.compute.decode.classes import Keyword
from agent.compute.decode.decoder import Floats
from agent.compute.tflite.model import TensorSpec
from agent.types import Array, Event, Track

_RELEASE = 0.5


class KeywordSpotter:
    """Finds the keywords of one stream. For one thread.

    Attributes:
        decoder: labels, threshold and options.
        continuing: numbers of the labels that have given an event and whose mean has not fallen since.
        verify: asked about each word that is about to give an event; False: it gives none now, and is asked for
            again with the next answer. None: every word gives one.
    """

    verify: Callable[[str], bool] | None = None

    def __init__(self, decoder: Keyword, stream: str, *, run: str = "") -> None:
        """Start without answers. Ids begin with the stream's name and `run`, unique over restarts."""
        self.set_decoder(decoder)
        self._refractory_ns = round(decoder.options.refractory_s * 1e9)
        self._newest = np.zeros((decoder.options.mean_of, len(decoder.labels)), np.float32)
        self._share = np.float32(1.0 / decoder.options.mean_of)
        self._answers = 0
        self._prefix = f"{stream}-{run or secrets.token_hex(4)}-"
        self._count = 0
        self._event_ns: dict[int, int] = {}
        self.continuing: frozenset[int] = frozenset()

    def set_decoder(self, decoder: Keyword) -> None:
        """Use another decoder of the same labels and options; `continuing` stays."""
        self.decoder = decoder
        self._labels, self._threshold, self._wanted = decoder.labels, decoder.threshold, frozenset(decoder.wanted)

    def update(self, probabilities: Floats, at_ns: int, at: datetime, span_s: float) -> list[Event]:
        """Add the probabilities, float32 [classes], of an inference; return its event, if any.

        `at_ns` and `at` are the time of its last sample, `span_s` that from one inference to the next.
        """
        count = len(self._newest)
        self._newest[self._answers % count] = probabilities
        self._answers += 1
        is_full = self._answers >= count
        mean = (
            np.add.reduce(self._newest) * self._share if is_full else self._newest[: self._answers].mean(axis=0)
        )
        if self.continuing:
            self.continuing = frozenset(
                label for label in self.continuing if mean[label] > self._threshold * _RELEASE
            )
        if not is_full:
            return []
        best = int(mean.argmax())
        if mean[best] <= self._threshold or best not in self._wanted or best in self.continuing:
            return []
        if at_ns - self._event_ns.get(best, -self._refractory_ns) < self._refractory_ns:
            return []
        if self.verify is not None and not self.verify(self._labels[best]):
            return []
        self._event_ns[best] = at_ns
        self.continuing |= {best}
        return [self._event(best, float(mean[best]), at, span_s)]

    def reset(self) -> None:
        """Restart the mean, because the next answer does not continue those before. `continuing` stays."""
        self._answers = 0

    def _event(self, number: int, score: float, at: datetime, span_s: float) -> Event:
        self._count += 1
        hits = len(self._newest)
        first = at - timedelta(seconds=span_s * (hits - 1))
        track = Track(f"{self._prefix}{self._count}", self._labels[number], score, score, hits, first, at)
        return Event("keyword", track, "word")


CONSTANT_S = 30.0
"""Length of audible sound with one answer before the check, s."""
_SHAPES, _HELD = 40, 12
"""Made inputs: number of spectra, and of consecutive inputs of each, as stateful models need."""
_COARSE = 10
_TEST_S = 1.0
"""Longest test of a slow model, s: the stream waits for it."""
_REAL_RANGE = 4.0
"""Range of made inputs of float models, whose rows are normalised, standard deviations."""


class StuckOutputDetector:
    """Watches the answers of one model, which come every `every_s`. For one thread.

    `text` describes the fault; empty: there is none.
    """

    def __init__(self, every_s: float, moves: Callable[[], bool], constant_s: float = CONSTANT_S) -> None:
        """Start without answers.

        Args:
            every_s: between two answers, s.
            moves: returns True if the model answers test inputs differently; called until it does.
            constant_s: length of audible sound with one answer before the check, s.
        """
        self.text, self._constant_s = "", constant_s
        self._limit = max(2, round(constant_s / every_s))
        self._moves, self._tested = moves, False
        self._before = self._input = b""
        self._repeats, self._input_moved = 0, False

    def update(self, scores: Floats, heard: Array) -> bool:
        """Add an answer to audible sound, and the model's input; return True if a fault has just been found."""
        now = scores.tobytes()
        if now != self._before:
            self._before, self._repeats, self.text = now, 0, ""
            return False
        self._repeats += 1
        if self._repeats == 1:
            self._input, self._input_moved = heard.tobytes(), False
        elif not self._input_moved:
            self._input_moved = heard.tobytes() != self._input
        if self._repeats < self._limit or self.text:
            return False
        self.text = self._reason()
        return bool(self.text)

    def _reason(self) -> str:
        if not self._input_moved:
            return (
                f"the model's input has not changed in {self._constant_s:.0f} s of sound: "
                "check frontend, mean and std in [audio] of its manifest"
            )
        if not self._tested and not self._moves():
            return (
                f"the model gave one answer to {self._constant_s:.0f} s of sound and to every test input: "
                "its file is broken; convert it again"
            )
        self._tested = True
        return ""


def made_inputs(spec: TensorSpec) -> Iterator[Array]:
    """Yield reproducible inputs that a sound model answers differently: spectra that swell, jump and fade.

    The last side of the tensor that is longer than 1 counts as the bands.
    """
    random = np.random.default_rng(0)
    kind = np.dtype(spec.dtype)
    low, high = (-_REAL_RANGE, _REAL_RANGE) if kind.kind == "f" else (np.iinfo(kind).min, np.iinfo(kind).max)
    columns = next((side for side in reversed(spec.shape) if side > 1), 1)
    rows = int(np.prod(spec.shape)) // columns
    for number in range(_SHAPES):
        points = random.random(_COARSE // 2 if number % 4 < 2 else _COARSE)
        bands: Array = np.interp(np.linspace(0.0, 1.0, columns), np.linspace(0.0, 1.0, len(points)), points)
        bands = (bands > 0.5) * 1.0 if number % 2 else bands
        for step in range(_HELD):
            strength = (1.0, random.random(), np.sin(step / _HELD * np.pi))[number % 3]
            shares = np.clip(bands * strength + 0.05 * random.standard_normal((rows, columns)), 0.0, 1.0)
            real: Array = low + (high - low) * shares
            yield (real if kind.kind == "f" else np.rint(real)).reshape(spec.shape).astype(kind)


def answers_move(ask: Callable[[Array], list[Floats]], spec: TensorSpec) -> bool:
    """Return True if every output of a model changes with its input; `ask` returns the outputs for one input."""
    until = time.monotonic() + _TEST_S
    seen: list[set[bytes]] = []
    for made in made_inputs(spec):
        answers = [np.nan_to_num(answer).tobytes() for answer in ask(made)]
        seen = [before | {now} for before, now in zip(seen or [set()] * len(answers), answers, strict=True)]
        if all(len(different) > 1 for different in seen):
            return True
        if time.monotonic() > until:
            break
    return False
