"""The recorder: writes the clips of all streams, in one thread and in large pieces, and keeps them within bounds.

What a clip holds was encoded once, into its stream's footage; here it is only copied, first what is there
already, then what comes. A disk that cannot be written costs the clip, and nothing else.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import accumulate, takewhile
from pathlib import Path

from msgspec import Struct

from agent.config.device import StorageConfig
from agent.errors import StorageError, reason_of
from agent.storage.clips.file import ClipFile, repair, settle
from agent.storage.clips.retention import (
    ClipStore,
    check_room,
    check_writable,
    clip_path,
    folder_name,
    make_folder,
    parts_in,
)
from agent.storage.clips.ring import FrameRing
from agent.text import plural
from agent.types import Clip, ClipReason, EncodedFrame

# The tally of clips: how many were saved and how many not, and whether any can be, told when that changes.

log = logging.getLogger(__name__)


class ClipStats(Struct, frozen=True):
    """How the clips of a device are doing.

    Attributes:
        saved, failed: since the start; what is being recorded is neither yet.
        deleted: clips that had to go since the start, too old or for room.
        kept, bytes: clips on the disk, as of the last look, and what they take.
        trouble: why none can be saved; empty: as far as is known, they can.
    """

    saved: int
    failed: int
    deleted: int
    kept: int
    bytes: int
    trouble: str


class ClipTally:
    """For the recorder's thread; its attributes may be read by any.

    Attributes:
        saved, failed: since the start.
        trouble: why none can be saved; empty: the last one could.
    """

    def __init__(self) -> None:
        self.saved = self.failed = 0
        self.trouble = ""
        self._began_s, self._failed_before = 0.0, 0

    def lose(self, why: str = "") -> None:
        """A clip is none.

        Args:
            why: by the disk's fault; empty: by another.
        """
        if why:
            self.fail(why)
        self.failed += 1

    def fail(self, why: str) -> None:
        """Clips cannot be saved."""
        if not self.trouble:
            self.trouble, self._began_s, self._failed_before = why, time.monotonic(), self.failed
            log.error("clips cannot be saved, and are dropped until they can: %s", why)

    def save(self) -> None:
        """One is saved: so they can be."""
        self.saved += 1
        if self.trouble:
            self.trouble = ""
            seconds, lost = time.monotonic() - self._began_s, self.failed - self._failed_before
            log.info("clips are saved again after %.0f s; %d were dropped", seconds, lost)


# A clip that is being made: from when to when, and how much of that is written.

_PIECE = 1024 * 1024
"""Bytes that are worth a write; fewer wait."""
_WAIT_S = 2.0
"""They wait no longer than this: what is not written is lost in a crash."""
_SYNC_S = 5.0
"""A power cut costs no more than this of a clip."""
_GRACE_NS = 2_000_000_000
"""A picture may come so late."""


class ClipJob:
    """See the module. Its stream's thread moves its end, the recorder does the rest.

    Attributes:
        path: that it will have.
        occasion: what it is made for.
        footage: that it is made of.
        tracks: ids of the tracks in it that it was made for.
        next_ns: capture of the first picture that is not written yet, at the earliest, ns.
        file: None: nothing is written yet.
        over: nothing more comes into it.
    """

    def __init__(self, path: Path, occasion: ClipReason, footage: FrameRing, from_ns: int, until_ns: int) -> None:
        self.path, self.occasion, self.footage = path, occasion, footage
        self.tracks: tuple[str, ...] = ()
        self.next_ns, self._until_ns = from_ns, until_ns
        self.file: ClipFile | None = None
        self.over = self._ended = False
        self._lock = threading.Lock()
        self._lost_before = footage.lost
        self._wrote_s = self._synced_s = time.monotonic()

    def end(self) -> None:
        """It is over with what there is now."""
        self._ended = True

    def move_end(self, until_ns: int) -> bool:
        """It is over then; False: it was over before that."""
        with self._lock:
            self._until_ns = until_ns
            return not self.over

    def look(self) -> bool:
        """Whether it is over: by its pictures, or when none comes any more, by the time."""
        footage = self.footage
        with self._lock:
            if not self.over:
                late = footage.now_ns() > self._until_ns + _GRACE_NS or (footage.newest_ns < 0 and self._is_stale)
                self.over = self._ended or footage.newest_ns > self._until_ns or late
            return self.over

    @property
    def _is_stale(self) -> bool:
        return time.monotonic() - self._wrote_s > (self._until_ns - self.next_ns + _GRACE_NS) / 1e9

    @property
    def bytes(self) -> int:
        """Written so far."""
        return self.file.bytes if self.file else 0

    @property
    def lost(self) -> int:
        """Pictures that were gone before they could be written."""
        return self.footage.lost - self._lost_before

    def pictures(self) -> list[EncodedFrame]:
        """Those that are to be written."""
        return self.footage.between(self.next_ns, self._until_ns)

    def is_due(self, pictures: Sequence[EncodedFrame]) -> bool:
        """Whether it is time to write these."""
        waited_s = time.monotonic() - self._wrote_s
        return waited_s >= _WAIT_S or sum(len(picture.jpeg) for picture in pictures) >= _PIECE

    def write(self, file: ClipFile, pictures: Sequence[EncodedFrame]) -> bool:
        """Write pictures; False when one is of another size, and the clip over before that.

        Raises:
            OSError: the disk refuses.
        """
        fitting = list(takewhile(file.fits, pictures))
        now = self._wrote_s = time.monotonic()
        file.append(fitting)
        self.next_ns = pictures[-1].captured_ns + 1
        if now - self._synced_s >= _SYNC_S:
            file.sync()
            self._synced_s = time.monotonic()
        return len(fitting) == len(pictures)


# Salvage: clips that the last run left half written are completed, or removed when nothing is in them.


def recover_partial_clips(folder: Path, tell: Callable[[Clip], None]) -> None:
    """Look through a folder of clips, which is created if need be.

    Args:
        folder: of all clips.
        tell: called with each that was completed.

    Raises:
        OSError: the folder cannot be made or read, or a broken clip not be removed.
    """
    make_folder(folder)
    for part in parts_in(folder):
        _mend(part, tell)


def _mend(part: Path, tell: Callable[[Clip], None]) -> None:
    try:
        clip = repair(part)
        if clip is not None and folder_name(clip.occasion.stream) != part.parent.name:
            raise ValueError("it lies in another stream's folder")
    except ValueError as error:
        log.warning("clip %s: was cut off and is removed: %s", part, error)
        part.unlink(missing_ok=True)
    except OSError as error:
        log.warning("clip %s: was cut off and cannot be completed: %s", part, reason_of(error))
    else:
        if clip is not None:
            tell(clip)


_TURN_S = 0.5
_EXPIRE_S = 3600.0
_ROOM, _ROOM_EACH = 4096, 64
"""Bytes for what a file needs besides its pictures, and for each."""


class Recorder:
    """Clips on their way to the disk. Its thread runs from the first `start` or `begin` on."""

    def __init__(self, folder: Path, config: StorageConfig, on_saved: Callable[[Clip], None]) -> None:
        """Prepare; nothing is read or written yet.

        Args:
            folder: of all clips; created when it is needed.
            config: their bounds.
            on_saved: called from the recorder's thread with each clip that has its name, and again after a crash
                for one of which it had not returned.
        """
        self._folder, self._config, self._on_saved = folder, config, on_saved
        self._shelf = ClipStore(folder, config)
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._recordings: list[ClipJob] = []
        self._thread: threading.Thread | None = None
        self._closing = False
        self._tidy_at = 0.0
        self._tally = ClipTally()

    def start(self) -> None:
        """Complete what was cut off, delete what is too old, and be ready."""
        with self._lock:
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._run, name="clips-writer", daemon=True)
                self._thread.start()

    def begin(
        self, footage: FrameRing, occasion: ClipReason, at: datetime, from_ns: int, until_ns: int
    ) -> ClipJob:
        """Begin a clip; returns at once.

        Args:
            footage: of the stream.
            occasion: what it is made for.
            at: UTC of the event or the command.
            from_ns: capture of the first picture that belongs to it, ns.
            until_ns: when it is over, as far as is known, ns.
        """
        path = clip_path(self._folder, occasion, at, secrets.token_hex(3))
        recording = ClipJob(path, occasion, footage, from_ns, until_ns)
        self.start()
        with self._lock:
            self._recordings.append(recording)
            self._hold(footage)
            self._work.notify()
        return recording

    def configure(self, config: StorageConfig) -> None:
        """Keep to other bounds, and delete at once what is beyond them; the folder stays."""
        with self._lock:
            self._config, self._tidy_at = config, 0.0
            self._shelf.configure(config)
            self._work.notify()

    def check(self, stream: str, more: int) -> None:
        """Whether a clip of a stream could be saved now. May be called from any thread, and waits for the disk.

        Args:
            stream: its name.
            more: bytes that it may have.

        Raises:
            StorageError: it could not, with the reason.
        """
        folder = self._folder / folder_name(stream)
        try:
            make_folder(folder)
        except OSError as error:
            raise StorageError(f"{folder}: clips cannot be saved there: {reason_of(error)}") from error
        check_writable(folder)
        check_room(self._folder, self._config, min(more, self._shelf.max_bytes))

    @property
    def stats(self) -> ClipStats:
        """How the clips are doing. May be asked from any thread."""
        tally, shelf = self._tally, self._shelf
        return ClipStats(tally.saved, tally.failed, shelf.deleted, len(shelf), shelf.bytes, tally.trouble)

    def wake(self) -> None:
        """There is much to be written."""
        with self._lock:
            self._work.notify()

    def close(self, timeout_s: float) -> None:
        """End every clip as it is. One that takes longer is completed at the next start."""
        with self._lock:
            self._closing = True
            thread = self._thread
            for recording in self._recordings:
                recording.end()
            self._work.notify()
        if thread is not None:
            thread.join(timeout_s)
            if thread.is_alive():
                log.warning("clips: the disk takes too long: the last clip is completed at the next start")

    def _hold(self, footage: FrameRing) -> None:
        starts = [recording.next_ns for recording in self._recordings if recording.footage is footage]
        footage.hold(min(starts, default=None))

    def _run(self) -> None:
        self._tidy_at = time.monotonic() + _EXPIRE_S
        self._tidy()
        while True:
            with self._lock:
                if not self._recordings:
                    if self._closing:
                        return
                    self._work.wait(max(0.0, self._tidy_at - time.monotonic()))
            self._serve_all()
            if time.monotonic() >= self._tidy_at:
                self._tidy_at = time.monotonic() + _EXPIRE_S
                self._expire()
            with self._lock:
                if self._recordings and not self._closing:
                    self._work.wait(_TURN_S)

    def _tidy(self) -> None:
        try:
            recover_partial_clips(self._folder, self._tell)
        except OSError as error:
            self._tally.fail(f"{self._folder}: {reason_of(error)}")
        self._expire()

    def _expire(self) -> None:
        try:
            self._shelf.look()
            if count := self._shelf.expire(datetime.now(UTC)):
                log.info("clips: %d deleted, older than clips_max_age_s", count)
            self._shelf.make_room(0)
        except StorageError as error:
            self._tally.fail(str(error))
        except FileNotFoundError:  # the folder was deleted, and is made again for the next clip
            return
        except OSError as error:
            self._tally.fail(f"{self._folder}: {reason_of(error)}")

    def _serve_all(self) -> None:
        """Every clip. By itself, so that whoever waits for the next holds no footage."""
        with self._lock:
            recordings = list(self._recordings)
        for recording in recordings:
            self._serve(recording)

    def _serve(self, recording: ClipJob) -> None:
        """Write what there is to write of one clip, and complete it when it is over."""
        over = recording.look()
        try:
            pictures = recording.pictures()
            if pictures and (over or recording.is_due(pictures)):
                over = self._write(recording, pictures) or over
            if over:
                self._finish(recording)
        except (OSError, StorageError) as error:
            self._drop(recording, error)
        except Exception:
            log.exception("clip %s: a defect in Vedette; it is dropped", recording.path)
            self._drop(recording, None)
        with self._lock:
            if recording.over and recording in self._recordings:
                self._recordings.remove(recording)
            self._hold(recording.footage)

    def _write(self, recording: ClipJob, pictures: Sequence[EncodedFrame]) -> bool:
        """Write pictures; whether the clip can take no more."""
        sizes = accumulate((len(picture.jpeg) + _ROOM_EACH for picture in pictures), initial=_ROOM)
        room = self._shelf.max_bytes - recording.bytes
        fitting = [size for size in sizes if size <= room]
        some = pictures[: len(fitting) - 1] if fitting else ()
        if not some:
            return True
        size = fitting[-1]
        if recording.file is None:
            make_folder(recording.path.parent)
        self._shelf.make_room(size, sum(other.bytes for other in self._recordings))
        if recording.file is None:
            recording.file = ClipFile(recording.path, recording.occasion, some[0])
        return not recording.write(recording.file, some) or len(some) < len(pictures)

    def _finish(self, recording: ClipJob) -> None:
        recording.over = True
        if recording.file is None:
            log.warning("clip %s: no picture came in time, so there is none", recording.path)
            self._tally.lose()
            return
        clip = recording.file.finish(recording.tracks)
        if lost := recording.lost:
            log.warning("clip %s: %s missing: the disk was too slow", clip.path, plural(lost, "picture"))
        self._tally.save()
        self._tell(clip)
        self._expire()

    def _tell(self, clip: Clip) -> None:
        about = f"{clip.duration_s:.1f} s, {plural(clip.frames, 'picture')}, {clip.bytes / 1e6:.1f} MB"
        after = ", completed after it was cut off" if clip.repaired else ""
        log.info("stream %s: clip %s: %s%s", clip.occasion.stream, clip.path, about, after)
        try:
            self._on_saved(clip)
            settle(Path(clip.path))
        except OSError as error:
            log.warning("clip %s: is told of again at the next start: %s", clip.path, reason_of(error))
        except Exception:
            log.exception("clip %s: cannot be told of", clip.path)

    def _drop(self, recording: ClipJob, error: Exception | None) -> None:
        recording.over = True
        if recording.file is not None:
            with suppress(OSError):
                recording.file.drop()
        if error is None or isinstance(error, StorageError):
            self._tally.lose(str(error or ""))
        else:
            self._tally.lose(f"{recording.path}: {reason_of(error)}")
