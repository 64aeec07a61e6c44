"""Microphones over a sounddevice without sound; over a real sound server: tests/system/test_microphone.py."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from agent.capture import microphone as microphones
from agent.capture import portaudio
from agent.capture.audio_file import Block
from agent.capture.microphone import Microphone, open_microphone
from agent.capture.sound import AudioStream
from agent.compute.infer.litert import native_stderr
from agent.config import CaptureConfig
from agent.config.source_uri import parse
from agent.errors import SourceError
from agent.types import AudioChunk, Samples
from tests.unit.capture.fakesound import FakeSound, until

_QUICK = CaptureConfig(stall_s=60.0, reopen_max_s=0.05)
"""Reopens at once; no pause of a busy machine is a stall."""
_STALLS = CaptureConfig(stall_s=1.0, reopen_max_s=0.05)


@pytest.fixture
def sound(monkeypatch: pytest.MonkeyPatch) -> FakeSound:
    """Replace PortAudio by a fake."""
    fake, shared = FakeSound(), portaudio.PortAudio()
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    monkeypatch.setattr(microphones, "PORTAUDIO", shared)
    monkeypatch.setattr(portaudio, "_cards", lambda: str(fake.plugged))
    return fake


@contextmanager
def opened(uri: str = "mic:default", rate_hz: int = 16000, stall_s: float = 60.0) -> Iterator[Microphone]:
    source = open_microphone(parse(uri), stall_s, rate_hz)
    try:
        yield source
    finally:
        source.close()
        source.close()


@contextmanager
def listening(
    uri: str, rate_hz: int = 16000, config: CaptureConfig = _QUICK
) -> Iterator[tuple[AudioStream, list[tuple[str, str]]]]:
    """A started listener, and what it reports."""
    news: list[tuple[str, str]] = []
    listener = AudioStream("hall", uri, config, rate_hz, on_change=lambda state, why: news.append((state, why)))
    listener.start()
    try:
        yield listener, news
    finally:
        listener.stop()


@contextmanager
def speaking(sound: FakeSound, seconds: float = 0.005) -> Iterator[None]:
    """Every open stream is given a block, again and again."""
    done = threading.Event()

    def speak() -> None:
        while not done.wait(seconds):
            for stream in list(sound.streams):
                if not stream.closed:
                    stream.give(np.ones(80 * stream.settings["channels"], np.int16))

    thread = threading.Thread(target=speak)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def ramp(count: int, begin: int = 0) -> Samples:
    return (np.arange(begin, begin + count) % 30000).astype(np.int16)


def refusal(uri: str) -> str:
    with pytest.raises(SourceError) as caught, opened(uri):
        pass
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(uri)
    return str(caught.value)


def chunk(listener: AudioStream) -> AudioChunk:
    taken = listener.take(60.0)
    assert taken is not None
    return taken


def next_block(source: Microphone) -> Block:
    block = source.read()
    assert block is not None
    return block


def test_what_the_callback_got_is_read_with_the_time_of_its_last_sample(sound: FakeSound) -> None:
    with opened() as source:
        before = time.monotonic_ns()
        sound.streams[0].give(ramp(160))
        block = next_block(source)
        assert (block.samples == ramp(160)).all()
        assert block.lost == 0
        # The fake is 30 ms old at its first sample, and 10 ms long.
        assert block.read_ns - block.captured_ns == pytest.approx(20e6, abs=1e6)
        assert before <= block.read_ns <= time.monotonic_ns()
        assert len(next_block(source).samples) == 0
    assert sound.streams[0].closed


def test_a_rate_that_is_offered_is_taken(sound: FakeSound) -> None:
    with opened() as source:
        assert source.rate_hz == sound.streams[0].settings["samplerate"] == 16000
        assert source.description == "USB Mic: 16000 Hz, 1 channel"


@pytest.mark.parametrize(
    ("own", "rates", "opened_at"),
    [
        (48000, (44100, 48000), 48000),
        (8000, (8000, 44100), 44100),
        (8000, (8000,), 8000),
        (44100, (22050,), 22050),
    ],
)
def test_a_rate_that_is_not_offered_is_changed(
    sound: FakeSound, own: int, rates: tuple[int, ...], opened_at: int
) -> None:
    sound.plugged = [("Odd", 1, own, rates)]
    sound.initialise()
    with opened() as source:
        assert source.rate_hz == opened_at


def test_an_asked_rate_that_is_not_offered_is_said(sound: FakeSound, caplog: pytest.LogCaptureFixture) -> None:
    with opened("mic:default?rate=44100") as source:
        assert source.rate_hz == 48000
    assert "44100 Hz is not offered; opened at 48000 Hz" in caplog.text


def test_several_channels_are_mixed_or_one_is_taken(sound: FakeSound) -> None:
    sound.plugged = [("Array", 2, 16000, (16000,)), ("server", 32, 16000, (16000,))]
    sound.initialise()
    for uri, value in (("mic:Array", 200), ("mic:Array?channel=right", 300), ("mic:array?channel=0", 100)):
        with opened(uri) as source:
            sound.streams[-1].give(np.array([100, 300] * 40, np.int16))
            assert next_block(source).samples.tolist() == [value] * 40
    with opened("mic:server"):
        assert sound.streams[-1].settings["channels"] == 1
    assert "expected a channel 2; Array has 2" in refusal("mic:Array?channel=2")


def test_names_numbers_and_parts_of_names(sound: FakeSound) -> None:
    sound.plugged = [
        ("USB PnP Sound: A (hw:1,0)", 1, 16000, (16000,)),
        ("HDMI", 0, 16000, ()),
        ("USB Cam: B (hw:2,0)", 1, 16000, (16000,)),
        ("USB", 1, 16000, (16000,)),
    ]
    sound.initialise()
    for uri, number in (("mic:pnp", 0), ("mic:2", 2), ("mic:default", 0), ("mic:usb", 3), ("mic:USB Cam", 2)):
        with opened(uri):
            assert sound.streams[-1].settings["device"] == number
    assert "0 (USB PnP Sound: A (hw:1,0)), 2 (USB Cam: B (hw:2,0))" in refusal("mic:(hw:")
    assert "found 0 (USB PnP" in refusal("mic:HDMI")
    assert "found 0 (USB PnP" in refusal("mic:1")


def test_without_any_microphone_it_is_said_what_may_be_wrong(sound: FakeSound) -> None:
    sound.plugged = []
    sound.initialise()
    assert "no microphone was found" in refusal("mic:default")


def test_a_busy_microphone_is_named_with_what_to_look_at(sound: FakeSound) -> None:
    sound.busy = {"USB Mic"}
    assert "USB Mic cannot be opened: Device unavailable; another program may use it" in refusal("mic:default")


def test_without_portaudio_it_is_said_what_to_install(sound: FakeSound, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError("PortAudio library not found")

    monkeypatch.setattr("importlib.import_module", missing)
    assert "sudo apt install libportaudio2" in refusal("mic:default")


def test_sounddevice_is_imported_in_its_turn_with_stderr(sound: FakeSound) -> None:
    looked = threading.Event()

    def look() -> None:
        portaudio.PortAudio().query("mic:default", lambda *_: looked.set())

    thread = threading.Thread(target=look)
    with native_stderr(logging.getLogger("native")):
        thread.start()
        assert not looked.wait(0.1)
    thread.join()
    assert looked.is_set()


def test_an_overrun_is_a_gap_and_counted(sound: FakeSound) -> None:
    with listening("mic:default") as (listener, news):
        until(lambda: sound.streams)
        stream = sound.streams[0]
        stream.give(ramp(480))
        assert chunk(listener).end == 480
        stream.give(ramp(480), overflow=True)  # as many were lost before it
        after = chunk(listener)
        assert (after.first, after.end) == (960, 1440)
        assert (listener.stats.frames, listener.stats.dropped) == (960, 480)
    assert news == []


def test_a_consumer_that_sleeps_misses_the_oldest(sound: FakeSound) -> None:
    with listening("mic:default") as (listener, _):
        until(lambda: sound.streams)
        for number in range(70):
            sound.streams[0].give(ramp(1600, 1600 * number))
            until(partial(_has_handed_on, listener, 1600 * (number + 1)))
        taken = chunk(listener)
        assert taken.first == 20 * 1600
        assert (taken.samples == ramp(16000, taken.first)).all()
        assert listener.stats.dropped == 20 * 1600


def _has_handed_on(listener: AudioStream, samples: int) -> bool:
    return listener.stats.frames == samples


def test_a_microphone_that_is_unplugged_is_lost_once_and_back_once(sound: FakeSound) -> None:
    with listening("mic:default") as (listener, news), speaking(sound):
        last = chunk(listener)
        until(lambda: listener.stats.state == "running")
        sound.plugged = []
        sound.streams[0].pull()
        until(lambda: listener.lost)
        until(lambda: sound.initialised > 3)
        assert news == [("lost", "mic:default: the microphone is gone: unplugged, or its sound server ended")]
        sound.plugged = [("Another", 1, 48000, (48000,))]
        until(lambda: not listener.lost)
        while (taken := chunk(listener)).first == last.end:
            last = taken
        gone_s = (taken.captured_ns - last.captured_ns) / 1e9
        missing = taken.first - last.end
        assert missing == pytest.approx(gone_s * 16000 - len(taken.samples), abs=16000 * 0.1)
        assert taken.rate_hz == 16000
    assert [state for state, _ in news] == ["lost", "running"]
    assert listener.stats.reopened == 1
    assert all(stream.closed for stream in sound.streams)


def test_a_microphone_that_falls_silent_for_good_is_a_stall(sound: FakeSound) -> None:
    with listening("mic:default", config=_STALLS) as (listener, news):
        until(lambda: sound.streams)
        sound.streams[0].give(ramp(480))
        until(lambda: listener.lost)
        until(lambda: len(sound.streams) > 1)
        assert "no sound for 1 s" in news[0][1]
        assert len(news) == 1
        with speaking(sound):
            until(lambda: not listener.lost)
    assert [state for state, _ in news] == ["lost", "running"]


def test_silence_is_sound(sound: FakeSound) -> None:
    with listening("mic:default", config=_STALLS) as (listener, _), speaking(sound):
        until(lambda: listener.stats.state == "running")
        time.sleep(1.5 * _STALLS.stall_s)
        assert not listener.lost


def test_another_microphone_that_came_later_is_seen_though_one_is_open(sound: FakeSound) -> None:
    with listening("mic:USB Mic") as (first, first_news), speaking(sound):
        chunk(first)
        with listening("mic:Late") as (late, late_news):
            until(lambda: late.lost)
            opened_before = len(sound.streams)
            time.sleep(0.3)
            assert len(sound.streams) == opened_before, "closed though no card has come"
            sound.plugged.append(("Late", 1, 16000, (16000,)))
            until(lambda: not late.lost)
            chunk(late)
            end = first.stats.frames
            until(lambda: first.stats.frames > end)
            assert [state for state, _ in late_news] == ["lost", "running"]
        until(lambda: not first.lost)
    assert [state for state, _ in first_news] == ["lost", "running"]
    assert "a sound card was plugged in" in first_news[0][1]


@contextmanager
def another_hangs(sound: FakeSound) -> Iterator[threading.Thread]:
    """Somebody else opens a microphone meanwhile, and PortAudio does not answer before the end."""
    sound.answers.clear()
    thread = threading.Thread(target=lambda: open_microphone(parse("mic:default"), 5.0, 16000).close())
    thread.start()
    try:
        yield thread
    finally:
        sound.answers.set()
        thread.join(60.0)


def test_a_microphone_that_cannot_be_closed_while_another_hangs_is_closed_when_that_one_answers(
    sound: FakeSound,
) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    source = open_microphone(parse("mic:default"), 0.1, 16000)
    closing = threading.Thread(target=source.close)
    with another_hangs(sound):
        until(lambda: len(sound.streams) == 2)
        closing.start()
        assert not sound.streams[0].closed
        sound.streams[0].give(ramp(160))  # its callback still has where to write
    closing.join(60.0)
    assert all(stream.closed for stream in sound.streams)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    with opened():
        assert sound.initialised > 1, "nobody has one open, so the list of devices is made anew"


def test_nobody_waits_for_another_that_hangs_longer_than_it_was_told_to(sound: FakeSound) -> None:
    with another_hangs(sound):
        until(lambda: len(sound.streams) == 1)
        with pytest.raises(SourceError, match="PortAudio has been busy with another microphone"):
            open_microphone(parse("mic:default"), 0.1, 16000)


def test_a_stream_that_cannot_be_aborted_is_closed_all_the_same(sound: FakeSound) -> None:
    with opened():
        sound.streams[0].aborts_with = sound.PortAudioError("Unanticipated host error", -9999)
    assert sound.streams[0].closed
