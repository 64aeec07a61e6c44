from __future__ import annotations

import time

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.capture.camera import Camera, Cameras, FrameConsumer
from agent.capture.camera_sound import CameraSound
from agent.capture.sound_decoder import SoundDecoder, samples_of
from agent.config import CaptureConfig
from agent.errors import SourceError
from agent.types import MediaPacket, MediaTrack

RATE, COUNT = 8000, 160
TRACK = MediaTrack("sound", "pcm_alaw", (1, RATE), b"", rate_hz=RATE, channels=1)
S = 1_000_000_000


def packet(number: int, at_s: float, track: MediaTrack = TRACK, began_ns: int = 0) -> MediaPacket:
    """20 ms of sound with a time stamp, s."""
    read_ns = S + number * S // 50
    began = began_ns or S + round(at_s * S)
    return MediaPacket(track, b"\x55" * COUNT, round(at_s * RATE), None, COUNT, True, read_ns, began)


class NoCameras(Cameras):
    """Attaches nobody, and gives no packets but those that a test puts."""

    def attach(self, stream: str, uri: str, config: CaptureConfig, consumer: FrameConsumer) -> Camera:
        return Camera(stream, uri, config)


def opened() -> CameraSound:
    return CameraSound("gate", "rtsp://cam/1", CaptureConfig(), 16_000, NoCameras())


def heard(sound: CameraSound) -> list[tuple[int, int]]:
    """Length and gap before it of each block that waits, samples."""
    found = []
    while len((block := sound.read()).samples):
        found.append((len(block.samples), block.lost))
    return found


def test_packets_become_one_block_without_a_gap() -> None:
    sound = opened()
    for number in range(10):
        sound.take_packet(packet(number, number * 0.02))
    assert heard(sound) == [(10 * COUNT, 0)]
    assert (sound.rate_hz, sound.description) == (RATE, "8000 Hz, 1 channel, pcm_alaw")


def test_lost_packets_are_a_gap_of_their_length() -> None:
    sound = opened()
    for number in [*range(5), *range(15, 20)]:
        sound.take_packet(packet(number, number * 0.02))
    assert heard(sound) == [(5 * COUNT, 0), (5 * COUNT, 10 * COUNT)]


def test_after_another_connection_the_clock_tells_how_much_is_missing() -> None:
    sound = opened()
    sound.take_packet(packet(0, 0.0))
    other = MediaTrack("sound", "pcm_alaw", (1, RATE), b"", rate_hz=RATE, channels=1)
    sound.take_packet(packet(1, 0.0, other, began_ns=S + 3 * S + S // 50))
    assert heard(sound) == [(COUNT, 0), (COUNT, 3 * RATE)]


def test_a_time_stamp_that_jumps_by_hours_is_no_gap_of_hours() -> None:
    sound = opened()
    sound.take_packet(packet(0, 0.0))
    sound.take_packet(packet(1, 9000.0, began_ns=S + S // 5))
    assert heard(sound) == [(COUNT, 0), (COUNT, round(0.18 * RATE))]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-40, 40), min_size=20, max_size=60))
def test_time_stamps_that_tremble_cut_nothing(off_ms: list[int]) -> None:
    sound = opened()
    parts = 0
    for number, off in enumerate(off_ms):
        sound.take_packet(packet(number, number * 0.02 + (off / 2000 if number else 0.0)))
    while len((block := sound.read()).samples):
        parts += 1
        assert block.lost == 0
        assert block.captured_ns <= time.monotonic_ns()
    assert parts == 1


def test_a_codec_without_a_decoder_is_an_outage_that_names_it() -> None:
    sound = opened()
    sound.take_packet(packet(0, 0.0, MediaTrack("sound", "g999", (1, RATE), b"", rate_hz=RATE, channels=1)))
    with pytest.raises(SourceError, match="g999"):
        sound.read()


def test_an_outage_of_the_camera_is_one_of_its_sound_after_what_has_come() -> None:
    sound = opened()
    sound.take_packet(packet(0, 0.0))
    sound.change("lost", "rtsp://cam: it cannot be reached")
    assert len(sound.read().samples) == COUNT
    with pytest.raises(SourceError, match="it cannot be reached"):
        sound.read()


def test_damaged_packets_are_left_out() -> None:
    decoder = SoundDecoder(MediaTrack("sound", "opus", (1, 48_000), b"", rate_hz=48_000, channels=2))
    damaged = MediaPacket(TRACK, b"\xff" * 7, 0, 0, 960, True, S, S)
    assert decoder.decode(damaged).dtype == np.int16


@pytest.mark.parametrize("form", ["u8", "s16", "s16p", "s32", "s32p", "flt", "fltp", "dbl"])
def test_any_form_of_samples_becomes_the_mean_of_its_channels(form: str) -> None:
    values = {"u8": (192, 64), "s": (16384, 0), "s32": (1 << 30, 0), "f": (0.5, 0.0), "d": (0.5, 0.0)}
    left, right = values.get(form[:3]) or values.get(form[:2]) or values[form[0]]
    kinds = {"u8": np.uint8, "s1": np.int16, "s3": np.int32, "fl": np.float32, "db": np.float64}
    planes = np.array([[left] * 8, [right] * 8], kinds[form[:2]])
    array = planes if form.endswith("p") else np.ascontiguousarray(planes.T.reshape(1, -1))
    frame = av.AudioFrame.from_ndarray(array, format=form, layout="stereo")
    expected = 0 if form == "u8" else 8192
    assert samples_of(frame).tolist() == [expected] * 8
