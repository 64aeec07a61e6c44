"""Pictures of a decoder that are converted when somebody uses them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange
from hypothesis import given
from hypothesis import strategies as st

from agent.capture.camera import Cameras
from agent.capture.source import Privacy
from agent.capture.streams import FrameStream
from agent.capture.video import DecodedImage, PictureConverter
from agent.config import CaptureConfig
from agent.config.places import PrivacyMask
from agent.errors import SourceError
from agent.types import Frame, Image
from tests.support.packet_camera import PacketCamera, encode, pattern

_CONVERTER = PictureConverter("yard")
_LEFT = PrivacyMask("left", ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0)))


def _decoded(width: int, height: int, form: str = "yuv420p", seed: int = 1) -> VideoFrame:
    """A smooth picture in a decoder's format."""
    small = np.random.default_rng(seed).integers(20, 230, (3, 4, 3), np.uint8)
    bgr: Image = np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    return VideoFrame.from_ndarray(bgr, format="bgr24").reformat(format=form)


def _grey(image: Image) -> Image:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))


@given(
    st.integers(8, 90), st.integers(8, 90), st.sampled_from(["yuv420p", "yuv422p", "yuv444p", "nv12", "yuvj420p"])
)
def test_brightness_is_that_of_the_converted_picture(width: int, height: int, form: str) -> None:
    picture = DecodedImage(_decoded(width, height, form), _CONVERTER)
    luma = picture.luma()
    assert luma is not None
    assert luma.pixels.shape == (height, width) == picture.shape[:2]
    assert picture.image().shape == picture.shape
    brightness = luma.pixels.astype(np.float32)
    if not luma.full_range:
        brightness = (brightness - 16.0) * 255.0 / 219.0
    assert np.abs(brightness - _grey(picture.image())).mean() < 4.0


def test_a_range_that_the_stream_names_counts() -> None:
    frame = _decoded(64, 48)
    assert not DecodedImage(frame, _CONVERTER).luma().full_range  # type: ignore[union-attr]
    frame.color_range = ColorRange.JPEG
    assert DecodedImage(frame, _CONVERTER).luma().full_range  # type: ignore[union-attr]


@pytest.mark.parametrize("form", ["yuv420p10le", "bgr24", "p010le"])
def test_a_format_without_brightness_in_8_bits_has_none(form: str) -> None:
    picture = DecodedImage(_decoded(64, 48, form), _CONVERTER)
    assert picture.luma() is None
    assert picture.image().shape == (48, 64, 3)


def test_it_is_converted_once_however_many_threads_ask() -> None:
    picture = DecodedImage(_decoded(640, 480), _CONVERTER)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: picture.image(), range(32)))
    assert all(one is found[0] for one in found)


def test_memory_outlives_the_decoder(tmp_path: Path) -> None:
    path = _h264(tmp_path)
    with av.open(str(path)) as medium:
        pictures = [DecodedImage(one, _CONVERTER) for one in medium.decode(video=0)]
    means = [float(one.image().mean()) for one in pictures]
    again = [float(one.luma().pixels.mean()) for one in pictures]  # type: ignore[union-attr]
    assert np.ptp(means) < 20.0
    assert min(again) > 20.0


def _h264(folder: Path, count: int = 20) -> Path:
    path = folder / "yard.h264"
    units = encode(pattern(count, 160, 128), options={"preset": "ultrafast", "tune": "zerolatency"})
    path.write_bytes(b"".join(one.data for one in units))
    return path


class _Conversions:
    """Counts what is converted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        real = PictureConverter.convert

        def counting(converter: PictureConverter, frame: VideoFrame, into: Image | None = None) -> Image:
            self.count += 1
            return real(converter, frame, into)

        monkeypatch.setattr(PictureConverter, "convert", counting)


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> _Conversions:
    return _Conversions(monkeypatch)


def _frames(uri: str, privacy: Privacy | None = None) -> Iterator[Frame]:
    stream = FrameStream("yard", uri, CaptureConfig(), on_change=print, privacy=privacy or Privacy())
    stream.start()
    until_s = time.monotonic() + 60.0
    while not stream.ended and time.monotonic() < until_s:
        if (frame := stream.take(0.2)) is not None:
            yield frame
            stream.give_back(frame)
    stream.stop()


def test_of_a_stream_only_what_somebody_uses_is_converted(tmp_path: Path, conversions: _Conversions) -> None:
    found = [(frame.luma is not None, frame.shape) for frame in _frames(f"file:{_h264(tmp_path)}?pace=fast")]
    assert found == [(True, (128, 160, 3))] * 20
    assert conversions.count == 1, "the first, to learn whether they can be converted"


def test_pictures_are_the_same_whenever_they_are_converted(tmp_path: Path) -> None:
    path = _h264(tmp_path)
    with av.open(str(path)) as medium:
        expected = [_CONVERTER.convert(one).copy() for one in medium.decode(video=0)]
    for frame, image in zip(_frames(f"file:{path}?pace=fast"), expected, strict=True):
        assert frame.image is frame.image
        assert frame.image is frame.model_image
        np.testing.assert_array_equal(frame.image, image)


def test_a_stream_that_hides_something_shows_no_brightness(tmp_path: Path) -> None:
    for privacy in (Privacy((_LEFT,)), Privacy((_LEFT,), mask_model=False), Privacy(find=lambda *_: [])):
        frames = list(_frames(f"file:{_h264(tmp_path)}?pace=fast", privacy))
        assert frames
        for frame in frames:
            assert frame.luma is None
            assert not privacy.masks or not frame.image[:, :80].any()


def test_a_stream_beside_one_that_hides_something_has_whole_pictures(tmp_path: Path) -> None:
    units = encode(pattern(30, 160, 128), options={"preset": "ultrafast", "tune": "zerolatency"})
    cameras, opened = Cameras(), []
    with PacketCamera(units) as camera:
        for name, privacy in (("masked", Privacy((_LEFT,))), ("bare", Privacy())):
            stream = FrameStream(
                name, camera.uri, CaptureConfig(), on_change=print, cameras=cameras, privacy=privacy
            )
            stream.start()
            opened.append(stream)
        masked, bare = (_first(stream) for stream in opened)
        assert masked.luma is None
        assert not masked.image[:, :80].any()
        assert bare.image[:, :80].any()
        for stream in opened:
            stream.stop()


def _first(stream: FrameStream) -> Frame:
    until_s = time.monotonic() + 60.0
    while time.monotonic() < until_s:
        if (frame := stream.take(0.2)) is not None:
            return frame
    raise AssertionError("no frame came")


def test_a_picture_that_cannot_be_converted_is_a_failure_of_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> VideoFrame:
        raise ValueError("no such format")

    converter = PictureConverter("yard")
    monkeypatch.setattr("agent.capture.video._graph", refuse)
    with pytest.raises(SourceError, match="yard: expected a picture that can be decoded"):
        DecodedImage(_decoded(64, 48), converter).image()


def test_a_frame_of_an_image_has_no_brightness() -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    frame = Frame(image, "yard", 0, 1, datetime.now(UTC))
    assert frame.image is image
    assert frame.shape == image.shape
    assert frame.luma is None
