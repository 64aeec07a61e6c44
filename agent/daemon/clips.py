"""Clips of one stream: keep a ring of encoded frames, and record around events.

The stream's thread decides and hands frames over; the thread `clips-NAME` encodes them, the recorder's thread
writes. A frame that comes while another waits to be encoded replaces it, except in a replay that waits.

A clip lasts while a track that it was made for is alive, and a little longer. Further tracks extend it, up to its
greatest length. A track that appears shortly before that starts the next clip, while the first runs to its end,
so that no track is cut off at once. No track starts two clips.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

from agent import spans
from agent.capture.handoff import LatestFrame
from agent.compute.drawing import FrameEncoder
from agent.config import ClipsConfig
from agent.errors import BackendError, CommandError
from agent.storage.clips.recorder import ClipJob, FrameRing, Recorder
from agent.types import ClipReason, Event, Frame, StreamBudget, Track

log = logging.getLogger(__name__)
_TAKE_S = 0.5
_CLOSE_S = 0.4
_RING_BYTES = 16 * 1024 * 1024
"""Memory for the pictures before a clip, bytes."""
_WAKE_BYTES = 1024 * 1024
"""Encoded bytes after which the recorder is woken; slower streams are served by its own polling."""

ASKED = "asked"
"""Reason of a clip that a command requested."""


class ClipTrigger:
    """Starts and ends the clips of one stream. For one thread at a time.

    With `only_zones`, tracks are published only after they have stood in a zone. `tracks` are those of the newest
    clip.
    """

    def __init__(self, stream: str, config: ClipsConfig, *, only_zones: bool = False) -> None:
        self._stream, self._config, self._only_zones = stream, config, only_zones
        self._after_ns, self._max_ns = round(config.after_s * 1e9), round(config.max_s * 1e9)
        self._known: set[str] = set()  # alive, and in a clip once
        self._awaited: set[str] = set()  # of these, those that the newest clip waits for
        self._limit_ns = self._after_end_ns = self._requested_ns = -(1 << 62)
        self.tracks: tuple[str, ...] = ()

    @property
    def until_ns(self) -> int:
        """End of the newest clip as far as is known now, ns."""
        if self._awaited:
            return self._limit_ns
        return max(self._requested_ns, min(self._limit_ns, self._after_end_ns))

    def on_events(self, events: Iterable[Event], now_ns: int) -> ClipReason | None:
        """Add the stream's events of that time; return the reason of a new clip, None if none starts."""
        begins = None
        for event in events:
            track = event.track
            if event.kind == "end":
                self._remove(track.id, now_ns)
            elif track.id not in self._known and self._wanted(track):
                begins = self._add(event, now_ns) or begins
        return begins

    def request(self, seconds: float, now_ns: int) -> ClipReason | None:
        """Record for `seconds` from now on; return the reason of a new clip, None if the newest one continues.

        Raises:
            CommandError: the clip would be too long.
        """
        if not 0.0 < seconds <= self._config.max_s:
            raise CommandError(
                f"stream {self._stream}: a clip of {seconds:g} s cannot be recorded; expected more than 0 and at "
                f"most clips.max_s, {self._config.max_s:g}"
            )
        until_ns, begins = now_ns + round(seconds * 1e9), None
        if not self._has_room(now_ns, until_ns):
            begins = ClipReason(self._stream, ASKED)
            self._begin(now_ns)
        self._requested_ns = until_ns
        return begins

    def _add(self, event: Event, now_ns: int) -> ClipReason | None:
        track, begins = event.track, None
        if not self._has_room(now_ns, now_ns + self._after_ns):
            begins = ClipReason(self._stream, event.reason, track.id, track.label)
            self._begin(now_ns)
        self._known.add(track.id)
        self._awaited.add(track.id)
        self.tracks = (*self.tracks, track.id)
        return begins

    def _remove(self, track: str, now_ns: int) -> None:
        self._known.discard(track)
        if track in self._awaited:
            self._awaited.discard(track)
            self._after_end_ns = now_ns + self._after_ns

    def _has_room(self, now_ns: int, until_ns: int) -> bool:
        """Return True if the newest clip is not over and can last until then."""
        return now_ns <= self.until_ns and until_ns <= self._limit_ns

    def _begin(self, now_ns: int) -> None:
        self._limit_ns = now_ns + self._max_ns
        self._after_end_ns = self._requested_ns = now_ns
        self._awaited.clear()  # tracks of the clip before do not extend this one
        self.tracks = ()

    def _wanted(self, track: Track) -> bool:
        config = self._config
        if not config.events or (config.labels and track.label not in config.labels):
            return False
        if config.zones or self._only_zones:
            stands = not config.zones or not set(config.zones).isdisjoint(track.zones)
            if not track.zones or not stands:
                return False
        return track.best_score >= config.min_score


_LEAST_SHARE = 0.05
"""Least part of `clips.fps` that is recorded: a clip of one picture shows nothing."""


class PicturePace:
    """Chooses which frames become pictures of a clip, at a rate. One thread asks; any thread may set the rate.

    Attributes:
        every_ns: between two pictures, ns.
    """

    def __init__(self, fps: float) -> None:
        self._fps, self.every_ns = fps, round(1e9 / fps)
        self._used_ns, self._due_ns, self._taken_ns = self.every_ns, 0, 0

    def set_share(self, share: float) -> None:
        """Take this part of the rate, 0..1."""
        self.every_ns = round(1e9 / (self._fps * min(1.0, max(_LEAST_SHARE, share))))

    def takes(self, at_ns: int, *, must: bool) -> bool:
        """Return True if a frame captured then is to be a picture; it is if it `must`."""
        every_ns = self.every_ns
        if every_ns != self._used_ns:
            self._used_ns, self._due_ns = every_ns, self._taken_ns + every_ns
        # A frame may come a little early: cameras jitter, which must not halve the rate.
        if not must and at_ns < self._due_ns - every_ns // 4:
            return False
        self._due_ns, self._taken_ns = max(self._due_ns + every_ns, at_ns), at_ns
        return True


class StreamClips:
    """Clips of one stream. For the stream's thread; any thread may call `record`, `end` and `set_budget`."""

    def __init__(
        self,
        stream: str,
        config: ClipsConfig,
        recorder: Recorder,
        give_back: Callable[[Frame], None],
        *,
        only_zones: bool = False,
        lossless: bool = False,
    ) -> None:
        """Start the encoding thread.

        Args:
            stream: its name.
            config: of its clips.
            recorder: of the device.
            give_back: called from another thread with each frame that `add_frame` has taken.
            only_zones: see `ClipTrigger`.
            lossless: True if the source waits, so that no frame needs to be dropped.
        """
        self._stream, self._config, self._recorder, self._give_back = stream, config, recorder, give_back
        self._trigger = ClipTrigger(stream, config, only_zones=only_zones)
        self._ring = FrameRing(config.before_s, _RING_BYTES, patient=lossless)
        self._encoder = FrameEncoder(config.max_width, config.quality)
        self._slot = LatestFrame(lossless=lossless)
        self._lock = threading.Lock()
        self._job: ClipJob | None = None
        self._pace = PicturePace(config.fps)
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
        if not self._pace.takes(at_ns, must=begins):
            return False
        replaced = self._slot.put(frame)
        if replaced is frame:
            return False
        if replaced is not None:
            self._give_back(replaced)
        return True

    def set_budget(self, budget: StreamBudget) -> None:
        """Record at the share of a budget, also what is in memory and not written yet."""
        before_ns = self._pace.every_ns
        self._pace.set_share(budget.clips_share)
        if self._pace.every_ns > before_ns:
            self._ring.thin_out(self._pace.every_ns)

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
        if job is None or job.finished:
            return False
        job.tracks = self._trigger.tracks
        return job.move_end(self._trigger.until_ns)

    def _run(self) -> None:
        waiting = 0
        while not self._slot.drained:
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
        with spans.span("encode"):
            picture = self._encoder.encode(frame)
        self._ring.add(picture)
        return len(picture.jpeg)
