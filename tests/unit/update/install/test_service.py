"""How the daemon says that it is, and whether that is of now."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from agent.board.proc import boot_id
from agent.health import StreamReport
from agent.update.install.health_check import read_health


def told(**changes: object) -> dict[str, object]:
    front = {"state": "running", "inferred": 3, "infer_p95_ms": 8.5, "more": 1}
    at_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    return {
        "version": "2.0",
        "pid": 7,
        "boot_id": boot_id(),
        "at_s": at_s,
        "streams": {"front": front},
        **changes,
    }


def test_what_another_version_says_beside_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "health.json"
    path.write_text(json.dumps(told(novelty=[1, 2])), encoding="utf-8")
    health = read_health(path)
    assert health is not None
    assert health.streams == {"front": StreamReport("running", inferred=3, infer_p95_ms=8.5)}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b'{"version": 3}',
        json.dumps(told(boot_id="of another boot")).encode(),
        json.dumps(told(at_s=0.0)).encode(),
        json.dumps(told(at_s=1e12)).encode(),
        json.dumps(told(streams={"front": {"state": "running", "frames": 1 << 64}})).encode(),
    ],
)
def test_what_is_damaged_or_of_before_says_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "health.json"
    path.write_bytes(content)
    assert read_health(path) is None


def test_no_file_and_a_pipe_say_nothing(tmp_path: Path) -> None:
    import os

    assert read_health(tmp_path / "none") is None
    os.mkfifo(tmp_path / "pipe")
    assert read_health(tmp_path / "pipe") is None


def test_a_daemon_that_tells_too_much_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "health.json"
    path.write_text(json.dumps(told(detail="x" * 300_000)), encoding="utf-8")
    assert read_health(path) is None
