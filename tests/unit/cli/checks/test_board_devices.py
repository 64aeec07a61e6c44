from __future__ import annotations

from agent.capture.devices import CaptureDevice, Devices
from agent.capture.portaudio import NOT_PLUGGED
from agent.cli.checks.board import check_devices


def test_what_is_plugged_in() -> None:
    camera = CaptureDevice("C270", "MJPG 1280x720", "v4l2:/dev/video0")
    (one, other) = check_devices(Devices([camera], [], [f"microphones: {NOT_PLUGGED}"]))
    assert one.value == "C270: MJPG 1280x720; source v4l2:/dev/video0"
    assert (other.name, other.value, other.state) == ("microphone", "none was found", "ok")


def test_what_may_not_be_opened_is_a_warning_that_says_what_to_do() -> None:
    sentence = "/dev/video0: this user may not open it: sudo usermod -aG video pi, and log in again."
    (*_, last) = check_devices(Devices([], [], [sentence]))
    assert (last.state, last.advice) == ("warning", sentence)
