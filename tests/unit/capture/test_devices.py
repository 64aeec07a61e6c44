from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.capture import devices as capture_devices
from agent.capture import devices as v4l2
from agent.capture import portaudio
from agent.config.source_uri import parse
from tests.unit.capture.fakesound import FakeSound

_CAPTURE, _METADATA, _DECODER = 0x1, 0x800000, 0x4000


class Kernel:
    """Answers the ioctls of cameras; each device by the name of its file."""

    def __init__(self) -> None:
        self.nodes: dict[str, tuple[str, str, int]] = {}
        self.formats = {b"MJPG": [(640, 480), (1920, 1080), (1280, 720), (320, 240)], b"YUYV": [(640, 480)]}
        self.ranges: dict[bytes, tuple[int, int]] = {}

    def ioctl(self, descriptor: int, request: int, argument: bytes) -> bytes:
        if request == v4l2._QUERYCAP:
            return self._capability(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        if request == v4l2._ENUM_FMT:
            index, kind, *_ = v4l2._FORMAT.unpack(argument)
            code = self._at(list(self.formats), index)
            return v4l2._FORMAT.pack(index, kind, 0, b"", int.from_bytes(code, "little"))
        index, code, *_ = v4l2._SIZE.unpack(argument)
        name = code.to_bytes(4, "little")
        if name in self.ranges:
            width, height = self.ranges[name]
            return v4l2._SIZE.pack(index, code, 3, 32, width, 2, 32, height, 2)
        return v4l2._SIZE.pack(index, code, 1, *self._at(self.formats[name], index), 0, 0, 0, 0)

    def _capability(self, path: str) -> bytes:
        node = self.nodes.get(Path(path).name)
        if node is None:
            raise OSError(25, "Inappropriate ioctl for device")
        driver, card, caps = node
        return v4l2._CAPABILITY.pack(driver.encode(), card.encode(), b"usb", 0, 0x80000000 | 0x1, caps)

    @staticmethod
    def _at(items: list[Any], index: int) -> Any:
        if index >= len(items):
            raise OSError(22, "Invalid argument")
        return items[index]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    answers = Kernel()
    monkeypatch.setattr("fcntl.ioctl", answers.ioctl)
    return answers


@pytest.fixture
def sound(monkeypatch: pytest.MonkeyPatch) -> FakeSound:
    fake = FakeSound()
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    monkeypatch.setattr(capture_devices, "PORTAUDIO", portaudio.PortAudio())
    return fake


def found(folder: Path, *names: str) -> capture_devices.Devices:
    for name in names:
        (folder / name).touch()
    return capture_devices.devices(folder)


def test_cameras_are_listed_and_their_other_nodes_left_out(
    kernel: Kernel, sound: FakeSound, tmp_path: Path
) -> None:
    kernel.nodes = {
        "video0": ("uvcvideo", "C270 HD WEBCAM", _CAPTURE),
        "video1": ("uvcvideo", "C270 HD WEBCAM", _METADATA),
        "video10": ("bcm2835-codec", "bcm2835-codec-decode", _DECODER),
        "video13": ("bcm2835-isp", "bcm2835-isp", _CAPTURE),
        "video2": ("uvcvideo", "Second", _CAPTURE),
    }
    cameras = found(tmp_path, *kernel.nodes, "video99").cameras
    assert [(camera.name, camera.uri) for camera in cameras] == [
        ("C270 HD WEBCAM", f"v4l2:{tmp_path}/video0"),
        ("Second", f"v4l2:{tmp_path}/video2"),
    ]
    assert cameras[0].offers == "MJPG 1920x1080, 1280x720, 640x480, 1 more; YUYV 640x480"


def test_a_camera_of_any_size_tells_the_largest(kernel: Kernel, sound: FakeSound, tmp_path: Path) -> None:
    kernel.nodes = {"video0": ("vivid", "vivid", _CAPTURE)}
    kernel.formats = {b"YUYV": []}
    kernel.ranges = {b"YUYV": (3840, 2160)}
    assert found(tmp_path, "video0").cameras[0].offers == "YUYV 3840x2160"


def test_a_camera_that_this_user_may_not_open_is_said(
    kernel: Kernel, sound: FakeSound, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(capture_devices, "query", denied)
    devices = found(tmp_path, "video0", "video1")
    assert devices.cameras == []
    assert f"{tmp_path}/video0, {tmp_path}/video1: this user may not open it: sudo usermod -aG video" in str(
        devices
    )


def test_a_bare_sensor_needs_libcamera(kernel: Kernel, sound: FakeSound, tmp_path: Path) -> None:
    kernel.nodes = {"video0": ("unicam", "unicam", _CAPTURE)}
    devices = found(tmp_path, "video0")
    assert devices.cameras == []
    assert "a bare sensor, which needs libcamera: sudo apt install python3-picamera2" in devices.missing[0]


def test_picamera2_is_asked_and_not_started(
    kernel: Kernel, sound: FakeSound, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cameras = [
        {"Model": "imx708", "Location": 2, "Id": "/base/soc/i2c0mux/i2c@1/imx708@1a"},
        {"Model": "C270", "Id": "/base/scb/pcie@7d500000/usb@0,0-1.3:1.0-046d:0825"},
    ]
    module = SimpleNamespace(Picamera2=SimpleNamespace(global_camera_info=lambda: cameras), __spec__=object())
    monkeypatch.setitem(sys.modules, "picamera2", module)
    assert [(camera.name, camera.uri) for camera in found(tmp_path).cameras] == [("imx708", "libcamera:0")]
    module.Picamera2.global_camera_info = lambda: 1 / 0
    assert "Picamera2 is installed and does not work: ZeroDivisionError" in found(tmp_path).missing[0]


def test_microphones_are_listed_with_rates_and_a_uri_to_paste(sound: FakeSound, tmp_path: Path) -> None:
    sound.plugged = [
        ("USB PnP Sound: A? (hw:1,0)", 1, 44100, (44100, 48000)),
        ("HDMI", 0, 48000, (48000,)),
        ("Twin", 2, 48000, (16000,)),
        ("Twin", 2, 48000, ()),
        ("default", 64, 44100, (16000, 44100, 48000)),
    ]
    sound.initialise()
    microphones = found(tmp_path).microphones
    assert [(microphone.offers, microphone.uri) for microphone in microphones] == [
        ("1 channel; 44100 Hz, 48000 Hz", "mic:USB PnP Sound: A%3F (hw:1,0)"),
        ("2 channels; 16000 Hz", "mic:2"),
        ("2 channels; no rate now: does another program use it?", "mic:3"),
        ("through a sound server; 16000 Hz, 44100 Hz, 48000 Hz", "mic:default"),
    ]
    for microphone in microphones:
        parse(microphone.uri)


def test_without_microphones_it_is_said_what_may_be_wrong(sound: FakeSound, tmp_path: Path) -> None:
    sound.plugged = []
    sound.initialise()
    assert found(tmp_path).missing == [f"microphones: {portaudio.NOT_PLUGGED}"]


def test_without_portaudio_cameras_are_listed_all_the_same(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise OSError("PortAudio library not found")

    monkeypatch.setattr(capture_devices, "PORTAUDIO", portaudio.PortAudio())
    monkeypatch.setattr("importlib.import_module", missing)
    kernel.nodes = {"video0": ("uvcvideo", "C270", _CAPTURE)}
    devices = found(tmp_path, "video0")
    assert len(devices.cameras) == 1
    assert devices.missing == [
        "microphones: expected PortAudio; it is not installed: sudo apt install libportaudio2."
    ]
