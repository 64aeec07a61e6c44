"""Write the clips of all streams in one thread, in large pieces, and keep them within bounds.

Packets are in the ring of their stream. The recorder copies them to a file, first those that are there already,
then those that come. A disk that cannot be written costs the clip, and nothing else. Clips that a crash left
half written are completed at the next start, or removed if nothing in them can be played.

A recording without an end is one clip after the other: a file ends at the first key frame after its length. A
clip also goes on in another file where its camera's packets do not fit into the same.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from pathlib import Path

from msgspec import Struct

from agent.config import StorageConfig
from agent.errors import StorageError, reason_of
from agent.storage.clips.file import SOUND_CODECS, ClipFile, ClipLabel, free_path, settle
from agent.storage.clips.job import FOREVER_NS, ClipJob
from agent.storage.clips.packets import PacketRing, TimedPacket
from agent.storage.clips.store import (
    CONTINUOUS,
    ClipStore,
    check_saving,
    clip_path,
    folder_name,
    make_clips_folder,
    recover_partial_clips,
)
from agent.storage.files import storage_errors
from agent.text import plural
from agent.types import Clip, ClipReason, MediaTrack

log = logging.getLogger(__name__)

_HEAD_S = 0.5
"""Packets of so long a time are there before a file is begun, s: they tell whether there is sound."""
_EXPIRE_S = 600.0
"""Between two scans of all clips, s: what others changed is seen then."""
_STEADY_S, _MOVED_S = 3600.0, 60.0
"""No clip is deleted for its age for so long after the start, or after the clock moved by so much, s."""
_PIECES = 4
"""Files of one recording without an end that fit into what all clips may take, at least."""
_LATE_S = 2.0
"""A clip that begins so much later than its event does not show it, s."""
_ROOM, _ROOM_EACH = 4096, 64
"""Bytes of a file besides its packets, and besides each packet."""


class ClipStats(Struct, frozen=True):
    """Counts of a device's clips.

    Attributes:
        saved, failed: since the start; what is being recorded is neither yet.
        deleted: clips deleted since the start, for age or for room.
        kept, bytes: clips on the disk and their bytes; what others change there is seen within 10 minutes.
        written: bytes written to the disk since the start.
        trouble: why clips cannot be saved; empty: they can, as far as known.
    """

    saved: int
    failed: int
    deleted: int
    kept: int
    bytes: int
    written: int
    trouble: str


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
        self._saved = self._failed = self._written = 0
        self._trouble, self._trouble_s = "", 0.0  # why clips cannot be saved, and since when (monotonic, s)
        self._clock_s, self._steady_s = time.time() - time.monotonic(), time.monotonic()

    def start(self) -> None:
        """Start the thread: complete partial clips and delete what is too old."""
        with self._lock:
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._run, name="clips-writer", daemon=True)
                self._thread.start()

    def begin(
        self,
        ring: PacketRing,
        occasion: ClipReason,
        at: datetime,
        at_ns: int,
        from_ns: int,
        until_ns: int = FOREVER_NS,
        *,
        segment_s: float = 0.0,
        stall_s: float = 0.0,
    ) -> ClipJob:
        """Begin a clip; return at once.

        Args:
            ring: packets of the stream.
            occasion: what it is made for.
            at: UTC of the event or the command.
            at_ns: the same by the clock of the captures, ns.
            from_ns: capture of the first picture, ns; the clip begins with the key frame before it.
            until_ns: end as far as known, ns.
            segment_s: length of the files of a recording without an end, s; 0: one file.
            stall_s: longest time between two of its pictures, s; never less than 10. 0: it waits until its end.
        """
        path = clip_path(self._folder, occasion, at, "" if occasion.track else _token())
        self.start()
        with self._lock:
            span = ring.start(from_ns), until_ns, round(segment_s * 1e9)
            job = ClipJob(path, occasion, ring, *span, stall_s)
            job.at, job.at_ns = at, at_ns
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
        check_saving(self._folder, self._config, min(more, self._store.max_bytes), folder)

    @property
    def stats(self) -> ClipStats:
        """Counts of clips. Any thread may read it."""
        store = self._store
        counts = self._saved, self._failed, store.deleted, len(store), store.bytes, self._written
        return ClipStats(*counts, self._trouble)

    @property
    def behind_s(self) -> float:
        """How much longer than usual the oldest packet has waited for the disk, s. Any thread may read it."""
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
            with self._lock:
                left = ", ".join(job.shown for job in self._jobs) if thread.is_alive() else ""
            if left:  # whether the disk or the processor was slow is not known
                what = "not complete %.1f s after the stop: %s; what was written is completed at the next start"
                log.warning(f"clips: {what}", timeout_s, left)

    def _hold(self, ring: PacketRing) -> None:
        starts = [job.next_seq for job in self._jobs if job.ring is ring]
        ring.hold(min(starts, default=None))

    def _run(self) -> None:
        self._expire_at = time.monotonic() + _EXPIRE_S
        self._recover_and_expire()
        while True:
            with self._lock:
                if not self._jobs:
                    if self._closing:
                        break
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
        except (OSError, StorageError) as error:
            self._report_trouble(_why(error, str(self._folder)))
        self._expire()

    def _expire(self, *, scan: bool = True) -> None:
        """Delete what is too old, and what there is no room for."""
        try:
            if scan:
                self._store.scan()
                old = self._store.expire(datetime.now(UTC)) if self._is_clock_steady() else {}
                for key, count in old.items():
                    log.info("clips: %d deleted, older than %s", count, key)
            self._store.make_room(0)
        except FileNotFoundError:  # the folder was deleted, and is made again for the next clip
            return
        except (OSError, StorageError) as error:
            self._report_trouble(_why(error, str(self._folder)))

    def _is_clock_steady(self) -> bool:
        """Return False while the age of clips is not known: at the start, and after the clock was set."""
        now_s = time.monotonic()
        clock_s = time.time() - now_s
        if abs(clock_s - self._clock_s) > _MOVED_S:
            self._clock_s, self._steady_s = clock_s, now_s
        return now_s - self._steady_s >= _STEADY_S

    def _serve_all(self) -> None:
        """Serve every clip, in a function of its own so that no packet is referenced while the thread waits."""
        with self._lock:
            jobs = list(self._jobs)
        for job in jobs:
            self._serve(job)

    def _serve(self, job: ClipJob) -> None:
        """Write the packets of one clip that are due, and complete it when it is over."""
        if time.monotonic() < job.paused_until_s and not job.check_over():
            job.skip()
            return
        ended = over = job.check_over()
        files = job.files
        try:
            packets = job.packets()
            if packets and (over or job.is_due(packets)):
                over = self._write(job, packets, over=over) or over
            if over:
                self._finish(job)
            elif job.is_idle:
                self._complete(job)
            if over and job.is_continuous and not ended:  # it could take no more
                job.finished = False
                if job.files == files:
                    job.pause()
        except (OSError, StorageError) as error:
            self._drop(job, error)
        except Exception:
            log.exception("clip %s: internal error (please report); it ends", job.shown)
            self._drop(job, None)
        with self._lock:
            if job.finished and job in self._jobs:
                self._jobs.remove(job)
            self._hold(job.ring)

    def _write(self, job: ClipJob, packets: Sequence[TimedPacket], *, over: bool) -> bool:
        """Write packets; return True if the clip can take no more. `over`: no more come."""
        job.piece_bytes = self._store.max_bytes // _PIECES
        runs = list(job.runs(packets))
        for number, run in enumerate(runs, 1):
            if number > 1 and job.file is not None:
                self._complete(job)
            if job.file is None:
                run = job.from_key_frame(run)
                grows = number == len(runs) and not (over or job.is_silent)
                job.awaits_more = bool(run) and grows and _span_s(run) < _HEAD_S
                if job.awaits_more:
                    job.next_seq = run[0].seq
                    return False
            if run and self._write_run(job, run):
                return True
        job.next_seq = packets[-1].seq + 1
        return False

    def _write_run(self, job: ClipJob, packets: Sequence[TimedPacket]) -> bool:
        """Write packets of one file; return True if the clip can take no more."""
        sizes = accumulate((len(one.packet.data) + _ROOM_EACH for one in packets), initial=_ROOM)
        room = self._store.max_bytes - job.bytes
        fitting = [size for size in sizes if size <= room]
        some = packets[: len(fitting) - 1] if fitting else ()
        if not some:
            return True
        if job.file is None:
            make_clips_folder(job.path.parent)
        try:
            self._store.make_room(fitting[-1], sum(other.bytes for other in self._jobs))
        except StorageError:
            if job.file is None:
                raise
            return True  # what there is stays, and may be deleted later as the oldest
        file = self._open(job, packets) if job.file is None else job.file
        before = file.bytes if job.file is file else 0
        job.file = file
        job.write(file, some)
        self._written += file.bytes - before
        return len(some) < len(packets)

    def _open(self, job: ClipJob, packets: Sequence[TimedPacket]) -> ClipFile:
        """Create the next file of a clip, which begins with the first of these packets."""
        first = packets[0]
        began_at, path = job.utc_of(first.packet.captured_ns), job.path
        if job.files or job.is_continuous:
            # A further file of a clip is named after the first one, also if it begins before the event.
            named_at = began_at if job.is_continuous else max(began_at, job.at + timedelta(seconds=1))
            path = clip_path(self._folder, job.reason, named_at, _token())
        elif (late_s := (first.packet.captured_ns - job.at_ns) / 1e9) > _LATE_S:
            log.warning("clip %s: begins %.0f s late: no earlier group of pictures is left", path, late_s)
        return ClipFile(free_path(path), ClipLabel(job.reason, began_at), first, _sound_of(packets))

    def _finish(self, job: ClipJob) -> None:
        job.finished = True
        if job.file is not None:
            self._complete(job)
        elif job.files:
            _report_missing(job, job.shown)
        elif not job.is_continuous:
            log.warning("clip %s: no picture came in time, so it is not saved", job.path)
            self._failed += 1

    def _complete(self, job: ClipJob) -> None:
        """Complete the open file of a clip."""
        assert job.file is not None
        before = job.file.bytes
        clip = job.file.finish(job.tracks)
        self._written += clip.bytes - before
        job.complete()
        _report_missing(job, clip.path)
        self._saved += 1
        self._end_trouble()
        self._keep(clip)

    def _keep(self, clip: Clip) -> None:
        """Publish a clip that was completed, and make room for it."""
        self._publish(clip)
        self._store.add(clip)
        self._expire(scan=False)

    def _publish(self, clip: Clip) -> None:
        about = f"{clip.duration_s:.1f} s, {plural(clip.frames, 'picture')}, {clip.bytes / 1e6:.1f} MB"
        after = ", completed after it was cut off" if clip.repaired else ""
        is_piece = clip.occasion.reason == CONTINUOUS  # one a minute: neither the log nor the broker wants them
        level = logging.DEBUG if is_piece and not clip.repaired else logging.INFO
        log.log(level, "stream %s: clip %s: %s%s", clip.occasion.stream, clip.path, about, after)
        try:
            if not is_piece:
                self._on_saved(clip)
            settle(Path(clip.path))
        except OSError as error:
            log.warning("clip %s: is published again at the next start: %s", clip.path, reason_of(error))
        except Exception:
            log.exception("clip %s: cannot be published", clip.path)

    def _drop(self, job: ClipJob, error: OSError | StorageError | None) -> None:
        is_over, job.finished, about = job.finished, True, job.shown
        if error is not None:
            self._report_trouble(_why(error, about))
        clip = self._close_cut_off(job)
        if job.is_continuous:
            job.skip(0 if clip is None else clip.frames)
            if is_over:
                _report_missing(job, about)
            else:
                job.pause()
        if clip is None:
            self._failed += 1
            return
        self._saved += 1
        job.files += 1
        self._keep(clip)

    def _close_cut_off(self, job: ClipJob) -> Clip | None:
        """Complete the open file of a clip with what was written; None: that cannot be done."""
        file, job.file = job.file, None
        if file is None:
            return None
        try:
            return file.close_cut_off()
        except ValueError:
            with suppress(OSError):
                file.drop()
        except (OSError, StorageError) as error:
            log.warning("clip %s: is completed at the next start: %s", file.path, reason_of(error))
        return None

    def _end_trouble(self) -> None:
        if self._trouble:
            self._trouble = ""
            log.info("clips are saved again after %.0f s", time.monotonic() - self._trouble_s)

    def _report_trouble(self, why: str) -> None:
        """Record why clips cannot be saved, and log it once."""
        if not self._trouble:
            self._trouble, self._trouble_s = why, time.monotonic()
            log.error("clips cannot be saved and are dropped: %s", why)


def _token() -> str:
    return secrets.token_hex(3)


def _why(error: OSError | StorageError, what: str) -> str:
    return str(error) if isinstance(error, StorageError) else f"{what}: {reason_of(error)}"


def _report_missing(job: ClipJob, about: str) -> None:
    if missing := job.take_missing():
        why = "the disk was too slow or full, or no key frame came before them"
        log.warning("clip %s: %s missing: %s", about, plural(missing, "picture"), why)


def _span_s(packets: Sequence[TimedPacket]) -> float:
    return (packets[-1].packet.captured_ns - packets[0].packet.captured_ns) / 1e9


def _sound_of(packets: Sequence[TimedPacket]) -> MediaTrack | None:
    """Return the sound track among packets of one part, if MP4 files of clips have its codec."""
    tracks = (one.packet.track for one in packets if not one.is_video)
    track = next(tracks, None)
    return track if track is not None and track.header and track.codec in SOUND_CODECS else None
