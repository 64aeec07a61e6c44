"""Cameras and microphones, and what is in the way of others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from agent.capture.choice import NOT_PLUGGED
from agent.capture.devices import Devices, devices
from agent.doctor.report import Finding

SECTION = "cameras and microphones"


def findings(root: Path) -> Iterator[Finding]:
    """What is plugged in.

    Args:
        root: of the file system.
    """
    yield from of_devices(devices(root / "dev"))


def of_devices(found: Devices) -> Iterator[Finding]:
    """A line each. That there is none is no problem: a stream may come from the network."""
    for kind, some in (("camera", found.cameras), ("microphone", found.microphones)):
        for device in some:
            yield Finding(SECTION, kind, f"{device.name}: {device.offers}; source {device.uri}")
        if not some:
            yield Finding(SECTION, kind, "none was found")
    for sentence in found.missing:
        if sentence.endswith(NOT_PLUGGED):
            continue
        yield Finding(SECTION, "not usable", sentence, "warning", sentence)
