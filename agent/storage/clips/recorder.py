"""Write the clips of all streams in one thread, in large pieces, and keep them within bounds.

Pictures are encoded once, into the ring of their stream. The recorder copies them to a file, first those that
are there already, then those that come. A disk that cannot be written costs the clip, and nothing else. Clips
that a crash left half written are completed at the next start, or removed if nothing in them can be played.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import accumulate, takewhile
from pathlib import Path

from msgspec import Struct

from agent.config import StorageConfig
from agent.errors import StorageError, reason_of
from agent.storage.clips.file import ClipFile, settle
from agent.storage.clips.retention import (
    ClipStore,
    check_room,
    check_writable,
    clip_path,
    folder_name,
    make_clips_folder,
    recover_partial_clips,
)
from agent.storage.files import storage_errors
from agent.text import plural
from agent.types import Clip, ClipReason, EncodedFrame

log = logging.getLogger(__name__)

_PATIENCE_S = 5.0
"""How long a replay waits for the disk before a picture is lost, s."""


class FrameRing:
    """A ring of pictures. Any thread may call every method.

    Attributes:
        bytes: of all pictures in it.
        lost: pictures that were held and had to be dropped.
    """

    def __init__(self, seconds: float, max_bytes: int, *, patient: bool = False) -> None:
        """Start empty.

        Args:
            seconds: age from which pictures are dropped, unless they are held.
            max_bytes: bound; the oldest pictures are dropped for it, held or not.
            patient: `add` waits for held pictures to be written, as a replay can.
        """
        self._kept_ns, self._max_bytes = round(seconds * 1e9), max_bytes
        self._pictures: deque[EncodedFrame] = deque()
        self._patient = patient
        self._lock = threading.Lock()
        self._moved = threading.Condition(self._lock)
        self._held_ns: int | None = None
        self._added_s = time.monotonic()
        self._newest_ns = -1
        self.bytes = 0
        self.lost = 0

    def add(self, picture: EncodedFrame) -> None:
        """Add a picture; one that was captured before the newest is ignored."""
        with self._lock:
            if picture.captured_ns <= self._newest_ns:
                return
            if self._patient and self._held_ns is not None:
                self._moved.wait_for(lambda: self._has_room(len(picture.jpeg)), _PATIENCE_S)
            self._newest_ns, self._added_s = picture.captured_ns, time.monotonic()
            self._pictures.append(picture)
            self.bytes += len(picture.jpeg)
            self._trim()

    def _has_room(self, more: int) -> bool:
        return (
            self._held_ns is None
            or self.bytes + more <= self._max_bytes
            or self._pictures[0].captured_ns < self._held_ns
        )

    def _trim(self) -> None:
        oldest_ns = self._newest_ns - self._kept_ns
        held_ns = oldest_ns if self._held_ns is None else self._held_ns
        while self._pictures:
            first = self._pictures[0]
            if self.bytes > self._max_bytes:
                self.lost += first.captured_ns >= held_ns and self._held_ns is not None
            elif first.captured_ns >= min(oldest_ns, held_ns):
                return
            self._pictures.popleft()
            self.bytes -= len(first.jpeg)

    def thin_out(self, every_ns: int) -> None:
        """Drop pictures so that those that stay are about so far apart, ns: a slow disk writes less of them."""
        with self._lock:
            kept = deque[EncodedFrame]()
            for picture in self._pictures:
                # Cameras jitter, which must not halve the rate.
                if not kept or picture.captured_ns - kept[-1].captured_ns >= every_ns - every_ns // 4:
                    kept.append(picture)
            self._pictures, self.bytes = kept, sum(len(picture.jpeg) for picture in kept)
            self._moved.notify_all()

    def hold(self, from_ns: int | None) -> None:
        """Keep pictures captured from `from_ns` on, whatever their age; None: no longer."""
        with self._lock:
            self._held_ns = from_ns
            self._trim()
            self._moved.notify_all()

    def between(self, from_ns: int, until_ns: int) -> list[EncodedFrame]:
        """Return the pictures captured in this time, both ends included, in order."""
        with self._lock:
            return [picture for picture in self._pictures if from_ns <= picture.captured_ns <= until_ns]

    def age_s(self, from_ns: int) -> float:
        """Return the age of the oldest picture captured from `from_ns` on, s; 0: there is none."""
        with self._lock:
            first = next((one.captured_ns for one in self._pictures if one.captured_ns >= from_ns), None)
        return 0.0 if first is None else (self.now_ns() - first) / 1e9

    def now_ns(self) -> int:
        """Return the newest capture plus the time since it was added, ns; -1: there was none yet."""
        with self._lock:
            if self._newest_ns < 0:
                return -1
            return self._newest_ns + round((time.monotonic() - self._added_s) * 1e9)

    @property
    def newest_ns(self) -> int:
        """Capture of the newest picture, ns; -1: there was none yet."""
        return self._newest_ns


class ClipStats(Struct, frozen=True):
    """Counts of a device's clips.

    Attributes:
        saved, failed: since the start; what is being recorded is neither yet.
        deleted: clips deleted since the start, for age or for room.
        kept, bytes: clips on the disk and their bytes, as of the last scan.
        trouble: why clips cannot be saved; empty: they can, as far as known.
    """

    saved: int
    failed: int
    deleted: int
    kept: int
    bytes: int
    trouble: str


_PIECE = 1024 * 1024
"""Bytes that are worth a write; fewer wait up to `_WAIT_S`."""
_WAIT_S = 2.0
"""Longest wait for more pictures, s: what is not written is lost in a crash."""
_SYNC_S = 5.0
"""A power cut costs no more than this of a clip, s."""
_GRACE_NS = 2_000_000_000
"""How late a picture may come, ns."""


class ClipJob:
    """A clip that is being recorded. The thread of its stream moves its end; the recorder does the rest.

    Attributes:
        path: that it will have.
        occasion: what it is made for.
        ring: pictures of its stream.
        tracks: ids of the tracks that it was made for.
        next_ns: earliest capture of a picture that is not written yet, ns.
        file: None: nothing is written yet.
        over: True if nothing more is added.
    """

    def __init__(self, path: Path, occasion: ClipReason, ring: FrameRing, from_ns: int, until_ns: int) -> None:
        self.path, self.reason, self.ring = path, occasion, ring
        self.tracks: tuple[str, ...] = ()
        self.next_ns, self._until_ns = from_ns, until_ns
        self.file: ClipFile | None = None
        self.finished = self._ended = False
        self._lock = threading.Lock()
        self._lost_before = ring.lost
        self._wrote_s = self._synced_s = time.monotonic()

    def end(self) -> None:
        """End the clip with the pictures that there are now."""
        self._ended = True

    def move_end(self, until_ns: int) -> bool:
        """Move the clip's end to `until_ns`. Return False if it is already over."""
        with self._lock:
            self._until_ns = until_ns
            return not self.finished

    def check_over(self) -> bool:
        """Return True if the clip is over: by its pictures, or by the clock when none come any more."""
        ring = self.ring
        with self._lock:
            if not self.finished:
                late = ring.now_ns() > self._until_ns + _GRACE_NS or (ring.newest_ns < 0 and self._is_stale)
                self.finished = self._ended or ring.newest_ns > self._until_ns or late
            return self.finished

    @property
    def _is_stale(self) -> bool:
        return time.monotonic() - self._wrote_s > (self._until_ns - self.next_ns + _GRACE_NS) / 1e9

    @property
    def behind_s(self) -> float:
        """How much longer than usual pictures have waited to be written, s."""
        waited_s = time.monotonic() - self._wrote_s
        if not self.finished:
            waited_s = min(waited_s, self.ring.age_s(self.next_ns))
        return max(0.0, waited_s - _WAIT_S)

    @property
    def bytes(self) -> int:
        return self.file.bytes if self.file else 0

    @property
    def lost(self) -> int:
        """Pictures that were dropped before they could be written."""
        return self.ring.lost - self._lost_before

    def pictures(self) -> list[EncodedFrame]:
        return self.ring.between(self.next_ns, self._until_ns)

    def is_due(self, pictures: Sequence[EncodedFrame]) -> bool:
        """Return True if it is time to write these pictures."""
        waited_s = time.monotonic() - self._wrote_s
        return waited_s >= _WAIT_S or sum(len(picture.jpeg) for picture in pictures) >= _PIECE

    def write(self, file: ClipFile, pictures: Sequence[EncodedFrame]) -> bool:
        """Write pictures; return False if one is of another size, before which the clip ends."""
        fitting = list(takewhile(file.fits, pictures))
        now = self._wrote_s = time.monotonic()
        file.append(fitting)
        self.next_ns = pictures[-1].captured_ns + 1
        if now - self._synced_s >= _SYNC_S:
            file.sync()
            self._synced_s = time.monotonic()
        return len(fitting) == len(pictures)


_EXPIRE_S = 3600.0
_ROOM, _ROOM_EACH = 4096, 64
"""Bytes of a file besides its pictures, and besides each picture."""


class Recorder:
    """Writes clips to the disk. Its thread runs from the first `start` or `begin` on."""

    def __init__(
        self, folder: Path, config: StorageConfig, on_saved: Callable[[Clip], None], turn_s: float = 0.5
    ) -> None:
        """Prepare; nothing is read or written yet.

        Args:
            folder: of all clips; created when it is needed.
            config: bounds of clips.
            on_saved: called from the recorder's thread with each complete clip; called again at the next start if
                a crash came before it returned.
            turn_s: between two writes of open clips, s.
        """
        self._folder, self._config, self._on_saved, self._turn_s = folder, config, on_saved, turn_s
        self._store = ClipStore(folder, config)
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._jobs: list[ClipJob] = []
        self._thread: threading.Thread | None = None
        self._closing = False
        self._expire_at = 0.0
        self._saved = self._failed = 0
        # Why clips cannot be saved, since when (monotonic, s), and how many had been dropped before.
        self._trouble, self._trouble_s, self._failed_before = "", 0.0, 0

    def start(self) -> None:
        """Start the thread: complete partial clips and delete what is too old."""
        with self._lock:
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._run, name="clips-writer", daemon=True)
                self._thread.start()

    def begin(self, ring: FrameRing, occasion: ClipReason, at: datetime, from_ns: int, until_ns: int) -> ClipJob:
        """Begin a clip; return at once.

        Args:
            ring: pictures of the stream.
            occasion: what it is made for.
            at: UTC of the event or the command.
            from_ns: capture of the first picture, ns.
            until_ns: end as far as known, ns.
        """
        path = clip_path(self._folder, occasion, at, secrets.token_hex(3))
        job = ClipJob(path, occasion, ring, from_ns, until_ns)
        self.start()
        with self._lock:
            self._jobs.append(job)
            self._hold(ring)
            self._work.notify()
        return job

    def configure(self, config: StorageConfig) -> None:
        """Apply other bounds, and delete at once what exceeds them; the folder stays."""
        with self._lock:
            self._config, self._expire_at = config, 0.0
            self._store.configure(config)
            self._work.notify()

    def check(self, stream: str, more: int) -> None:
        """Check that a clip of a stream can be saved now. Any thread may call it; it waits for the disk.

        Raises:
            StorageError: it cannot be saved, with the reason.
        """
        folder = self._folder / folder_name(stream)
        with storage_errors(f"{folder}: clips cannot be saved there"):
            make_clips_folder(folder)
        check_writable(folder)
        check_room(self._folder, self._config, min(more, self._store.max_bytes))

    @property
    def stats(self) -> ClipStats:
        """Counts of clips. Any thread may read it."""
        store = self._store
        return ClipStats(self._saved, self._failed, store.deleted, len(store), store.bytes, self._trouble)

    @property
    def behind_s(self) -> float:
        """How much longer than usual the oldest picture has waited for the disk, s. Any thread may read it."""
        with self._lock:
            return max((job.behind_s for job in self._jobs), default=0.0)

    def wake(self) -> None:
        """Write soon: much is waiting."""
        with self._lock:
            self._work.notify()

    def close(self, timeout_s: float) -> None:
        """End every clip as it is. A clip that takes longer than `timeout_s` is completed at the next start."""
        with self._lock:
            self._closing = True
            thread = self._thread
            for job in self._jobs:
                job.end()
            self._work.notify()
        if thread is not None:
            thread.join(timeout_s)
            if thread.is_alive():
                log.warning("clips: the disk takes too long: the last clip is completed at the next start")

    def _hold(self, ring: FrameRing) -> None:
        starts = [job.next_ns for job in self._jobs if job.ring is ring]
        ring.hold(min(starts, default=None))

    def _run(self) -> None:
        self._expire_at = time.monotonic() + _EXPIRE_S
        self._recover_and_expire()
        while True:
            with self._lock:
                if not self._jobs:
                    if self._closing:
                        return
                    self._work.wait(max(0.0, self._expire_at - time.monotonic()))
            self._serve_all()
            if time.monotonic() >= self._expire_at:
                self._expire_at = time.monotonic() + _EXPIRE_S
                self._expire()
            with self._lock:
                if self._jobs and not self._closing:
                    self._work.wait(self._turn_s)

    def _recover_and_expire(self) -> None:
        try:
            recover_partial_clips(self._folder, self._publish)
        except OSError as error:
            self._report_trouble(f"{self._folder}: {reason_of(error)}")
        self._expire()

    def _expire(self) -> None:
        try:
            self._store.scan()
            if count := self._store.expire(datetime.now(UTC)):
                log.info("clips: %d deleted, older than clips_max_age_s", count)
            self._store.make_room(0)
        except StorageError as error:
            self._report_trouble(str(error))
        except FileNotFoundError:  # the folder was deleted, and is made again for the next clip
            return
        except OSError as error:
            self._report_trouble(f"{self._folder}: {reason_of(error)}")

    def _serve_all(self) -> None:
        """Serve every clip, in a function of its own so that no picture is referenced while the thread waits."""
        with self._lock:
            jobs = list(self._jobs)
        for job in jobs:
            self._serve(job)

    def _serve(self, job: ClipJob) -> None:
        """Write the pictures of one clip that are due, and complete it when it is over."""
        over = job.check_over()
        try:
            pictures = job.pictures()
            if pictures and (over or job.is_due(pictures)):
                over = self._write(job, pictures) or over
            if over:
                self._finish(job)
        except (OSError, StorageError) as error:
            self._drop(job, error)
        except Exception:
            log.exception("clip %s: internal error (please report); it is dropped", job.path)
            self._drop(job, None)
        with self._lock:
            if job.finished and job in self._jobs:
                self._jobs.remove(job)
            self._hold(job.ring)

    def _write(self, job: ClipJob, pictures: Sequence[EncodedFrame]) -> bool:
        """Write pictures; return True if the clip can take no more."""
        sizes = accumulate((len(picture.jpeg) + _ROOM_EACH for picture in pictures), initial=_ROOM)
        room = self._store.max_bytes - job.bytes
        fitting = [size for size in sizes if size <= room]
        some = pictures[: len(fitting) - 1] if fitting else ()
        if not some:
            return True
        size = fitting[-1]
        if job.file is None:
            make_clips_folder(job.path.parent)
        self._store.make_room(size, sum(other.bytes for other in self._jobs))
        if job.file is None:
            job.file = ClipFile(job.path, job.reason, some[0])
        return not job.write(job.file, some) or len(some) < len(pictures)

    def _finish(self, job: ClipJob) -> None:
        job.finished = True
        if job.file is None:
            log.warning("clip %s: no picture came in time, so it is not saved", job.path)
            self._failed += 1
            return
        clip = job.file.finish(job.tracks)
        if lost := job.lost:
            log.warning("clip %s: %s missing: the disk was too slow", clip.path, plural(lost, "picture"))
        self._saved += 1
        if self._trouble:
            self._trouble = ""
            seconds, dropped = time.monotonic() - self._trouble_s, self._failed - self._failed_before
            log.info("clips are saved again after %.0f s; %d were dropped", seconds, dropped)
        self._publish(clip)
        self._expire()

    def _publish(self, clip: Clip) -> None:
        about = f"{clip.duration_s:.1f} s, {plural(clip.frames, 'picture')}, {clip.bytes / 1e6:.1f} MB"
        after = ", completed after it was cut off" if clip.repaired else ""
        log.info("stream %s: clip %s: %s%s", clip.occasion.stream, clip.path, about, after)
        try:
            self._on_saved(clip)
            settle(Path(clip.path))
        except OSError as error:
            log.warning("clip %s: is published again at the next start: %s", clip.path, reason_of(error))
        except Exception:
            log.exception("clip %s: cannot be published", clip.path)

    def _drop(self, job: ClipJob, error: Exception | None) -> None:
        job.finished = True
        if job.file is not None:
            with suppress(OSError):
                job.file.drop()
        if error is not None:
            self._report_trouble(
                str(error) if isinstance(error, StorageError) else f"{job.path}: {reason_of(error)}"
            )
        self._failed += 1

    def _report_trouble(self, why: str) -> None:
        """Record why clips cannot be saved, and log it once."""
        if not self._trouble:
            self._trouble, self._trouble_s, self._failed_before = why, time.monotonic(), self._failed
            log.error("clips cannot be saved and are dropped: %s", why)
