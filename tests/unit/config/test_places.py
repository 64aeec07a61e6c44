"""What a user may write about privacy."""

from __future__ import annotations

import pytest

from agent.config import ClipsConfig, StreamConfig
from agent.config.places import PrivacyMask, blur_models, check_masks, polygon_problem
from agent.daemon.check_device import unmasked_twins
from agent.errors import ConfigError
from agent.types import Point

DOOR = PrivacyMask("door", ((0.1, 0.1), (0.4, 0.1), (0.4, 0.6)))


def _stream(source: str = "test:", **keys: object) -> StreamConfig:
    return StreamConfig(source, "nanodet", **keys)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("polygon", "named"),
    [
        (((0.0, 0.0), (1.0, 1.0)), "2 corners"),
        ((), "0 corners"),
        (((0.1, 0.1), (0.4, 0.1), (1.4, 0.6)), "outside the frame"),
        (((0.1, 0.1), (float("nan"), 0.1), (0.4, 0.6)), "outside the frame"),
        (((100.0, 100.0), (400.0, 100.0), (400.0, 600.0)), "divide pixels"),
        (((0.1, 0.1), (0.2, 0.2), (0.3, 0.3)), "cross or touch"),
        (((0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0)), "cross"),
    ],
)
def test_a_mask_that_covers_nothing_for_certain_is_refused_by_name(
    polygon: tuple[Point, ...], named: str
) -> None:
    with pytest.raises(ConfigError, match=named) as refused:
        check_masks([DOOR, PrivacyMask("window", polygon)])
    assert "'window'" in str(refused.value)
    assert refused.value.keys == ("privacy", 1, "polygon")


def test_two_masks_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two masks are named 'door'"):
        check_masks([DOOR, DOOR])


def test_a_stream_hides_something_if_it_masks_or_blurs() -> None:
    assert not _stream().hides
    assert _stream(privacy=(DOOR,)).hides
    assert _stream(blur=("face",)).hides


def test_of_blurred_faces_the_heads_of_all_people_are_searched_too() -> None:
    assert blur_models(()) == {}
    assert blur_models(("person", "car")) == {"nanodet": ("person", "car")}
    assert blur_models(("face",)) == {"face": ("face",), "nanodet": ("person",)}
    assert blur_models(("person", "face", "car")) == {"face": ("face",), "nanodet": ("person", "car")}


def test_the_models_of_a_stream_include_those_that_find_what_it_blurs() -> None:
    assert _stream(blur=("face",)).models == ("nanodet", "face", "nanodet")


def test_a_stream_that_shows_what_another_hides_is_named() -> None:
    streams = {
        "door": _stream("rtsp://camera/1", privacy=(DOOR,)),
        "yard": _stream("rtsp://camera/1"),
        "off": _stream("rtsp://camera/1", enabled=False),
        "other": _stream("rtsp://camera/2"),
    }
    assert [one.keys for one in unmasked_twins(streams)] == [("streams", "yard", "source")]


SQUARE = ((0.2, 0.2), (0.8, 0.2), (0.8, 0.8), (0.2, 0.8))


@pytest.mark.parametrize(
    ("polygon", "named"),
    [
        (SQUARE * 2, "at one place"),
        ((*SQUARE, SQUARE[0]), "at one place"),
        ((*SQUARE, (0.5, 0.2)), "cross or touch"),
        (((0.1, 0.1), (0.9, 0.1), (0.5, 0.1), (0.5, 0.9)), "cross or touch"),
        (((0.1, 0.1), (0.9, 0.1), (0.9, 0.9), (0.5, 0.1), (0.1, 0.9)), "cross or touch"),
        (((0.5, 0.5), (0.5005, 0.5), (0.5, 0.5005)), "too small"),
        (tuple((number / 200, number * number / 40000) for number in range(101)), "at most 100"),
    ],
)
def test_an_outline_that_repeats_or_touches_itself_is_refused_with_the_reason(
    polygon: tuple[Point, ...], named: str
) -> None:
    assert named in polygon_problem(polygon)


def test_a_corner_on_a_straight_side_is_allowed() -> None:
    assert not polygon_problem(((0.1, 0.1), (0.5, 0.1), (0.9, 0.1), (0.9, 0.9)))


def test_who_shows_less_hidden_or_records_the_masked_camera_is_named() -> None:
    left, right = PrivacyMask("left", SQUARE), DOOR
    streams = {
        "door": _stream("rtsp://me:pw@Camera:554/1", privacy=(left, right)),
        "part": _stream("RTSP://camera/1", privacy=(right,)),
        "blur": _stream("rtsp://camera/1", blur=("face",)),
        "same": _stream("rtsp://camera:554/1", privacy=(PrivacyMask("a", DOOR.polygon), left)),
        "clips": _stream("rtsp://camera/sub", clips=ClipsConfig(record_source="rtsp://camera/1")),
        "port": _stream("rtsp://camera:8554/1"),
    }
    found = {one.keys[1:] for one in unmasked_twins(streams) if "of stream door," in one.text}
    assert found == {("part", "source"), ("blur", "source"), ("clips", "clips", "record_source")}


def test_all_that_one_stream_hides_may_be_missing_in_another_that_hides_something() -> None:
    streams = {"a": _stream(privacy=(DOOR,)), "b": _stream(privacy=(DOOR,), blur=("face",))}
    assert [one.keys for one in unmasked_twins(streams)] == [("streams", "a", "source")]
