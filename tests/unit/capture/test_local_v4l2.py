from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from agent.capture import local
from agent.capture.source import open_source
from agent.config.source_uri import SourceOptions
from agent.errors import SourceError
from agent.types import Image


class Device:
    """A capture that gives 640×480 YUYV at 30 fps, whatever is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, float]] = []

    def set(self, what: int, value: float) -> bool:
        self.asked.append((what, value))
        return False

    def get(self, what: int) -> float:
        return {
            cv2.CAP_PROP_FRAME_WIDTH: 640.0,
            cv2.CAP_PROP_FRAME_HEIGHT: 480.0,
            cv2.CAP_PROP_FPS: 30.0,
            cv2.CAP_PROP_FOURCC: float(cv2.VideoWriter.fourcc(*"YUYV")),
        }[what]


def test_a_camera_that_is_not_there_says_which_are() -> None:
    with pytest.raises(SourceError, match=r"there is no /dev/video77; found .*; is it plugged in"):
        open_source("v4l2:/dev/video77", stall_s=1)


def test_a_device_that_is_no_camera_is_an_error() -> None:
    with pytest.raises(SourceError, match="/dev/null gives no pictures: another program may use it"):
        open_source("v4l2:/dev/null", stall_s=1)


def test_a_camera_that_is_forbidden_names_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(SourceError, match="add it to the group video"):
        open_source("v4l2:/dev/null", stall_s=1)


def test_what_the_camera_gives_otherwise_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = Device()
    monkeypatch.setattr(local, "open_capture", lambda *_: device)
    monkeypatch.setattr(Path, "exists", lambda _: True)
    source = open_source("v4l2:/dev/null?size=1280x720&fps=60&format=MJPG", stall_s=1)
    assert source.description == "640x480 at 30 fps"
    messages = [
        record.getMessage().partition(": ")[2] for record in caplog.records if record.levelname == "WARNING"
    ]
    assert messages == ["the camera does not give the asked size and fps and format"]
    assert device.asked[0][0] == cv2.CAP_PROP_FOURCC, "the format decides which sizes there are"


@pytest.mark.parametrize("options", [SourceOptions(), SourceOptions((640, 480), 30.0, "YUYV")])
def test_a_camera_that_does_as_asked_is_not_mentioned(options: SourceOptions) -> None:
    assert local.refusals(Device(), options) == []  # type: ignore[arg-type]


def test_a_picture_that_is_larger_than_announced_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Growing(Device):
        def retrieve(self, into: Image | None) -> tuple[bool, Image]:
            return True, np.broadcast_to(np.uint8(0), (8000, 8000, 3))

    monkeypatch.setattr(local, "open_capture", lambda *_: Growing())
    source = open_source("v4l2:/dev/null", stall_s=1)
    with pytest.raises(SourceError, match="8000x8000 pixels, 64 megapixels; expected at most 50 megapixels"):
        source.picture(None)


def test_a_camera_with_too_large_pictures_is_refused_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Large(Device):
        released = False

        def get(self, what: int) -> float:
            large = {cv2.CAP_PROP_FRAME_WIDTH: 9248.0, cv2.CAP_PROP_FRAME_HEIGHT: 6944.0}
            return large.get(what) or super().get(what)

        def release(self) -> None:
            self.released = True

    device = Large()
    monkeypatch.setattr(local, "open_capture", lambda *_: device)
    with pytest.raises(
        SourceError, match=r"/dev/null: its pictures have 9248x6944 pixels, 64.2 megapixels; expected"
    ):
        open_source("v4l2:/dev/null", stall_s=1)
    assert device.released
