"""Heat, frequencies and the power supply: what slows a board that has nothing broken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from agent.doctor.report import Finding
from agent.health.frequency import CPUFREQ, Frequency, read_frequencies
from agent.health.supply import UNDER_VOLTAGE, Supply, read_supply
from agent.health.thermal import THERMAL, Brake, Zone, read_brakes, read_zones

SECTION = "heat and supply"
_HOT_C = 80.0
"""Where a Raspberry Pi begins to slow its processors, and its kernel tells of no limit; source:
https://www.raspberrypi.com/documentation/computers/raspberry-pi.html#frequency-management-and-thermal-control"""
_NEAR_C = 10.0
"""So far below the limit a summer's day suffices."""
_COOL = "cool the board: a heat sink or a fan, shade, and air through its case"
_POWER = (
    "give the board more power: the maker's own supply (for a Pi 4 5.1 V and 3 A, for a Pi 5 5 A), a short thick"
    " cable, and fewer USB devices"
)


def findings(root: Path) -> Iterator[Finding]:
    """What the kernel tells of heat, frequencies and supply.

    Args:
        root: of the file system.
    """
    yield from of_heat(read_zones(root / THERMAL), read_brakes(root / THERMAL))
    yield from of_frequencies(read_frequencies(root / CPUFREQ))
    yield from of_supply(read_supply(root))


def of_heat(zones: Sequence[Zone], brakes: Sequence[Brake]) -> Iterator[Finding]:
    """The hottest zone, every other that is near its limit, and what is slowed."""
    if not zones:
        yield Finding(SECTION, "temperature", "this kernel does not tell")
    for number, zone in enumerate(zones):
        finding = _of_zone(zone)
        if number == 0 or finding.state != "ok":
            yield finding
    for brake in brakes:
        value = f"slowed by heat, step {brake.step} of {brake.steps}"
        yield Finding(SECTION, brake.name, value, "problem", _COOL)


def _of_zone(zone: Zone) -> Finding:
    limit = _HOT_C if zone.limit_c is None else zone.limit_c
    value = f"{zone.temperature_c:.1f} °C; slows from {limit:g} °C on"
    if zone.temperature_c >= limit:
        return Finding(SECTION, zone.name, value, "problem", _COOL)
    if zone.temperature_c >= limit - _NEAR_C:
        return Finding(SECTION, zone.name, value, "warning", _COOL)
    return Finding(SECTION, zone.name, value)


def of_frequencies(frequencies: Sequence[Frequency]) -> Iterator[Finding]:
    """Whether the processors may run as fast as they can."""
    if not frequencies:
        yield Finding(SECTION, "frequency", "this kernel does not scale it")
    for one in frequencies:
        name = f"processor {one.processors}"
        value = f"{one.now_mhz} of {one.most_mhz} MHz, governor {one.governor or 'unknown'}"
        if one.governor == "powersave":
            advice = f"let the processors run fast: echo schedutil | sudo tee /{CPUFREQ}/*/scaling_governor"
            yield Finding(SECTION, name, f"{value}: the lowest frequency only", "warning", advice)
        elif 0 < one.allowed_mhz < one.most_mhz:
            advice = "find out what keeps the processors slow: heat, or a setting of scaling_max_freq"
            yield Finding(SECTION, name, f"{value}; not allowed more than {one.allowed_mhz}", "warning", advice)
        else:
            remark = "" if one.governor == "performance" else ": faster under load only"
            yield Finding(SECTION, name, f"{value}{remark}")


def of_supply(supply: Supply | None) -> Iterator[Finding]:
    """What a Raspberry Pi's firmware complains of."""
    if supply is None:
        yield Finding(SECTION, "supply", "this kernel does not tell")
        return
    for what in supply.now:
        yield Finding(SECTION, "supply", f"now: {what}", "problem", _remedy(supply.now))
    for what in supply.before:
        advice = _remedy((*supply.now, *supply.before))
        yield Finding(SECTION, "supply", f"since the start: {what}", "warning", advice)
    if not supply.now and not supply.before:
        yield Finding(SECTION, "supply", "the firmware has no complaint")


def _remedy(complaints: Sequence[str]) -> str:
    """What slows a board that has too little power is not its heat."""
    return _POWER if UNDER_VOLTAGE in complaints else _COOL
