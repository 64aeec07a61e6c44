"""Streams that open one camera."""

from __future__ import annotations

import pytest

from agent.config import CaptureConfig, StreamConfig
from agent.daemon.check_device import check_not_shared
from agent.errors import ConfigError


def _streams(**other: object) -> dict[str, StreamConfig]:
    capture = {key: value for key, value in other.items() if key != "source"}
    source = str(other.get("source", "v4l2:/dev/video7"))
    return {
        "front": StreamConfig("v4l2:/dev/video7", "nanodet"),
        "faces": StreamConfig(source, "nanodet", capture=CaptureConfig(**capture)),  # type: ignore[arg-type]
    }


def test_streams_of_one_camera_with_the_same_settings_are_accepted() -> None:
    check_not_shared("faces", _streams())
    check_not_shared("faces", _streams(max_fps=2.0))


@pytest.mark.parametrize(
    ("other", "named"),
    [({"stall_s": 3.0}, "capture.stall_s"), ({"source": "v4l2:/dev/video7?fps=5"}, "source")],
)
def test_streams_of_one_camera_with_other_settings_are_told_what_differs(
    other: dict[str, object], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        check_not_shared("faces", _streams(**other))
