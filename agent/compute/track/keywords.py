"""Words over time: probabilities of one inference after the other in, `heard` events out, each word once.

A word is told when the mean of the last N answers exceeds the threshold. The same word is told again only after
its mean has fallen to half the threshold, and at the earliest `refractory_s` after it was told before.
Source: Chen, Parada and Heigold, Small-footprint keyword spotting using deep neural networks, ICASSP 2014
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import numpy as np

from agent.compute.decode.keyword import Keyword
from agent.compute.decode.scores import Floats
from agent.compute.tensors import TensorSpec
from agent.types import Array, Event, Track

_RELEASE = 0.5


class KeywordSpotter:
    """What one stream hears. For one thread.

    Attributes:
        decoder: labels, threshold and options.
        told: numbers of the labels that have been told and are not over yet.
    """

    def __init__(self, decoder: Keyword, stream: str, *, run: str = "") -> None:
        """Prepare.

        Args:
            decoder: see the class.
            stream: its name, the first part of every id.
            run: makes ids unique over restarts; default: random.
        """
        self.set_decoder(decoder)
        self._refractory_ns = round(decoder.options.refractory_s * 1e9)
        self._newest = np.zeros((decoder.options.mean_of, len(decoder.labels)), np.float32)
        self._share = np.float32(1.0 / decoder.options.mean_of)
        self._heard = 0
        self._prefix = f"{stream}-{run or secrets.token_hex(4)}-"
        self._count = 0
        self._told_ns: dict[int, int] = {}
        self.told: frozenset[int] = frozenset()

    def set_decoder(self, decoder: Keyword) -> None:
        """Take another decoder of the same labels and options; what has been told stays so."""
        self.decoder = decoder
        self._labels, self._threshold, self._wanted = decoder.labels, decoder.threshold, frozenset(decoder.wanted)

    def update(self, probabilities: Floats, at_ns: int, at: datetime, span_s: float) -> list[Event]:
        """One inference was made.

        Args:
            probabilities: float32 [classes].
            at_ns: of the last sample that it heard, ns.
            at: the same, UTC.
            span_s: from one inference to the next.
        """
        count = len(self._newest)
        self._newest[self._heard % count] = probabilities
        self._heard += 1
        whole = self._heard >= count
        mean = np.add.reduce(self._newest) * self._share if whole else self._newest[: self._heard].mean(axis=0)
        if self.told:
            self.told = frozenset(label for label in self.told if mean[label] > self._threshold * _RELEASE)
        if not whole:
            return []
        best = int(mean.argmax())
        if mean[best] <= self._threshold or best not in self._wanted or best in self.told:
            return []
        if at_ns - self._told_ns.get(best, -self._refractory_ns) < self._refractory_ns:
            return []
        self._told_ns[best] = at_ns
        self.told |= {best}
        return [self._event(best, float(mean[best]), at, span_s)]

    def reset(self) -> None:
        """Start the mean anew: the next answer does not follow those before. What has been told stays so."""
        self._heard = 0

    def _event(self, number: int, score: float, at: datetime, span_s: float) -> Event:
        self._count += 1
        hits = len(self._newest)
        first = at - timedelta(seconds=span_s * (hits - 1))
        track = Track(f"{self._prefix}{self._count}", self._labels[number], score, score, hits, first, at)
        return Event("keyword", track, "word")


# The alarm for a model whose answer never changes: a broken conversion or a front end that does not fit it.
#
# A constant answer alone is no fault: a wake word's score may be 0 through minutes of other sound. After 300 s of
# sound with one answer the alarm asks for a reason. It goes off if the model's input was constant, too, or if
# made inputs that span the whole range of its input tensor do not change an answer either.

_LISTENED_S = 300.0
"""Length of sound that stood out with one and the same answer, s."""
_SHAPES, _HELD = 40, 12
"""Made inputs: so many spectra, each through so many inputs in a row, as a model that remembers needs it."""
_COARSE = 10
_TEST_S = 1.0
"""The test of a slow model ends after so long, s: the stream waits for it."""
_REAL_RANGE = 4.0
"""Rows of a float model are normalised: they lie within some deviations."""


class StuckOutputDetector:
    """Watches the answers of one model. For one thread.

    Attributes:
        text: what is wrong; empty while nothing is.
    """

    def __init__(self, every_s: float, moves: Callable[[], bool]) -> None:
        """Prepare.

        Args:
            every_s: from one answer to the next, s.
            moves: tests whether the model's answers depend on its input at all. It is called once at most while
                it returns True.
        """
        self.text = ""
        self._most = max(2, round(_LISTENED_S / every_s))
        self._moves, self._tested = moves, False
        self._before = self._input = b""
        self._same, self._input_moved = 0, False

    def update(self, scores: Floats, heard: Array) -> bool:
        """Take note of an answer to sound that stood out; return True if the alarm has just gone off.

        Args:
            scores: the answer.
            heard: the model's input, of any type and shape.
        """
        now = scores.tobytes()
        if now != self._before:
            self._before, self._same, self.text = now, 0, ""
            return False
        self._same += 1
        if self._same == 1:
            self._input, self._input_moved = heard.tobytes(), False
        elif not self._input_moved:
            self._input_moved = heard.tobytes() != self._input
        if self._same < self._most or self.text:
            return False
        self.text = self._reason()
        return bool(self.text)

    def _reason(self) -> str:
        if not self._input_moved:
            return (
                f"the model's input has not changed in {_LISTENED_S:.0f} s of sound: "
                "check frontend, mean and std in [audio] of its manifest"
            )
        if not self._tested and not self._moves():
            return (
                f"the model gave one answer to {_LISTENED_S:.0f} s of sound and to every test input: "
                "its file is broken; convert it again"
            )
        self._tested = True
        return ""


def made_inputs(spec: TensorSpec) -> Iterator[Array]:
    """Inputs that a sound model answers differently: spectra that swell, jump and fade, the same each time.

    Args:
        spec: of the input tensor; its last side longer than 1 is taken for the bands.
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
    """Return True if every output of a model changes with its input.

    Args:
        ask: gives the outputs for one input.
        spec: of the input tensor.
    """
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
