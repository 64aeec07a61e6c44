"""Shadow: run another model on a stream's inputs and compare the two; nothing of the shadow is published.

The shadow runs in a thread of its own and its model in a process of its own: a slow, hanging or crashing model
    does not disturb the stream, which offers each input after its own inference and skips those that the shadow
    is too busy for.
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
from agent.storage.state_file import ShadowReport
from agent.types import AudioChunk, Box, Detection, Frame

if TYPE_CHECKING:
    from agent.compute.hearing import AudioPerception
    from agent.compute.infer.session import BackendSpec, Session, SessionOptions
    from agent.compute.vision import VideoPerception


log = logging.getLogger(__name__)

_PICTURES, _CHUNKS = 1, 1000
"""Inputs that may wait. Sound must have no gap, also while the model is being opened: ten seconds and more may
wait."""
_SPAN_S = 1.0
"""Span of sound that is compared as one, s: two models need not infer at the same moments."""


class _Answer(Struct, frozen=True, gc=False):
    """Result of one model.

    Attributes:
        detections: None: it did not infer.
        infer_ns: time of the inference, ns.
    """

    detections: list[Detection] | None
    infer_ns: int


class _Crop(Struct, frozen=True, gc=False):
    """The part of a frame that the stream inferred."""

    frame: Frame
    crop: Box


class _Span:
    """Detections of one model; of sound, each label once in a span."""

    def __init__(self) -> None:
        self.inferred, self.found = False, list[Detection]()

    def add(self, detections: list[Detection]) -> None:
        self.inferred = True
        known = {one.label for one in self.found if one.box is None}
        self.found += [one for one in detections if one.box is not None or one.label not in known]


class Shadow:
    """Compares another model with a stream's own. Any thread may read the report."""

    def __init__(self, name: str, config: StreamConfig, model: Model, plan: BackendSpec, every: int = 1) -> None:
        """Prepare.

        Args:
            name: of the stream.
            config: of the stream.
            model: to compare.
            plan: backend that opens it.
            every: compare each so many-th inferred picture. Sound is compared without gaps, since detections
                depend
                on what came before.
        """
        self._name, self._config, self._model, self._plan, self._every = name, config, model, plan, every
        waiting = _PICTURES if model.manifest.audio is None else _CHUNKS
        self._inputs: queue.Queue[tuple[_Crop | AudioChunk, _Answer] | None] = queue.Queue(waiting)
        self._infer, self._present = LatencyWindow(), LatencyWindow()
        self._span, self._heard = 0, (_Span(), _Span())
        self._offered, self._compared, self._agreed, self._failed = 0, 0, 0.0, ""
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"shadow-{name}", daemon=True)

    def start(self) -> None:
        """Open the model, and compare from then on."""
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads
            self._fail(str(error))

    def close(self) -> None:
        """Stop comparing, without waiting for a running inference."""
        self._closed = True
        with suppress(queue.Full):  # else the thread checks `_closed` before the next input
            self._inputs.put_nowait(None)

    @property
    def report(self) -> ShadowReport:
        """Comparison so far."""
        compared, agreed = self._compared, self._agreed
        mean = round(agreed / compared, 4) if compared else None
        return ShadowReport(compared, mean, self._infer.p95_ms, self._present.p95_ms, self._failed)

    def compare_frame(self, frame: Frame, crop: Box, detections: list[Detection], infer_ns: int) -> None:
        """Compare a frame that the stream has inferred; it is copied unless it is skipped.

        Args:
            frame: the picture.
            crop: part of it that the stream inferred.
            detections: of the stream's own model.
            infer_ns: time of its inference, ns.
        """
        self._offered += 1
        if self._offered % self._every == 0 and self._has_room:
            kept = replace(frame, image=frame.image.copy())
            self._enqueue(_Crop(kept, crop), _Answer(detections, infer_ns))

    def compare_audio(self, chunk: AudioChunk, detections: list[Detection] | None, infer_ns: int) -> None:
        """Compare sound that the stream has processed.

        Args:
            chunk: the sound.
            detections: of the stream's own model; None: it did not infer.
            infer_ns: time of one inference, ns.
        """
        if self._has_room:
            self._enqueue(chunk, _Answer(detections, infer_ns))

    @property
    def _has_room(self) -> bool:
        return not (self._failed or self._closed or self._inputs.full())

    def _enqueue(self, item: _Crop | AudioChunk, own: _Answer) -> None:
        with suppress(queue.Full):  # it is being closed
            self._inputs.put_nowait((item, own))

    def _run(self) -> None:
        opened: Perception | None = None
        try:
            opened = open_perception(self._name, self._config, self._model, self._open_worker)
            while (taken := self._inputs.get()) is not None and not self._closed:
                item, present = taken
                self._add(item, present, _infer(opened, item))
        except VedetteError as error:
            self._fail(str(error))
        except Exception as error:
            log.exception("stream %s: internal error (please report)", self._name)
            self._fail(f"internal error: {type(error).__name__}: {error}")
        finally:
            if opened is not None:
                opened.close()

    def _open_worker(self, model: Model, _: str, options: SessionOptions) -> Session:
        from agent.compute.infer.worker.session import WorkerSession

        return WorkerSession(model, self._plan, options)

    def _fail(self, reason: str) -> None:
        self._failed = reason
        log.warning("stream %s: the new model that runs beside its own failed: %s", self._name, reason)

    def _add(self, item: _Crop | AudioChunk, present: _Answer, new: _Answer) -> None:
        """Compare pictures at once, and sound at the end of a span."""
        if isinstance(item, AudioChunk):
            span = int(item.first / (item.rate_hz * _SPAN_S))
            if span != self._span:
                self._compare()
                self._span = span
        for answer, times, heard in zip((present, new), (self._present, self._infer), self._heard, strict=True):
            if answer.detections is not None:
                times.add(answer.infer_ns)
                heard.add(answer.detections)
        if not isinstance(item, AudioChunk):
            self._compare()

    def _compare(self) -> None:
        from agent.compute.track.association import detection_f1

        (present, new), self._heard = self._heard, (_Span(), _Span())
        if present.inferred and new.inferred and (present.found or new.found):
            self._agreed += detection_f1(present.found, new.found)
            self._compared += 1


def _infer(opened: Perception, item: _Crop | AudioChunk) -> _Answer:
    if isinstance(item, AudioChunk):
        hearing = cast("AudioPerception", opened)
        result = hearing.process(item)
        return _Answer(result.detections, result.stages.infer // max(1, hearing.inferences))
    found = cast("VideoPerception", opened).infer_crop(item.frame, item.crop)
    return _Answer(found.detections, found.infer)
