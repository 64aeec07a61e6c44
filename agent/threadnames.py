"""Names of threads for `top -H` and the like, where Python does not give them by itself: before 3.14."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path


def show_thread_names() -> None:
    """Give every thread that runs its name in Python, 15 letters of it; the main one keeps the program's."""
    for thread in threading.enumerate():
        if thread is not threading.main_thread():
            with suppress(OSError):  # it has ended
                Path(f"/proc/self/task/{thread.native_id}/comm").write_text(thread.name, encoding="utf-8")
