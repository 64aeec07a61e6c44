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
from agent.features.teaching.taught import FOLDER, damaged_states, read_state
from agent.storage.clips.retention import check_room, check_writable, clips_max_bytes
from agent.storage.state_folder import clips_path, folder_of
from agent.text import local_time, plural

SECTION = "storage and clock"
_RESERVE = 4
"""Factor on the size of the event queue; with less free space the system itself may run out."""
_DAY_S = 86400.0
_CLIPS = "clips folder"
_SWITCH_ON = "switch each stream on, off or to its default: vedette command DEVICE STREAM enabled on"


def findings(config: StorageConfig, root: Path, *, clips: bool = False) -> Iterator[Finding]:
    """Report free space for state and clips, settings made by commands, and the clock."""
    yield check_folder(config, root)
    if clips:
        yield check_clips(config, root)
    yield from check_commands(config, root)
    yield from check_states(config, root)
    yield from check_clock(read_clock(root), time.time(), Path(agent.__file__).stat().st_mtime)


def check_folder(config: StorageConfig, root: Path) -> Finding:
    """Check free space for the state folder."""
    try:
        disk = read_disk(folder_of(config, root))
    except StorageError as error:
        return Finding(SECTION, "state folder", str(error), "warning", str(error))
    if disk is None:
        return Finding(SECTION, "state folder", "not reported by its file system", "warning")
    return check_disk(disk, (config.spool_max_bytes + config.history_max_bytes) >> 20)


def check_clips(config: StorageConfig, root: Path) -> Finding:
    """Check that the clips' folder can be written to and has free space."""
    try:
        folder = clips_path(config, folder_of(config, root))
        disk = read_disk(folder)
        if disk is None:
            return Finding(SECTION, _CLIPS, f"{folder}: not reported by its file system", "warning")
        if not disk.at.is_dir():
            raise StorageError(f"{disk.at}: expected a folder for clips, found a file")
        check_writable(disk.at)
        check_room(folder, config, 0, at=disk.at)
    except StorageError as error:
        return _clips_fault(str(error), error.__cause__)
    most_mb = clips_max_bytes(folder, config) >> 20
    return Finding(SECTION, _CLIPS, f"{folder}, {most_mb} MB of clips at most")


def _clips_fault(what: str, cause: BaseException | None) -> Finding:
    if isinstance(cause, PermissionError) and os.geteuid() != 0:
        advice = "run vedette doctor as the user that runs Vedette, with sudo -u"
        return Finding(SECTION, _CLIPS, what, "warning", advice)
    return Finding(
        SECTION, _CLIPS, what, "problem", "make room there, or set [storage] clips_folder to another place"
    )


def check_commands(config: StorageConfig, root: Path) -> Iterator[Finding]:
    """Report settings made by commands, if this user may read them."""
    try:
        folder = folder_of(config, root)
    except StorageError:
        return  # reported by `check_folder`
    if not os.access(folder, os.R_OK | os.X_OK):
        return
    name = "settings by command"
    try:
        found = OverridesFile(folder).read()
    except StorageError as error:
        yield Finding(SECTION, name, f"lost: {error}", "problem", f"restart Vedette, then {_SWITCH_ON}")
        return
    if lost := found.lost:
        yield Finding(SECTION, name, f"lost; these streams stay off: {', '.join(lost)}", "problem", _SWITCH_ON)
    elif found.streams:
        yield Finding(SECTION, name, f"for {plural(len(found.streams), 'stream')}")


def check_states(config: StorageConfig, root: Path) -> Iterator[Finding]:
    """Report damaged files of taught states, if this user may read them."""
    try:
        folder = folder_of(config, root) / FOLDER
    except StorageError:
        return  # reported by `check_folder`
    if not os.access(folder, os.R_OK | os.X_OK):
        return
    for path in (*sorted(folder.glob("*.*.json")), *damaged_states(folder).values()):
        try:
            if path.suffix == ".json" and read_state(path):
                continue
            what = f"{path}: is damaged"
        except StorageError as error:
            what = str(error)
        stream, state = path.name.split(".")[:2]
        advice = f"teach {state} of {stream} again, or delete that file"
        yield Finding(SECTION, "taught states", what, "problem", advice)


def check_disk(disk: DiskUsage, spool_mb: int) -> Finding:
    """Report whether the state folder's disk has room for the event queue and the history, and is writable."""
    value = f"{disk.free_mb} of {disk.total_mb} MB free at {disk.at}"
    if disk.read_only:
        advice = (
            "find out why the disk is read-only (sudo dmesg | grep -i mmc); a failing SD card must be replaced"
        )
        return Finding(SECTION, "state folder", f"{disk.at} is mounted read-only", "problem", advice)
    if disk.files_left == 0:
        return Finding(SECTION, "state folder", f"{value}, but no free inode", "problem", _room(disk))
    if disk.free_mb < spool_mb:
        return Finding(SECTION, "state folder", value, "problem", _room(disk))
    if disk.free_mb < _RESERVE * spool_mb:
        return Finding(SECTION, "state folder", value, "warning", _room(disk))
    return Finding(SECTION, "state folder", value)


def _room(disk: DiskUsage) -> str:
    return f"make room at {disk.at}: see what takes it with `du -xh {disk.at} | sort -h | tail`"


def check_clock(clock: Clock, now_s: float, installed_s: float) -> Iterator[Finding]:
    """Report whether the clock is right and synchronised.

    Args:
        clock: state of the kernel's clock.
        now_s: Unix time, s.
        installed_s: Unix time at which Vedette was installed, s.
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
