"""Which parameters of a track count, by real key frames."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.capture.media import Media, leading_parameters, replaced_parameters, with_parameters
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


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_other_parameters_replace_those_known_of_their_kinds(codec: str) -> None:
    known, new = (leading_parameters(codec, key_frames(codec, other=one)[0]) for one in (False, True))
    assert replaced_parameters(codec, b"", known) == known != new
    assert replaced_parameters(codec, known, new) == new
    last = b"\0\0\0\1" + new.split(b"\0\0\0\1")[-1]
    both = replaced_parameters(codec, known, last)
    assert both.split(b"\0\0\0\1")[1:-1] == known.split(b"\0\0\0\1")[1:-1]
    assert both.endswith(last)


@given(st.binary(min_size=300, max_size=2000))
def test_the_rest_of_a_slice_changes_no_parameters(rest: bytes) -> None:
    first = key_frames("h264")[0]
    found = leading_parameters("h264", damaged("h264", first, rest.replace(b"\0", b"\1")))
    assert found in (b"", leading_parameters("h264", first))


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
