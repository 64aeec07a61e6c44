"""Hear recordings as the daemon would, and the rates of words missed and of false alarms at any threshold.

Each recording is a stream of its own. Noise as of a quiet room comes before it, so that front ends with a memory
and models with a state are as they are in a stream, and after it, since a word's event comes a little late.

The detection error trade-off (Martin et al., The DET curve in assessment of detection task performance,
Eurospeech 1997) of a spotter needs its events at each threshold. They are found from the means that it compares
with its threshold, stored while it heard the sound once: `replay` gives what `KeywordSpotter` would.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.compute.decode.classes import Keyword
from agent.compute.decode.decoder import Floats
from agent.compute.hearing import AudioPerception
from agent.compute.infer.backends import open_for_command
from agent.compute.infer.session import CPU, Session, SessionOptions
from agent.compute.manifest import Model
from agent.compute.track.keywords import KeywordSpotter
from agent.config import DecodeConfig, StreamConfig
from agent.errors import ModelError
from agent.features.verification.models import WordVerifier, open_verifier
from agent.optimise.evaluate import PATIENT, wilson
from agent.optimise.evaluation.sound_data import Recording, SpokenWord, read_blocks
from agent.types import AudioChunk, Event, Samples

AFTER_S = 1.0
"""How long after a word its event may come, s: the window must hold it, and means lag."""
THRESHOLDS = (
    *(round(number / 100, 2) for number in range(1, 100)),
    *(round(1.0 - 10.0 ** (-2.0 - number / 10), 5) for number in range(1, 21)),
)
"""Thresholds of the curve."""
_RELEASE = 0.5
"""Share of the threshold to which a mean must fall before another event of its word, as in `KeywordSpotter`."""
_TAIL = 0.025


class SpotterAnswers(NamedTuple):
    """Values that a spotter compared with its threshold, an inference a row.

    Attributes:
        means: float32 [n, classes].
        full: whether the mean is of as many answers as it needs, [n].
        at_ns: time of each inference's last sample, int64 [n].
        refused: whether the verification refuses the most probable word, [n]; None: there is no verification.
    """

    means: NDArray[np.float32]
    full: NDArray[np.bool_]
    at_ns: NDArray[np.int64]
    refused: NDArray[np.bool_] | None = None


class HeardWord(Struct, frozen=True):
    """An event.

    Attributes:
        label: of the word.
        at_s: time from the beginning of the recording, s.
        score: mean of the answers, 0..1.
    """

    label: str
    at_s: float
    score: float


def replay(
    answers: SpotterAnswers, threshold: float, words: Collection[int], refractory_ns: int
) -> list[tuple[int, int]]:
    """Return the events that a `KeywordSpotter` gives for these answers: row and number of the label.

    Args:
        answers: of one stream.
        threshold: that a mean must exceed.
        words: numbers of the labels that give events.
        refractory_ns: least time between two events of a word.
    """
    if not len(answers.means):
        return []
    best = answers.means.argmax(axis=1)
    strongest = answers.means.max(axis=1)
    may = answers.full if answers.refused is None else answers.full & ~answers.refused
    rows = np.flatnonzero(may & (strongest > threshold) & np.isin(best, list(words)))
    order = np.arange(len(best))
    newest: dict[int, int] = {}
    fell: dict[int, NDArray[np.intp]] = {}
    events = []
    for row in rows.tolist():
        label = int(best[row])
        if label not in fell:
            is_low = answers.means[:, label] <= threshold * _RELEASE
            fell[label] = np.maximum.accumulate(np.where(is_low, order, -1))
        before = newest.get(label)
        if before is not None:
            soon = answers.at_ns[row] - answers.at_ns[before] < refractory_ns
            if soon or fell[label][row] <= before:
                continue
        newest[label] = row
        events.append((row, label))
    return events


class JudgedSound(NamedTuple):
    """Events of a recording, compared with its words.

    Attributes:
        heard: for each word that is said, whether it is heard.
        told: the first event in the time of each word; empty: there is none.
        false: events that are of no word that is said there. A second event of a word that was heard is none.
    """

    heard: tuple[bool, ...]
    told: tuple[str, ...]
    false: tuple[HeardWord, ...]


def judge(said: Sequence[SpokenWord], events: Iterable[HeardWord]) -> JudgedSound:
    """Compare events with the words that are said: each hears one word at most, the first that it can.

    Args:
        said: words, sorted by their beginning.
        events: in their order.
    """
    heard, told = [False] * len(said), [""] * len(said)
    false = []
    for event in events:
        near = [place for place, one in enumerate(said) if one.start_s <= event.at_s <= one.end_s + AFTER_S]
        own = [place for place in near if said[place].label == event.label]
        hit = next((place for place in own if not heard[place]), None)
        for place in near if hit is None else (hit,):
            told[place] = told[place] or event.label
        if hit is not None:
            heard[hit] = True
        elif not own:
            false.append(event)
    return JudgedSound(tuple(heard), tuple(told), tuple(false))


def curve_point(said: Sequence[SpokenWord], events: Iterable[HeardWord]) -> tuple[int, int]:
    """Return how many words events hear in a recording, and how many are false alarms."""
    found = judge(said, events)
    return sum(found.heard), len(found.false)


class RatePoint(Struct, frozen=True):
    """An operating point. Intervals are of 95 %.

    Attributes:
        threshold: that a mean must exceed.
        said, missed: numbers of words.
        reject_rate: share of words that are missed; None: none is said.
        reject_interval: Wilson's.
        alarms: number of false alarms.
        alarms_per_hour: of other sound; None: there is none.
        alarms_interval: Poisson's.
    """

    threshold: float
    said: int
    missed: int
    reject_rate: float | None
    reject_interval: tuple[float, float] | None
    alarms: int
    alarms_per_hour: float | None
    alarms_interval: tuple[float, float] | None


def rate_point(threshold: float, said: int, heard: int, alarms: int, hours: float) -> RatePoint:
    """Return the rates of a threshold.

    Args:
        threshold: see `RatePoint`.
        said: number of words.
        heard: of them.
        alarms: number of false alarms in the other sound.
        hours: length of the other sound.
    """
    missed = said - heard
    rejected, spread = (missed / said, wilson(missed, said)) if said else (None, None)
    per_hour, interval = None, None
    if hours > 0:
        low, high = poisson_interval(alarms)
        per_hour, interval = alarms / hours, (low / hours, high / hours)
    return RatePoint(threshold, said, missed, rejected, spread, alarms, per_hour, interval)


def point_for_alarms(points: Sequence[RatePoint], target: float) -> RatePoint | None:
    """Return the point whose threshold misses fewest words with at most so many false alarms an hour.

    No higher one may have more of them. Of several that miss as few it is the highest, which is the safest.

    Args:
        points: in rising order of their thresholds.
        target: false alarms per hour.

    Returns:
        None: no threshold is high enough, or the rate is not known.
    """
    found: RatePoint | None = None
    for point in reversed(points):
        if point.alarms_per_hour is None or point.alarms_per_hour > target:
            break
        if found is None or point.missed < found.missed:
            found = point
    return found


def poisson_interval(count: int) -> tuple[float, float]:
    """Return the interval of 95 % of the mean of a Poisson distribution that gave a count.

    Exact: Garwood, Fiducial limits for the Poisson distribution, Biometrika 1936.
    """
    low = 0.0 if count == 0 else _solve(count - 1, 1.0 - _TAIL)
    return low, _solve(count, _TAIL)


def _solve(count: int, probability: float) -> float:
    """Return the mean at which at most `count` have this probability, by bisection."""
    low, high = 0.0, count + 10.0 * math.sqrt(count + 1.0) + 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(count, middle) > probability else (low, middle)
    return (low + high) / 2


def _at_most(count: int, mean: float) -> float:
    """Return the probability of at most `count` events; `mean`: more than 0."""
    logs = np.cumsum(np.log(mean / np.arange(1, count + 1)))
    return float(math.exp(-mean) + np.exp(logs - mean).sum())


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
        curve: for each of `THRESHOLDS`, numbers of words heard and of false alarms.
        exits: number of answers by the name of the exit.
    """

    events: tuple[HeardWord, ...]
    curve: tuple[tuple[int, int], ...]
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
        return HeardRecording(heard, tuple(curve), perception.used)


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
