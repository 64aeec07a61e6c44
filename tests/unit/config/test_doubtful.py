"""Values that are allowed, but hardly meant."""

from __future__ import annotations

from typing import Any

import pytest

from agent.config import ClipsConfig, Config, GateConfig, StorageConfig, StreamConfig
from agent.config.capture import CaptureConfig
from agent.config.condition import ConditionConfig
from agent.config.doubtful import doubts, of_sound_model
from agent.config.filters import FilterConfig
from agent.config.governor import GovernorConfig, ServiceConfig
from agent.structs import convert


def told(source: str = "v4l2:/dev/video0", **keys: Any) -> list[tuple[tuple[str | int, ...], str]]:
    governor = keys.pop("governor", GovernorConfig())
    stream = StreamConfig(source=source, model="nanodet", **keys)
    return [(one.keys, one.text) for one in doubts(Config(governor=governor, streams={"front": stream}))]


def test_what_is_meant_is_not_doubted() -> None:
    assert told() == []
    assert told(service=ServiceConfig(min_fps=8.0), capture=CaptureConfig(max_fps=8.0)) == []
    assert told("rtsp://192.0.2.1/x", condition=ConditionConfig(ignore=("silent", "moved", "drift"))) == []


def test_an_order_that_names_something_twice_or_nothing_is_doubted() -> None:
    (keys, text), *more = told(governor=GovernorConfig(order=("clips", "samples", "clips")))
    assert (keys, text, more) == (("governor", "order"), "clips is named 2 times", [])
    assert [keys for keys, _ in told(governor=GovernorConfig(order=()))] == [("governor", "order")]
    assert told(governor=GovernorConfig(enabled=False, order=())) == []


def test_a_promise_of_more_than_is_let_through_is_doubted() -> None:
    (keys, text), *more = told(service=ServiceConfig(min_fps=8.0), capture=CaptureConfig(max_fps=2.0))
    assert (keys, more) == (("streams", "front", "service", "min_fps"), [])
    assert text == "8 is more than capture.max_fps (2) lets through"


def test_a_latency_that_no_picture_can_have_is_doubted() -> None:
    (keys, text), *more = told(service=ServiceConfig(max_latency_ms=0.001))
    assert (keys, more) == (("streams", "front", "service", "max_latency_ms"), [])
    assert text == "0.001 ms are less than any picture takes from capture to result"
    assert told(service=ServiceConfig(max_latency_ms=1.0)) == []


def test_filters_whose_names_are_almost_the_same_are_doubted() -> None:
    named = [FilterConfig(name=name, min_score=0.5) for name in ("cats", "", "Cats", "dogs", "")]
    text = "the names cats and Cats differ only in upper and lower case"
    assert told(filters=tuple(named)) == [(("streams", "front", "filters"), text)]
    assert told(filters=tuple(named[:2] + named[3:])) == []


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


def test_a_motion_mask_over_the_whole_picture_is_doubted() -> None:
    whole, half = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)), ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0))
    (found,) = told(gate=GateConfig(masks=(half, whole[::-1])))
    assert found == (
        ("streams", "front", "gate", "masks"),
        "one covers the whole picture: no motion is seen, and one picture in 30 s inferred",
    )
    assert told(gate=GateConfig(masks=(half,))) == []
    assert told(gate=GateConfig(masks=(whole,), masks_enabled=False)) == []


def test_a_filter_that_ignores_the_whole_picture_is_doubted() -> None:
    whole = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))
    ((keys, text),) = told(filters=(FilterConfig(("car",), masks=(whole,), name="yard"),))
    assert keys == ("streams", "front", "filters")
    assert text == "a mask of filter yard covers the whole picture: nothing of its labels is ever found"
    assert told(filters=(FilterConfig(("car",), masks=(whole,), enabled=False),)) == []


def test_ignored_problems_that_the_source_cannot_have_are_doubted() -> None:
    assert [text for _, text in told(condition=ConditionConfig(ignore=("silent", "dark", "dark")))] == [
        "dark is named 2 times",
        "silent is a problem of sound, and v4l2: gives none",
    ]
    assert len(told("mic:default", condition=ConditionConfig(ignore=("moved", "clipped")))) == 1


def test_saving_a_low_battery_that_reduces_nothing_is_doubted() -> None:
    keys = ("governor", "save_below_percent")
    for governor, why in (
        (GovernorConfig(save_below_percent=20.0, enabled=False), "enabled"),
        (GovernorConfig(save_below_percent=20.0, order=("samples", "clips")), "inference"),
        (GovernorConfig(save_below_percent=20.0, max_stride=1), "max_stride"),
    ):
        ((found, text),) = told(governor=governor)
        assert found == keys
        assert why in text
    smaller = ServiceConfig(smaller_variants=True)
    assert told(governor=GovernorConfig(save_below_percent=20.0, max_stride=1), service=smaller) == []
    assert told(governor=GovernorConfig(save_below_percent=20.0)) == []
    assert told(governor=GovernorConfig(max_stride=1)) == []


def test_a_limit_that_a_board_without_load_exceeds_is_doubted() -> None:
    assert [keys for keys, _ in told(governor=GovernorConfig(max_temperature_c=45.0))] == [
        ("governor", "max_temperature_c")
    ]
    assert told(governor=GovernorConfig(max_temperature_c=50.0)) == []


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
