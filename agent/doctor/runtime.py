"""The programs that Vedette stands on, and their versions. None is imported: one may be what is broken."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata

from agent import __version__
from agent.doctor.report import Finding

SECTION = "runtime"
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
"""Distributions, each with others that bring the same module."""
Version = Callable[[str], str]


def installed(distribution: str) -> str:
    """The version of a distribution; empty: it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def findings(version: Version = installed) -> Iterator[Finding]:
    """Versions, and what is missing.

    Args:
        version: of a distribution, see `installed`.
    """
    yield Finding(SECTION, "vedette", f"{__version__} in {sys.prefix}")
    yield Finding(SECTION, "Python", f"{platform.python_version()} at {sys.executable}")
    yield of_runtime(version)
    for names in _NEEDED:
        yield _of_package(names, version)


def of_runtime(version: Version) -> Finding:
    """What runs the models."""
    litert, older = version(_LITERT), version(_OLDER)
    if litert:
        beside = f"; {_OLDER} {older} is not used" if older else ""
        return Finding(SECTION, _LITERT, f"{litert}{beside}")
    if older:
        advice = f"on a 64-bit system, install {_LITERT}: {_OLDER} runs INT8 models without XNNPACK"
        return Finding(SECTION, _OLDER, older, "warning", advice)
    advice = f"pip install {_LITERT} (64-bit) or '.[tflite]' in the clone (32-bit)"
    return Finding(SECTION, _LITERT, "no TFLite runtime is installed", "problem", advice)


def _of_package(names: Sequence[str], version: Version) -> Finding:
    for name in names:
        if found := version(name):
            return Finding(SECTION, name, found)
    return Finding(
        SECTION, names[0], "is not installed", "problem", f"{sys.executable} -m pip install {names[0]}"
    )
