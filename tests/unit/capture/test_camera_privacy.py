"""What streams of one camera see of each other's masks, and of pictures that cannot be masked."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from agent.capture import source as sources
from agent.capture.camera import Camera, Cameras
from agent.capture.source import Privacy
from agent.capture.streams import FrameStream
from agent.config import CaptureConfig
from agent.config.places import PrivacyMask
from agent.errors import SourceError
from agent.types import Box, ChannelOrder, Frame, Image
from tests.unit.capture import scripted

_CAMERA = "test:?size=64x48&fps=50&pace=realtime"
_LEFT = PrivacyMask("left", ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0)))
_RIGHT = PrivacyMask("right", ((0.5, 0.0), (1.0, 0.0), (1.0, 1.0), (0.5, 1.0)))


def _stream(name: str, cameras: Cameras, privacy: Privacy, uri: str = _CAMERA) -> FrameStream:
    return FrameStream(name, uri, CaptureConfig(), on_change=print, cameras=cameras, privacy=privacy)


@pytest.fixture
def cameras() -> Cameras:
    return Cameras()


@pytest.fixture
def open_streams() -> Iterator[list[FrameStream]]:
    opened: list[FrameStream] = []
    yield opened
    for one in opened:
        one.stop()


def _take(stream: FrameStream, within_s: float = 60.0) -> Frame:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if (frame := stream.take(0.2)) is not None:
            return frame
    raise AssertionError("no frame came")


def _sides(image: Image) -> tuple[bool, bool]:
    """Whether something is seen in the left and in the right half."""
    return bool(image[:, :32].any()), bool(image[:, 32:].any())


def test_streams_with_other_masks_share_a_camera_but_no_memory(
    cameras: Cameras, open_streams: list[FrameStream]
) -> None:
    privacy = Privacy((_LEFT,)), Privacy((_RIGHT,)), Privacy(), Privacy((_LEFT, _RIGHT))
    open_streams += [_stream(f"s{number}", cameras, one) for number, one in enumerate(privacy)]
    for one in open_streams:
        one.start()
    assert len({id(one._camera) for one in open_streams}) == 1
    for _ in range(20):
        frames = [_take(one) for one in open_streams]
        seen = [_sides(frame.image) for frame in frames]
        assert seen == [(False, True), (True, False), (True, True), (False, False)]
        for one, frame in zip(open_streams, frames, strict=True):
            one.give_back(frame)


def test_streams_with_the_same_masks_share_memory_whatever_their_names(
    cameras: Cameras, open_streams: list[FrameStream]
) -> None:
    renamed = PrivacyMask("another", _LEFT.polygon)
    open_streams += [_stream("one", cameras, Privacy((_LEFT,))), _stream("two", cameras, Privacy((renamed,)))]
    for one in open_streams:
        one.start()
    _take(open_streams[0]), _take(open_streams[1])
    pictures: dict[int, Image] = {}
    for _ in range(40):
        for stream in open_streams:
            frame = _take(stream)
            if (same := pictures.setdefault(frame.captured_ns, frame.image)) is frame.image and frame.shared:
                continue
            assert same is frame.image
            if len(pictures) > 5:
                return


def test_only_models_see_the_true_picture_and_only_if_they_may(
    cameras: Cameras, open_streams: list[FrameStream]
) -> None:
    open_streams += [
        _stream("masked", cameras, Privacy((_LEFT,))),
        _stream("seeing", cameras, Privacy((_LEFT,), mask_model=False)),
        _stream("bare", cameras, Privacy(mask_model=False)),
    ]
    for one in open_streams:
        one.start()
    masked, seeing, bare = (_take(one) for one in open_streams)
    assert masked.model_image is masked.image
    assert _sides(seeing.image) == (False, True)
    assert _sides(seeing.model_image) == (True, True)
    assert bare.unmasked is None


def test_the_true_picture_is_wiped_when_the_frame_is_given_back(
    cameras: Cameras, open_streams: list[FrameStream]
) -> None:
    open_streams.append(_stream("seeing", cameras, Privacy((_LEFT,), mask_model=False)))
    open_streams[0].start()
    frame = _take(open_streams[0])
    open_streams[0].stop()
    assert frame.unmasked is not None
    assert frame.unmasked.any()
    open_streams[0].give_back(frame)
    assert not frame.unmasked.any()


def test_who_uses_a_frame_too_long_sees_nothing_that_is_hidden(
    cameras: Cameras, open_streams: list[FrameStream]
) -> None:
    """Another picture is read, and masked, while somebody still looks at a frame that was given back."""
    open_streams += [
        _stream("left", cameras, Privacy((_LEFT,))),
        _stream("right", cameras, Privacy((_RIGHT,), mask_model=False)),
        _stream("bare", cameras, Privacy()),
    ]
    for one in open_streams:
        one.start()
    late: dict[int, Image] = {}
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        frames = [_take(one) for one in open_streams]
        late |= {id(frames[0].image): frames[0].image}
        for one, frame in zip(open_streams, frames, strict=True):
            one.give_back(frame)
        assert not any(image[:, :32].any() for image in late.values())


def test_memory_that_waits_for_a_picture_holds_nothing_that_is_hidden(
    cameras: Cameras, open_streams: list[FrameStream]
) -> None:
    open_streams.append(_stream("seeing", cameras, Privacy((_LEFT,), mask_model=False)))
    stream = open_streams[0]
    stream.start()
    for _ in range(30):
        stream.give_back(_take(stream))
        time.sleep(0.02)  # the camera is faster: pictures are dropped, too
    camera = stream._camera
    assert isinstance(camera, Camera)
    pools = camera._pool, *camera._pools.values()
    waiting = [image for pool in pools for image in list(pool._free)]
    assert waiting
    assert not any(image[:, :32].any() for image in waiting)


def test_a_stream_whose_masks_cannot_be_applied_gets_nothing_and_fails(
    cameras: Cameras, open_streams: list[FrameStream], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_streams += [
        _stream("broken", cameras, Privacy((_LEFT,), mask_model=False)),
        _stream("masked", cameras, Privacy((_RIGHT,))),
        _stream("bare", cameras, Privacy()),
    ]
    broken, masked, bare = open_streams

    def paint(image: Image, into: Image) -> None:
        raise MemoryError("no memory for the mask")

    monkeypatch.setattr(broken.painter, "paint", paint)
    for one in open_streams:
        one.start()
    with pytest.raises(SourceError, match=r"masks cannot be applied.*no memory for the mask"):
        _take(broken)
    broken.stop()
    assert _sides(_take(masked).image) == (True, False), "the others go on"
    assert _sides(_take(bare).image) == (True, True)


def test_a_picture_of_a_form_that_cannot_be_masked_goes_nowhere(
    cameras: Cameras, open_streams: list[FrameStream], monkeypatch: pytest.MonkeyPatch
) -> None:
    def picture(self: object, into: Image | None) -> Image:
        return np.full((16, 16, 4), 200, np.uint8)

    scripted.script.mood = "give"
    monkeypatch.setattr(scripted.Scripted, "picture", picture)
    monkeypatch.setattr(sources, "opener", lambda address: scripted.open_scripted)
    open_streams.append(_stream("masked", cameras, Privacy((_LEFT,)), "rtsp://camera/1"))
    open_streams[0].start()
    with pytest.raises(SourceError, match="masks cannot be applied"):
        _take(open_streams[0])


def test_what_is_found_is_blurred_before_the_frame_is_taken(
    cameras: Cameras, open_streams: list[FrameStream]
) -> None:
    asked: list[tuple[ChannelOrder, int]] = []

    def find(image: Image, order: ChannelOrder, captured_ns: int) -> list[Box]:
        asked.append((order, captured_ns))
        assert not image[:, 32:].any(), "masks come first"
        return [(0.0, 0.0, 1.0, 1.0)]

    open_streams.append(_stream("blurred", cameras, Privacy((_RIGHT,), find)))
    open_streams[0].start()
    frame = _take(open_streams[0])
    assert asked == [("bgr", frame.captured_ns)]
    assert len(np.unique(frame.image[:, :32].reshape(-1, 3), axis=0)) <= 16
    assert not frame.image[:, 32:].any(), "a mosaic does not brighten a mask"


def test_a_stream_whose_blur_fails_gets_nothing(cameras: Cameras, open_streams: list[FrameStream]) -> None:
    def find(image: Image, order: ChannelOrder, captured_ns: int) -> list[Box]:
        raise RuntimeError("the model is gone")

    open_streams.append(_stream("blurred", cameras, Privacy(find=find)))
    open_streams[0].start()
    with pytest.raises(SourceError, match=r"cannot be blurred.*the model is gone"):
        _take(open_streams[0])
    assert open_streams[0].take(0.1) is None


def test_a_camera_whose_only_stream_failed_can_be_opened_by_another(
    cameras: Cameras, open_streams: list[FrameStream]
) -> None:
    first = _stream("first", cameras, Privacy((_LEFT,)))
    open_streams.append(first)
    first.start()
    _take(first)
    camera = first._camera
    assert isinstance(camera, Camera)
    camera._refuse([first], "for a test")
    second = _stream("second", cameras, Privacy())
    open_streams.append(second)
    second.start()
    assert _take(second).image.any()
