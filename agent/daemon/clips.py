"""Clips of one stream: keep a ring of encoded frames, and record around events.

The stream's thread decides and hands frames over; the thread `clips-NAME` encodes them, the recorder's thread
writes. A frame that comes while another waits to be encoded replaces it, except in a replay that waits.
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
"""Encoded bytes after which the recorder is woken; slower streams are served by its own polling."""


class StreamClips:
    """Clips of one stream. Any thread may call `record` and `end`; the rest is for the stream's thread."""

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
        """Start the encoding thread.

        Args:
            stream: its name.
            config: of its clips.
            recorder: of the device.
            give_back: called from another thread with each frame that `add_frame` has taken.
            only_zones: True if a track is published only once it has stood in a zone.
            keeps_all: True if the source waits, so that no frame needs to be dropped.
        """
        self._stream, self._config, self._recorder, self._give_back = stream, config, recorder, give_back
        self._trigger = ClipTrigger(stream, config, only_zones=only_zones)
        self._ring = FrameRing(config.before_s, _RING_BYTES, patient=keeps_all)
        self._encoder = FrameEncoder(config.max_width, config.quality)
        self._slot = LatestFrame(keeps_all=keeps_all)
        self._lock = threading.Lock()
        self._job: ClipJob | None = None
        self._every_ns, self._due_ns = round(1e9 / config.fps), 0
        self._now_ns, self._now_s = 0, time.monotonic()
        self._has_failed = False
        self._thread = threading.Thread(target=self._run, name=f"clips-{stream}", daemon=True)
        self._thread.start()

    def add_frame(self, frame: Frame, events: Sequence[Event]) -> bool:
        """Process a frame and its events. Return True if it was taken; `give_back` is called with it later."""
        at_ns = frame.captured_ns
        with self._lock:
            self._now_ns, self._now_s = at_ns, time.monotonic()
            begins = self._trigger_on(events, at_ns, frame.captured_at) if events else False
        # A frame may come a little early: cameras jitter, which must not halve the rate.
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
        """Process events that came without a frame."""
        with self._lock:
            self._trigger_on(events, self._time_ns(), datetime.now(UTC))

    def record(self, seconds: float) -> str:
        """Save the newest seconds and the next ones; return the path of the clip.

        Raises:
            CommandError: it would be longer than the configuration allows.
            StorageError: it could not be saved, with the reason.
        """
        kept_s = max(1.0, self._config.before_s)
        self._recorder.check(self._stream, round(self._ring.bytes * (1.0 + seconds / kept_s)))
        with self._lock:
            now_ns, now = self._time_ns(), datetime.now(UTC)
            begins = self._trigger.request(seconds, now_ns)
            if begins is None and not self._move_end():
                begins = ClipReason(self._stream, ASKED)
            if begins is not None:
                self._begin(begins, now_ns, now)
            assert self._job is not None
            return str(self._job.path)

    def close(self) -> None:
        """End a running recording, and stop encoding."""
        self._slot.close()
        self._thread.join(_CLOSE_S)
        self.end()

    def end(self) -> None:
        """End a running recording with the frames that it has. Any thread may call this."""
        with self._lock:
            if self._job is not None:
                self._job.end()

    def _time_ns(self) -> int:
        """Time now by the clock of the frames, ns."""
        return self._now_ns + round((time.monotonic() - self._now_s) * 1e9)

    def _trigger_on(self, events: Sequence[Event], at_ns: int, at: datetime) -> bool:
        """Begin or prolong a clip where the events ask for it. Return True if one begins."""
        begins = self._trigger.on_events(events, at_ns)
        if begins is not None:
            self._begin(begins, at_ns, at)
        else:
            self._move_end()
        return begins is not None

    def _begin(self, reason: ClipReason, at_ns: int, at: datetime) -> None:
        from_ns = at_ns - round(self._config.before_s * 1e9)
        until_ns = self._trigger.until_ns
        self._job = self._recorder.begin(self._ring, reason, at, from_ns, until_ns)
        self._job.tracks = self._trigger.tracks

    def _move_end(self) -> bool:
        """Move the end of a running recording. Return False if none runs any more."""
        job = self._job
        if job is None or job.over:
            return False
        job.tracks = self._trigger.tracks
        return job.move_end(self._trigger.until_ns)

    def _run(self) -> None:
        waiting = 0
        while not self._slot.over:
            frame = self._slot.take(_TAKE_S)
            if frame is None:
                continue
            try:
                waiting += self._encode(frame)
            except BackendError as error:
                self._log_once(str(error))
            except Exception as error:  # else a replay would wait forever
                self._log_once(f"internal error (please report): {type(error).__name__}: {error}")
            finally:
                self._give_back(frame)
            if waiting > _WAKE_BYTES:
                waiting = 0
                self._recorder.wake()

    def _log_once(self, why: str) -> None:
        if not self._has_failed:
            self._has_failed = True
            log.error("stream %s: clips: %s", self._stream, why)

    def _encode(self, frame: Frame) -> int:
        """Add an encoded frame to the ring; return its size in bytes."""
        picture = self._encoder.encode(frame)
        self._ring.add(picture)
        return len(picture.jpeg)
