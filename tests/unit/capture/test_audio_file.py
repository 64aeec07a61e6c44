from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.capture.sound import AudioStream, open_sound
from agent.config import CaptureConfig
from agent.errors import SourceError
from agent.types import AudioChunk, Samples
from tests.support.publishing import wait_for
from tests.unit.capture.test_audio_file_resampler import resampled, tone

_QUICK = CaptureConfig(stall_s=60.0)


def write(path: Path, samples: Any, rate_hz: int = 16000, **kind: str) -> Path:
    soundfile.write(path, samples, rate_hz, **kind)
    return path


def noise(count: int, seed: int = 1) -> Samples:
    return np.random.default_rng(seed).integers(-32768, 32767, count, np.int16)


def heard(uri: str, rate_hz: int = 16000, work_s: float = 0.0) -> list[AudioChunk]:
    """Every chunk of a recording."""
    listener = AudioStream("door", uri, _QUICK, rate_hz, on_change=lambda *_: None)
    listener.start()
    chunks = []
    try:
        while not listener.ended:
            chunk = listener.take(0.25)
            if chunk is not None:
                chunks.append(chunk)
                time.sleep(work_s)
    finally:
        listener.stop()
    return chunks


def joined(chunks: list[AudioChunk]) -> Samples:
    assert [chunk.first for chunk in chunks[1:]] == [chunk.end for chunk in chunks[:-1]], "a gap"
    return np.concatenate([chunk.samples for chunk in chunks])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 40_000), st.sampled_from([8000, 16000, 22050]))
def test_a_fast_replay_gives_every_sample_once_and_in_order(tmp_path: Path, count: int, rate_hz: int) -> None:
    samples = noise(count, count)
    path = write(tmp_path / "a.wav", samples, rate_hz)
    assert (joined(heard(f"wav:{path}?pace=fast", rate_hz)) == samples).all()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(100, 40_000), st.sampled_from([8000, 44100, 48000]))
def test_at_another_rate_it_is_what_the_whole_gives_at_once(tmp_path: Path, count: int, rate_hz: int) -> None:
    samples = tone(rate_hz, 1.0)[:count]
    path = write(tmp_path / "a.flac", samples, rate_hz)
    assert (joined(heard(f"wav:{path}?pace=fast")) == resampled(samples, rate_hz, 16000, [count])).all()


def test_a_slow_consumer_misses_nothing_of_a_fast_replay(tmp_path: Path) -> None:
    samples = noise(48_000)
    path = write(tmp_path / "a.wav", samples)
    assert (joined(heard(f"wav:{path}?pace=fast", work_s=0.005)) == samples).all()


@pytest.mark.parametrize(
    ("name", "subtype", "tolerance"),
    [
        ("a.wav", "PCM_U8", 256),
        ("a.wav", "PCM_16", 0),
        ("a.wav", "PCM_24", 0),
        ("a.wav", "PCM_32", 0),
        ("a.wav", "FLOAT", 0),
        ("a.wav", "DOUBLE", 0),
        ("a.wav", "ULAW", 1000),
        ("a.flac", "PCM_16", 0),
        ("a.flac", "PCM_24", 0),
        ("a.ogg", "VORBIS", 1500),
    ],
)
def test_every_kind_of_file(tmp_path: Path, name: str, subtype: str, tolerance: int) -> None:
    samples = tone(16000, 0.5)
    path = tmp_path / name
    soundfile.write(path, samples / 32768, 16000, subtype=subtype)
    given_ = joined(heard(f"wav:{path}?pace=fast"))
    assert len(given_) == len(samples)
    assert np.abs(given_.astype(int) - samples).max() <= tolerance


@pytest.mark.parametrize(("channel", "value"), [("left", 1000), ("right", 3000), ("mix", 2000), ("1", 3000)])
def test_a_channel_of_a_stereo_file(tmp_path: Path, channel: str, value: int) -> None:
    path = write(tmp_path / "a.wav", np.tile(np.array([1000, 3000], np.int16), (1600, 1)))
    assert set(joined(heard(f"wav:{path}?pace=fast&channel={channel}"))) == {value}


def test_a_loop_goes_on_without_a_seam(tmp_path: Path) -> None:
    samples = noise(3001)
    path = write(tmp_path / "a.wav", samples)
    source = open_sound(f"wav:{path}?pace=fast&loop=1", 16000, stall_s=1)
    blocks = [block.samples for block in (source.read() for _ in range(20)) if block]
    source.close()
    whole = np.concatenate(blocks)
    assert (whole == np.resize(samples, len(whole))).all()


def test_a_fast_replay_counts_recorded_time(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", noise(48_000))
    before = time.monotonic_ns()
    chunks = heard(f"wav:{path}?pace=fast")
    after = time.monotonic_ns()
    began_ns = chunks[0].captured_ns - round(chunks[0].end / 16000 * 1e9)
    assert before <= began_ns < after
    for chunk in chunks:
        assert abs(chunk.captured_ns - began_ns - chunk.end / 16000 * 1e9) < 10
        recorded = (chunk.captured_at - chunks[0].captured_at).total_seconds()
        assert recorded == pytest.approx((chunk.captured_ns - chunks[0].captured_ns) / 1e9, abs=1e-4)
    assert (chunks[0].stream, chunks[0].rate_hz, len(chunks[0].samples)) == ("door", 16000, 1600)


def test_a_replay_at_realtime_comes_at_the_pace_of_a_microphone(tmp_path: Path) -> None:
    samples = noise(24_000)
    path = write(tmp_path / "a.wav", samples)
    began = time.monotonic()
    chunks = heard(f"wav:{path}")
    assert time.monotonic() - began > 1.4
    assert (joined(chunks) == samples).all()
    assert len(chunks) > 1
    assert all(chunk.captured_ns <= chunk.read_ns for chunk in chunks)
    for chunk in chunks[1:]:
        heard_s = (chunk.captured_ns - chunks[0].captured_ns) / 1e9
        assert heard_s == pytest.approx((chunk.end - chunks[0].end) / 16000, abs=1e-3)


def test_stop_wakes_a_replay_that_waits_for_its_time(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", np.zeros(120 * 8000, np.int16), 8000)
    listener = AudioStream("door", f"wav:{path}", _QUICK, 8000, on_change=lambda *_: None)
    listener.start()
    assert listener.take(60.0) is not None
    listener.stop()
    wait_for(lambda: "read-door" not in {thread.name for thread in threading.enumerate()})
    assert listener.take(0) is None


def test_a_loud_float_file_is_clipped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", np.array([1.5, -1.5] * 800, np.float32), subtype="FLOAT")
    assert set(joined(heard(f"wav:{path}?pace=fast"))) == {32767, -32768}


def cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: round(len(content) * share)])
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "none.wav", "there is no"),
        (lambda folder: folder, "found a folder"),
        (lambda folder: cut(write(folder / "a.wav", noise(9)), 0.0), "Format not recognised"),
        (lambda folder: cut(write(folder / "a.wav", noise(9)), 0.2), "No 'data' chunk marker"),
        (lambda folder: cut(write(folder / "a.flac", noise(90_000)), 0.5), ""),
        (lambda folder: write(folder / "a.wav", noise(0)), "no samples"),
        (lambda folder: write(folder / "a.wav", noise(9), 1), "expected 4000 to 384000 Hz; its header says 1 Hz"),
        (lambda folder: write(folder / "a.wav", noise(9), 768_000), "its header says 768000 Hz"),
        (lambda folder: write(folder / "a.wav", noise(650).reshape(-1, 65)), "its header says 65"),
        (lambda folder: write(folder / "a.wav", noise(9)).with_suffix(".wav?channel=1"), "expected a channel 1"),
    ],
)
def test_what_cannot_be_used_is_one_clear_line(tmp_path: Path, make: Any, words: str) -> None:
    uri = f"wav:{make(tmp_path)}"
    with pytest.raises(SourceError) as caught:
        heard(uri + ("&" if "?" in uri else "?") + "pace=fast")
    assert words in str(caught.value)
    assert str(caught.value).startswith("wav:")
    assert "\n" not in str(caught.value)


def test_a_text_is_no_sound(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_text("what a pity" * 100)
    with pytest.raises(SourceError, match="Format not recognised"):
        open_sound(f"wav:{path}", 16000, stall_s=1)
