"""Check the state folder, clips, stored settings and the clock."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import agent
from agent.board.proc import Clock, DiskUsage, read_clock, read_disk
from agent.cli.checks import Finding
from agent.config import StorageConfig
from agent.daemon.overrides import OverridesFile
from agent.errors import StorageError
from agent.storage.clips.retention import check_room, check_writable, clips_max_bytes
from agent.storage.state_folder import clips_path, folder_of
from agent.text import local_time, plural

SECTION = "storage and clock"
_RESERVE = 4
"""Factor on the size of the event queue; with less free space the system itself may run out."""
_DAY_S = 86400.0
_CLIPS = "clips folder"
_SAY = "say of each stream whether it is to run: vedette command DEVICE STREAM enabled on (or off, or default)"


def findings(config: StorageConfig, root: Path, *, clips: bool = False) -> Iterator[Finding]:
    """Room for the state and for clips, what commands have set, and whether the clock is right.

    Args:
        config: of the state folder.
        root: of the file system.
        clips: whether a stream makes any.
    """
    yield of_folder(config, root)
    if clips:
        yield of_clips(config, root)
    yield from of_commands(config, root)
    yield from of_clock(read_clock(root), time.time(), Path(agent.__file__).stat().st_mtime)


def of_folder(config: StorageConfig, root: Path) -> Finding:
    """Check free space for the state folder."""
    try:
        disk = read_disk(folder_of(config, root))
    except StorageError as error:
        return Finding(SECTION, "state folder", str(error), "warning", str(error))
    if disk is None:
        return Finding(SECTION, "state folder", "not reported by its file system", "warning")
    return of_disk(disk, (config.spool_max_bytes + config.history_max_bytes) >> 20)


def of_clips(config: StorageConfig, root: Path) -> Finding:
    """Check that the clips' folder can be written to and has free space."""
    try:
        folder = clips_path(config, folder_of(config, root))
        disk = read_disk(folder)
        if disk is None:
            return Finding(SECTION, _CLIPS, f"{folder}: not reported by its file system", "warning")
        if not disk.at.is_dir():
            raise StorageError(f"{disk.at}: is a file where clips need a folder")
        check_writable(disk.at)
        check_room(folder, config, 0, at=disk.at)
    except StorageError as error:
        return _clips_fault(str(error), error.__cause__)
    most_mb = clips_max_bytes(folder, config) >> 20
    return Finding(SECTION, _CLIPS, f"{folder}, {most_mb} MB of clips at most")


def _clips_fault(what: str, cause: BaseException | None) -> Finding:
    if isinstance(cause, PermissionError) and os.geteuid() != 0:
        advice = "run vedette doctor as the user that runs Vedette, or with sudo -u: nobody else can tell"
        return Finding(SECTION, _CLIPS, what, "warning", advice)
    return Finding(
        SECTION, _CLIPS, what, "problem", "make room there, or set [storage] clips_folder to another place"
    )


def of_commands(config: StorageConfig, root: Path) -> Iterator[Finding]:
    """Report settings made by commands, if this user may read them."""
    try:
        folder = folder_of(config, root)
    except StorageError:
        return  # told above
    if not os.access(folder, os.R_OK | os.X_OK):
        return
    name = "settings by command"
    try:
        found = OverridesFile(folder).read()
    except StorageError as error:
        yield Finding(SECTION, name, f"lost: {error}", "problem", f"restart Vedette, then {_SAY}")
        return
    if lost := found.lost:
        yield Finding(SECTION, name, f"were lost, so these are off: {', '.join(lost)}", "problem", _SAY)
    elif found.streams:
        yield Finding(SECTION, name, f"of {plural(len(found.streams), 'stream')}")


def of_disk(disk: DiskUsage, spool_mb: int) -> Finding:
    """Report whether the disk of the state folder has room and is writable.

    Args:
        disk: that the state folder lies on.
        spool_mb: what may wait for a broker that is away, and the history, MB.
    """
    value = f"{disk.free_mb} of {disk.total_mb} MB free at {disk.at}"
    if disk.read_only:
        advice = (
            "see why the disk is read-only (sudo dmesg | grep -i mmc): an SD card that fails must be replaced"
        )
        return Finding(SECTION, "state folder", f"{disk.at} is mounted read-only", "problem", advice)
    if disk.files_left == 0:
        return Finding(SECTION, "state folder", f"{value}, but no file more", "problem", _room(disk))
    if disk.free_mb < spool_mb:
        return Finding(SECTION, "state folder", value, "problem", _room(disk))
    if disk.free_mb < _RESERVE * spool_mb:
        return Finding(SECTION, "state folder", value, "warning", _room(disk))
    return Finding(SECTION, "state folder", value)


def _room(disk: DiskUsage) -> str:
    return f"make room at {disk.at}: see what takes it with `du -xh {disk.at} | sort -h | tail`"


def of_clock(clock: Clock, now_s: float, installed_s: float) -> Iterator[Finding]:
    """Report whether the clock is right and synchronised.

    Args:
        clock: as the kernel has it.
        now_s: the time, s since 1970.
        installed_s: when Vedette was installed, likewise.
    """
    shown = local_time(datetime.fromtimestamp(now_s, UTC))
    advice = "set the clock: sudo timedatectl set-ntp true; TLS checks may fail until then"
    if not clock.keeps:
        advice += "; this board forgets the time without power, unless it gets a battery-backed clock"
    if now_s < installed_s - _DAY_S:
        yield Finding(SECTION, "clock", f"{shown}: before Vedette was installed", "problem", advice)
    elif clock.synchronised is None:
        yield Finding(SECTION, "clock", f"{shown}; the kernel does not report whether it is synchronised")
    elif clock.synchronised:
        yield Finding(SECTION, "clock", f"{shown}, synchronised")
    else:
        yield Finding(SECTION, "clock", f"{shown}, not synchronised", "warning", advice)
