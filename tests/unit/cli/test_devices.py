from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from agent.capture import devices as capture_devices
from agent.capture.devices import CaptureDevice, Devices
from agent.cli.main import vedette


def call(monkeypatch: pytest.MonkeyPatch, found: Devices, *args: str) -> Result:
    monkeypatch.setattr(capture_devices, "devices", lambda: found)
    return CliRunner().invoke(vedette, ["devices", *args], catch_exceptions=False)


def test_none_is_a_sentence_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = call(monkeypatch, Devices([], [], ["Do this."]))
    assert shown.exit_code == 0
    assert shown.output == "No camera was found.\nNo microphone was found.\nDo this.\n"


def test_a_table_with_the_uri_to_paste(monkeypatch: pytest.MonkeyPatch) -> None:
    camera = CaptureDevice("[red]C270\x1b[2J", "MJPG 1280x720", "v4l2:/dev/video0")
    shown = call(monkeypatch, Devices([camera], [], []))
    assert shown.exit_code == 0
    assert "v4l2:/dev/video0" in shown.output
    assert "[red]C270\\x1b[2J" in shown.output
    assert "No microphone was found." in shown.output


def test_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    microphone = CaptureDevice("default", "1 channel", "mic:default")
    shown = json.loads(call(monkeypatch, Devices([], [microphone], ["x"]), "--json").output)
    assert shown == {
        "cameras": [],
        "microphones": [{"name": "default", "offers": "1 channel", "uri": "mic:default"}],
        "missing": ["x"],
    }
