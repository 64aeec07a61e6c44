"""Check processor, memory, kernel, devices, accelerators, heat, power supply, versions, storage and the clock.

`root` is the root of the file system that is read. No dependency is imported to learn its version: it may be what
is broken.
"""

from __future__ import annotations

import os
import platform
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import agent
from agent import __version__
from agent.board.firmware import UNDER_VOLTAGE, Supply, ask_firmware, firmware_commands, read_supply
from agent.board.identity import Board, read_board
from agent.board.power import Battery, PowerModel, PowerReading, power_model, read_battery, read_power
from agent.board.proc import (
    CPUFREQ,
    Clock,
    DiskUsage,
    Frequency,
    Memory,
    read_clock,
    read_disk,
    read_frequencies,
    read_memory,
)
from agent.board.thermal import THERMAL, USUAL_LIMIT_C, Brake, Zone, read_all_zones, read_brakes
from agent.capture.devices import devices
from agent.capture.portaudio import NOT_PLUGGED
from agent.cli.checks import Finding, Job, State, run_parallel
from agent.compute.infer.delegates import probe_delegates
from agent.config import Config, StorageConfig
from agent.daemon.overrides import OverridesFile
from agent.errors import StorageError
from agent.storage.clips.store import check_saving, clips_max_bytes
from agent.storage.state import clips_path, folder_of
from agent.text import local_time, plural

_SCARCE_MB, _TIGHT_MB = 100, 250
"""Available memory below which the daemon with one detector may be killed, or has no reserve, MB."""
_SMALL_MB = 1024
"""A board with less memory needs swap for updates and compilers."""
_BITS = struct.calcsize("P") * 8


def check_board(root: Path) -> Iterator[Finding]:
    """Report model, SoC, processor, memory and kernel of the board."""
    board = read_board(root)
    yield Finding("model", board.model or "not reported by this machine")
    soc = " ".join(filter(None, (board.soc, board.soc_id and f"({board.soc_id})")))
    yield Finding("SoC", soc or "not reported by this machine")
    yield Finding("processor", f"{board.cpu}; {board.cores} for Vedette")
    yield from check_memory(read_memory(root))
    yield check_system(board, _BITS)


def check_memory(memory: Memory) -> Iterator[Finding]:
    """Check available memory and swap."""
    if not memory.total_mb:
        yield Finding("memory", "/proc/meminfo cannot be read", "warning", "let vedette read /proc")
        return
    value = f"{memory.available_mb} of {memory.total_mb} MB available"
    if memory.available_mb < _TIGHT_MB:
        state: State = "problem" if memory.available_mb < _SCARCE_MB else "warning"
        advice = "free memory: see what takes it with `top -o %MEM`, or run a smaller variant"
        yield Finding("memory", value, state, advice)
    else:
        yield Finding("memory", value)
    if memory.swap_mb:
        yield Finding("swap", f"{memory.swap_free_mb} of {memory.swap_mb} MB free")
    elif memory.total_mb < _SMALL_MB:
        yield Finding("swap", "none", "warning", "give this small board swap: sudo apt install zram-tools")


def check_system(board: Board, bits: int) -> Finding:
    """Check that a 64-bit kernel runs a 64-bit system; `bits` is the width of this Python's pointers."""
    value = f"{board.system}, {bits}-bit; kernel {board.kernel} {board.arch}"
    if bits == 64 or not board.arch.endswith("64"):
        return Finding("system", value)
    advice = "install the 64-bit system: LiteRT, with XNNPACK for INT8, has no 32-bit build"
    return Finding("system", value, "warning", advice)


def check_devices(root: Path) -> Iterator[Finding]:
    """Report each camera and microphone; none is no problem, because a stream may come from the network."""
    found = devices(root / "dev")
    for kind, some in (("camera", found.cameras), ("microphone", found.microphones)):
        for device in some:
            yield Finding(kind, f"{device.name}: {device.offers}; source {device.uri}")
        if not some:
            yield Finding(kind, "none was found")
    for sentence in found.missing:
        if not sentence.endswith(NOT_PLUGGED):
            yield Finding("not usable", sentence, "warning", sentence)


def check_hardware(root: Path) -> Iterator[Finding]:
    """Report each backend that is here, or lacks software; a board without an accelerator has no problem."""
    yield Finding("cpu", "CPU (XNNPACK): always")
    absent = []
    for probe in sorted(probe_delegates(root=root), key=lambda probe: probe.plan is None):
        if probe.plan is not None:
            yield Finding(probe.name, f"{probe.title}: found ({probe.parts[0]})")
        elif probe.missing.startswith("no device"):
            absent.append(probe.name)
        else:
            yield Finding(probe.name, f"{probe.title}: {probe.missing}")
    if absent:
        yield Finding("without a device", ", ".join(absent))


_LOW_PERCENT = 15
"""Charge of a battery below which it is worth a warning."""
_NEAR_C = 10.0
"""Warn so far below the limit, °C: a hot day may reach it."""
_COOL = "cool the board: a heat sink or a fan, shade, and air through its case"
_POWER = (
    "give the board more power: the maker's own supply (for a Pi 4 5.1 V and 3 A, for a Pi 5 5 A), a short thick"
    " cable, and fewer USB devices"
)


def check_sensors(root: Path, longest_s: float = 20.0) -> Iterator[Finding]:
    """Report heat, processor frequencies and power supply as the kernel gives them.

    Each of these is read in a thread of its own, so that a sensor that hangs leaves what does not need it.

    Args:
        root: of the file system.
        longest_s: time after which a sensor that does not answer is reported instead, s.
    """

    def ask(command: str) -> str:
        return ask_firmware(command) if command in firmware_commands(root) else ""

    jobs: list[tuple[str, Job]] = [
        ("heat", lambda: check_heat(read_all_zones(root / THERMAL), read_brakes(root / THERMAL))),
        ("frequencies", lambda: check_frequencies(read_frequencies(root / CPUFREQ))),
        ("supply", lambda: check_supply(read_supply(root, ask))),
        ("power", lambda: check_power(read_power(root, ask), power_model(root), read_battery(root))),
    ]
    yield from run_parallel(jobs, longest_s, _without_answer)


def _without_answer(part: str, waited_s: float) -> Finding:
    advice = (
        "the daemon goes on without this sensor. See `dmesg` for its bus (I²C) or its driver, check its wiring,"
        " and start the board anew; `journalctl -u vedette -g 'sensors of the board'` has the file and the time"
    )
    return Finding("sensors", f"{part}: one has not answered for {waited_s:g} s", "warning", advice)


def check_heat(zones: Sequence[Zone], brakes: Sequence[Brake]) -> Iterator[Finding]:
    """Report the hottest zone, every zone near its limit, and what is throttled."""
    hottest = next((zone for zone in zones if zone.is_plausible), None)
    for zone in zones:
        finding = _check_zone(zone)
        if zone is hottest or finding.state != "ok":
            yield finding
    for brake in brakes:
        value = f"slowed by heat, step {brake.step} of {brake.steps}"
        yield Finding(brake.name, value, "problem", _COOL)


def _check_zone(zone: Zone) -> Finding:
    if not zone.is_plausible:
        value = f"reads {zone.temperature_c:g} °C, which cannot be: left out"
        return Finding(zone.name, value, "warning", "see `dmesg` for what is wrong with the sensor")
    limit = USUAL_LIMIT_C if zone.limit_c is None else zone.limit_c
    value = f"{zone.temperature_c:.1f} °C; slows from {limit:g} °C on"
    if zone.temperature_c >= limit:
        return Finding(zone.name, value, "problem", _COOL)
    if zone.temperature_c >= limit - _NEAR_C:
        return Finding(zone.name, value, "warning", _COOL)
    return Finding(zone.name, value)


def check_frequencies(frequencies: Sequence[Frequency]) -> Iterator[Finding]:
    """Check the frequency limits of the processors."""
    for one in frequencies:
        name = f"processor {one.processors}"
        value = f"{one.now_mhz} of {one.most_mhz} MHz, governor {one.governor or 'unknown'}"
        if one.governor == "powersave":
            advice = f"let the processors run fast: echo schedutil | sudo tee /{CPUFREQ}/*/scaling_governor"
            yield Finding(name, f"{value}: the lowest frequency only", "warning", advice)
        elif 0 < one.allowed_mhz < one.most_mhz:
            advice = "find out what keeps the processors slow: heat, or a setting of scaling_max_freq"
            yield Finding(name, f"{value}; limited to {one.allowed_mhz} MHz", "warning", advice)
        else:
            remark = "" if one.governor == "performance" else ": faster under load only"
            yield Finding(name, f"{value}{remark}")


def check_supply(supply: Supply | None) -> Iterator[Finding]:
    """Report throttling flags of a Raspberry Pi's firmware."""
    if supply is None:
        return
    for what in supply.now:
        yield Finding("supply", f"now: {what}", "problem", _remedy(supply.now))
    for what in supply.before:
        advice = _remedy((*supply.now, *supply.before))
        yield Finding("supply", f"since the start: {what}", "warning", advice)
    if not supply.now and not supply.before:
        yield Finding("supply", "no throttling reported by the firmware")


def check_power(
    power: PowerReading | None, model: PowerModel | None, battery: Battery | None
) -> Iterator[Finding]:
    """Report the measured power, or what is known of the board's; and the battery."""
    if power is not None:
        yield Finding("power", f"{power.watts:.2f} W, measured ({power.source})")
    elif model is not None:
        value = f"not measured; by others {model.idle_w:g} W idle to {model.busy_w:g} W with all cores busy"
        yield Finding("power", value)
    else:
        yield Finding("power", "not measured")
    if battery is not None:
        charge = "charge unknown" if battery.percent is None else f"{battery.percent} %"
        low = battery.percent is not None and battery.percent <= _LOW_PERCENT and battery.feeds_board
        advice = "charge the battery: the board will go out" if low else ""
        yield Finding("battery", f"{charge}, {battery.status}", "warning" if low else "ok", advice)


def _remedy(complaints: Sequence[str]) -> str:
    return _POWER if UNDER_VOLTAGE in complaints else _COOL


_LITERT, _OLDER = "ai-edge-litert", "tflite-runtime"
_OPENCV = ("-python-headless", "-python", "-contrib-python-headless", "-contrib-python", "")
_NEEDED = (("numpy",), tuple(f"opencv{name}" for name in _OPENCV), ("paho-mqtt",), ("sounddevice",))
"""Distributions, each with alternatives that bring the same module."""
Version = Callable[[str], str]


def installed(distribution: str) -> str:
    """Return the version of a distribution; empty if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def check_runtime(version: Version = installed) -> Iterator[Finding]:
    """Report versions of dependencies, and what is missing; `version` looks up a distribution."""
    yield Finding("vedette", f"{__version__} in {sys.prefix}")
    yield Finding("Python", f"{platform.python_version()} at {sys.executable}")
    if litert := version(_LITERT):
        yield Finding(_LITERT, litert)
    elif older := version(_OLDER):
        advice = f"on a 64-bit system, install {_LITERT}: {_OLDER} runs INT8 models without XNNPACK"
        yield Finding(_OLDER, older, "warning", advice)
    else:
        advice = f"pip install {_LITERT} (64-bit) or '.[tflite]' in the clone (32-bit)"
        yield Finding(_LITERT, "no TFLite runtime is installed", "problem", advice)
    found = []
    for names in _NEEDED:
        name = next((name for name in names if version(name)), "")
        if name:
            found.append(f"{name} {version(name)}")
        else:
            advice = f"{sys.executable} -m pip install {names[0]}"
            yield Finding(names[0], "is not installed", "problem", advice)
    yield Finding("packages", ", ".join(found))


_RESERVE = 4
"""Factor on the size of the event queue; with less free space the system itself may run out."""
_DAY_S = 86400.0
_CLIPS = "clips folder"
_SWITCH_ON = "switch each stream on, off or to its default: vedette command DEVICE STREAM enabled on"


def check_storage(config: Config, root: Path) -> Iterator[Finding]:
    """Report free space for state and clips, settings made by commands, and the clock."""
    storage = config.storage
    yield check_folder(storage, root)
    if any(stream.clips is not None for stream in config.streams.values()):
        yield check_clips(storage, root)
    yield from check_commands(storage, root)
    yield from check_clock(read_clock(root), time.time(), Path(agent.__file__).stat().st_mtime)


def check_folder(config: StorageConfig, root: Path) -> Finding:
    """Check free space for the state folder."""
    try:
        disk = read_disk(folder_of(config, root))
    except StorageError as error:
        return Finding("state folder", str(error), "warning", str(error))
    if disk is None:
        return Finding("state folder", "not reported by its file system", "warning")
    return check_disk(disk, (config.spool_max_bytes + config.history_max_bytes) >> 20)


def check_clips(config: StorageConfig, root: Path) -> Finding:
    """Check that the clips' folder can be written to and has free space."""
    try:
        folder = clips_path(config, folder_of(config, root))
        disk = read_disk(folder)
        if disk is None:
            return Finding(_CLIPS, f"{folder}: not reported by its file system", "warning")
        if not disk.at.is_dir():
            raise StorageError(f"{disk.at}: expected a folder for clips, found a file")
        check_saving(folder, config, 0, disk.at)
    except StorageError as error:
        if isinstance(error.__cause__, PermissionError) and os.geteuid() != 0:
            return Finding(_CLIPS, str(error), "warning", "run vedette doctor with sudo, or as the daemon's user")
        advice = "make room there, or set [storage] clips_folder to another place"
        return Finding(_CLIPS, str(error), "problem", advice)
    most_mb = clips_max_bytes(folder, config) >> 20
    return Finding(_CLIPS, f"{folder}, {most_mb} MB of clips at most")


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
        yield Finding(name, f"lost: {error}", "problem", f"restart Vedette, then {_SWITCH_ON}")
        return
    if lost := found.lost:
        yield Finding(name, f"lost; these streams stay off: {', '.join(lost)}", "problem", _SWITCH_ON)
    elif found.streams:
        yield Finding(name, f"for {plural(len(found.streams), 'stream')}")


def check_disk(disk: DiskUsage, spool_mb: int) -> Finding:
    """Report whether the state folder's disk has room for the event queue and the history, and is writable."""
    value = f"{disk.free_mb} of {disk.total_mb} MB free at {disk.at}"
    if disk.read_only:
        advice = (
            "find out why the disk is read-only (sudo dmesg | grep -i mmc); a failing SD card must be replaced"
        )
        return Finding("state folder", f"{disk.at} is mounted read-only", "problem", advice)
    if disk.files_left == 0:
        return Finding("state folder", f"{value}, but no free inode", "problem", _room(disk))
    if disk.free_mb < spool_mb:
        return Finding("state folder", value, "problem", _room(disk))
    if disk.free_mb < _RESERVE * spool_mb:
        return Finding("state folder", value, "warning", _room(disk))
    return Finding("state folder", value)


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
        yield Finding("clock", f"{shown}: before Vedette was installed", "problem", advice)
    elif clock.synchronised is None:
        yield Finding("clock", f"{shown}; the kernel does not report whether it is synchronised")
    elif clock.synchronised:
        yield Finding("clock", f"{shown}, synchronised")
    else:
        yield Finding("clock", f"{shown}, not synchronised", "warning", advice)
