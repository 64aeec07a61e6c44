from __future__ import annotations

from pathlib import Path

import pytest

from agent.capture.devices import CaptureDevice, Devices
from agent.capture.portaudio import NOT_PLUGGED
from agent.cli.checks import Finding, board


def found(monkeypatch: pytest.MonkeyPatch, devices: Devices) -> list[Finding]:
    monkeypatch.setattr(board, "devices", lambda _: devices)
    return list(board.check_devices(Path("/")))


def test_what_is_plugged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    camera = CaptureDevice("C270", "MJPG 1280x720", "v4l2:/dev/video0")
    (one, other) = found(monkeypatch, Devices([camera], [], [f"microphones: {NOT_PLUGGED}"]))
    assert one.value == "C270: MJPG 1280x720; source v4l2:/dev/video0"
    assert (other.name, other.value, other.state) == ("microphone", "none was found", "ok")


def test_what_may_not_be_opened_is_a_warning_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = "/dev/video0: this user may not open it: sudo usermod -aG video pi, and log in again."
    (*_, last) = found(monkeypatch, Devices([], [], [sentence]))
    assert (last.state, last.advice) == ("warning", sentence)
