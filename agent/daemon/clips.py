"""Filming: joins a camera's frames and events to its clips: stills into the footage, recordings around events.

The stream's thread decides and hands frames over; encoding is done in the thread `clips-NAME`, writing in the
recorder's. A frame that comes while one still waits to be encoded takes its place, unless it is a replay's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from agent.capture.handoff import LatestFrame
from agent.compute.drawing import FrameEncoder
from agent.compute.track.clip_trigger import ASKED, ClipTrigger
from agent.config.stream import ClipsConfig
from agent.errors import BackendError
from agent.storage.clips.recorder import ClipJob, Recorder
from agent.storage.clips.ring import FrameRing
from agent.types import ClipReason, Event, Frame

log = logging.getLogger(__name__)

_TAKE_S = 0.5
_CLOSE_S = 0.4
_RING_BYTES = 16 * 1024 * 1024
"""Memory for the pictures before a clip, bytes."""
_WAKE_BYTES = 1024 * 1024
"""The recorder looks by itself often enough for what comes more slowly than this."""


class StreamClips:
    """Clips of one stream. `record` may be called from any thread, the rest is for the stream's."""

    def __init__(
        self,
        stream: str,
        config: ClipsConfig,
        recorder: Recorder,
        give_back: Callable[[Frame], None],
        *,
        only_zones: bool = False,
        keeps_all: bool = False,
    ) -> None:
        """Begin to keep pictures.

        Args:
            stream: its name.
            config: of its clips.
            recorder: of the device.
            give_back: takes frames back that were handed over; from another thread.
            only_zones: whether things are published only if they have stood in a zone.
            keeps_all: whether the source waits, so that no frame needs to be left out.
        """
        self._stream, self._config, self._recorder, self._give_back = stream, config, recorder, give_back
        self._occasions = ClipTrigger(stream, config, only_zones=only_zones)
        self._footage = FrameRing(config.before_s, _RING_BYTES, patient=keeps_all)
        self._stills = FrameEncoder(config.max_width, config.quality)
        self._slot = LatestFrame(keeps_all=keeps_all)
        self._lock = threading.Lock()
        self._recording: ClipJob | None = None
        self._every_ns, self._due_ns = round(1e9 / config.fps), 0
        self._now_ns, self._now_s = 0, time.monotonic()
        self._told = False
        self._thread = threading.Thread(target=self._run, name=f"clips-{stream}", daemon=True)
        self._thread.start()

    def add_frame(self, frame: Frame, events: Sequence[Event]) -> bool:
        """Take note of a frame and what happened in it; whether the frame was taken, and is given back later."""
        at_ns = frame.captured_ns
        with self._lock:
            self._now_ns, self._now_s = at_ns, time.monotonic()
            begins = self._note(events, at_ns, frame.captured_at) if events else False
        # One that comes a little early is taken: what no camera keeps to exactly must not halve the rate.
        if not begins and at_ns < self._due_ns - self._every_ns // 4:
            return False
        self._due_ns = max(self._due_ns + self._every_ns, at_ns)
        replaced = self._slot.put(frame)
        if replaced is frame:
            return False
        if replaced is not None:
            self._give_back(replaced)
        return True

    def add_events(self, events: Sequence[Event]) -> None:
        """Take note of events that came without a frame."""
        with self._lock:
            self._note(events, self._time_ns(), datetime.now(UTC))

    def record(self, seconds: float) -> str:
        """Save what is kept and what comes in the next seconds; gives the path of the clip that this will be in.

        Raises:
            CommandError: it would be longer than the configuration allows.
            StorageError: it could not be saved, with the reason.
        """
        kept_s = max(1.0, self._config.before_s)
        self._recorder.check(self._stream, round(self._footage.bytes * (1.0 + seconds / kept_s)))
        with self._lock:
            now_ns, now = self._time_ns(), datetime.now(UTC)
            begins = self._occasions.request(seconds, now_ns)
            if begins is None and not self._move_end():
                begins = ClipReason(self._stream, ASKED)
            if begins is not None:
                self._begin(begins, now_ns, now)
            assert self._recording is not None
            return str(self._recording.path)

    def close(self) -> None:
        """Save what is being recorded as it is, and keep no more."""
        self._slot.close()
        self._thread.join(_CLOSE_S)
        self.end()

    def end(self) -> None:
        """End the clip that is being made with what it has. Any thread may call this."""
        with self._lock:
            if self._recording is not None:
                self._recording.end()

    def _time_ns(self) -> int:
        """By the clock of the frames."""
        return self._now_ns + round((time.monotonic() - self._now_s) * 1e9)

    def _note(self, events: Sequence[Event], at_ns: int, at: datetime) -> bool:
        """Whether a clip begins."""
        begins = self._occasions.on_events(events, at_ns)
        if begins is not None:
            self._begin(begins, at_ns, at)
        else:
            self._move_end()
        return begins is not None

    def _begin(self, occasion: ClipReason, at_ns: int, at: datetime) -> None:
        from_ns = at_ns - round(self._config.before_s * 1e9)
        until_ns = self._occasions.until_ns
        self._recording = self._recorder.begin(self._footage, occasion, at, from_ns, until_ns)
        self._recording.tracks = self._occasions.tracks

    def _move_end(self) -> bool:
        """Whether the newest recording is still made, and ends when it should now."""
        recording = self._recording
        if recording is None or recording.over:
            return False
        recording.tracks = self._occasions.tracks
        return recording.move_end(self._occasions.until_ns)

    def _run(self) -> None:
        waiting = 0
        while not self._slot.over:
            frame = self._slot.take(_TAKE_S)
            if frame is None:
                continue
            try:
                waiting += self._keep(frame)
            except BackendError as error:
                self._tell_once(str(error))
            except Exception as error:  # else a replay would wait for ever
                self._tell_once(f"a defect in Vedette: {type(error).__name__}: {error}")
            finally:
                self._give_back(frame)
            if waiting > _WAKE_BYTES:
                waiting = 0
                self._recorder.wake()

    def _tell_once(self, why: str) -> None:
        if not self._told:
            self._told = True
            log.error("stream %s: clips: %s", self._stream, why)

    def _keep(self, frame: Frame) -> int:
        """Encode a frame into the footage; its bytes."""
        picture = self._stills.encode(frame)
        self._footage.add(picture)
        return len(picture.jpeg)
