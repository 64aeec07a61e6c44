"""Names of threads as the system shows them."""

from __future__ import annotations

import threading
from pathlib import Path

from agent.board.process import show_thread_names


def test_a_thread_has_its_name_in_the_system_too() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="stream-front-door")
    before = Path("/proc/self/comm").read_text(encoding="utf-8")
    thread.start()
    try:
        show_thread_names()
        seen = Path(f"/proc/self/task/{thread.native_id}/comm").read_text(encoding="utf-8")
    finally:
        done.set()
        thread.join()
    assert seen == "stream-front-do\n"
    assert Path("/proc/self/comm").read_text(encoding="utf-8") == before
