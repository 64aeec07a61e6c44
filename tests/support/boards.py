"""Boards as their kernels show them: folders with what stands in `/proc` and `/sys`."""

from __future__ import annotations

from pathlib import Path

_PROCESSOR = """processor\t: {number}
BogoMIPS\t: 108.00
Features\t: {features}
CPU implementer\t: {maker:#04x}
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: {part:#05x}
CPU revision\t: 3

"""
A72 = "fp asimd evtstrm crc32 cpuid"
A76 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
MEMINFO = """MemTotal:        3884368 kB
MemFree:          210000 kB
MemAvailable:    3072000 kB
SwapTotal:        204796 kB
SwapFree:         102398 kB
HugePages_Total:       0
"""


def write(root: Path, files: dict[str, str]) -> Path:
    """Put files below a root."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def battery(root: Path, name: str = "BAT0", **files: str) -> Path:
    """A battery, with what stands in its files."""
    place = f"sys/class/power_supply/{name}"
    return write(root, {f"{place}/type": "Battery\n", **{f"{place}/{key}": text for key, text in files.items()}})


def zones(root: Path, **celsius: float) -> Path:
    """Thermal zones by type; `_` stands for `-`."""
    for number, (name, value) in enumerate(celsius.items()):
        place = f"sys/class/thermal/thermal_zone{number}"
        write(root, {f"{place}/type": name.replace("_", "-"), f"{place}/temp": f"{round(value * 1000)}\n"})
    return root


def cpuinfo(*processors: tuple[int, int, str]) -> str:
    """As `/proc/cpuinfo` of an ARM board: of each processor its maker, part and features."""
    return "".join(
        _PROCESSOR.format(number=number, maker=maker, part=part, features=features)
        for number, (maker, part, features) in enumerate(processors)
    )


def pi4(root: Path) -> Path:
    """A Raspberry Pi 4B that is well."""
    return write(
        root,
        {
            "proc/cpuinfo": cpuinfo(*[(0x41, 0xD08, A72)] * 4) + "Revision\t: c03111\nModel\t: Raspberry Pi 4\n",
            "proc/meminfo": MEMINFO,
            "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.1\0",
            "proc/device-tree/compatible": "raspberrypi,4-model-b\0brcm,bcm2711\0",
            "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
            "sys/devices/system/cpu/possible": "0-3\n",
            "sys/devices/system/cpu/present": "0-3\n",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "48686\n",
            "sys/class/thermal/thermal_zone0/trip_point_0_type": "critical\n",
            "sys/class/thermal/thermal_zone0/trip_point_0_temp": "110000\n",
            "sys/devices/system/cpu/cpufreq/policy0/related_cpus": "0 1 2 3\n",
            "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "600000\n",
            "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1800000\n",
            "sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq": "1800000\n",
            "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "ondemand\n",
            "sys/devices/platform/soc/soc:firmware/get_throttled": "0\n",
        },
    )
