"""Words and short sounds that are taught: utterances, the embedding of each, and the head that tells words apart.

An utterance is a single word or a short phrase with a pause before and after, in the rows of a front end. The
level of a row is the power of all its bands. An utterance begins where the level rises above the quietest of the
newest seconds, and ends where it stays below for a pause. Its edges are then moved to where the level is within a
fixed distance of its own peak, so that the edges of one word are the same in any noise. The rule is that of
Rabiner and Sambur, An algorithm for determining the endpoints of isolated utterances, Bell System Technical
Journal 54 (1975), with one level instead of two measures.

The model runs when an utterance has ended, on four windows around its end, and once when the gate opens, so that
a broken model is found before the first word. The mean of the embeddings is the utterance's. A word is where its
examples are: distances are those of Mahalanobis with one shrunk covariance of all words, as in
`agent.compute.states`. The limit up to which an utterance is that word comes from the examples alone: how far
each is from the others of its word. No strange word is needed to choose it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.compute.gate.voice import PreRoll, VoiceGate
from agent.compute.infer.audio_input import AudioInput, Rows, build_frontend
from agent.compute.infer.backends import open_session
from agent.compute.infer.session import Opener, SessionOptions
from agent.compute.manifest import FEATURES, AudioManifest, Model
from agent.compute.states import UNSURE, StateAnswer
from agent.compute.tflite.model import TensorSpec
from agent.compute.track.places import Zones
from agent.compute.track.tracker import Tracker
from agent.config import StreamConfig
from agent.errors import ConfigError, ModelError
from agent.types import Array, AudioChunk, Event, Samples, StageTimes, StreamResult

SHORTEST_S, LONGEST_S = 0.15, 1.5
"""Length of an utterance, s: a click is shorter, a sentence longer."""
PAUSE_S = 0.3
"""Silence that ends an utterance, s: the closure of a plosive inside a word is shorter."""
_ABOVE_DB = 9.0
"""Level above the quietest of the newest seconds that counts as sound, dB."""
_PEAK_DB = 27.0
"""Edges lie where the level is less than this below the utterance's peak, dB."""
_SMOOTH = 3
"""Rows whose mean power is the level of the last of them."""
_STEP = 5
"""Rows after which the end is looked for: by so many a pause may be missed."""
_DB = 10.0


class Utterance(Struct, frozen=True):
    """Rows of a word with what is around it.

    Attributes:
        rows: float32 [n, columns].
        begin, end: of the word, as indices into `rows`.
    """

    rows: Array
    begin: int
    end: int

    def window(self, end: int, count: int, floor: float) -> Array:
        """Return the `count` rows before row `end`, float32 [count, columns]; missing ones hold `floor`."""
        found = np.full((count, self.rows.shape[1]), floor, np.float32)
        first, last = max(0, end - count), max(0, min(end, len(self.rows)))
        if last > first:
            found[count - end + first : count - end + last] = self.rows[first:last]
        return found


class UtteranceFinder:
    """Finds the utterances of one stream. For one thread."""

    def __init__(self, hop_s: float, before_s: float) -> None:
        """Begin without sound.

        Args:
            hop_s: from one row to the next, s.
            before_s: length of what is kept before an utterance, s.
        """
        self._pause = round(PAUSE_S / hop_s)
        self._shortest, self._longest = round(SHORTEST_S / hop_s), round(LONGEST_S / hop_s)
        self._before = round(before_s / hop_s)
        self._most = self._before + self._longest + 2 * self._pause
        self.reset()

    def reset(self) -> None:
        """Forget the sound: the next rows do not continue it."""
        self._rows: Array = np.zeros((0, 0), np.float32)
        self._power: Array = np.zeros(0, np.float32)
        self._begin: int | None = None

    @property
    def is_open(self) -> bool:
        """True while an utterance goes on."""
        return self._begin is not None

    def add(self, rows: Array) -> Iterator[tuple[Utterance, int]]:
        """Add rows, natural logarithms of energy, float32 [n, columns].

        Yields:
            Each utterance that has ended, with the number of rows that have come since its end.
        """
        for at in range(0, len(rows), _STEP):
            self._append(rows[at : at + _STEP])
            found = self._poll()
            if found is not None:
                left = len(rows) - min(len(rows), at + _STEP)
                yield found, left + len(found.rows) - found.end

    def flush(self) -> Utterance | None:
        """End what is open, because the sound ends here; return it if it is an utterance."""
        if self._begin is None:
            return None
        begin, self._begin = self._begin, None
        return self._cut(begin, len(self._power))

    def _append(self, rows: Array) -> None:
        power = np.exp(rows.astype(np.float64)).sum(axis=1)
        dropped = max(0, len(self._rows) + len(rows) - self._most)
        kept = self._rows if len(self._rows) else rows[:0]
        self._rows = np.concatenate((kept, rows))[dropped:]
        self._power = np.concatenate((self._power, power))[dropped:]
        if self._begin is not None:
            self._begin = max(0, self._begin - dropped)

    def _poll(self) -> Utterance | None:
        """Return the utterance that the newest rows end, if any."""
        levels = self._levels()
        loud = np.flatnonzero(levels > levels.min(initial=np.inf) + _ABOVE_DB)
        if self._begin is None:
            self._begin = self._rise(loud, len(levels))
            if self._begin is None:
                return None
        last = int(loud[-1]) if loud.size else -1
        if len(levels) - self._begin > self._longest + self._pause and last >= len(levels) - self._pause:
            return None  # too long: it is dropped when it ends
        if len(levels) - 1 - last < self._pause:
            return None
        begin, self._begin = self._begin, None
        return self._cut(begin, last + 1)

    def _rise(self, loud: Array, count: int) -> int | None:
        """Return where the newest of `count` rows begin to be loud after some silence, if they do."""
        gaps = np.diff(loud, prepend=-1) > self._pause // 2
        if not gaps.any():
            return None
        first = int(np.flatnonzero(gaps)[-1])
        is_going_on = loud.size - first >= _SMOOTH and int(loud[-1]) >= count - self._pause
        return int(loud[first]) if is_going_on else None

    def _levels(self) -> Array:
        """Return the smoothed level of each row, dB."""
        padded = np.concatenate((self._power[:1].repeat(_SMOOTH - 1), self._power))
        means = np.convolve(padded, np.full(_SMOOTH, 1.0 / _SMOOTH), "valid") if self._power.size else padded
        return np.asarray(_DB * np.log10(means + 1e-30))

    def _cut(self, begin: int, end: int) -> Utterance | None:
        """Return what lies between two rows with its own edges; None if it is too short or too long."""
        levels = self._levels()[begin:end]
        if not levels.size:
            return None
        near = np.flatnonzero(levels > levels.max() - _PEAK_DB)
        first, last = begin + int(near[0]), begin + int(near[-1]) + 1
        if not self._shortest <= last - first <= self._longest:
            return None
        return Utterance(self._rows, first, last)


Floats = NDArray[np.float32]

AFTER_S = (0.0, 0.08, 0.16, 0.24)
"""Ends of the windows after the end of the utterance, s: the model was trained on steps of 80 ms."""
EXAMPLES_MIN = 5
"""Least number of examples of each word."""
SURE = 0.5
"""Least score of a word, by default: at the limit that the examples give."""
SIZE_MAX = 1024
"""Most numbers of an embedding: the covariance has as many rows."""
_SHRINKAGE = 0.3
"""Share of a common variance in the covariance."""
_REACH = 1.6
"""Limit of the distance, as a multiple of the median of the examples' own distances."""
_APART = 0.85
"""An utterance is unsure if it is so near to a second word: least distance, as a share of that to the second."""
_LEAST = 1e-9


def is_embedding(spec: TensorSpec) -> bool:
    """Return True for an output that words can be taught from: one row of numbers, `features` [1, …, size]."""
    return spec.name == FEATURES and 1 < spec.shape[-1] <= SIZE_MAX and int(np.prod(spec.shape)) == spec.shape[-1]


def embedding_output(outputs: Sequence[TensorSpec], path: str) -> int:
    """Return the index of the output that is an embedding. Raises ModelError if a model, at `path`, has none."""
    for index, spec in enumerate(outputs):
        if is_embedding(spec):
            return index
    found = ", ".join(map(str, outputs))
    raise ModelError(f"{path}: expected an output 'features' [1,size] to tell words by, found {found}")


def windows(utterance: Utterance, rows: int, hop_s: float, floor: float) -> list[Array]:
    """Return the windows of an utterance for the model, float32 [rows, columns] each.

    Args:
        utterance: with what is around it.
        rows: of a window.
        hop_s: from one row to the next, s.
        floor: value of a row in digital silence.
    """
    return [utterance.window(utterance.end + round(after / hop_s), rows, floor) for after in AFTER_S]


class WordHead:
    """Tells words from each other and from all else. Immutable.

    Attributes:
        values: the words that it knows.
    """

    def __init__(self, examples: Mapping[str, Floats]) -> None:
        """Learn from examples.

        Args:
            examples: embeddings [n, size] of each word, n ≥ 2.

        Raises:
            ValueError: no word, or examples that are all alike.
        """
        self.values = tuple(examples)
        if not self.values:
            raise ValueError("at least one word is needed")
        counts = np.array([len(one) for one in examples.values()])
        means = np.stack([one.mean(axis=0, dtype=np.float64) for one in examples.values()])
        rest = np.concatenate([one - mean for one, mean in zip(examples.values(), means, strict=True)])
        free = max(1, len(rest) - len(means))
        spread = float(np.square(rest).sum()) / (free * rest.shape[1])
        if not spread > _LEAST:
            raise ValueError("all examples of a word are the same")
        covariance = (1.0 - _SHRINKAGE) / free * (rest.T @ rest)
        covariance[np.diag_indices_from(covariance)] += _SHRINKAGE * spread
        whitener = np.linalg.inv(np.linalg.cholesky(covariance))
        own = np.square(rest @ whitener.T).sum(axis=1)
        self._limit = _REACH * _median(_left_out(own, counts.repeat(counts), free))
        self._whitener = np.asarray(whitener, np.float32)
        self._means = np.asarray(means @ whitener.T, np.float32)

    def classify(self, embedding: Floats, least: float = SURE) -> StateAnswer:
        """Return which word an embedding [size] is.

        Args:
            embedding: of an utterance.
            least: score from which it is sure. The score is 1 at the mean of the examples, 0.5 at the limit that
                they give, and 0 at twice that.
        """
        distances = np.linalg.norm(self._means - self._whitener @ embedding, axis=1)
        best = int(np.argmin(distances))
        score = max(0.0, 1.0 - float(distances[best]) / (2.0 * self._limit))
        others = np.delete(distances, best)
        between = bool(others.size) and float(distances[best]) > _APART * float(others.min())
        nearest, unlike = self.values[best], score < least
        return StateAnswer(UNSURE if unlike or between else nearest, nearest, score, unlike)


def _median(values: NDArray[np.float64]) -> float:
    """Return the median; `np.median` imports masked arrays, which take 10 MB."""
    middle = np.sort(values)[(len(values) - 1) // 2 : len(values) // 2 + 1]
    return float(middle.mean())


def _left_out(own: NDArray[np.float64], counts: NDArray[np.int64], free: int) -> NDArray[np.float64]:
    """Return the distance of each example from the others of its word, had it not been learned.

    Without an example with the rest r, of n of its word, the mean moves so that its rest is n / (n - 1) r, and
    the scatter loses n / (n - 1) r rᵀ, whose inverse the Sherman–Morrison formula gives.

    Args:
        own: squared distance of each example with all learned.
        counts: number of examples of its word.
        free: degrees of freedom of the covariance.
    """
    more = counts / np.maximum(counts - 1.0, 1.0)
    left = np.maximum(1.0 - (1.0 - _SHRINKAGE) / free * more * own, _LEAST)
    return np.asarray(more * np.sqrt(own / left), np.float64)


_NOISE_S = 0.3
"""Sound before the first window that is kept as well, s: it shows how quiet it was."""


class HeardUtterance(NamedTuple):
    """An utterance that has ended.

    Attributes:
        embedding: float32 [size].
        began, ended: UTC.
        ended_ns: CLOCK_MONOTONIC of its end, ns.
    """

    embedding: Floats
    began: datetime
    ended: datetime
    ended_ns: int


class UtterancePerception:
    """One microphone stream's embedding model with its session, gate and utterances. For one thread.

    Attributes:
        rate_hz: of the samples that it takes.
        tracker: has no tracks: words give an event at once.
        inferences: number for the newest chunk.
        utterances: that ended in the newest chunk.
        least: score from which a word is sure.
        extra_models: that it runs besides its first one; none.
        alarm: fault that the model's answers show; always empty, since embeddings show none.
    """

    extra_models: Sequence[Any] = ()

    def __init__(self, stream: str, config: StreamConfig, model: Model, opener: Opener = open_session) -> None:
        """Open the model and build the stages.

        Raises:
            ModelError: the model is broken, cannot run here, gives no embedding, or does not fit its front end.
            ConfigError: a setting is for pictures, or names labels.
        """
        audio = _audio_of(stream, config, model)
        self.model, self.rate_hz, self._variant = model, audio.rate_hz, config.variant
        self.session = opener(model, config.backend, SessionOptions(threads=config.threads))
        self._output = embedding_output(self.session.outputs, model.path)
        self._frontend = build_frontend(audio)
        if self._frontend.is_stateful or self._frontend.columns < 2:
            raise ModelError(f"{model.path}: utterances are found in the rows of 'logmel' or 'mfcc'")
        self._rows = AudioInput(self.session.inputs[0], audio, self._frontend)
        self._gate = VoiceGate(config.gate, audio.rate_hz)
        before_s = self._rows.rows * self._frontend.hop_s + _NOISE_S
        self._preroll = PreRoll(round(max(config.gate.pre_roll_s, before_s) * audio.rate_hz))
        self._finder = UtteranceFinder(self._frontend.hop_s, before_s)
        self.tracker = Tracker(config.track, Zones(()), stream, min_hits=model.manifest.min_hits)
        self.utterances: list[HeardUtterance] = []
        self.alarm, self.inferences, self._next = "", 0, 0
        self._listening = False
        self.configure(config)

    def configure(self, config: StreamConfig) -> None:
        """Apply another threshold."""
        asked = config.decode.score_threshold
        self.least = SURE if asked is None else asked

    def process(self, chunk: AudioChunk) -> StreamResult:
        """Process one chunk. Raises BackendError if the inference fails."""
        began = time.monotonic_ns()
        if chunk.first != self._next:
            self.reset()
        self._next = chunk.first + chunk.samples.size
        gate = self._gate.evaluate(chunk.samples)
        gated = time.monotonic_ns()
        queue = began - chunk.read_ns if chunk.read_ns else 0
        self.utterances, self.inferences = [], 0
        opens = not self._listening
        rows = self._rows_to_search(chunk.samples, open_=gate.open or self._finder.is_open)
        prepared = time.monotonic_ns()
        if rows is None:
            return StreamResult([], None, StageTimes(queue, gated - began, prepared - gated))
        if opens:
            self._embed([rows[-self._rows.rows :]])
        for utterance, ago in self._finder.add(rows):
            self._hear(utterance, ago, chunk.captured_ns, chunk.captured_at)
        infer_ns = time.monotonic_ns() - prepared
        stages = StageTimes(queue, gated - began, prepared - gated, infer_ns)
        return StreamResult([], [] if self.inferences else None, stages)

    def finish(self, at_ns: int, at: datetime, reason: str) -> list[Event]:
        """End the utterance that is open, at the end of a recording; it is in `utterances`."""
        self.utterances = []
        last = self._finder.flush() if reason == "ended" else None
        if last is not None:
            self._hear(last, len(last.rows) - last.end, at_ns, at)
        return self.tracker.finish(at_ns, at, reason)

    def reset(self) -> None:
        """Record a gap: the next chunk does not continue the previous one."""
        self._gate.reset()
        self._frontend.reset()
        self._finder.reset()
        self._preroll.clear()
        self._listening = False

    @property
    def has_features(self) -> bool:
        """True: words can be taught."""
        return True

    @property
    def embedding_size(self) -> int:
        """Numbers of an embedding."""
        return self.session.outputs[self._output].shape[-1]

    @property
    def answered_by(self) -> tuple[str, str]:
        """Backend and variant of the newest answer."""
        return self.session.backend, self.model.manifest.variant(self._variant).name

    def close(self) -> None:
        """Release the model."""
        self.session.close()

    def _rows_to_search(self, samples: Samples, *, open_: bool) -> Rows | None:
        """Return new rows, with earlier ones if the gate has just opened; None while it is closed."""
        was_listening, self._listening = self._listening, open_
        if not open_:
            self._preroll.add(samples)
            return None
        if not was_listening:
            if self._preroll.forgot:  # else it continues what was searched before the gate closed
                self._frontend.reset()
                self._finder.reset()
            samples = self._preroll.take(samples)
        return self._frontend(samples)

    def _hear(self, utterance: Utterance, ago: int, at_ns: int, at: datetime) -> None:
        """Embed an utterance that ended `ago` rows before a moment."""
        hop_s = self._frontend.hop_s
        ago_s, long_s = ago * hop_s, (utterance.end - utterance.begin) * hop_s
        found = self._embed(windows(utterance, self._rows.rows, hop_s, self._frontend.floor))
        ended = at - timedelta(seconds=ago_s)
        ended_ns = at_ns - round(ago_s * 1e9)
        self.utterances.append(HeardUtterance(found, ended - timedelta(seconds=long_s), ended, ended_ns))

    def _embed(self, parts: list[Array]) -> Floats:
        """Return the mean embedding of windows of rows, float32 [size]."""
        spec, found = self.session.outputs[self._output], []
        for part in parts:
            self._rows.reset()
            for _ in self._rows.feed(part):
                pass  # only the whole window is inferred
            self._rows.fill(self.session.input(0))
            self.session.invoke()
            found.append(np.array(spec.real(self.session.output(self._output)), np.float32).reshape(-1))
        self.inferences += len(parts)
        return np.asarray(np.mean(found, axis=0), np.float32)


def _audio_of(stream: str, config: StreamConfig, model: Model) -> AudioManifest:
    """Return what a model expects to hear; refuse settings that belong to other models."""
    audio = model.manifest.audio
    if audio is None:
        raise ModelError(f"{model.path}: takes pictures: its manifest has no [audio]")
    if config.zones or config.gate.crop:
        raise ConfigError(f"stream {stream}: zones and gate.crop are for pictures, and its model takes sound")
    if config.decode.labels:
        raise ConfigError(
            f"stream {stream}: decode.labels: {config.model} has no labels: its words are those that are taught"
        )
    return audio
