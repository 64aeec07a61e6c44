"""From a spoken word to a subscriber: a real sound server, the daemon as a process, a real broker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.house import person_model
from tests.support.mosquitto import Mosquitto
from tests.support.received import Messages
from tests.support.running import WALK, Vedette, camera, events, health, left_open
from tests.support.sound import RATE, quiet, tone_model, word
from tests.support.soundserver import SoundServer

WORDS = np.concatenate((quiet(1.0), word("low"), quiet(1.0), word("high"), quiet(0.5)))


def test_words_that_are_spoken_arrive_also_after_the_sound_server_died(
    tmp_path: Path, broker: Mosquitto, server: SoundServer
) -> None:
    messages = broker.subscribe("vedette/#")
    model = str(tone_model(tmp_path))
    ear = {"source": "mic:default", "model": model, "capture": {"stall_s": 2.0, "reopen_max_s": 0.5}}
    with Vedette(tmp_path, broker, kitchen=ear, front=camera(person_model(tmp_path), WALK)) as vedette:
        _running(messages, "kitchen")
        server.play(WORDS, RATE)
        messages.wait(lambda m: len(events(m, "kitchen")) == 2)
        low, high = events(messages, "kitchen")
        assert [(e.kind, e.reason, e.track.label) for e in (low, high)] == [
            ("heard", "word", "low"),
            ("heard", "word", "high"),
        ]
        assert (low.rung, low.backend, low.model.name) == ("full", "cpu", "tones")
        assert 1.0 < (high.captured_at - low.captured_at).total_seconds() < 2.2
        assert 0.0 < low.latency_ms.total < 1000.0
        server.kill()
        vedette.wait_said("stream kitchen: lost")
        server.start()
        vedette.wait_said("stream kitchen: running: back")
        server.play(WORDS, RATE)
        messages.wait(lambda m: [e.track.label for e in events(m, "kitchen")][2:] == ["low", "high"])
        vedette.end()
    assert left_open(messages, "front") == set(), "the camera went on beside it"
    last = health(messages)
    assert last is not None
    assert last.streams["kitchen"].dropped < RATE, "what the server took with it"


def test_a_recording_is_heard_and_a_picture_model_does_not_take_it(tmp_path: Path, broker: Mosquitto) -> None:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "words.flac", WORDS, RATE)
    messages = broker.subscribe("vedette/#")
    source = f"wav:{tmp_path / 'words.flac'}?pace=fast"
    ear = {"source": source, "model": str(tone_model(tmp_path))}
    wrong = {"source": source, "model": str(person_model(tmp_path))}
    with Vedette(tmp_path, broker, kitchen=ear, cellar=wrong) as vedette:
        messages.wait(lambda m: [e.track.label for e in events(m, "kitchen")] == ["low", "high"])
        assert "gives sound, and model" in vedette.wait_said("stream cellar")
        vedette.end()


def _running(messages: Messages, stream: str) -> None:
    """Wait until a stream runs."""
    messages.wait(lambda m: (now := health(m)) is not None and now.streams[stream].state == "running")
