"""Check processor, memory, kernel, devices, accelerators, heat, power supply and versions.

`root` is the root of the file system that is read. No dependency is imported to learn its version: it may be what
is broken.
"""

from __future__ import annotations

import platform
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path

from agent import __version__
from agent.board.firmware import UNDER_VOLTAGE, Supply, ask_firmware, firmware_commands, read_supply
from agent.board.identity import Board, has, known_features, read_board
from agent.board.power import Battery, PowerModel, PowerReading, power_model, read_battery, read_power
from agent.board.proc import CPUFREQ, Frequency, Memory, read_disk, read_frequencies, read_memory
from agent.board.sensors import BackgroundReader
from agent.board.thermal import THERMAL, USUAL_LIMIT_C, Brake, Zone, read_all_zones, read_brakes
from agent.capture.devices import Devices, devices
from agent.capture.portaudio import NOT_PLUGGED
from agent.cli.checks import Finding
from agent.compute.infer.delegates import DelegateProbe, probe_delegates

SECTION = "board"
_SCARCE_MB, _TIGHT_MB = 100, 250
"""Available memory below which the daemon with one detector may be killed, or has no reserve, MB."""
_SMALL_MB = 1024
"""A board with less memory needs swap for updates and compilers."""
_BITS = struct.calcsize("P") * 8


def findings(root: Path) -> Iterator[Finding]:
    """Report model, SoC, processor, memory and kernel of the board."""
    board = read_board(root)
    yield Finding(SECTION, "model", board.model or "not reported by this machine")
    soc = " ".join(filter(None, (board.soc, board.soc_id and f"({board.soc_id})")))
    yield Finding(SECTION, "SoC", soc or "not reported by this machine")
    yield Finding(SECTION, "processor", f"{board.cpu}; {board.cores} for Vedette")
    yield from check_features(board)
    yield from check_memory(read_memory(root))
    shared = read_disk(root / "dev/shm")
    if shared is not None and shared.at == root / "dev/shm":
        yield Finding(SECTION, "shared memory", f"{shared.free_mb} of {shared.total_mb} MB free in /dev/shm")
    yield Finding(SECTION, "kernel", f"{board.kernel} {board.arch}")
    yield check_system(board, _BITS)


def check_features(board: Board) -> Iterator[Finding]:
    """Report which instructions for models the processor has."""
    for feature in known_features(board.arch):
        there = has(feature, board.features)
        names = "+".join(feature.names)
        value = (
            f"{'yes' if there else 'no'} ({names}): {'speeds up' if there else 'would speed up'} {feature.lets}"
        )
        yield Finding(SECTION, feature.title, value)


def check_memory(memory: Memory) -> Iterator[Finding]:
    """Check available memory and swap."""
    if not memory.total_mb:
        yield Finding(SECTION, "memory", "/proc/meminfo cannot be read", "warning", "let vedette read /proc")
        return
    value = f"{memory.available_mb} of {memory.total_mb} MB available"
    advice = "free memory: see what takes it with `top -o %MEM`, or run a smaller variant"
    if memory.available_mb < _SCARCE_MB:
        yield Finding(SECTION, "memory", value, "problem", advice)
    else:
        tight = memory.available_mb < _TIGHT_MB
        yield Finding(SECTION, "memory", value, "warning" if tight else "ok", advice if tight else "")
    if memory.swap_mb:
        yield Finding(SECTION, "swap", f"{memory.swap_free_mb} of {memory.swap_mb} MB free")
    elif memory.total_mb < _SMALL_MB:
        yield Finding(
            SECTION, "swap", "none", "warning", "give this small board swap: sudo apt install zram-tools"
        )
    else:
        yield Finding(SECTION, "swap", "none")


def check_system(board: Board, bits: int) -> Finding:
    """Check that a 64-bit kernel runs a 64-bit system; `bits` is the width of this Python's pointers."""
    value = f"{board.system}, {bits}-bit"
    if bits == 64 or not board.arch.endswith("64"):
        return Finding(SECTION, "system", value)
    advice = "install the 64-bit system: LiteRT, with XNNPACK for INT8, has no 32-bit build"
    return Finding(SECTION, "system", f"{value} on a 64-bit kernel", "warning", advice)


DEVICES_SECTION = "cameras and microphones"


def devices_findings(root: Path) -> Iterator[Finding]:
    """Report the cameras and microphones that are plugged in."""
    yield from check_devices(devices(root / "dev"))


def check_devices(found: Devices) -> Iterator[Finding]:
    """Report each device; none is no problem, because a stream may come from the network."""
    for kind, some in (("camera", found.cameras), ("microphone", found.microphones)):
        for device in some:
            yield Finding(DEVICES_SECTION, kind, f"{device.name}: {device.offers}; source {device.uri}")
        if not some:
            yield Finding(DEVICES_SECTION, kind, "none was found")
    for sentence in found.missing:
        if sentence.endswith(NOT_PLUGGED):
            continue
        yield Finding(DEVICES_SECTION, "not usable", sentence, "warning", sentence)


HARDWARE_SECTION = "hardware to run models on"


def hardware_findings(root: Path) -> Iterator[Finding]:
    """Report every backend that Vedette knows."""
    yield from check_candidates(probe_delegates(root=root))


def check_candidates(found: Sequence[DelegateProbe]) -> Iterator[Finding]:
    """Report each backend and what is missing; a board without an accelerator has no problem."""
    yield Finding(HARDWARE_SECTION, "cpu", "CPU (XNNPACK): always")
    for one in sorted(found, key=lambda one: one.plan is None):
        yield Finding(HARDWARE_SECTION, one.name, f"{one.title}: {_standing(one)}")


def _standing(one: DelegateProbe) -> str:
    if one.plan is not None:
        return f"found ({one.parts[0]})"
    return one.missing.partition(": ")[0] if one.missing.startswith("no device") else one.missing


HEAT_SECTION = "heat and supply"
_LOW_PERCENT = 15
"""Charge of a battery below which it is worth a warning."""
_NEAR_C = 10.0
"""Warn so far below the limit, °C: a hot day may reach it."""
_COOL = "cool the board: a heat sink or a fan, shade, and air through its case"
_POWER = (
    "give the board more power: the maker's own supply (for a Pi 4 5.1 V and 3 A, for a Pi 5 5 A), a short thick"
    " cable, and fewer USB devices"
)


def heat_findings(root: Path, longest_s: float = 20.0) -> Iterator[Finding]:
    """Report heat, processor frequencies and power supply as the kernel gives them.

    Each of these is read in a thread of its own, so that a sensor that hangs leaves what does not need it.

    Args:
        root: of the file system.
        longest_s: time after which a sensor that does not answer is reported instead, s.
    """
    readers = [
        BackgroundReader(f"doctor-{what}", partial(check, root), every_s=longest_s)
        for what, check in _HEAT_CHECKS.items()
    ]
    for reader in readers:
        reader.start()
    ends_s, hanging = time.monotonic() + longest_s, set[Path | None]()
    for reader in readers:
        reader.wait_first(max(0.0, ends_s - time.monotonic()))
        reader.stop()
        found, _ = reader.newest()
        if found is not None:
            yield from found
        elif (path := reader.file) not in hanging:  # several parts may wait for one file
            hanging.add(path)
            yield _without_answer(reader, longest_s)


def _without_answer(reader: BackgroundReader[list[Finding]], waited_s: float) -> Finding:
    if not reader.is_busy:
        return Finding(HEAT_SECTION, "sensors", "an internal error: see above", "warning", "please report it")
    value = f"one has not answered for {waited_s:g} s"
    if (path := reader.file) is not None:
        value = f"{path}{_driver_of(path)} has not answered for {waited_s:g} s"
    advice = (
        "the daemon goes on without this sensor. See `dmesg` for its bus (I²C) or its driver, check its wiring,"
        " and start the board anew; `journalctl -u vedette -g 'sensors of the board'` has since when it hangs"
    )
    return Finding(HEAT_SECTION, "sensors", value, "warning", advice)


def _driver_of(path: Path) -> str:
    """Return the driver of a sensor's file in parentheses; reading a link asks no driver."""
    try:
        return f" (driver {(path.parent / 'device/driver').readlink().name})"
    except OSError:
        return ""


def _read_heat(root: Path) -> list[Finding]:
    return list(check_heat(read_all_zones(root / THERMAL), read_brakes(root / THERMAL)))


def _read_frequencies(root: Path) -> list[Finding]:
    return list(check_frequencies(read_frequencies(root / CPUFREQ)))


def _read_supply(root: Path) -> list[Finding]:
    return list(check_supply(read_supply(root, partial(_ask, root))))


def _read_power(root: Path) -> list[Finding]:
    return list(check_power(read_power(root, partial(_ask, root)), power_model(root), read_battery(root)))


def _ask(root: Path, command: str) -> str:
    return ask_firmware(command) if command in firmware_commands(root) else ""


_HEAT_CHECKS: Mapping[str, Callable[[Path], list[Finding]]] = {
    "heat": _read_heat,
    "frequencies": _read_frequencies,
    "supply": _read_supply,
    "power": _read_power,
}
"""Parts of the section, which are read at the same time."""


def check_heat(zones: Sequence[Zone], brakes: Sequence[Brake]) -> Iterator[Finding]:
    """Report the hottest zone, every zone near its limit, and what is throttled."""
    if not zones:
        yield Finding(HEAT_SECTION, "temperature", "not reported by this kernel")
    hottest = next((zone for zone in zones if zone.is_plausible), None)
    for zone in zones:
        finding = _check_zone(zone)
        if zone is hottest or finding.state != "ok":
            yield finding
    for brake in brakes:
        value = f"slowed by heat, step {brake.step} of {brake.steps}"
        yield Finding(HEAT_SECTION, brake.name, value, "problem", _COOL)


def _check_zone(zone: Zone) -> Finding:
    if not zone.is_plausible:
        value = f"reads {zone.temperature_c:g} °C, which cannot be: left out"
        return Finding(HEAT_SECTION, zone.name, value, "warning", "see `dmesg` for what is wrong with the sensor")
    limit = USUAL_LIMIT_C if zone.limit_c is None else zone.limit_c
    value = f"{zone.temperature_c:.1f} °C; slows from {limit:g} °C on"
    if zone.temperature_c >= limit:
        return Finding(HEAT_SECTION, zone.name, value, "problem", _COOL)
    if zone.temperature_c >= limit - _NEAR_C:
        return Finding(HEAT_SECTION, zone.name, value, "warning", _COOL)
    return Finding(HEAT_SECTION, zone.name, value)


def check_frequencies(frequencies: Sequence[Frequency]) -> Iterator[Finding]:
    """Check the frequency limits of the processors."""
    if not frequencies:
        yield Finding(HEAT_SECTION, "frequency", "not scaled by this kernel")
    for one in frequencies:
        name = f"processor {one.processors}"
        value = f"{one.now_mhz} of {one.most_mhz} MHz, governor {one.governor or 'unknown'}"
        if one.governor == "powersave":
            advice = f"let the processors run fast: echo schedutil | sudo tee /{CPUFREQ}/*/scaling_governor"
            yield Finding(HEAT_SECTION, name, f"{value}: the lowest frequency only", "warning", advice)
        elif 0 < one.allowed_mhz < one.most_mhz:
            advice = "find out what keeps the processors slow: heat, or a setting of scaling_max_freq"
            yield Finding(HEAT_SECTION, name, f"{value}; limited to {one.allowed_mhz} MHz", "warning", advice)
        else:
            remark = "" if one.governor == "performance" else ": faster under load only"
            yield Finding(HEAT_SECTION, name, f"{value}{remark}")


def check_supply(supply: Supply | None) -> Iterator[Finding]:
    """Report throttling flags of a Raspberry Pi's firmware."""
    if supply is None:
        yield Finding(HEAT_SECTION, "supply", "not reported by this kernel")
        return
    for what in supply.now:
        yield Finding(HEAT_SECTION, "supply", f"now: {what}", "problem", _remedy(supply.now))
    for what in supply.before:
        advice = _remedy((*supply.now, *supply.before))
        yield Finding(HEAT_SECTION, "supply", f"since the start: {what}", "warning", advice)
    if not supply.now and not supply.before:
        yield Finding(HEAT_SECTION, "supply", "no throttling reported by the firmware")


def check_power(
    power: PowerReading | None, model: PowerModel | None, battery: Battery | None
) -> Iterator[Finding]:
    """Report the measured power, or what is known of the board's; and the battery."""
    if power is not None:
        yield Finding(HEAT_SECTION, "power", f"{power.watts:.2f} W, measured ({power.source})")
    elif model is not None:
        value = f"not measured; by others {model.idle_w:g} W idle to {model.busy_w:g} W with all cores busy"
        yield Finding(HEAT_SECTION, "power", value)
    else:
        yield Finding(HEAT_SECTION, "power", "not measured")
    if battery is not None:
        charge = "charge unknown" if battery.percent is None else f"{battery.percent} %"
        low = battery.percent is not None and battery.percent <= _LOW_PERCENT and battery.feeds_board
        advice = "charge the battery: the board will go out" if low else ""
        yield Finding(HEAT_SECTION, "battery", f"{charge}, {battery.status}", "warning" if low else "ok", advice)


def _remedy(complaints: Sequence[str]) -> str:
    return _POWER if UNDER_VOLTAGE in complaints else _COOL


RUNTIME_SECTION = "runtime"
_LITERT, _OLDER = "ai-edge-litert", "tflite-runtime"
_NEEDED = (
    ("numpy",),
    (
        "opencv-python-headless",
        "opencv-python",
        "opencv-contrib-python-headless",
        "opencv-contrib-python",
        "opencv",
    ),
    ("paho-mqtt",),
    ("sounddevice",),
)
"""Distributions, each with alternatives that bring the same module."""
Version = Callable[[str], str]


def installed(distribution: str) -> str:
    """Return the version of a distribution; empty if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def runtime_findings(version: Version = installed) -> Iterator[Finding]:
    """Report versions of dependencies, and what is missing; `version` looks up a distribution."""
    yield Finding(RUNTIME_SECTION, "vedette", f"{__version__} in {sys.prefix}")
    yield Finding(RUNTIME_SECTION, "Python", f"{platform.python_version()} at {sys.executable}")
    yield check_runtime(version)
    for names in _NEEDED:
        yield _check_package(names, version)


def check_runtime(version: Version) -> Finding:
    """Report the TFLite runtime."""
    litert, older = version(_LITERT), version(_OLDER)
    if litert:
        beside = f"; {_OLDER} {older} is not used" if older else ""
        return Finding(RUNTIME_SECTION, _LITERT, f"{litert}{beside}")
    if older:
        advice = f"on a 64-bit system, install {_LITERT}: {_OLDER} runs INT8 models without XNNPACK"
        return Finding(RUNTIME_SECTION, _OLDER, older, "warning", advice)
    advice = f"pip install {_LITERT} (64-bit) or '.[tflite]' in the clone (32-bit)"
    return Finding(RUNTIME_SECTION, _LITERT, "no TFLite runtime is installed", "problem", advice)


def _check_package(names: Sequence[str], version: Version) -> Finding:
    for name in names:
        if found := version(name):
            return Finding(RUNTIME_SECTION, name, found)
    return Finding(
        RUNTIME_SECTION, names[0], "is not installed", "problem", f"{sys.executable} -m pip install {names[0]}"
    )
