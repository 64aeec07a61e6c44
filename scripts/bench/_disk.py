"""A file system of its own, and what is written to it: for benches that count wear."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


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
