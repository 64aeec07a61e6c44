"""Audio inference of one stream: gate → front end → infer → decode → keywords or tracks. Chunks in, events out.

While the gate is closed and no track is alive only the gate runs. When it opens, the sound just before is
inferred too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol

import numpy as np

from agent.compute.cascade import EarlyExitModel, Prediction
from agent.compute.decode.classes import Keyword
from agent.compute.gate.voice import VOICE_HZ, Pauses, PreRoll, VoiceDecision, VoiceGate
from agent.compute.infer.audio_input import AudioInput, Rows, build_frontend
from agent.compute.infer.backends import open_session
from agent.compute.infer.session import Opener, SessionOptions
from agent.compute.manifest import AudioManifest, Model
from agent.compute.track.keywords import CONSTANT_S, KeywordSpotter, StuckOutputDetector, answers_move
from agent.compute.track.places import Zones
from agent.compute.track.tracker import Tracker
from agent.config import StreamConfig
from agent.errors import ConfigError, ModelError
from agent.types import AudioChunk, Detection, Event, Samples, StageTimes, StreamResult

log = logging.getLogger(__name__)
_SILENCE_S = 0.5
"""Silence added to the end of a recording, s."""
_STATE_S = 2.0
"""Audio replayed into a stateful model when the gate opens, s: longer than a wake word's receptive field."""


def _audio_of(stream: str, config: StreamConfig, model: Model) -> AudioManifest:
    """Return what a model expects to hear; refuse a model or a stream that is for pictures."""
    audio = model.manifest.audio
    if audio is None:
        raise ModelError(f"{model.path}: takes pictures: its manifest has no [audio]")
    if config.zones or config.gate.crop:
        raise ConfigError(f"stream {stream}: zones and gate.crop are for pictures, and its model takes sound")
    return audio


class WordCheck(Protocol):
    """Listens again to each word that a model has heard, and refuses what is none."""

    @property
    def refused(self) -> int:
        """Number of words that were not verified."""
        ...

    def listen(self, rate_hz: int, words: Collection[str], before_s: float) -> None:
        """Prepare for the sound of a stream, and for words that end up to `before_s` before the newest sample."""
        ...

    def add(self, samples: Samples) -> None:
        """Add samples, int16 [n], continuing the previous ones."""
        ...

    def accepts(self, label: str, late_s: float) -> bool:
        """Return True if the sound up to `late_s` before its end is this word. Raises BackendError."""
        ...

    def told(self, late_s: float) -> None:
        """Record that a word was told by the sound up to `late_s` before its end."""
        ...

    def reset(self) -> None:
        """Drop the sound, because the next does not continue it."""
        ...

    def close(self) -> None:
        """Release the model."""
        ...


class AudioPerception:
    """One microphone stream's model with its session, gate, keywords and tracker. For one thread.

    Attributes:
        rate_hz: of the samples that it takes.
        tracker: of continuing sounds; keywords give an event at once.
        inferences: number for the newest chunk.
        verifier: verifies its words; None: nobody does.
        extra_models: that it runs besides its first one.
    """

    extra_models: Sequence[Any] = ()

    def __init__(
        self,
        stream: str,
        config: StreamConfig,
        model: Model,
        opener: Opener = open_session,
        constant_s: float = CONSTANT_S,
        spotter: Callable[[Keyword, str], KeywordSpotter] = KeywordSpotter,
    ) -> None:
        """Open the model and build the stages.

        Args:
            stream: its name.
            config: of the stream.
            model: that hears.
            opener: opens the model.
            constant_s: as in `StuckOutputDetector`.
            spotter: makes the finder of keywords; an evaluation keeps the answers that it is given.

        Raises:
            ModelError: the model is broken, cannot run here, or does not fit its front end or decoder.
            ConfigError: a label cannot be used, or a setting is for pictures only.
        """
        audio = _audio_of(stream, config, model)
        self.model, self.rate_hz, self._stream = model, audio.rate_hz, stream
        self.session = opener(model, config.backend, SessionOptions(threads=config.threads))
        self._exits = EarlyExitModel(self.session, model.manifest, config)
        self._frontend = build_frontend(audio)
        self._spec = self.session.inputs[0]
        self._rows = AudioInput(self._spec, audio, self._frontend)
        high_hz = VOICE_HZ if self._exits.keyword else audio.rate_hz / 2
        self._gate = VoiceGate(config.gate, audio.rate_hz, high_hz)
        self._every_s = self._rows.every * self._frontend.hop_s
        window_s = self._rows.rows * self._frontend.hop_s if audio.every_s else _STATE_S
        before_s = max(config.gate.pre_roll_s, window_s)
        per_s = 1.0 / self._frontend.hop_s if self._frontend.is_stateful else audio.rate_hz
        self._preroll = PreRoll(round(before_s * per_s))
        self._keywords = spotter(self._exits.keyword, stream) if self._exits.keyword else None
        # Overlapping windows would find a word for as long as it lies in them.
        overlap = self._rows.every < self._rows.rows and not self._frontend.is_stateful
        self._pauses = Pauses(audio.rate_hz) if self._keywords is not None and overlap else None
        self._event_ns: int | None = None
        self.tracker = Tracker(config.track, Zones(()), stream, min_hits=model.manifest.min_hits)
        self._stuck = StuckOutputDetector(self._every_s, self._model_moves, constant_s)
        self._next = self.inferences = 0
        self._listening = False
        self.verifier: WordCheck | None = None
        self._before_s, self._late_s = before_s, 0.0

    def verify_with(self, verifier: WordCheck) -> None:
        """Have each word verified before it is told; close the verifier with the other models.

        Raises:
            ModelError: the model tells no words, or the verifier does not know one of them.
        """
        if self._keywords is None:
            raise ModelError("[verification] is for words, of the decoder `keyword`")
        decoder = self._keywords.decoder
        verifier.listen(self.rate_hz, [decoder.labels[number] for number in decoder.wanted], self._before_s)
        self.verifier = verifier
        self._keywords.verify = lambda word: verifier.accepts(word, self._late_s)

    def configure(self, config: StreamConfig) -> None:
        """Apply other thresholds and another open variant; tracks continue, and no word gives a second event."""
        self._exits = EarlyExitModel(self.session, self.model.manifest, config)
        if self._keywords is not None and self._exits.keyword is not None:
            self._keywords.set_decoder(self._exits.keyword)

    def process(self, chunk: AudioChunk) -> StreamResult:
        """Process one chunk. Raises BackendError if the inference fails."""
        began = time.monotonic_ns()
        if chunk.first != self._next:
            self.reset()
        self._next = chunk.first + chunk.samples.size
        if self.verifier is not None:
            self.verifier.add(chunk.samples)
        gate = self._gate.evaluate(chunk.samples)
        gated = time.monotonic_ns()
        queue = began - chunk.read_ns if chunk.read_ns else 0
        # The gate learns a long sound as background: only the model can find its end.
        going_on = self.tracker.alive > 0 or self.tracker.watching
        rows = self._rows_to_infer(chunk.samples, open_=gate.open or going_on)
        prepared = time.monotonic_ns()
        if rows is None:
            events = self.tracker.tick(chunk.captured_ns, chunk.captured_at)
            return StreamResult(events, None, StageTimes(queue, gated - began, prepared - gated))
        events, detections, infer_ns, track_ns = self._infer(chunk, rows, gate)
        stages = StageTimes(queue, gated - began, prepared - gated, infer_ns, 0, track_ns)
        return StreamResult(events, detections, stages)

    def finish(self, at_ns: int, at: datetime, reason: str) -> list[Event]:
        """End every track. Add silence to the end of a recording, so that its last word gives an event."""
        events: list[Event] = []
        if reason == "ended" and self._listening and self._keywords is not None:
            silence = np.zeros(round(_SILENCE_S * self.rate_hz), np.int16)
            after = at_ns + round(_SILENCE_S * 1e9), at + timedelta(seconds=_SILENCE_S)
            events += self.process(AudioChunk(silence, self.rate_hz, self._stream, self._next, *after)).events
        return [*events, *self.tracker.finish(at_ns, at, reason)]

    def reset(self) -> None:
        """Record a gap: the next chunk does not continue the previous one."""
        self._gate.reset()
        self._frontend.reset()
        self._rows.reset()
        self._preroll.clear()
        if self._keywords is not None:
            self._keywords.reset()
        if self._pauses is not None:
            self._pauses.reset()
        if self.verifier is not None:
            self.verifier.reset()
        self._event_ns = None
        self._listening = False

    @property
    def alarm(self) -> str:
        """Fault that the model's answers show; empty: none."""
        return self._stuck.text

    @property
    def answered_by(self) -> tuple[str, str]:
        """Backend and variant of the newest answer."""
        return self.session.backend, self._exits.answered

    @property
    def used(self) -> dict[str, int]:
        """Number of answers by exit."""
        return self._exits.used

    def close(self) -> None:
        """Release the models."""
        self.session.close()
        if self.verifier is not None:
            self.verifier.close()

    def _rows_to_infer(self, samples: Samples, *, open_: bool) -> Rows | None:
        """Return the rows to infer, with earlier ones if the gate has just opened; None while it is closed."""
        was_listening, self._listening = self._listening, open_
        if open_ and not was_listening and self._preroll.forgot:
            self._rows.reset()  # the pre-roll does not continue the sound before the gate closed
            if self._keywords is not None:
                self._keywords.reset()
        if self._frontend.is_stateful:
            rows = self._frontend(samples)
            if not open_:
                self._preroll.add(rows)
                return None
            return rows if was_listening else self._preroll.take(rows)
        if not open_:
            self._preroll.add(samples)
            return None
        if not was_listening:
            self._frontend.reset()
            samples = self._preroll.take(samples)
            if self._pauses is not None:
                self._pauses.reset()
        if self._pauses is not None:
            self._pauses.add(samples)
        return self._frontend(samples)

    def _infer(
        self, chunk: AudioChunk, rows: Rows, gate: VoiceDecision
    ) -> tuple[list[Event], list[Detection] | None, int, int]:
        """Return events, detections, and the times of inference and tracking, ns."""
        events: list[Event] = []
        found: list[Detection] = []
        infer_ns = track_ns = 0
        audible = gate.heard and bool(chunk.samples[-1] or chunk.samples.any())
        self.inferences = 0
        for left in self._rows.feed(rows):
            self.inferences += 1
            late_s = self._late_s = left * self._frontend.hop_s
            at_ns, at = chunk.captured_ns - round(late_s * 1e9), chunk.captured_at - timedelta(seconds=late_s)
            began = time.monotonic_ns()
            self._erase_ended_word(at_ns, late_s)
            continuing = self._keywords.continuing if self._keywords is not None else ()
            answer = self._exits.predict(self._rows.fill, gate.complexity, continuing)
            inferred = time.monotonic_ns()
            new, detections = self._report(answer, at_ns, at)
            if self._keywords is not None and audible and self._stuck.update(answer.scores, self._rows.newest):
                log.error("%s: %s", self.model.path, self._stuck.text)
            events += new
            found += detections
            infer_ns += inferred - began
            track_ns += time.monotonic_ns() - inferred
        if len(found) > 1:
            found = _strongest(found)
        return events, found if self.inferences else None, infer_ns, track_ns

    def _model_moves(self) -> bool:
        """Test the model with made inputs: return True if its answers depend on them."""
        moved = answers_move(
            lambda made: self._exits.predict_all_exits(lambda tensor: np.copyto(tensor, made)), self._spec
        )
        if self._rows.every >= self._rows.rows:  # stateful: replace the made inputs by silence
            self._rows.reset()
            for _ in range(round(_STATE_S / self._every_s)):
                self._exits.predict_all_exits(self._rows.fill)
        return moved

    def _erase_ended_word(self, at_ns: int, late_s: float) -> None:
        """Erase a word from the window if a pause follows its event, so that its score falls."""
        if self._event_ns is None or self._pauses is None or self._keywords is None:
            return
        if not self._keywords.continuing:
            self._event_ns = None  # its score has fallen already
            return
        ago_s = self._pauses.find((at_ns - self._event_ns) / 1e9, late_s)
        if ago_s is not None:
            self._event_ns = None
            self._rows.keep_newest(round(ago_s / self._frontend.hop_s))
            self._keywords.reset()

    def _report(self, answer: Prediction, at_ns: int, at: datetime) -> tuple[list[Event], list[Detection]]:
        if self.model.manifest.gives_numbers:
            return [], answer.detections
        if self._keywords is None:
            return self.tracker.update(answer.detections, at_ns, at), answer.detections
        events = self._keywords.update(answer.scores, at_ns, at, self._every_s)
        if events:
            self._event_ns = at_ns
            if self.verifier is not None:
                self.verifier.told(self._late_s)
        return events, self._keywords.decoder.best(answer.scores)


def _strongest(found: Iterable[Detection]) -> list[Detection]:
    """Return each label once, with its highest score over several inferences; strongest first."""
    best: dict[str, Detection] = {}
    for detection in sorted(found, key=lambda one: -one.score):
        best.setdefault(detection.label, detection)
    return list(best.values())
