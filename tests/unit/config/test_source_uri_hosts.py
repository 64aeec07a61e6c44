from __future__ import annotations

import pytest

from agent.capture.supervisor import longest_pause_s
from agent.config import CaptureConfig
from agent.config.source_uri import is_local, parse

LOCAL = (
    "localhost",
    "127.0.0.1",
    "::1",
    "10.1.2.3",
    "192.168.0.9",
    "172.16.0.1",
    "169.254.1.1",
    "fd00::1",
    "fe80::1%eth0",
)
NAMED = ("camera", "Camera.LOCAL", "cam.local.", "nas.lan", "nas.home.arpa")
ELSEWHERE = ("8.8.8.8", "2001:4860:4860::8888", "172.32.0.1", "broker.example.org", "local.example.org")


@pytest.mark.parametrize("host", [*LOCAL, *NAMED])
def test_near(host: str) -> None:
    assert is_local(host)


@pytest.mark.parametrize("host", ELSEWHERE)
def test_elsewhere(host: str) -> None:
    assert not is_local(host)


@pytest.mark.parametrize(
    ("uri", "longest_s"),
    [
        ("rtsp://admin:secret@192.168.1.20:554/stream", 5.0),
        ("http://camera.local/mjpeg", 5.0),
        ("rtsps://cameras.example.org/1", 30.0),
        ("v4l2:/dev/video0", 5.0),
        ("mic:default", 5.0),
    ],
)
def test_a_camera_of_the_local_network_is_tried_again_after_5_s_at_most(uri: str, longest_s: float) -> None:
    address = parse(uri)
    assert longest_pause_s(address, CaptureConfig()) == longest_s
    assert longest_pause_s(address, CaptureConfig(reopen_max_s=12.0)) == 12.0
