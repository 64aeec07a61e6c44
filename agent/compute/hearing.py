"""The rooms of compute in a row, for sound: gate → front end → infer → decode → words or tracks.

Chunks in, events out. While the gate is closed and no sound is followed only the gate itself costs anything; when
it opens, what was heard just before is listened to as well.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from datetime import datetime, timedelta

import numpy as np

from agent.compute.cascade.early_exit import EarlyExitModel, Prediction
from agent.compute.gate.voice import VOICE_HZ, Pauses, PreRoll, VoiceDecision, VoiceGate
from agent.compute.infer.audio_input import AudioInput, Rows, build_frontend
from agent.compute.infer.backends import open_session
from agent.compute.infer.session import Opener, SessionOptions
from agent.compute.manifest import Model
from agent.compute.track.keywords import KeywordSpotter, StuckOutputDetector, answers_move
from agent.compute.track.tracker import Tracker
from agent.compute.track.zones import Zones
from agent.config.stream import StreamConfig
from agent.errors import ConfigError, ModelError
from agent.types import AudioChunk, Detection, Event, Samples, StageTimes, StreamResult

log = logging.getLogger(__name__)

_SILENCE_S = 0.5
_STATE_S = 2.0
"""A model that remembers has heard so much again when the gate opens: longer than a wake word's field of view."""


class AudioPerception:
    """One stream's ear. For one thread.

    Attributes:
        rate_hz: of the samples that it takes.
        session: runs the model.
        tracker: of sounds that go on; words are told at once.
        inferences: made for the newest chunk.
    """

    def __init__(self, stream: str, config: StreamConfig, model: Model, opener: Opener = open_session) -> None:
        """Open the model and prepare every room.

        Args:
            stream: its name.
            config: of the stream.
            model: that it runs.
            opener: opens it.

        Raises:
            ModelError: the model is broken, cannot run here, or does not fit its front end or decoder.
            ConfigError: a label cannot be used, or something is asked for that only pictures have.
        """
        audio = model.manifest.audio
        if audio is None:
            raise ModelError(f"{model.path}: takes pictures: its manifest has no [audio]")
        if config.zones or config.gate.crop:
            raise ConfigError(f"stream {stream}: zones and gate.crop are for pictures, and its model takes sound")
        self.model, self.rate_hz, self._stream = model, audio.rate_hz, stream
        self.session = opener(model, config.backend, SessionOptions(threads=config.threads))
        self._climb = EarlyExitModel(self.session, model.manifest, config)
        self._frontend = build_frontend(audio)
        self._spec = self.session.inputs[0]
        self._rows = AudioInput(self._spec, audio, self._frontend)
        high_hz = VOICE_HZ if self._climb.keyword else audio.rate_hz / 2
        judges = any(variant.complexity < 1.0 for variant in model.manifest.variants)
        self._gate = VoiceGate(config.gate, audio.rate_hz, high_hz, judges=judges)
        self._every_s = self._rows.every * self._frontend.hop_s
        window_s = self._rows.rows * self._frontend.hop_s if audio.every_s else _STATE_S
        before_s = max(config.gate.pre_roll_s, window_s)
        per_s = 1.0 / self._frontend.hop_s if self._frontend.is_stateful else audio.rate_hz
        self._before = PreRoll(round(before_s * per_s))
        self._words = KeywordSpotter(self._climb.keyword, stream) if self._climb.keyword else None
        # A model that hears a window anew each time would hear a word for as long as it lies in there.
        overlap = self._rows.every < self._rows.rows and not self._frontend.is_stateful
        self._pauses = Pauses(audio.rate_hz) if self._words is not None and overlap else None
        self._told_ns: int | None = None
        self.tracker = Tracker(config.track, Zones(()), stream, min_hits=model.manifest.min_hits)
        self._alarm = StuckOutputDetector(self._every_s, self._model_moves)
        self._next = self.inferences = 0
        self._listening = False

    def configure(self, config: StreamConfig) -> None:
        """Take other thresholds and another variant of what is open; tracks go on, and no word is told twice.

        Raises:
            ModelError: the variant is not open.
        """
        self._climb = EarlyExitModel(self.session, self.model.manifest, config)
        if self._words is not None and self._climb.keyword is not None:
            self._words.set_decoder(self._climb.keyword)

    def process(self, chunk: AudioChunk) -> StreamResult:
        """Take some sound through the rooms.

        Raises:
            BackendError: the inference failed.
        """
        began = time.monotonic_ns()
        if chunk.first != self._next:
            self.reset()
        self._next = chunk.first + chunk.samples.size
        sound = self._gate.evaluate(chunk.samples)
        gated = time.monotonic_ns()
        queue = began - chunk.read_ns if chunk.read_ns else 0
        # The gate takes a long sound for background: only the model can tell when it is over.
        going_on = self.tracker.alive > 0 or self.tracker.watching
        rows = self._rows_of(chunk.samples, open_=sound.open or going_on)
        prepared = time.monotonic_ns()
        if rows is None:
            events = self.tracker.tick(chunk.captured_ns, chunk.captured_at)
            return StreamResult(events, None, StageTimes(queue, gated - began, prepared - gated))
        spent = _Spent(queue, gated - began, prepared - gated)
        events, detections = self._infer(chunk, rows, sound, spent)
        return StreamResult(events, detections, spent.stages())

    def tick(self, at_ns: int, at: datetime) -> list[Event]:
        """Time passes and no sound comes: ends that are due."""
        return self.tracker.tick(at_ns, at)

    def finish(self, at_ns: int, at: datetime, reason: str) -> list[Event]:
        """End every track. A recording that is over is followed by silence, in which its last word is told."""
        events: list[Event] = []
        if reason == "ended" and self._listening and self._words is not None:
            silence = np.zeros(round(_SILENCE_S * self.rate_hz), np.int16)
            after = at_ns + round(_SILENCE_S * 1e9), at + timedelta(seconds=_SILENCE_S)
            events += self.process(AudioChunk(silence, self.rate_hz, self._stream, self._next, *after)).events
        return [*events, *self.tracker.finish(at_ns, at, reason)]

    def reset(self) -> None:
        """Sound was lost: what comes next does not follow what came before."""
        self._gate.reset()
        self._frontend.reset()
        self._rows.reset()
        self._before.clear()
        if self._words is not None:
            self._words.reset()
        if self._pauses is not None:
            self._pauses.reset()
        self._told_ns = None
        self._listening = False

    @property
    def alarm(self) -> str:
        """What is wrong with the model, as far as its answers tell; empty while nothing is."""
        return self._alarm.text

    @property
    def answered_by(self) -> tuple[str, str]:
        """Backend and variant of the newest answer."""
        return self.session.backend, self._climb.answered

    @property
    def used(self) -> dict[str, int]:
        """How often each variant gave the answer."""
        return self._climb.used

    def close(self) -> None:
        """Give the model's memory back."""
        self.session.close()

    def _rows_of(self, samples: Samples, *, open_: bool) -> Rows | None:
        """The rows to infer on, with those of before when the gate has just opened; None while it is closed."""
        was_listening, self._listening = self._listening, open_
        if open_ and not was_listening and self._before.forgot:
            self._rows.reset()  # what is remembered does not follow what was heard before the gate closed
            if self._words is not None:
                self._words.reset()
        if self._frontend.is_stateful:
            rows = self._frontend(samples)
            if not open_:
                self._before.add(rows)
                return None
            return rows if was_listening else self._before.take(rows)
        if not open_:
            self._before.add(samples)
            return None
        if not was_listening:
            self._frontend.reset()
            samples = self._before.take(samples)
            if self._pauses is not None:
                self._pauses.reset()
        if self._pauses is not None:
            self._pauses.add(samples)
        return self._frontend(samples)

    def _infer(
        self, chunk: AudioChunk, rows: Rows, sound: VoiceDecision, spent: _Spent
    ) -> tuple[list[Event], list[Detection] | None]:
        events: list[Event] = []
        found: list[Detection] = []
        audible = sound.heard and bool(chunk.samples[-1] or chunk.samples.any())
        self.inferences = 0
        for left in self._rows.feed(rows):
            self.inferences += 1
            late_s = left * self._frontend.hop_s
            at_ns, at = chunk.captured_ns - round(late_s * 1e9), chunk.captured_at - timedelta(seconds=late_s)
            began = time.monotonic_ns()
            self._forget_told(at_ns, late_s)
            going_on = self._words.told if self._words is not None else ()
            answer = self._climb.predict(self._rows.fill, sound.complexity, going_on)
            inferred = time.monotonic_ns()
            news, detections = self._tell(answer, at_ns, at)
            if self._words is not None and audible and self._alarm.update(answer.scores, self._rows.newest):
                log.error("%s: %s", self.model.path, self._alarm.text)
            events += news
            found += detections
            spent.add(inferred - began, time.monotonic_ns() - inferred)
        if len(found) > 1:
            found = _strongest(found)
        return events, found if self.inferences else None

    def _model_moves(self) -> bool:
        """Test the model with made inputs: return True if its answers depend on them.

        Raises:
            BackendError: an inference failed.
        """
        moved = answers_move(
            lambda made: self._climb.predict_all_exits(lambda tensor: np.copyto(tensor, made)), self._spec
        )
        if self._rows.every >= self._rows.rows:  # it remembers the made inputs: silence takes their place
            self._rows.reset()
            for _ in range(round(_STATE_S / self._every_s)):
                self._climb.predict_all_exits(self._rows.fill)
        return moved

    def _forget_told(self, at_ns: int, late_s: float) -> None:
        """Erase a word that was told from the window when a pause follows it, so that its score falls."""
        if self._told_ns is None or self._pauses is None or self._words is None:
            return
        if not self._words.told:
            self._told_ns = None  # its score has fallen by itself
            return
        ago_s = self._pauses.find((at_ns - self._told_ns) / 1e9, late_s)
        if ago_s is not None:
            self._told_ns = None
            self._rows.forget(round(ago_s / self._frontend.hop_s))
            self._words.reset()

    def _tell(self, answer: Prediction, at_ns: int, at: datetime) -> tuple[list[Event], list[Detection]]:
        if self._words is None:
            return self.tracker.update(answer.detections, at_ns, at), answer.detections
        events = self._words.update(answer.scores, at_ns, at, self._every_s)
        if events:
            self._told_ns = at_ns
        return events, self._words.decoder.best(answer.scores)


def _strongest(found: Iterable[Detection]) -> list[Detection]:
    """Each label once, as sure as any of several inferences was; strongest first."""
    best: dict[str, Detection] = {}
    for detection in sorted(found, key=lambda one: -one.score):
        best.setdefault(detection.label, detection)
    return list(best.values())


class _Spent:
    """Stages of one chunk, added up over its inferences."""

    def __init__(self, queue: int, gate: int, prepare: int) -> None:
        self._queue, self._gate, self._prepare = queue, gate, prepare
        self._infer = self._track = 0

    def add(self, infer: int, track: int) -> None:
        self._infer += infer
        self._track += track

    def stages(self) -> StageTimes:
        return StageTimes(self._queue, self._gate, self._prepare, self._infer, 0, self._track)
