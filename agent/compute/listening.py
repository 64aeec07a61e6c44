"""Perception of a stream whose words are taught: gate → front end → utterances → embedding of each.

The model runs when an utterance has ended, on a few windows around its end, and once when the gate opens, so that
a broken model is found before the first word. What an embedding means is not known here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import numpy as np

from agent.compute.gate.utterances import Utterance, UtteranceFinder
from agent.compute.gate.voice import PreRoll, VoiceGate
from agent.compute.infer.audio_input import AudioInput, Rows, build_frontend
from agent.compute.infer.backends import open_session
from agent.compute.infer.session import Opener, SessionOptions
from agent.compute.manifest import AudioManifest, Model
from agent.compute.track.places import Zones
from agent.compute.track.tracker import Tracker
from agent.compute.words import SURE, Floats, embedding_output, windows
from agent.config import StreamConfig
from agent.errors import ConfigError, ModelError
from agent.types import Array, AudioChunk, Event, Samples, StageTimes, StreamResult

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
        self._gate = VoiceGate(config.gate, audio.rate_hz, judges=False)
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
