"""Hear one recording as the daemon would: its gate, front end, exits, means and pauses between events.

Each recording is a stream of its own. Noise as of a quiet room comes before it, so that front ends with a memory
and models with a state are as they are in a stream, and after it, since a word's event comes a little late.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta

import numpy as np
from msgspec import Struct

from agent.compute.decode.decoder import Floats
from agent.compute.decode.keyword import Keyword
from agent.compute.hearing import AudioPerception
from agent.compute.infer.backends import open_for_command
from agent.compute.infer.session import CPU, Session, SessionOptions
from agent.compute.manifest import Model
from agent.compute.track.keywords import KeywordSpotter
from agent.config import DecodeConfig, StreamConfig
from agent.errors import ModelError
from agent.features.verification.models import open_verifier
from agent.features.verification.verifier import WordVerifier
from agent.optimise.evaluate import PATIENT
from agent.optimise.evaluation.keyword_rates import (
    AFTER_S,
    THRESHOLDS,
    CurvePoint,
    HeardWord,
    SpotterAnswers,
    curve_point,
    replay,
)
from agent.optimise.evaluation.sound_data import Recording, read_blocks
from agent.types import AudioChunk, Event, Samples

LEAD_S = 2.0
_CHUNK_S = 0.03
_NOISE = 8.0
"""Standard deviation of the noise, of 32768: that of a microphone in a quiet room."""
_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
_NAME = "evaluation"


class HeardRecording(Struct, frozen=True):
    """What a model heard in a recording.

    Attributes:
        events: as the daemon gives them.
        curve: what each of `THRESHOLDS` gives.
        peaks: for each word that is said, the highest mean of its label in its time, 0..1.
        exits: number of answers by the name of the exit.
    """

    events: tuple[HeardWord, ...]
    curve: tuple[CurvePoint, ...]
    peaks: tuple[float, ...]
    exits: dict[str, int]


class AnswerRecorder(KeywordSpotter):
    """A spotter that keeps what it compares with its threshold."""

    def __init__(self, decoder: Keyword, stream: str) -> None:
        super().__init__(decoder, stream, run="0")
        # An hour has a hundred thousand answers: objects for each would need ten times their size.
        self._means, self._full, self._times = array("f"), bytearray(), array("q")
        self._refused = bytearray()

    def update(self, probabilities: Floats, at_ns: int, at: datetime, span_s: float) -> list[Event]:
        events = super().update(probabilities, at_ns, at, span_s)
        is_full = self._answers >= len(self._newest)
        # As the spotter computes it, to the last bit.
        mean = (
            np.add.reduce(self._newest) * self._share if is_full else self._newest[: self._answers].mean(axis=0)
        )
        self._means.frombytes(np.asarray(mean, np.float32).tobytes())
        self._full.append(is_full)
        self._refused.append(is_full and self._refuses(mean))
        self._times.append(at_ns)
        return events

    def _refuses(self, mean: Floats) -> bool:
        """Return True if the verification refuses a word that some threshold of the curve would tell."""
        best = int(mean.argmax())
        if self.verify is None or best not in self.decoder.wanted or mean[best] <= THRESHOLDS[0]:
            return False
        return not self.verify(self.decoder.labels[best])

    @property
    def answers(self) -> SpotterAnswers:
        """All that was compared so far."""
        means = np.array(self._means, np.float32).reshape(len(self._full), len(self.decoder.labels))
        refused = None if self.verify is None else np.frombuffer(self._refused, bool)
        return SpotterAnswers(means, np.frombuffer(self._full, bool), np.array(self._times, np.int64), refused)


class Listener:
    """A model of words that hears recordings. For one thread; `open_listener` makes it.

    Attributes:
        threshold: that the mean of a word must exceed.
        words: labels that give events.
        ignored: the model's other labels.
    """

    def __init__(
        self,
        model: Model,
        session: Session,
        variant: str,
        threshold: float | None,
        verifier: WordVerifier | None = None,
    ) -> None:
        decode = DecodeConfig(score_threshold=threshold)
        self._config = StreamConfig(
            "mic:default", model.path, variant=variant, threads=1, decode=decode, cascade=PATIENT
        )
        self._model, self._session, self._verifier = model, session, verifier
        _, spotter = self._start()
        decoder = spotter.decoder
        self.threshold = decoder.threshold
        self.words = tuple(decoder.labels[number] for number in decoder.wanted)
        self.ignored = tuple(label for label in decoder.labels if label not in self.words)

    def _start(self) -> tuple[AudioPerception, AnswerRecorder]:
        made: list[AnswerRecorder] = []

        def spotter(decoder: Keyword, stream: str) -> AnswerRecorder:
            made.append(AnswerRecorder(decoder, stream))
            return made[0]

        perception = AudioPerception(
            _NAME,
            self._config,
            self._model,
            lambda *_: self._session,
            spotter=spotter,
        )
        if self._verifier is not None:
            perception.verify_with(self._verifier)
        if not made:
            raise ModelError(
                f"{self._model.path}: tells no words but sounds that last: of sound, models with the decoder "
                "`keyword` are evaluated"
            )
        return perception, made[0]

    def hear(self, recording: Recording, progress: Callable[[float], None] = lambda _: None) -> HeardRecording:
        """Hear a recording from its beginning to its end.

        Args:
            recording: to hear.
            progress: called with the seconds of the recording that are done.

        Raises:
            SourceError: it cannot be read.
            BackendError: an inference fails.
        """
        perception, spotter = self._start()
        events: list[Event] = []
        end_ns, end = 0, _BEGIN
        for chunk in _chunks(recording, perception.rate_hz):
            events += perception.process(chunk).events
            end_ns, end = chunk.captured_ns, chunk.captured_at
            progress(min(max(0.0, end_ns / 1e9 - LEAD_S), recording.seconds))
        events += perception.finish(end_ns, end, "ended")
        heard = tuple(
            HeardWord(one.track.label, _seconds(one.track.last_seen), round(one.track.score, 6)) for one in events
        )
        answers, labels = spotter.answers, spotter.decoder.labels
        refractory_ns = round(spotter.decoder.options.refractory_s * 1e9)
        curve = []
        for threshold in THRESHOLDS:
            found = replay(answers, threshold, spotter.decoder.wanted, refractory_ns)
            words = (HeardWord(labels[label], answers.at_ns[row] / 1e9 - LEAD_S, 0.0) for row, label in found)
            curve.append(curve_point(recording.said, words))
        peaks = tuple(_peaks(recording, answers, labels))
        return HeardRecording(heard, tuple(curve), peaks, perception.used)


@contextmanager
def open_listener(model: Model, variant: str = "", threshold: float | None = None) -> Iterator[Listener]:
    """Open a model of words on the CPU.

    Args:
        model: that hears.
        variant: size or exit; empty: as in a stream.
        threshold: instead of the manifest's.

    Raises:
        ModelError: it cannot run, takes no sound, or tells no words.
    """
    options = SessionOptions(variant=variant, threads=1)
    with ExitStack() as opened:
        session = opened.enter_context(closing(open_for_command(model, CPU, options)))
        if (verifier := open_verifier(model, open_for_command)) is not None:
            opened.callback(verifier.close)
        yield Listener(model, session, variant, threshold, verifier)


def _chunks(recording: Recording, rate_hz: int) -> Iterator[AudioChunk]:
    """Yield the recording as a microphone would give it."""
    size, first, rest = round(_CHUNK_S * rate_hz), 0, np.empty(0, np.int16)
    for samples in _stream(recording, rate_hz):
        rest = np.concatenate((rest, samples))
        while len(rest) >= size:
            yield _chunk(rest[:size].copy(), rate_hz, first)
            first, rest = first + size, rest[size:]
    if len(rest):
        yield _chunk(rest.copy(), rate_hz, first)


def _stream(recording: Recording, rate_hz: int) -> Iterator[Samples]:
    random = np.random.default_rng(0)
    for seconds in (LEAD_S, AFTER_S):
        yield (random.standard_normal(round(seconds * rate_hz)) * _NOISE).astype(np.int16)
        if seconds == LEAD_S:
            yield from read_blocks(recording.path, rate_hz)


def _chunk(samples: Samples, rate_hz: int, first: int) -> AudioChunk:
    end_s = (first + len(samples)) / rate_hz
    return AudioChunk(samples, rate_hz, _NAME, first, round(end_s * 1e9), _BEGIN + timedelta(seconds=end_s))


def _seconds(at: datetime) -> float:
    return round((at - _BEGIN).total_seconds() - LEAD_S, 3)


def _peaks(recording: Recording, answers: SpotterAnswers, labels: tuple[str, ...]) -> Iterator[float]:
    at_s = answers.at_ns / 1e9 - LEAD_S
    for one in recording.said:
        near = answers.full & (at_s >= one.start_s) & (at_s <= one.end_s + AFTER_S)
        yield round(float(answers.means[near, labels.index(one.label)].max(initial=0.0)), 6)
