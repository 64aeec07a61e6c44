"""Shadows: run new models on the streams' inputs while an update asks for it, and compare them with those in use.

An order file on the board asks for them, and nothing of a shadow is published. It runs in a thread of its own and
its model in a process of its own: a slow, hanging or crashing model does not disturb the stream, which offers
each input after its own inference and skips those that the shadow is too busy for.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from msgspec import Struct
from msgspec.structs import replace

from agent.compute.infer.backends import resolve_backend
from agent.compute.infer.sharing import SwappableSession
from agent.compute.manifest import Model
from agent.config import StreamConfig
from agent.daemon.parts import DevicePart, Parts, StreamPart
from agent.daemon.runtime import Runtime
from agent.daemon.streams.counters import StageTimer
from agent.daemon.streams.perception import Perception, open_perception
from agent.daemon.streams.stream import Stream
from agent.errors import VedetteError
from agent.health import ShadowReport
from agent.models.library import open_model
from agent.storage.state import ShadowOrder, read_shadow_order, shadow_order_path
from agent.types import AudioChunk, Box, Detection, Frame, StreamResult

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
    """Detections of one model, None if it did not infer, and the time of the inference, ns."""

    detections: list[Detection] | None
    infer_ns: int


class _Crop(Struct, frozen=True, gc=False):
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


class Shadow(StreamPart):
    """Compares another model with a stream's own. Any thread may read the report."""

    def __init__(
        self,
        name: str,
        config: StreamConfig,
        model: Model,
        plan: BackendSpec,
        every: int = 1,
        own: Perception | None = None,
    ) -> None:
        """Prepare to compare a model, opened by `plan`, on each `every`-th inferred picture of a stream.

        Sound is compared without gaps, since detections depend on what came before. `own` is the stream's
        perception.
        """
        self._name, self._config, self._model, self._plan, self._every = name, config, model, plan, every
        waiting = _PICTURES if model.manifest.audio is None else _CHUNKS
        self._inputs: queue.Queue[tuple[_Crop | AudioChunk, _Answer] | None] = queue.Queue(waiting)
        self._infer, self._present = StageTimer(), StageTimer()
        self._span, self._heard = 0, (_Span(), _Span())
        self._offered, self._compared, self._agreed, self._failed = 0, 0, 0.0, ""
        self._closed, self._own = False, own
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

    def process(self, item: Frame | AudioChunk, result: StreamResult) -> None:
        if isinstance(item, AudioChunk):
            inferences = max(1, cast("AudioPerception", self._own).inferences)
            self.compare_audio(item, result.detections, result.stages.infer // inferences)
        elif result.detections is not None:
            crop = cast("VideoPerception", self._own).last_crop
            self.compare_frame(item, crop, result.detections, result.stages.infer)

    def compare_frame(self, frame: Frame, crop: Box, detections: list[Detection], infer_ns: int) -> None:
        """Compare a frame whose crop the stream has inferred in `infer_ns`; it is copied unless it is skipped."""
        self._offered += 1
        if self._offered % self._every == 0 and self._has_room:
            copy = frame.model_image.copy()
            kept = replace(frame, pixels=copy, unmasked=None, lease=None)  # for its model alone
            self._enqueue(_Crop(kept, crop), _Answer(detections, infer_ns))

    def compare_audio(self, chunk: AudioChunk, detections: list[Detection] | None, infer_ns: int) -> None:
        """Compare sound that the stream has processed in `infer_ns` per inference; None: it did not infer."""
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
            config = replace(self._config, blur=(), mask_model=True)  # it gets what the stream's own model saw
            opened = open_perception(self._name, config, self._model, self._open_worker)
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
        from agent.compute.infer.worker import WorkerSession

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


_OPEN_S = 20.0
"""Longest time to read a candidate's tensors, s: the daemon's thread waits, and its watchdog expires after 60
s."""


class _Case(Struct, frozen=True):
    """Settings of a shadow; when they change, it is replaced. `plan` is None for an explicit backend.

    `parts` are those of the stream's run: they are closed when it ends.
    """

    stream: Stream
    parts: Parts
    config: StreamConfig
    plan: BackendSpec | None
    order: ShadowOrder


class ShadowManager(DevicePart):
    """Starts and stops shadows as the order file says. For the daemon's thread."""

    def __init__(self, runtime: Runtime, environment: Mapping[str, str] = os.environ) -> None:
        """Start no shadow before `poll`. Without RUNTIME_DIRECTORY in the environment no order is read."""
        self._path, self._runtime = shadow_order_path(environment), runtime
        self._seen: tuple[int, int] | None = None
        self._order: ShadowOrder | None = None
        self._running: dict[str, tuple[_Case, Shadow | ShadowReport | None]] = {}

    @property
    def update(self) -> str:
        """Id of the update that asks for shadows; empty: none does."""
        return self._order.update if self._order is not None else ""

    def report(self, stream: str = "") -> dict[str, Any]:
        return {"shadow": self.comparison(stream) if stream else self.update}

    def comparison(self, name: str) -> ShadowReport | None:
        """Return the report of a stream's shadow; None: it has none."""
        _, shadow = self._running.get(name, (None, None))
        return shadow.report if isinstance(shadow, Shadow) else shadow

    def poll(self) -> None:
        """Read the order, start the shadows that it asks for and stop all others."""
        self._read()
        streams = self._runtime.streams if self._order is not None else {}
        for name in [name for name in self._running if name not in streams]:
            self._stop_shadow(name)
        for name, stream in streams.items():
            self._update_stream(name, stream)

    def close(self, seconds: float = 0.0) -> None:
        """Stop every shadow."""
        for name in list(self._running):
            self._stop_shadow(name)

    def _read(self) -> None:
        if self._path is None:
            return
        try:
            found = self._path.stat()
        except OSError:
            self._seen = self._order = None
            return
        if (seen := (found.st_ino, found.st_mtime_ns)) != self._seen:
            self._seen, self._order = seen, read_shadow_order(self._path)

    def _update_stream(self, name: str, stream: Stream) -> None:
        session, order = stream.session, self._order
        if session is None or order is None:
            self._stop_shadow(name)  # its stream does not run now
            return
        plan = session.plan if isinstance(session, SwappableSession) else None
        case, (known, _) = (
            _Case(stream, stream.parts, stream.config, plan, order),
            self._running.get(name, (None, None)),
        )
        if known is not None and known.parts is stream.parts and known == case:
            return
        self._stop_shadow(name)
        shadow = _make_shadow(name, case)
        self._running[name] = case, shadow
        if isinstance(shadow, Shadow):
            shadow.start()
            case.parts.attach("shadow", shadow)

    def _stop_shadow(self, name: str) -> None:
        case, shadow = self._running.pop(name, (None, None))
        if case is not None and isinstance(shadow, Shadow):
            case.parts.detach("shadow")
            shadow.close()


def _make_shadow(name: str, case: _Case) -> Shadow | ShadowReport | None:
    """Return a shadow with a stream's new model, or why it cannot run; None: it has no new model."""
    present, config, order = case.stream.model, case.config, case.order
    path = Path(config.model)
    candidate = Path(order.candidates) / path.name
    if present is None or str(path.parent) != order.models:
        return None
    try:
        if not candidate.exists():
            return None
        model = open_model(str(candidate), config.variant, _OPEN_S)
        plan = case.plan or resolve_backend(config.backend)
    except (VedetteError, OSError) as error:
        return ShadowReport(failed=str(error))
    if (model.sha256, model.manifest) == (present.sha256, present.manifest):
        return None
    return Shadow(name, config, model, plan, order.every, case.stream.perception)


def open_device_part(runtime: Runtime) -> ShadowManager:
    """Run shadows as the order file says."""
    return ShadowManager(runtime)
