"""A microphone over PortAudio and a real sound server, which is killed and comes back."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from agent.capture.sound import AudioStream, open_sound
from agent.config import CaptureConfig
from agent.errors import SourceError
from agent.types import Array, AudioChunk, Samples
from tests.support.publishing import wait_for
from tests.support.running import ROOT
from tests.support.soundserver import SoundServer

_CONFIG = CaptureConfig(stall_s=2.0, reopen_max_s=0.5)
_RATE = 16000


@contextmanager
def listening(uri: str, rate_hz: int = _RATE) -> Iterator[tuple[AudioStream, list[tuple[str, str]]]]:
    """A started listener, and what it reports."""
    news: list[tuple[str, str]] = []
    listener = AudioStream("hall", uri, _CONFIG, rate_hz, on_change=lambda state, why: news.append((state, why)))
    listener.start()
    try:
        yield listener, news
    finally:
        listener.stop()


def hear(listener: AudioStream, seconds: float) -> list[AudioChunk]:
    """Return the audio of some seconds."""
    chunks, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        chunk = listener.take(0.5)
        if chunk is not None:
            chunks.append(chunk)
    return chunks


def sweep(seconds: float = 1.0, rate_hz: int = _RATE) -> Samples:
    """From 200 to 1000 Hz: unlike any shifted copy of itself, but for a part of a sample."""
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    samples: Samples = np.rint(12000 * np.sin(2 * np.pi * (200 * t + 400 * t * t / seconds))).astype(np.int16)
    return samples


def likeness(heard: Array, played: Samples) -> float:
    """The highest correlation of the played sound with any stretch of the heard one, 0..1."""
    size = 1 << (len(heard) + len(played)).bit_length()
    spectrum = np.fft.rfft(heard, size) * np.conj(np.fft.rfft(played, size))
    products = np.fft.irfft(spectrum, size)[: len(heard) - len(played)]
    energy = np.cumsum(np.concatenate([[0.0], heard.astype(float) ** 2]))
    energies = (energy[len(played) :] - energy[: -len(played)])[: len(products)]
    norm = np.sqrt(np.maximum(energies, 1.0) * (played.astype(float) ** 2).sum())
    return float((products / norm).max())


def is_heard(server: SoundServer, listener: AudioStream, rate_hz: int = _RATE) -> None:
    """Check that the listener receives what is played now, without a gap."""
    while listener.take(0) is not None:
        pass  # what nobody has taken yet, before a loss perhaps
    played = sweep(rate_hz=rate_hz)
    # What the server has made ahead it takes back for who begins to play: what we have heard of that is silence.
    server.play(np.concatenate([np.zeros(rate_hz // 5, np.int16), played]), rate_hz)
    chunks = hear(listener, 3.0)
    assert [chunk.first for chunk in chunks[1:]] == [chunk.end for chunk in chunks[:-1]]
    assert likeness(np.concatenate([chunk.samples for chunk in chunks]).astype(float), played) > 0.95


@pytest.mark.parametrize(
    ("uri", "rate_hz"),
    [("mic:default", 16000), ("mic:vedettemic", 16000), ("mic:default?rate=48000", 16000), ("mic:default", 8000)],
)
def test_what_is_played_is_heard(server: SoundServer, uri: str, rate_hz: int) -> None:
    with listening(uri, rate_hz) as (listener, news):
        assert listener.take(60.0) is not None
        is_heard(server, listener, rate_hz)
        assert listener.stats.dropped == 0
    assert news == []


def test_for_twenty_seconds_nothing_is_lost_and_time_is_right(server: SoundServer) -> None:
    with listening("mic:default") as (listener, news):
        first = listener.take(60.0)
        assert first is not None
        chunks = [first, *hear(listener, 20.0)]
        assert [chunk.first for chunk in chunks[1:]] == [chunk.end for chunk in chunks[:-1]]
        assert listener.stats.dropped == 0
        # A busy machine reads some late: the earliest of each half tell the time.
        offsets_s = [chunk.captured_ns / 1e9 - chunk.end / _RATE for chunk in chunks]
        middle = len(chunks) // 2
        assert min(offsets_s[middle:]) == pytest.approx(min(offsets_s[:middle]), abs=0.2)
        times = [chunk.captured_ns for chunk in chunks]
        assert times == sorted(times)
        assert median(chunk.read_ns - chunk.captured_ns for chunk in chunks) < 0.5e9
    assert news == []


def test_a_sound_server_that_dies_and_returns_is_lost_once_and_back_once(server: SoundServer) -> None:
    with listening("mic:default") as (listener, news):
        last = hear(listener, 1.0)[-1]
        server.kill()
        wait_for(lambda: listener.lost)
        time.sleep(3.0)
        last = (hear(listener, 0.1) or [last])[-1]
        server.start()
        wait_for(lambda: not listener.lost)
        is_heard(server, listener)
        assert listener.take(2) is not None
        assert [state for state, _ in news] == ["lost", "running"]
        assert "the microphone is gone" in news[0][1]
        assert news[1][1].startswith("back after ")
        assert listener.stats.reopened == 1


def test_two_streams_of_one_microphone_both_come_back(server: SoundServer) -> None:
    with listening("mic:default") as (one, one_news), listening("mic:vedettemic", 8000) as (two, two_news):
        assert one.take(10) is not None
        assert two.take(10) is not None
        server.kill()
        wait_for(lambda: one.lost and two.lost)
        server.start()
        wait_for(lambda: not one.lost and not two.lost)
        is_heard(server, one)
        is_heard(server, two, 8000)
        for news in (one_news, two_news):
            assert [state for state, _ in news] == ["lost", "running"]


def test_a_sound_server_that_comes_later_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = SoundServer(tmp_path)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    with listening("mic:default") as (listener, news):
        wait_for(lambda: listener.lost)
        assert "no microphone was found" in news[0][1]
        with server:
            wait_for(lambda: not listener.lost)
            is_heard(server, listener)
        assert [state for state, _ in news][:2] == ["lost", "running"]


def test_an_unknown_name_lists_what_there_is(server: SoundServer) -> None:
    with pytest.raises(SourceError, match=r"expected a microphone parrot; found .*\(vedettemic\)"):
        open_sound("mic:parrot", _RATE, stall_s=2)


def test_devices_lists_the_microphone_with_its_uri(server: SoundServer) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agent", "devices", "--json"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    microphones = json.loads(done.stdout)["microphones"]
    (found,) = [microphone for microphone in microphones if microphone["name"] == "vedettemic"]
    assert found["uri"] == "mic:vedettemic"
    assert "16000 Hz" in found["offers"]
    assert done.stderr == ""
