"""Which parameters of a track count, by real key frames."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.capture.media import Media, TrackParameters, is_whole, leading_parameters, with_parameters
from tests.support.packet_camera import encode, pattern

OPTIONS = {"h264": "keyint=1:scenecut=0:weightp=1", "hevc": "keyint=1:scenecut=0:log-level=none:bframes=0"}
OTHER = {"h264": "cabac=0", "hevc": "sao=0:strong-intra-smoothing=0"}


@cache
def key_frames(codec: str, *, other: bool = False) -> list[bytes]:
    """Key frames with their parameters, or with other ones."""
    name = {"h264": "x264", "hevc": "x265"}[codec]
    choices = f"{OPTIONS[codec]}:{OTHER[codec]}" if other else OPTIONS[codec]
    options = {"preset": "ultrafast" if codec == "hevc" else "veryfast", f"{name}-params": choices}
    units = encode(pattern(2, 160, 128), f"lib{name}", options={"tune": "zerolatency", **options})
    return [units[0].data, bare(codec, units[1].data)]


def bare(codec: str, key_frame: bytes) -> bytes:
    return with_parameters(codec, key_frame, b"")


def damaged(codec: str, key_frame: bytes, rest: bytes) -> bytes:
    """A key frame whose first slice has lost its begin: the rest of it is a part of the last parameters."""
    first_slice = with_parameters(codec, key_frame, b"")[4:]
    return key_frame.removesuffix(first_slice).removesuffix(b"\0\0\1").removesuffix(b"\0") + rest


CODECS = pytest.mark.parametrize("codec", ["h264", "hevc"])


@CODECS
def test_a_key_frame_without_parameters_is_decoded_with_the_newest(codec: str) -> None:
    first, second = key_frames(codec)
    parameters = TrackParameters(codec, b"")
    parameters.add(first)
    assert parameters.newest == leading_parameters(codec, first)
    assert is_whole(codec, second, parameters.newest)
    assert not is_whole(codec, second, b"")


@CODECS
def test_other_parameters_that_come_once_count(codec: str) -> None:
    parameters = TrackParameters(codec, b"")
    parameters.add(key_frames(codec)[0])
    first, second = key_frames(codec, other=True)
    parameters.add(first)
    parameters.add(second)
    assert (
        parameters.newest == leading_parameters(codec, first) != leading_parameters(codec, key_frames(codec)[0])
    )


@given(st.binary(max_size=200), st.booleans())
def test_the_rest_of_a_slice_changes_no_parameters(rest: bytes, comes_again: bool) -> None:
    first, second = key_frames("h264")
    parameters = TrackParameters("h264", b"")
    parameters.add(first)
    known = parameters.newest
    parameters.add(damaged("h264", first, rest.replace(b"\0", b"\1")))
    assert parameters.newest == known
    parameters.add(first if comes_again else second)
    assert parameters.newest == known
    assert parameters.are_sure


def test_parameters_of_a_damaged_key_frame_count_if_the_next_one_needs_them() -> None:
    parameters = TrackParameters("h264", b"")
    parameters.add(key_frames("h264")[0])
    first, second = key_frames("h264", other=True)
    parameters.add(first[: len(first) // 2])
    assert parameters.newest != leading_parameters("h264", first)
    parameters.add(second)
    assert parameters.newest == leading_parameters("h264", first)


@CODECS
def test_a_damaged_sps_changes_nothing_unless_it_comes_again(codec: str) -> None:
    first, second = key_frames(codec)
    known = leading_parameters(codec, first)
    sps = known.split(b"\0\0\0\1")[{"h264": 1, "hevc": 2}[codec]]
    at = {"h264": 6, "hevc": 19}[codec]
    bad = first.replace(sps, sps[:at] + bytes([sps[at] ^ 0x24]) + sps[at + 1 :])
    assert not is_whole(codec, bad, b"")
    for after in (first, second):
        parameters = TrackParameters(codec, b"")
        for key_frame in (first, bad, after):
            parameters.add(key_frame)
            assert parameters.newest == known
    parameters.add(bad)
    parameters.add(bad)
    assert parameters.newest == leading_parameters(codec, bad)


def test_parameters_between_key_frames_count_if_they_come_again_or_the_next_key_frame_needs_them() -> None:
    old, new = key_frames("h264"), key_frames("h264", other=True)
    ahead = leading_parameters("h264", new[0]) + b"\0\0\1\x41slice"
    for after, expected in ((old[1], old[0]), (new[1], new[0])):
        parameters = TrackParameters("h264", b"")
        parameters.add(old[0])
        parameters.add_other(ahead)
        assert parameters.newest == leading_parameters("h264", old[0])
        parameters.add(after)
        assert parameters.newest == leading_parameters("h264", expected)
    parameters = TrackParameters("h264", b"")
    for _ in range(2):
        parameters.add_other(ahead)
    assert parameters.newest == leading_parameters("h264", new[0])


def test_a_track_has_parameters_that_came_with_the_picture_before_its_key_frame(tmp_path: Path) -> None:
    old, new = (
        encode(
            pattern(4, 160, 128),
            options={"tune": "zerolatency", "x264-params": f"keyint=4:scenecut=0:weightp=1:cabac={cabac}"},
        )
        for cabac in (1, 0)
    )
    pps = leading_parameters("h264", new[0].data).split(b"\0\0\0\1")[2]
    pictures = [*(one.data for one in old[:3]), b"\0\0\0\1" + pps + old[3].data]
    pictures += [bare("h264", new[0].data), *(one.data for one in new[1:])]
    (path := tmp_path / "yard.h264").write_bytes(b"".join(pictures))
    media = Media(str(path), {})
    tracks = [media.media_packet(one, 0).track for one in media.packets() if one.size]
    media.close()
    assert [pps in track.header for track in tracks] == [False] * 4 + [True] * 4


def test_parameters_of_a_damaged_first_key_frame_are_not_sure() -> None:
    first, second = key_frames("h264")
    junk = damaged("h264", first, bytes(range(1, 50)))
    parameters = TrackParameters("h264", with_parameters("h264", b"", junk))
    parameters.add(junk)
    sure = [parameters.are_sure]
    parameters.add(first)
    assert [*sure, parameters.are_sure] == [False, True]
    assert parameters.newest == leading_parameters("h264", first)
    assert is_whole("h264", second, parameters.newest)


def test_parameters_of_the_description_are_known_before_any_key_frame() -> None:
    first, second = key_frames("h264")
    parameters = TrackParameters("h264", first)
    parameters.add(second)
    assert (parameters.newest, parameters.are_sure) == (leading_parameters("h264", first), True)
