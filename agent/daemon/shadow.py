"""A shadow: another model beside the one of a stream, on the same inputs. Nobody hears what it says.

It runs in a thread of its own, and its model in a process of its own: one that is slow, hangs or crashes takes
nothing from the stream, which hands on what it has just inferred and leaves out what the shadow has no time for.
"""

from __future__ import annotations

import logging
import queue
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from msgspec import Struct
from msgspec.structs import replace

from agent.compute.manifest import Model
from agent.config.stream import StreamConfig
from agent.daemon.metrics import LatencyWindow
from agent.daemon.perception import Perception, open_perception
from agent.errors import VedetteError
from agent.types import AudioChunk, Box, Detection, Frame

if TYPE_CHECKING:
    from agent.compute.hearing import AudioPerception
    from agent.compute.infer.session import BackendSpec, Session, SessionOptions
    from agent.compute.vision import VideoPerception


log = logging.getLogger(__name__)

_PICTURES, _CHUNKS = 1, 1000
"""That may wait. Sound must have no gap, so ten seconds of it and more may, while the model is being opened."""
_SPAN_S = 1.0
"""Two models of sound need not infer at the same moments: what each has heard in such a span is compared."""


class ShadowReport(Struct, frozen=True):
    """What was found of the two models so far.

    Attributes:
        compared: inputs in which either has found something.
        agreement: mean over these of the F1 of the one against the other, 0..1; None: there was none.
        infer_p95_ms: 95th percentile of the shadow's newest inferences, ms.
        present_p95_ms: of the stream's own, on the same inputs.
        failed: why it cannot go on; empty: it does.
    """

    compared: int = 0
    agreement: float | None = None
    infer_p95_ms: float | None = None
    present_p95_ms: float | None = None
    failed: str = ""


class _Answer(Struct, frozen=True, gc=False):
    """Of a model.

    Attributes:
        detections: None: it did not infer.
        infer_ns: what an inference took.
    """

    detections: list[Detection] | None
    infer_ns: int


class _Crop(Struct, frozen=True, gc=False):
    """A part of a frame that was inferred."""

    frame: Frame
    crop: Box


class _Span:
    """What one model has found: of sound, each label once in a span."""

    def __init__(self) -> None:
        self.inferred, self.found = False, list[Detection]()

    def add(self, detections: list[Detection]) -> None:
        self.inferred = True
        known = {one.label for one in self.found if one.box is None}
        self.found += [one for one in detections if one.box is not None or one.label not in known]


class Shadow:
    """Beside one stream: its thread offers, any thread asks."""

    def __init__(self, name: str, config: StreamConfig, model: Model, plan: BackendSpec, every: int = 1) -> None:
        """Prepare.

        Args:
            name: of the stream.
            config: of the stream.
            model: the other one.
            plan: how it is to be opened.
            every: of the pictures that are inferred, each so many-th is compared. Of sound everything is, since
                what is heard depends on what was before.
        """
        self._name, self._config, self._model, self._plan, self._every = name, config, model, plan, every
        waiting = _PICTURES if model.manifest.audio is None else _CHUNKS
        self._inputs: queue.Queue[tuple[_Crop | AudioChunk, _Answer] | None] = queue.Queue(waiting)
        self._infer, self._present = LatencyWindow(), LatencyWindow()
        self._span, self._heard = 0, (_Span(), _Span())
        self._offered, self._compared, self._agreed, self._failed = 0, 0, 0.0, ""
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"shadow-{name}", daemon=True)

    def start(self) -> None:
        """Open the model, and compare from then on."""
        try:
            self._thread.start()
        except RuntimeError as error:  # there may be no more of them
            self._fail(str(error))

    def close(self) -> None:
        """Compare nothing more. An inference that goes on is not waited for."""
        self._closed = True
        with suppress(queue.Full):  # else it looks before the next one
            self._inputs.put_nowait(None)

    @property
    def findings(self) -> ShadowReport:
        """So far."""
        compared, agreed = self._compared, self._agreed
        mean = round(agreed / compared, 4) if compared else None
        return ShadowReport(compared, mean, self._infer.p95_ms, self._present.p95_ms, self._failed)

    def compare_frame(self, frame: Frame, crop: Box, detections: list[Detection], infer_ns: int) -> None:
        """The stream has inferred a picture, which is copied if it is taken.

        Args:
            frame: the picture.
            crop: part of it that was inferred.
            detections: what the stream's own model has found.
            infer_ns: what that took.
        """
        self._offered += 1
        if self._offered % self._every == 0 and self._has_room:
            kept = replace(frame, image=frame.image.copy())
            self._give(_Crop(kept, crop), _Answer(detections, infer_ns))

    def compare_audio(self, chunk: AudioChunk, detections: list[Detection] | None, infer_ns: int) -> None:
        """The stream has heard some sound.

        Args:
            chunk: the sound.
            detections: what the stream's own model has found; None: it did not infer.
            infer_ns: what an inference took.
        """
        if self._has_room:
            self._give(chunk, _Answer(detections, infer_ns))

    @property
    def _has_room(self) -> bool:
        return not (self._failed or self._closed or self._inputs.full())

    def _give(self, given: _Crop | AudioChunk, found: _Answer) -> None:
        with suppress(queue.Full):  # it is being closed
            self._inputs.put_nowait((given, found))

    def _work(self) -> None:
        sense: Perception | None = None
        try:
            sense = open_perception(self._name, self._config, self._model, self._open_apart)
            while (taken := self._inputs.get()) is not None and not self._closed:
                given, found = taken
                self._note(given, found, _answer(sense, given))
        except VedetteError as error:
            self._fail(str(error))
        except Exception as error:
            log.exception("stream %s: a defect in Vedette", self._name)
            self._fail(f"a defect in Vedette: {type(error).__name__}: {error}")
        finally:
            if sense is not None:
                sense.close()

    def _open_apart(self, model: Model, _: str, options: SessionOptions) -> Session:
        from agent.compute.infer.worker.session import WorkerSession

        return WorkerSession(model, self._plan, options)

    def _fail(self, reason: str) -> None:
        self._failed = reason
        log.warning("stream %s: the model beside its own fails: %s", self._name, reason)

    def _note(self, given: _Crop | AudioChunk, found: _Answer, own: _Answer) -> None:
        """Compare pictures at once, and sound at the end of a span."""
        if isinstance(given, AudioChunk):
            span = int(given.first / (given.rate_hz * _SPAN_S))
            if span != self._span:
                self._compare()
                self._span = span
        for answer, times, heard in zip((found, own), (self._present, self._infer), self._heard, strict=True):
            if answer.detections is not None:
                times.add(answer.infer_ns)
                heard.add(answer.detections)
        if not isinstance(given, AudioChunk):
            self._compare()

    def _compare(self) -> None:
        from agent.compute.track.association import detection_f1

        (present, new), self._heard = self._heard, (_Span(), _Span())
        if present.inferred and new.inferred and (present.found or new.found):
            self._agreed += detection_f1(present.found, new.found)
            self._compared += 1


def _answer(sense: Perception, given: _Crop | AudioChunk) -> _Answer:
    if isinstance(given, AudioChunk):
        ear = cast("AudioPerception", sense)
        seen = ear.process(given)
        return _Answer(seen.detections, seen.stages.infer // max(1, ear.inferences))
    result = cast("VideoPerception", sense).infer_crop(given.frame, given.crop)
    return _Answer(result.detections, result.infer)
