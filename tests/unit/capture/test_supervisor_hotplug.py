"""A device that is plugged in is noticed, by its node."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from agent.capture.supervisor import HotplugProbe
from agent.config.source_uri import SourceUri, parse


def camera(node: Path) -> SourceUri:
    return replace(parse("v4l2:/dev/video0"), target=str(node))


def test_a_camera_is_plugged_in_when_its_node_appears(tmp_path: Path) -> None:
    node = tmp_path / "video0"
    plug = HotplugProbe(camera(node))
    assert not plug.appeared()
    node.touch()
    assert plug.appeared()
    assert not plug.appeared()
    node.unlink()
    assert not plug.appeared()
    node.touch()
    assert plug.appeared()


def test_a_camera_that_was_there_is_not_plugged_in(tmp_path: Path) -> None:
    (tmp_path / "video0").touch()
    assert not HotplugProbe(camera(tmp_path / "video0")).appeared()


def test_a_microphone_is_any_new_node_that_captures(tmp_path: Path) -> None:
    (tmp_path / "pcmC0D0c").touch()
    plug = HotplugProbe(parse("mic:default"), tmp_path)
    (tmp_path / "pcmC1D0p").touch()
    assert not plug.appeared()
    (tmp_path / "pcmC1D0c").touch()
    assert plug.appeared()


@pytest.mark.parametrize("uri", ["rtsp://camera.local/", "libcamera:0", "mic:default"])
def test_what_has_no_node_is_never_plugged_in(uri: str, tmp_path: Path) -> None:
    plug = HotplugProbe(parse(uri), tmp_path / "none")
    assert not plug.appeared()
