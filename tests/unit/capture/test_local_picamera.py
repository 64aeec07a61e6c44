from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from agent.capture.source import open_source
from agent.errors import SourceError


class Request:
    """One buffer of the camera."""

    def __init__(self, camera: Picamera2) -> None:
        self.camera = camera
        camera.out += 1

    def make_array(self, name: str) -> Any:
        assert name == "main"
        return np.full((48, 64, 3), 7, np.uint8)

    def release(self) -> None:
        self.camera.out -= 1


class Picamera2:
    """The part of Picamera2 that is used, without a camera."""

    fails: ClassVar[str] = ""
    last: ClassVar[Picamera2]

    def __init__(self, number: int) -> None:
        self.out, self.closed = 0, False
        self.settings: dict[str, Any] = {}
        Picamera2.last = self

    @staticmethod
    def global_camera_info() -> list[dict[str, str]]:
        return [{"Model": "imx708"}]

    def create_video_configuration(self, **settings: Any) -> dict[str, Any]:
        return settings

    def configure(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def start(self) -> None:
        if self.fails == "start":
            raise RuntimeError("Failed to acquire camera")

    def capture_request(self) -> Request:
        if self.fails == "capture":
            raise RuntimeError("Camera frontend has timed out")
        return Request(self)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> type[Picamera2]:
    monkeypatch.setitem(sys.modules, "picamera2", SimpleNamespace(Picamera2=Picamera2))
    monkeypatch.setattr(Picamera2, "fails", "")
    return Picamera2


def test_without_picamera2_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "picamera2", None)
    with pytest.raises(SourceError, match="sudo apt install python3-picamera2"):
        open_source("libcamera:0", stall_s=1)


def test_a_camera_that_is_not_there_says_which_are(library: type[Picamera2]) -> None:
    with pytest.raises(SourceError, match=r"expected camera 2; found 0 \(imx708\)"):
        open_source("libcamera:2", stall_s=1)


def test_pictures_come_and_every_buffer_goes_back(library: type[Picamera2]) -> None:
    source = open_source("libcamera:0?size=640x480&fps=15", stall_s=1)
    camera = library.last
    assert camera.settings == {"main": {"size": (640, 480), "format": "RGB888"}, "controls": {"FrameRate": 15.0}}
    image = source.read(None)
    assert image is not None
    assert source.read(image) is image
    assert camera.out == 0
    source.grab()
    source.grab()
    assert camera.out == 1
    source.close()
    assert camera.closed
    assert camera.out == 0
    assert (source.live, source.order) == (True, "bgr")


def test_a_camera_that_cannot_be_started_is_an_error(
    library: type[Picamera2], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "fails", "start")
    with pytest.raises(SourceError, match="Failed to acquire camera"):
        open_source("libcamera:0", stall_s=1)
    assert library.last.closed


def test_a_camera_that_fails_is_an_error(library: type[Picamera2], monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source("libcamera:0", stall_s=1)
    monkeypatch.setattr(library, "fails", "capture")
    with pytest.raises(SourceError, match="timed out"):
        source.read(None)
