"""A small state file that another thread writes: a slow disk must not stop the pictures."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from agent.errors import StorageError
from agent.storage.files import make_folder
from agent.storage.state import StateFile

log = logging.getLogger(__name__)


class BackgroundFile(StateFile):
    """A state file in a folder of its own. For one thread, but for `store`.

    `failed` is True while the newest write has failed.
    """

    def __init__(self, path: Path, thread: str, failure: str) -> None:
        """Name a file.

        Args:
            path: of the file; its folder is made with it.
            thread: name of the thread that writes.
            failure: what is logged when it cannot be written, once until it can.
        """
        super().__init__(path)
        self._name, self._failure, self.failed = thread, failure, False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def store(self, content: Callable[[], bytes]) -> None:
        """Write what `content` returns when it is this call's turn. Any thread may call this.

        Raises:
            StorageError: the disk refuses.
        """
        with self._lock:
            data, self.failed = content(), True
            if data:
                make_folder(self.path.parent)
            self.write(data)
            self.failed = False

    def begin(self, content: Callable[[], bytes]) -> bool:
        """Write in another thread; return False if the one before is still at it."""
        if self._thread is not None and self._thread.is_alive():
            return False
        self._thread = threading.Thread(target=self._run, args=(content,), name=self._name, daemon=True)
        self._thread.start()
        return True

    def finish(self, content: Callable[[], bytes], seconds: float) -> None:
        """Write for the last time, unless the disk is too slow for it."""
        if self._thread is not None:
            self._thread.join(seconds)
        if self.begin(content):
            assert self._thread is not None
            self._thread.join(seconds)

    def _run(self, content: Callable[[], bytes]) -> None:
        was_failed = self.failed
        try:
            self.store(content)
        except StorageError as error:
            if not was_failed:
                log.warning("%s: %s", self._failure, error)
