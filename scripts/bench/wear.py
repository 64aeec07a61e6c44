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
    idle   the daemon as users start it, on a camera that shows nothing, for some minutes; extrapolated
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import common
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
    for durability in ("event", "batch", "memory")
    for history in (HISTORY, 0)
    if durability != "memory" or not history
}


def main() -> None:
    args = common.arguments(__doc__ or "").parse_args()
    apart, alone, idle_s = (100, 0, 12) if args.quick else (1000, 20, 300)
    names = [*VARIANTS, "naive"]
    with (
        tempfile.TemporaryDirectory(dir=common.ON_DISK) as base,
        ExitStack() as mounts,
        ThreadPoolExecutor(len(names) + 1) as pool,
    ):
        folders = {name: mounts.enter_context(disk(Path(base, name))) for name in [*names, "idle"]}
        idle = pool.submit(idle_daemon, folders["idle"], idle_s)
        runs = {name: pool.submit(child, name, folders[name], apart, alone) for name in names}
        figures = {"on_devices": float(device_of(folders["idle"]) is not None)}
        for name, run in runs.items():
            figures |= {f"{name}_{what}": value for what, value in run.result().items()}
        figures |= idle.result()
    for pace in PACES[: 1 if args.quick else 2]:
        figures[f"ratio_to_naive_{pace}"] = figures[f"event_{pace}_kb"] / figures[f"naive_{pace}_kb"]
    show(names, figures)
    meets = figures["idle_hour_kb"] * 1000 <= IDLE_TARGET
    common.conclude("wear", figures, {"idle_hour_kb": f"<= {IDLE_TARGET / 1000:.0f}"}, meets)


def show(names: list[str], figures: dict[str, float]) -> None:
    what = "to the device" if figures["on_devices"] else "of pages made dirty"
    print(f"kB {what} and flushes per 1,000 events, {' and '.join(PACES)}")
    for name in names:
        keys = (f"{name}_{pace}_{unit}" for pace in PACES for unit in ("kb", "flushes"))
        print(f"{name:18}", "   ".join(f"{figures[key]:9.0f}" for key in keys if key in figures))
    print(f"idle: {figures['idle_hour_kb']:.0f} kB per hour")


@contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """A file system of its own where that can be had; else the folder."""
    folder.mkdir()
    image = folder.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(64 << 20)
    make = ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image)]
    with suppress(OSError, subprocess.CalledProcessError):
        subprocess.run(make, check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=True, capture_output=True)
    try:
        yield folder
    finally:
        if folder.is_mount():
            subprocess.run(["umount", "-l", str(folder)], check=True)


def device_of(folder: Path) -> Path | None:
    """The counters of the device that a folder is mounted from."""
    if not folder.is_mount():
        return None
    found = subprocess.run(["findmnt", "-no", "SOURCE", str(folder)], check=True, capture_output=True, text=True)
    return Path("/sys/block", Path(found.stdout.strip()).name, "stat")


class Meter:
    """Bytes and flushes since it was made, of a process and its folder."""

    def __init__(self, folder: Path, pid: int | str = "self") -> None:
        self._folder, self._pid, self._device = folder, pid, device_of(folder)
        self._before = self._now()

    def _now(self) -> tuple[int, int]:
        subprocess.run(["sync", "-f", str(self._folder)], check=True)
        if self._device is not None:
            fields = self._device.read_text(encoding="ascii").split()
            return int(fields[6]) * 512, int(fields[15])
        lines = Path(f"/proc/{self._pid}/io").read_text(encoding="ascii").splitlines()
        return int(dict(line.split(": ") for line in lines)["write_bytes"]), 0

    def read(self) -> tuple[int, int]:
        """Bytes and flushes."""
        written, flushes = self._now()
        return written - self._before[0], flushes - self._before[1] - 1  # one is of our own look


def child(name: str, folder: Path, apart: int, alone: int) -> dict[str, float]:
    return common.child("wear:variant", name, str(folder), str(apart), str(alone))


def variant(name: str, folder: str, apart: str, alone: str) -> None:
    """Measure one, in this process."""
    put, close = naive(Path(folder)) if name == "naive" else house(Path(folder), *VARIANTS[name])
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


def house(folder: Path, durability: str, history: int) -> tuple[Callable[[int], None], Callable[[], None]]:
    """The spool, its events acknowledged by whoever peeks at them."""
    from agent.config import StorageConfig
    from agent.storage.spool import Spool

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


def idle_daemon(folder: Path, seconds: float) -> dict[str, float]:
    """What the daemon writes in a while in which nothing happens."""
    with common.mosquitto() as port, tempfile.TemporaryDirectory() as elsewhere:
        config = Path(elsewhere, "vedette.toml")
        config.write_text(
            f'[mqtt]\nhost = "127.0.0.1"\nport = {port}\n[storage]\nfolder = "{folder}"\n'
            "[selection]\nafter_s = 100000\n"  # what a board does once is not what it does every hour
            '[streams.still]\nsource = "test:"\nmodel = "nanodet"\ncapture = { max_fps = 1.0 }\n',
            encoding="utf-8",
        )
        command = [sys.executable, "-m", "agent", "run", "-c", str(config)]
        daemon = subprocess.Popen(command, cwd=common.ROOT, stderr=subprocess.DEVNULL)
        try:
            time.sleep(10.0)
            meter, began = Meter(folder, daemon.pid), time.monotonic()
            time.sleep(seconds)
            written, flushes = meter.read()
            hours = (time.monotonic() - began) / 3600
        finally:
            daemon.terminate()
            daemon.wait()
    return {
        "idle_hour_kb": written / 1000 / hours,
        "idle_hour_flushes": flushes / hours,
        "idle_measured_s": seconds,
    }


if __name__ == "__main__":
    main()
