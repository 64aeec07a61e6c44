"""Measure what the daemon writes while nothing happens: minutes of the real clock, and hours of a fast one.

The real clock shows what is done all the time, and extrapolates it. What comes once an hour is met by the same
daemon on the clock of libfaketime, 60 or 120 times as fast, in a state folder as a board has it after a week at a
quiet place: the history is full of events as old as it may keep, 24 an hour, and there is a clip from each hour,
as old as it may be. So in each hour the spool takes its 60 looks and cuts an hour of events off the history, and
the recorder takes its look and deletes a clip. Nothing in the daemon comes more rarely than that, but for what
comes once on a board: a model's choice of hardware, which is put off.

The fast clock would let changes meet in the page cache that lie far apart in a real hour: so the file system is
synced as often as the kernel writes by itself, every 30 s of that clock. The figure is the sum of both, in which
what is done all the time is counted twice.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import common
from _disk import Meter

AGE_S, CLIPS_AGE = 7 * 86400.0, timedelta(days=30)
"""Bounds that the daemon has by itself."""
EVERY_S, HOURS_KEPT = 150.0, 24
"""Between two events of the history; and hours of clips that come of age one after the other."""
CLIP_BYTES = 100_000
WRITTEN_S = 30.0
"""Age at which the kernel writes dirty pages: /proc/sys/vm/dirty_expire_centisecs."""
START_S = 10.0


def idle(folder: Path, seconds: float) -> dict[str, float]:
    """By the real clock."""
    return _measure(folder, seconds, 1)


def hours(folder: Path, seconds: float, speed: int) -> dict[str, float]:
    """By a fast clock; nothing where there is none."""
    if shutil.which("faketime") is None:
        return {"hourly_measured_h": 0.0}
    common.child("_idle:seed", str(folder))
    aged, clips = _aged(folder), len(list(folder.glob("clips/*/*.mp4")))
    found = _measure(folder, seconds, speed)
    return {
        "hourly_kb": found["idle_hour_kb"],
        "hourly_measured_h": seconds * speed / 3600.0,
        "hourly_ran_h": (seconds + START_S) * speed / 3600.0,
        "hourly_log_kb": found["idle_hour_log_kb"],
        "hourly_events_cut": float(aged - _aged(folder)),
        "hourly_clips_deleted": float(clips - len(list(folder.glob("clips/*/*.mp4")))),
    }


def _aged(folder: Path) -> int:
    """Events in the history."""
    with closing(sqlite3.connect(folder / "spool.db")) as database:
        return int(database.execute("SELECT count(*) FROM spool").fetchone()[0])


def seed(folder: str) -> None:
    """A state folder after a week: run in a process of its own."""
    from throughput import report, reporter

    from agent.config import StorageConfig
    from agent.storage.spool.spool import Spool

    spool = Spool(Path(folder), StorageConfig())
    to, count = reporter(spool, None), int(AGE_S / EVERY_S)
    for number in range(1, count + 1):
        report(to, number)
    spool.flush(60.0)
    spool.settle(range(1, count + 1))
    spool.close()
    with closing(sqlite3.connect(Path(folder, "spool.db"))) as database:
        database.execute("UPDATE spool SET put_at = ? + seq * ?", (time.time() - AGE_S, EVERY_S))
        database.commit()
    folder_of_stream = Path(folder, "clips", "still")
    folder_of_stream.mkdir(parents=True)
    for hour in range(HOURS_KEPT):
        made = datetime.now(UTC) - CLIPS_AGE + timedelta(hours=hour, minutes=30)
        (folder_of_stream / f"{made:%Y-%m-%dT%H-%M-%SZ}-person-{hour}.mp4").write_bytes(os.urandom(CLIP_BYTES))
    print("{}")


def _measure(folder: Path, seconds: float, speed: int) -> dict[str, float]:
    """As users start it, on a camera that shows nothing."""
    clock = ["faketime", "-f", f"+0 x{speed}"] if speed > 1 else []
    with (
        common.mosquitto() as port,
        tempfile.TemporaryDirectory() as elsewhere,
        Path(elsewhere, "log").open("wb") as log,
    ):
        config = Path(elsewhere, "vedette.toml")
        config.write_text(
            f'[mqtt]\nhost = "127.0.0.1"\nport = {port}\n[storage]\nstate_dir = "{folder}"\n'
            "clips_keep_free_bytes = 0\n[selection]\nafter_s = 10000000\n"
            '[streams.still]\nsource = "test:"\nmodel = "nanodet"\n'
            f"capture = {{ max_fps = {1.0 / speed:.4f} }}\nclips = {{ fps = 0.1 }}\n",
            encoding="utf-8",
        )
        command = [*clock, sys.executable, "-m", "agent", "run", "-c", str(config)]
        daemon = subprocess.Popen(command, cwd=common.ROOT, stderr=log)
        try:
            time.sleep(START_S)
            meter, began, logged = Meter(folder, daemon.pid), time.monotonic(), log.tell()
            _wait(folder, began + seconds, WRITTEN_S / speed)
            written, flushes = meter.read()
            passed = (time.monotonic() - began) * speed / 3600
            if daemon.poll() is not None:
                raise SystemExit(f"the daemon ended: {Path(elsewhere, 'log').read_text(encoding='utf-8')}")
        finally:
            daemon.terminate()
            daemon.wait()
        logged = Path(elsewhere, "log").stat().st_size - logged
    return {
        "idle_hour_kb": written / 1000 / passed,
        "idle_hour_flushes": flushes / passed,
        "idle_hour_log_kb": logged / 1000 / passed,
        "idle_measured_s": seconds,
    }


def _wait(folder: Path, until: float, pause_s: float) -> None:
    """Until then; what is dirty is written from time to time, as the kernel does by itself on the real clock."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        while (left_s := until - time.monotonic()) > 0:
            time.sleep(min(left_s, pause_s))
            if pause_s < WRITTEN_S:
                libc.syncfs(descriptor)
    finally:
        os.close(descriptor)
