"""Values that are allowed, but hardly meant."""

from __future__ import annotations

from typing import Any

import pytest

from agent.config import ClipsConfig, Config, StorageConfig, StreamConfig
from agent.config.capture import CaptureConfig
from agent.config.doubtful import doubts, of_sound_model
from agent.config.filters import FilterConfig
from agent.config.governor import ServiceConfig
from agent.structs import convert


def told(source: str = "v4l2:/dev/video0", **keys: Any) -> list[tuple[tuple[str | int, ...], str]]:
    stream = StreamConfig(source=source, model="nanodet", **keys)
    return [(one.keys, one.text) for one in doubts(Config(streams={"front": stream}))]


def test_what_is_meant_is_not_doubted() -> None:
    assert told() == []
    assert told(service=ServiceConfig(min_fps=8.0), capture=CaptureConfig(max_fps=8.0)) == []


def test_a_promise_of_more_than_is_let_through_is_doubted() -> None:
    (keys, text), *more = told(service=ServiceConfig(min_fps=8.0), capture=CaptureConfig(max_fps=2.0))
    assert (keys, more) == (("streams", "front", "service", "min_fps"), [])
    assert text == "8 is more than capture.max_fps (2) lets through"


def test_a_filter_without_a_bound_is_doubted() -> None:
    (found,) = told(filters=(FilterConfig(min_area=0.01), FilterConfig(labels=("cat",))))
    assert found[0] == ("streams", "front", "filters")
    assert found[1].startswith("filter 2 has no effect: it lets everything pass")
    (found,) = told(filters=(FilterConfig(name="cats", enabled=False),))
    assert found[1].startswith("filter cats has no effect")
    corner = ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5))
    bounds: list[dict[str, Any]] = [
        {"min_score": 0.0},
        {"start_score": 0.6},
        {"max_ratio": 2.0},
        {"masks": (corner,)},
    ]
    assert told(filters=tuple(FilterConfig(**one) for one in bounds)) == []


CAMERA = "rtsp://192.0.2.1/small"


@pytest.mark.parametrize("source", ["v4l2:/dev/video0", "test:", "file:a.mp4", "dir:images", "mic:default"])
@pytest.mark.parametrize(("key", "value"), [("decode", "keyframes"), ("decode", "full"), ("decoder", "drm")])
def test_decoding_is_set_for_cameras_on_the_network_only(source: str, key: str, value: str) -> None:
    capture = convert({key: value}, CaptureConfig)
    ((keys, text),) = told(source, capture=capture)
    assert keys == ("streams", "front", "capture", key)
    assert text.startswith(f"{value} has no effect: ")
    assert source.partition(":")[0] in text
    assert told(CAMERA, capture=capture) == []


@pytest.mark.parametrize("source", ["rtsps://192.0.2.1/x", "http://192.0.2.1/x", "file:a.mp4", "mic:default"])
def test_only_cameras_by_rtsp_send_by_udp(source: str) -> None:
    capture = CaptureConfig(rtsp_transport="udp")
    ((keys, text),) = told(source, capture=capture)
    assert keys == ("streams", "front", "capture", "rtsp_transport")
    assert text.startswith("udp has no effect: ")
    assert f"this source is {source.partition(':')[0]}:" in text
    assert told(CAMERA, capture=capture) == told("RTSP://192.0.2.1/x", capture=capture) == []
    assert told(source, capture=capture, clips=ClipsConfig(record_source=CAMERA)) == [], "it is recorded by UDP"
    assert told(source) == []


def test_a_stream_that_only_hears_decodes_no_picture() -> None:
    stream = StreamConfig(source=CAMERA, model="small-speech", capture=CaptureConfig(decode="full"))
    assert [one.keys for one in of_sound_model(stream)] == [("capture", "decode")]
    silent = StreamConfig(source="mic:default", model="small-speech", capture=CaptureConfig(decode="full"))
    assert list(of_sound_model(silent)) == [], "told of its source"


def test_a_source_that_is_recorded_twice_is_doubted() -> None:
    same = ClipsConfig(record_source="RTSP://user:secret@192.0.2.1:554/small")
    assert [keys for keys, _ in told(CAMERA, clips=same)] == [("streams", "front", "clips", "record_source")]
    assert told(CAMERA, clips=ClipsConfig(record_source="rtsp://192.0.2.1/main")) == []


@pytest.mark.parametrize(
    ("folder", "is_doubted"),
    [("state", True), ("./state", True), ("/s", False), ("~/s", False), ("$STATE_DIRECTORY", False), ("", False)],
)
def test_a_state_folder_without_a_full_path_is_doubted(folder: str, is_doubted: bool) -> None:
    found = doubts(Config(storage=StorageConfig(state_dir=folder)))
    assert [one.keys for one in found] == [("storage", "state_dir")] * is_doubted
