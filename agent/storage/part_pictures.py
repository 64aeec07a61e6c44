"""Pictures of inspected parts: written by a thread of their own, the oldest deleted for the newest.

Only files named like such a picture are deleted: other files may be kept in the same folder.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from agent.errors import StorageError
from agent.storage.files import storage_errors, write_atomic
from agent.text import file_name

log = logging.getLogger(__name__)
_NAME = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d-\d{3}Z-(ok|ng|unsure)-[A-Za-z0-9_-]+\.jpg")
_LONGEST = 48
_WAITING = 8
"""Most pictures that wait to be written: a disk that is slower than the line loses pictures, not verdicts."""
_FOLDER_MODE, _FILE_MODE = 0o750, 0o640


def picture_name(at: datetime, verdict: str, part: str) -> str:
    """Return the name of a part's picture: safe, whatever its id contains, and in the order of time."""
    when = at.astimezone(UTC)
    stamp = f"{when:%Y-%m-%dT%H-%M-%S}-{when.microsecond // 1000:03}Z"
    return f"{stamp}-{verdict}-{file_name(part, _LONGEST) or 'part'}.jpg"


class PartPictures:
    """Keeps the newest pictures of one stream's parts, up to a number of bytes.

    Attributes:
        trouble: why the newest picture could not be kept; empty: it was.
    """

    def __init__(self, folder: Path, keep_bytes: int) -> None:
        """Start the thread; the folder is created with the first picture.

        Args:
            folder: of the stream.
            keep_bytes: bytes of all pictures in it.
        """
        self._folder, self._keep_bytes, self.trouble = folder, keep_bytes, ""
        self._waiting: queue.Queue[Callable[[], object] | None] = queue.Queue(_WAITING)
        self._kept: deque[tuple[str, int]] | None = None
        self._bytes = 0
        self._thread = threading.Thread(target=self._run, name=f"parts-{folder.name}", daemon=True)
        self._thread.start()

    def keep(self, name: str, encode: Callable[[], bytes]) -> Path | None:
        """Write a picture soon; return its path, or None where it is lost, since too many wait.

        Args:
            name: see `picture_name`.
            encode: returns the JPEG; called in the thread.
        """
        if self.run(lambda: self._write(name, encode())):
            return self._folder / name
        self._fail(f"{self._folder}: the disk is slower than the line: a picture was not kept")
        return None

    def run(self, write: Callable[[], object]) -> bool:
        """Call a function that writes soon, in the thread; return False if too many wait.

        Args:
            write: raises StorageError if the disk refuses.
        """
        try:
            self._waiting.put_nowait(write)
        except queue.Full:
            return False
        return True

    def close(self, timeout_s: float) -> None:
        """Write what waits, and end the thread; of a disk that takes longer, what waits is lost."""
        while True:
            try:
                self._waiting.put_nowait(None)
                break
            except queue.Full:
                with suppress(queue.Empty):
                    self._waiting.get_nowait()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (write := self._waiting.get()) is not None:
            try:
                write()
            except StorageError as error:
                self._fail(str(error))
            except Exception as error:
                self._fail(f"internal error (please report): {type(error).__name__}: {error}")
            else:
                self.trouble = ""

    def _fail(self, why: str) -> None:
        if not self.trouble:
            log.warning("pictures or counters of parts are not kept: %s", why)
        self.trouble = why

    def _write(self, name: str, jpeg: bytes) -> None:
        if len(jpeg) > self._keep_bytes:
            raise StorageError(f"{self._folder}: a picture has {len(jpeg)} bytes, more than keep_bytes")
        kept = self._listed()
        while kept and self._bytes + len(jpeg) > self._keep_bytes:
            oldest, size = kept[0]
            with storage_errors(f"{self._folder / oldest}: cannot be deleted"):
                (self._folder / oldest).unlink(missing_ok=True)
            kept.popleft()
            self._bytes -= size
        try:
            write_atomic(self._folder / name, jpeg, _FILE_MODE, follow=False)
        except StorageError:
            self._kept = None  # the folder may have been deleted, and is made anew
            kept = self._listed()
            write_atomic(self._folder / name, jpeg, _FILE_MODE, follow=False)
        kept.append((name, len(jpeg)))
        self._bytes += len(jpeg)

    def _listed(self) -> deque[tuple[str, int]]:
        """Return names and sizes of the pictures in the folder, oldest first; it is created if there is none."""
        if self._kept is None:
            with storage_errors(f"{self._folder}: cannot be used"):
                for folder in (self._folder.parent, self._folder):
                    folder.mkdir(_FOLDER_MODE, parents=True, exist_ok=True)
                files = [file for file in os.scandir(self._folder) if _NAME.fullmatch(file.name)]
                plain = [file for file in files if file.is_file(follow_symlinks=False)]
                found = [(file.name, file.stat(follow_symlinks=False).st_size) for file in plain]
            self._kept = deque(sorted(found))
            self._bytes = sum(size for _, size in found)
        return self._kept
