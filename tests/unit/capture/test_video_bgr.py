from __future__ import annotations

import resource

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from hypothesis import given
from hypothesis import strategies as st

from agent.capture.video import PictureConverter
from agent.errors import SourceError
from tests.support.packet_camera import pattern

FORMATS = ("yuv420p", "yuvj420p", "yuv422p", "yuv444p", "nv12", "yuv420p10le", "gray", "bgr24", "rgb24")


def picture(form: str = "yuv420p", width: int = 320, height: int = 240) -> VideoFrame:
    return av.VideoFrame.from_ndarray(pattern(1, width, height)[0], format="bgr24").reformat(format=form)


@given(
    form=st.sampled_from(FORMATS),
    space=st.sampled_from((0, 1, 2, 5, 6, 9)),
    colours=st.sampled_from((0, 1, 2)),
    size=st.sampled_from(((320, 240), (176, 144), (644, 362))),
)
def test_pictures_are_converted_as_pyav_does(form: str, space: int, colours: int, size: tuple[int, int]) -> None:
    known = av.VideoFrame.from_ndarray(np.zeros((size[1], size[0], 3), np.uint8), format="bgr24")
    known.planes[0].update(np.random.default_rng(1).bytes(known.planes[0].buffer_size))
    frame = known.reformat(format=form)
    frame.colorspace, frame.color_range = space, colours
    expected = VideoReformatter().reformat(frame, format="bgr24", threads=1)
    assert np.array_equal(PictureConverter("rtsp://cam").convert(frame), expected.to_ndarray(format="bgr24"))


def test_a_source_may_change_its_size_and_format() -> None:
    converter = PictureConverter("rtsp://cam")
    for frame in (picture(), picture(width=176, height=144), picture("nv12"), picture()):
        assert converter.convert(frame).shape == (frame.height, frame.width, 3)


def test_a_picture_stays_while_later_ones_are_converted() -> None:
    converter = PictureConverter("rtsp://cam")
    first = converter.convert(picture())
    before = first.copy()
    dark = av.VideoFrame.from_ndarray(np.zeros((240, 320, 3), np.uint8), format="bgr24").reformat(
        format="yuv420p"
    )
    for _ in range(5):
        converter.convert(dark)
    assert np.array_equal(first, before)


def test_memory_of_pictures_is_used_again() -> None:
    converter, frame = PictureConverter("rtsp://cam"), picture(width=1920, height=1088)
    converter.convert(frame)
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(10):
        converter.convert(frame)
    assert resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before < 3000  # new memory: 1,530 each


def test_no_memory_is_kept_while_pictures_are_rare() -> None:
    converter = PictureConverter("rtsp://cam")
    converter.convert(picture())
    converter.keep(False)
    assert converter._graph is None
    converter.convert(picture())
    assert converter._graph is None
    converter.keep(True)
    converter.convert(picture())
    assert converter._graph is not None


def test_after_an_error_pictures_are_converted_again() -> None:
    converter, frame = PictureConverter("rtsp://cam"), picture()
    converter.convert(frame)

    class Broken:
        def vpush(self, _: VideoFrame) -> None:
            raise ValueError("no room")

    converter._graph = Broken()  # type: ignore[assignment]
    with pytest.raises(SourceError, match="damaged"):
        converter.convert(frame)
    assert converter.convert(frame).shape == (240, 320, 3)
