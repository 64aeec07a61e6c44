from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from agent.storage.background import BackgroundFile


def opened(path: Path) -> BackgroundFile:
    return BackgroundFile(path, "writer", "stream front: nothing is kept")


def test_what_is_given_last_is_in_the_file_at_the_end(tmp_path: Path) -> None:
    file = opened(tmp_path / "folder" / "front.json")
    assert file.begin(lambda: b"one")
    file.finish(lambda: b"two", 5.0)
    assert file.path.read_bytes() == b"two"


def test_a_slow_disk_does_not_stop_who_writes(tmp_path: Path) -> None:
    file, goes_on = opened(tmp_path / "front.json"), threading.Event()

    def slow() -> bytes:
        goes_on.wait(30.0)
        return b"one"

    assert file.begin(slow)
    assert not file.begin(lambda: b"two")
    file.finish(lambda: b"three", 0.01)
    goes_on.set()
    file.finish(lambda: b"four", 5.0)
    assert file.path.read_bytes() == b"four"


def test_a_failure_is_logged_once_until_it_is_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    (tmp_path / "folder").write_text("in the way")
    file = opened(tmp_path / "folder" / "front.json")
    for _ in range(2):
        file.finish(lambda: b"one", 5.0)
    assert file.failed
    assert [text.startswith("stream front: nothing is kept: ") for text in caplog.messages] == [True]
    (tmp_path / "folder").unlink()
    file.finish(lambda: b"one", 5.0)
    assert not file.failed
