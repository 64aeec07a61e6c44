"""Bytes written to the disk per 1,000 events, for each durability with a history and without, and per idle hour.

Every variant is a process of its own on an ext4 file system of its own, in a file that is mounted as a device:
what is counted are the bytes and the flushes that reach that device, the file system's own journal among them.
Where that is not possible (it takes root), it is the pages that the process has made dirty (`write_bytes` of
/proc/self/io), which leaves out the file system's journal, and flushes are not counted. As bytes are counted
and not seconds, the variants run at once.

Events are those of tracks: of four in turn `new`, two of `update`, and `end`, each acknowledged as soon as it
can be sent. `apart` is an event every 50 ms, each with a commit of its own; `alone` (not with --quick) is one
every 11 s, so that what is noted later finds no company either, and what the file system writes by itself for
each change is not shared. Before that each variant gets some hundred events: the files have their size then,
and the history (150 kB here) is full, so that what it costs to shorten it is in the figures.

    naive  what users write: SQLite as it comes, insert and commit, delete and commit when acknowledged
    idle   the daemon as users start it, on a camera that shows nothing: for some minutes, extrapolated, and for
           some hours of a fast clock, with what comes once an hour: see `_idle.py`
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import _idle
import common
from _disk import Meter, device_of, disk
from throughput import report, reporter

HISTORY = 150_000
BEFORE = {"naive": 50}
"""Events before, by variant; others get 450."""
SETTLE_S = 11.0
"""Until everything has been noted: twice what the spool lets an acknowledgement wait, and a little more."""
APART_S, ALONE_S = 0.05, 11.0
PACES = ("apart", "alone")
IDLE_TARGET = 200_000.0
VARIANTS = {
    f"{durability}{'' if history else '_no_history'}": (durability, history)
    for durability in ("event", "batch")
    for history in (HISTORY, 0)
}


def main() -> None:
    args = common.arguments(__doc__ or "").parse_args()
    apart, alone, idle_s, hours_s, speed = (100, 0, 12, 30, 120) if args.quick else (1000, 20, 300, 300, 60)
    names = [*VARIANTS, "naive"]
    with (
        tempfile.TemporaryDirectory(dir=common.ON_DISK, ignore_cleanup_errors=True) as base,
        ExitStack() as mounts,
        ThreadPoolExecutor(len(names) + 2) as pool,
    ):
        folders = {name: mounts.enter_context(disk(Path(base, name))) for name in [*names, "idle", "hours"]}
        idle = pool.submit(_idle.idle, folders["idle"], idle_s)
        hours = pool.submit(_idle.hours, folders["hours"], hours_s, speed)
        runs = {name: pool.submit(child, name, folders[name], apart, alone) for name in names}
        figures = {"on_devices": float(device_of(folders["idle"]) is not None)}
        for name, run in runs.items():
            figures |= {f"{name}_{what}": value for what, value in run.result().items()}
        figures |= {**idle.result(), **hours.result()}
    figures["steady_hour_kb"] = figures["idle_hour_kb"]
    figures["idle_hour_kb"] += figures.get("hourly_kb", 0.0)
    for pace in PACES[: 1 if args.quick else 2]:
        figures[f"ratio_to_naive_{pace}"] = figures[f"event_{pace}_kb"] / figures[f"naive_{pace}_kb"]
    show(names, figures)
    meets = figures["hourly_measured_h"] > 0 and figures["idle_hour_kb"] * 1000 <= IDLE_TARGET
    common.conclude("wear", figures, {"idle_hour_kb": f"<= {IDLE_TARGET / 1000:.0f}"}, meets)


def show(names: list[str], figures: dict[str, float]) -> None:
    what = "to the device" if figures["on_devices"] else "of pages made dirty"
    print(f"kB {what} and flushes per 1,000 events, {' and '.join(PACES)}")
    for name in names:
        keys = (f"{name}_{pace}_{unit}" for pace in PACES for unit in ("kb", "flushes"))
        print(f"{name:18}", "   ".join(f"{figures[key]:9.0f}" for key in keys if key in figures))
    show_idle(figures)


def show_idle(figures: dict[str, float]) -> None:
    print(f"idle: {figures['idle_hour_kb']:.0f} kB per hour; of that")
    steady, measured = figures["steady_hour_kb"], figures["idle_measured_s"]
    print(f"{steady:9.0f} kB all the time, in {measured:.0f} s of the real clock")
    if not figures["hourly_measured_h"]:
        print("    what comes once an hour is left out, so the target is not shown: faketime is not installed")
        return
    ran = figures["hourly_ran_h"]
    cut, deleted = (figures[f"hourly_{what}"] / ran for what in ("events_cut", "clips_deleted"))
    print(
        f"{figures['hourly_kb']:9.0f} kB in {figures['hourly_measured_h']:.1f} h of a fast clock; in each of them"
    )
    print(
        f"          60 looks of the spool, {cut:.1f} events cut off the history, {deleted:.1f} old clips deleted"
    )
    print(f"not in it: {figures['hourly_log_kb']:.1f} kB of log per hour, for the journal")


def child(name: str, folder: Path, apart: int, alone: int) -> dict[str, float]:
    return common.child("wear:variant", name, str(folder), str(apart), str(alone))


def variant(name: str, folder: str, apart: str, alone: str) -> None:
    """Measure one, in this process."""
    put, close = naive(Path(folder)) if name == "naive" else agent(Path(folder), *VARIANTS[name])
    figures: dict[str, float] = {}
    number = 0

    def run(count: int, pause_s: float) -> None:
        nonlocal number
        for _ in range(count):
            number += 1
            put(number)
            time.sleep(pause_s)

    run(BEFORE.get(name, 450), 0.0)
    time.sleep(SETTLE_S)
    for pace, count, pause_s in zip(PACES, (int(apart), int(alone)), (APART_S, ALONE_S), strict=True):
        if not count:
            continue
        meter = Meter(Path(folder))
        run(count, pause_s)
        if pace == "apart":
            time.sleep(SETTLE_S)
        written, flushes = meter.read()
        figures |= {f"{pace}_kb": written / count, f"{pace}_flushes": flushes / count * 1000}
    close()
    print(json.dumps(figures))


def agent(folder: Path, durability: str, history: int) -> tuple[Callable[[int], None], Callable[[], None]]:
    """The spool, its events acknowledged by whoever peeks at them."""
    from agent.config import StorageConfig
    from agent.storage.spool.spool import Spool

    config = StorageConfig(durability=durability, history_max_bytes=history)  # type: ignore[arg-type]
    spool = Spool(folder, config)
    spool.on_stored(lambda: spool.settle([row.seq for row in spool.peek(0, 1000)]))
    to = reporter(spool, None)

    def put(number: int) -> None:
        report(to, number)
        if durability == "event":
            spool.flush(10.0)  # each has a commit of its own, whatever the pace

    return put, spool.close


def naive(folder: Path) -> tuple[Callable[[int], None], Callable[[], None]]:
    connection = sqlite3.connect(folder / "naive.db")
    connection.execute("CREATE TABLE queue (id INTEGER PRIMARY KEY, topic TEXT, payload BLOB)")

    class Sink:
        def put(self, topic: str, body: bytes, *_: object) -> None:
            row = connection.execute("INSERT INTO queue (topic, payload) VALUES (?, ?)", (topic, body)).lastrowid
            connection.commit()
            connection.execute("DELETE FROM queue WHERE id = ?", (row,))
            connection.commit()

    to = reporter(Sink(), None)
    return (lambda number: report(to, number)), connection.close


if __name__ == "__main__":
    main()
