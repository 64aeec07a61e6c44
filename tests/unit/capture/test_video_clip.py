from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from agent.capture.source import open_source
from agent.capture.streams import FrameStream
from agent.config import CaptureConfig
from agent.errors import SourceError
from agent.types import MediaPacket


def levels(uri: str, limit: int = 1000) -> list[int]:
    """Which pictures a clip gives, by their grey level."""
    source = open_source(uri, stall_s=1)
    found: list[int] = []
    while len(found) < limit and (image := source.read(None)) is not None:
        assert image.flags.c_contiguous
        assert image.flags.writeable
        found.append(round(float(image.mean()) / 8))
    source.close()
    source.close()
    return found


def test_a_clip_gives_every_picture_in_order(clip: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert levels(f"file:{clip}?pace=fast") == list(range(30))
    assert not caplog.records


def test_a_loop_begins_again(clip: Path) -> None:
    assert levels(f"file:{clip}?loop=1&pace=fast", limit=70) == [*range(30), *range(30), *range(10)]


def test_the_pace_is_the_clips_own(clip: Path) -> None:
    source = open_source(f"file:{clip}", stall_s=1)
    assert source.pace_s == pytest.approx(0.02)
    assert source.description == "64x48 at 50 fps"
    assert not source.live


def test_a_format_without_times_has_no_rate_to_describe(tmp_path: Path) -> None:
    _, picture = cv2.imencode(".jpg", np.zeros((48, 64, 3), np.uint8))
    bare = tmp_path / "bare.mjpeg"
    bare.write_bytes(picture.tobytes() * 5)
    source = open_source(f"file:{bare}", stall_s=1)
    assert source.description == "64x48"
    source.close()


def test_a_clip_that_was_cut_off_is_played_as_far_as_it_goes(clip: Path) -> None:
    chunks = clip.read_bytes().split(b"00dc")
    clip.write_bytes(b"00dc".join(chunks[:11]))
    found = levels(f"file:{clip}?pace=fast&loop=1", limit=40)
    assert found[:9] == list(range(9))
    assert found[9] == 0, "the loop goes on with what there is"


def test_a_clip_without_a_single_picture_is_an_error(clip: Path) -> None:
    data = clip.read_bytes()
    clip.write_bytes(data[: data.index(b"movi") + 4])
    with pytest.raises(SourceError, match="cut off"):
        levels(f"file:{clip}?pace=fast")


@pytest.mark.parametrize(
    ("make", "wants"),
    [
        (lambda path: None, "there is no /"),
        (lambda path: path.mkdir(), "for pictures write dir:"),
        (lambda path: path.touch(), "found 0 bytes that cannot be read"),
        (
            lambda path: path.write_text("<html>not found</html>"),
            "found 22 bytes that cannot be read: Invalid data",
        ),
    ],
)
def test_what_is_no_clip_is_an_error(tmp_path: Path, make, wants: str) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path / "clip.mp4")
    with pytest.raises(SourceError, match=wants):
        open_source(f"file:{tmp_path / 'clip.mp4'}", stall_s=1)


def test_a_clip_of_too_large_pictures_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5.0, (8192, 6144))
    writer.write(np.zeros((6144, 8192, 3), np.uint8))
    writer.release()
    with pytest.raises(SourceError, match=r"8192x6144 pixels, 50.3 megapixels; expected at most 50 megapixels"):
        open_source(f"file:{path}", stall_s=1)


def test_rows_with_gaps_are_copied_into_the_memory_that_is_handed_in(tmp_path: Path) -> None:
    path = tmp_path / "odd.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5.0, (54, 48))
    for _ in range(2):
        writer.write(np.full((48, 54, 3), 90, np.uint8))
    writer.release()
    source = open_source(f"file:{path}", stall_s=1)
    first = source.read(None)
    assert source.read(first) is first
    source.close()


def test_a_file_with_sound_alone_says_so(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "voice.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16000
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    with pytest.raises(SourceError, match="it has no video, only aac"):
        open_source(f"file:{tmp_path / 'voice.mp4'}", stall_s=1)


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Two seconds of H.264 at 10 fps, with a key frame a second, and of AAC."""
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10, options={"tune": "zerolatency"})
        video.width, video.height, video.pix_fmt, video.codec_context.gop_size = 64, 48, "yuv420p", 10
        sound = container.add_stream("aac", rate=16000, layout="mono")
        for number in range(20):
            picture = np.full((48, 64, 3), 10 * number, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 32000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16000
        for stream, last in ((video, None), (sound, silence), (sound, None)):
            container.mux(stream.encode(last))  # type: ignore[arg-type]
    return path


def test_every_packet_is_handed_on_with_what_a_muxer_needs(film: Path) -> None:
    packets: list[MediaPacket] = []
    stream = FrameStream(
        "yard", f"file:{film}?pace=fast", CaptureConfig(), on_change=print, on_packet=packets.append
    )
    stream.start()
    while not stream.ended:
        stream.take(60.0)
    stream.stop()
    pictures = [one for one in packets if one.track.kind == "video"]
    sounds = [one for one in packets if one.track.kind == "sound"]
    assert [one.keyframe for one in pictures] == [number % 10 == 0 for number in range(20)]
    assert {one.track for one in pictures} == {pictures[0].track}
    track, sound = pictures[0].track, sounds[0].track
    assert (track.codec, track.width, track.height) == ("h264", 64, 48)
    assert (sound.codec, sound.rate_hz, sound.channels) == ("aac", 16000, 1)
    for header in (track.header, sound.header):
        assert header[4:8] == b"ftyp"
        assert b"moov" in header
    assert [one.captured_ns for one in packets] == sorted(one.captured_ns for one in packets)
    assert pictures[-1].captured_ns - pictures[0].captured_ns == pytest.approx(1.9e9)


def test_pictures_without_a_codec_give_no_packets() -> None:
    packets: list[MediaPacket] = []
    stream = FrameStream("yard", "test:?frames=3", CaptureConfig(), on_change=print, on_packet=packets.append)
    stream.start()
    while not stream.ended:
        stream.take(60.0)
    stream.stop()
    assert packets == []
