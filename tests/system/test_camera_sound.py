"""The sound of cameras: beside pictures, alone, missing, after an outage, at another rate."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from agent.capture.camera import Cameras
from agent.capture.sound import AudioStream
from agent.capture.source import DecodeMode, Demand
from agent.capture.streams import FrameStream
from agent.capture.supervisor import CaptureStats
from agent.config import CaptureConfig
from agent.types import AudioChunk, Frame, Samples
from tests.support.doubles import person_model
from tests.support.mosquitto import Mosquitto
from tests.support.packet_camera import PacketCamera, Unit, encode, pattern
from tests.support.rtsp import RtspServer, has_element
from tests.support.running import Vedette, events
from tests.support.sound import quiet, tone_model, word

FPS, RATE = 15, 16_000
GOP = {"preset": "ultrafast", "tune": "zerolatency", "x264-params": "keyint=15:min-keyint=15:scenecut=0"}
FLASH_EVERY_S, FLASH_S = 2.0, 0.2
CONFIG = CaptureConfig(stall_s=20.0, reopen_max_s=0.3)


@pytest.fixture(scope="module")
def still() -> list[Unit]:
    return encode(pattern(2 * FPS), options=GOP)


def a_law(samples: Samples, rate_hz: int = 8000) -> bytes:
    """Samples as G.711 A-law."""
    encoder = av.CodecContext.create("pcm_alaw", "w")
    encoder.sample_rate, encoder.layout, encoder.format = rate_hz, "mono", "s16"
    frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
    frame.sample_rate = rate_hz
    return b"".join(bytes(packet) for packet in encoder.encode(frame))


def tone(seconds: float, rate_hz: int = 8000, pitch_hz: float = 500.0) -> Samples:
    return (8000 * np.sin(2 * np.pi * pitch_hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.int16)


@contextmanager
def hearing(
    uri: str, cameras: Cameras | None = None, config: CaptureConfig = CONFIG
) -> Iterator[tuple[AudioStream, list[str]]]:
    """A started stream of sound, and what it tells."""
    news: list[str] = []
    told = lambda state, why: news.append(f"{state}: {why}")  # noqa: E731 - one line
    stream = AudioStream("gate", uri, config, RATE, on_change=told, cameras=cameras)
    stream.start()
    try:
        yield stream, news
    finally:
        stream.stop()


@contextmanager
def seeing(uri: str, cameras: Cameras, demand: Demand | None = None) -> Iterator[FrameStream]:
    stream = FrameStream("yard", uri, CONFIG, on_change=lambda *_: None, cameras=cameras)
    stream.set_demand(demand or Demand())
    stream.start()
    try:
        yield stream
    finally:
        stream.stop()


def heard(stream: AudioStream, seconds: float) -> list[AudioChunk]:
    """The sound of some seconds."""
    found, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        if (chunk := stream.take(0.1)) is not None:
            found.append(chunk)
    return found


def camera_stats(stream: AudioStream) -> CaptureStats:
    """Totals of the camera that a stream hears."""
    assert stream._cameras is not None
    return next(iter(stream._cameras._open.values())).supervisor.stats(0, 0)


def wait(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def first(stream: AudioStream, seconds: float = 60.0) -> AudioChunk:
    deadline = time.monotonic() + seconds
    while (chunk := stream.take(0.2)) is None:
        assert time.monotonic() < deadline, stream.stats
    return chunk


def is_whole(chunks: list[AudioChunk]) -> bool:
    return all(after.first == before.end for before, after in pairwise(chunks))


def pitch_hz(samples: Samples) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum)) * RATE / len(samples)


def test_the_sound_of_a_camera_is_heard_without_a_gap_and_no_picture_is_decoded(still: list[Unit]) -> None:
    with PacketCamera(still, sound=a_law(tone(1.0))) as camera, hearing(camera.uri) as (stream, news):
        first(stream)
        chunks = heard(stream, 3.0)
        assert is_whole(chunks)
        samples = np.concatenate([chunk.samples for chunk in chunks])
        assert 1.0 < len(samples) / RATE < 6.0
        assert abs(pitch_hz(samples) - 500) < 3
        assert all(chunk.captured_ns <= chunk.read_ns for chunk in chunks)
        assert 0 <= time.monotonic_ns() - chunks[-1].captured_ns < 3e9
        assert (stream.stats.state, stream.stats.detail) == ("running", "8000 Hz, 1 channel, pcm_alaw")
        inner = camera_stats(stream)
        assert (inner.decoding, inner.decoded) == ("nothing", 0)
        assert inner.undecoded > 2 * FPS
        assert news == []


@pytest.mark.parametrize("lag", [0, 4])
def test_a_flash_is_seen_when_its_beep_is_heard(lag: int) -> None:
    """The camera shows a white picture, and beeps, for 0.2 s of every two seconds.

    Encoding its pictures takes so many periods longer than encoding its sound.
    """
    frames = round(FLASH_EVERY_S * FPS)
    pictures = pattern(frames)
    for number in range(FPS, FPS + round(FLASH_S * FPS)):
        pictures[number][:] = 255
    samples = np.zeros(frames * (8000 // FPS), np.int16)  # as many as the camera sends with these pictures
    begin = FPS * (8000 // FPS)
    beep = tone(FLASH_S, pitch_hz=1000)
    samples[begin : begin + len(beep)] = beep
    cameras = Cameras()
    with PacketCamera(encode(pictures, options=GOP), sound=a_law(samples), lag=lag) as camera:
        with seeing(camera.uri, cameras) as yard, hearing(camera.uri, cameras) as (gate, _):
            first(gate)
            seen_ns, heard_ns, until = [], [], time.monotonic() + 9.0
            was_bright = was_loud = True
            seq = -1
            while time.monotonic() < until:
                if (frame := yard.take(0.02)) is not None:
                    is_bright = frame.image.mean() > 240
                    is_next = frame.seq == seq + 1  # else the flash's first picture may have been dropped
                    if is_bright and not was_bright and is_next:
                        seen_ns.append(frame.captured_ns)
                    was_bright, seq = is_bright, frame.seq
                    yard.give_back(frame)
                if (chunk := gate.take(0.02)) is not None:
                    began, was_loud = onsets(chunk, was_loud)
                    heard_ns += began
        assert camera.viewers == 1
    assert len(seen_ns) >= 3
    apart_ms = [min(abs(one - other) for other in heard_ns) / 1e6 for one in seen_ns[1:-1]]
    assert max(apart_ms) < 50, apart_ms


def onsets(chunk: AudioChunk, was_loud: bool) -> tuple[list[int], bool]:
    """When a beep began in a chunk, ns, and whether it ends with one."""
    found, step = [], RATE // 200
    for at in range(0, len(chunk.samples), step):
        is_loud = np.abs(chunk.samples[at : at + step].astype(int)).max() > 3000
        if is_loud and not was_loud:
            found.append(chunk.captured_ns - round((len(chunk.samples) - at) / RATE * 1e9))
        was_loud = is_loud
    return found, was_loud


def test_pictures_and_sound_share_one_connection_also_when_one_of_them_leaves(still: list[Unit]) -> None:
    cameras = Cameras()
    with PacketCamera(still, sound=a_law(tone(1.0))) as camera:
        with hearing(camera.uri, cameras) as (gate, news):
            first(gate)
            with seeing(camera.uri, cameras) as yard:
                assert picture(yard) is not None, "from the next key frame on"
                assert heard(gate, 0.5)
                assert yard.stats.decoding == "full"
            wait(lambda: camera_stats(gate).decoding == "nothing")
            assert is_whole(heard(gate, 1.0))
        assert news == []
        assert camera.viewers == 1


def test_pictures_of_a_camera_that_was_open_before_are_not_counted_as_those_of_a_stream_that_joins(
    still: list[Unit],
) -> None:
    cameras = Cameras()
    with PacketCamera(still, sound=True) as camera, hearing(camera.uri, cameras) as (gate, _):
        first(gate)
        with seeing(camera.uri, cameras) as yard:
            wait(lambda: (picture(yard), yard.stats.decoded > 2 * FPS)[1])
        wait(lambda: camera_stats(gate).decoding == "nothing")
        before = camera_stats(gate)
        with seeing(camera.uri, cameras) as yard:
            states, until = set[str](), time.monotonic() + 60.0
            while not (now := yard.stats).frames and time.monotonic() < until:
                states.add(now.state)
                time.sleep(0.01)
            assert states <= {"starting"}
            wait(lambda: yard.stats.state == "running")
            assert yard.stats.decoded <= camera_stats(gate).decoded - before.decoded


def picture(stream: FrameStream) -> Frame:
    deadline = time.monotonic() + 60.0
    while (frame := stream.take(0.2)) is None:
        assert time.monotonic() < deadline, stream.stats
    return frame


def test_a_camera_without_sound_is_told_once_and_tried_again(still: list[Unit]) -> None:
    with PacketCamera(still) as camera, hearing(camera.uri) as (stream, news):
        wait(lambda: camera.viewers >= 3)
        assert stream.lost
        assert stream.stats.detail == news[0].removeprefix("lost: ")
        assert len(news) == 1
        assert "expected sound; it has none, only pictures: turn its sound on" in news[0]


def test_pictures_go_on_if_their_camera_has_no_sound(still: list[Unit]) -> None:
    cameras = Cameras()
    with (
        PacketCamera(still) as camera,
        seeing(camera.uri, cameras) as yard,
        hearing(camera.uri, cameras) as (gate, news),
    ):
        wait(lambda: gate.lost)
        before = yard.stats.frames
        wait(lambda: yard.stats.frames > before + 3 * FPS)
        assert (yard.stats.state, camera.viewers, len(news)) == ("running", 1, 1)
        assert "expected sound; it has none" in news[0]


def test_sound_goes_on_after_an_outage_also_at_another_rate(still: list[Unit]) -> None:
    with PacketCamera(still, sound=a_law(tone(1.0))) as camera, hearing(camera.uri) as (stream, news):
        first(stream)
        before = heard(stream, 1.0)
        camera.__exit__(None, None, None)
        gone_s = time.monotonic()
        wait(lambda: stream.lost)
        heard(stream, 0.5)
        again = PacketCamera(still, sound=a_law(tone(1.0, 16_000), 16_000), rate_hz=16_000, port=camera.port)
        with again:
            chunk = first(stream)
            samples = np.concatenate([one.samples for one in heard(stream, 2.0)])
            missing_s = (chunk.first - before[-1].end) / RATE
            assert 0.3 < missing_s < time.monotonic() - gone_s
            assert abs(pitch_hz(samples) - 500) < 3
            assert stream.stats.detail.startswith("16000 Hz")
            assert [one.partition(":")[0] for one in news] == ["lost", "running"]
            assert stream.stats.reopened >= 1


def test_the_sound_of_a_video_file_is_heard(tmp_path: Path) -> None:
    path = tmp_path / "talk.mp4"
    with av.open(path, "w") as file:
        video = file.add_stream("libx264", rate=FPS)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = file.add_stream("aac", rate=44_100, layout="stereo")
        for _ in range(2 * FPS):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="bgr24")
            file.mux(video.encode(frame))
        both = np.repeat(tone(2.0, 44_100).astype(np.float32) / 32768, 2).reshape(1, -1)
        fifo = av.AudioFifo()
        whole = av.AudioFrame.from_ndarray(np.ascontiguousarray(both), format="flt", layout="stereo")
        whole.sample_rate = 44_100
        fifo.write(whole)
        while (piece := fifo.read(1024, partial=True)) is not None:
            file.mux(sound.encode(piece))
        file.mux(video.encode(None))
        file.mux(sound.encode(None))
    stream = AudioStream("gate", f"file:{path}?pace=fast", CONFIG, RATE, on_change=lambda *_: None)
    stream.start()
    chunks = []
    while not stream.ended:
        if (chunk := stream.take(1.0)) is not None:
            chunks.append(chunk)
    stream.stop()
    samples = np.concatenate([chunk.samples for chunk in chunks])
    assert abs(len(samples) / RATE - 2.0) < 0.1
    assert abs(pitch_hz(samples) - 500) < 3


@pytest.mark.parametrize(
    ("codec", "element", "told"),
    [
        ("pcma", "alawenc", "8000 Hz, 1 channel, pcm_alaw"),
        ("aac", "voaacenc", "44100 Hz, 2 channels, aac"),
        ("opus", "opusenc", "48000 Hz, 2 channels, opus"),
    ],
)
def test_the_codecs_of_cameras_are_heard_from_a_real_server(codec: str, element: str, told: str) -> None:
    if not has_element(element):
        pytest.skip(f"GStreamer has no {element}")
    with RtspServer() as server, hearing(server.sounding + codec) as (stream, news):
        first(stream)
        heard(stream, 0.5)  # an encoder begins softly
        chunks = heard(stream, 2.5)
        assert is_whole(chunks)
        samples = np.concatenate([chunk.samples for chunk in chunks])
        assert len(samples) > 2 * RATE
        assert abs(pitch_hz(samples) - 440) < 3
        assert np.abs(samples).max() > 3000
        assert (stream.stats.detail, news) == (told, [])


def test_a_server_that_hangs_is_told_and_heard_again() -> None:
    if not has_element("alawenc"):
        pytest.skip("GStreamer has no alawenc")
    with RtspServer() as server, hearing(server.sounding + "pcma") as (stream, news):
        before = first(stream)
        server.freeze()
        wait(lambda: stream.lost)
        server.thaw()
        heard(stream, 0.1)
        wait(lambda: stream.take(0.0) is not None)
        wait(lambda: len(news) > 1)  # a chunk is there before it is told
        assert [one.partition(":")[0] for one in news] == ["lost", "running"]
        assert "no sound for " in news[0]
        assert first(stream).first > before.end + RATE


def test_a_stream_of_pictures_and_one_of_words_share_a_camera(tmp_path: Path, broker: Mosquitto) -> None:
    said = np.concatenate((quiet(2.0), word("low"), quiet(2.0), word("high"), quiet(1.0)))
    said = np.resize(said, len(said) // FPS * FPS)
    messages = broker.subscribe("vedette/#")
    units = encode(pattern(2 * FPS, moves=range(2 * FPS)), options=GOP)
    with PacketCamera(units, sound=a_law(said, RATE), rate_hz=RATE) as camera:
        gate = {"source": camera.uri, "model": str(tone_model(tmp_path))}
        yard = {"source": camera.uri, "model": str(person_model(tmp_path))}
        wrong = {"source": "v4l2:/dev/video77", "model": gate["model"]}
        with Vedette(tmp_path, broker, gate=gate, yard=yard, wrong=wrong) as vedette:
            assert "gives pictures, and model" in vedette.wait_said("stream wrong")
            messages.wait(lambda m: {one.track.label for one in events(m, "gate")} >= {"low", "high"})
            messages.wait(lambda m: events(m, "yard"))
            assert camera.viewers == 1
            vedette.end()
    words = events(messages, "gate")
    assert {(one.kind, one.reason) for one in words} == {("keyword", "word")}


def test_who_hears_a_camera_loads_no_opencv_and_who_hears_a_microphone_no_pyav() -> None:
    code = (
        "import sys; import agent.capture.sound, agent.daemon.streams.pipeline;"
        " import agent.compute.hearing;"
        " print(*('cv2' in sys.modules, 'av' in sys.modules));"
        " import agent.capture.network, agent.capture.camera_sound; print('cv2' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["False", "False", "False"]


def test_what_nobody_decodes_is_not_decoded_whatever_is_configured(still: list[Unit]) -> None:
    config = CaptureConfig(stall_s=2.0, decode="full")
    with PacketCamera(still, sound=True) as camera, hearing(camera.uri, config=config) as (stream, _):
        first(stream)
        assert camera_stats(stream).decoded == 0
        assert max(DecodeMode) is DecodeMode.FULL
