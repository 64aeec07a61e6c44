"""From a spoken word to a subscriber: a real sound server, the daemon as a process, a real broker."""

from __future__ import annotations

import subprocess
import sys
from itertools import groupby
from pathlib import Path

import msgspec
import numpy as np
import soundfile

from agent.comms.messages import DetectionsMessage
from tests.support.doubles import person_model
from tests.support.mosquitto import Mosquitto
from tests.support.publishing import TOPICS
from tests.support.received import Messages
from tests.support.running import WALK, Vedette, camera, events, health, hear, states, stopped
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
            ("keyword", "word", "low"),
            ("keyword", "word", "high"),
        ]
        assert (low.variant, low.backend, low.model.name) == ("full", "cpu", "tones")
        assert 1.0 < (high.captured_at - low.captured_at).total_seconds() < 2.2
        assert low.latency_ms.total > 0.0
        server.kill()
        vedette.wait_said("stream kitchen: lost")
        server.start()
        vedette.wait_said("stream kitchen: running: back")
        server.play(WORDS, RATE)
        messages.wait(lambda m: [e.track.label for e in events(m, "kitchen")][2:] == ["low", "high"])
        hear(messages, 3, "front")  # the camera went on beside it
        vedette.end()
    assert stopped(messages)
    last = health(messages)
    assert last is not None
    assert last.streams["kitchen"].dropped < RATE, "what the server took with it"


def test_a_sound_server_that_hangs_holds_nothing_up(
    tmp_path: Path, broker: Mosquitto, server: SoundServer
) -> None:
    messages = broker.subscribe("vedette/#")
    ear = {"source": "mic:default", "model": str(tone_model(tmp_path)), "capture": {"stall_s": 1.0}}
    with Vedette(tmp_path, broker, kitchen=ear) as vedette:
        _running(messages, "kitchen")
        server.hang()
        vedette.wait_said("stream kitchen: lost")
        assert vedette.end()[0] == 0, "it would be waited for for ever"
    done = subprocess.run(
        [sys.executable, "-m", "agent", "devices"], capture_output=True, text=True, timeout=60, check=False
    )
    assert "the sound server does not answer within 5 s" in done.stdout + done.stderr


def test_a_subscriber_to_detections_follows_what_the_model_says_now(tmp_path: Path, broker: Mosquitto) -> None:
    soundfile.write(tmp_path / "words.flac", WORDS, RATE)
    messages = broker.subscribe("vedette/#")
    source = f"wav:{tmp_path / 'words.flac'}?pace=realtime"
    ear = {"source": source, "model": str(tone_model(tmp_path)), "publish": {"detections": True}}
    ear |= {"gate": {"voice": False}, "decode": {"labels": ["low", "high", "silence"]}}
    with Vedette(tmp_path, broker, kitchen=ear).online_first() as vedette:
        messages.wait(lambda m: states(m).get("kitchen") == "ended")
        vedette.end()
    assert stopped(messages)
    topic = TOPICS.detections("kitchen")
    heard = [msgspec.json.decode(body, type=DetectionsMessage) for body in messages.of(topic)]
    labels = [one.label for message in heard for one in message.detections]
    assert [label for label, _ in groupby(labels)] == ["silence", "low", "silence", "high", "silence"]
    assert len(heard) >= 20
    assert all(len(message.detections) == 1 for message in heard)
    assert [message.seq for message in heard] == sorted({message.seq for message in heard})
    for event in events(messages, "kitchen"):
        (at_once, *_) = [m.detections[0].label for m in heard if m.captured_at >= event.track.last_seen]
        assert event.track.label == at_once
    assert not [m for m in messages if "/count/" in m.topic], "there is nothing to count in words"


def test_a_recording_is_heard_and_a_picture_model_does_not_take_it(tmp_path: Path, broker: Mosquitto) -> None:
    soundfile.write(tmp_path / "words.flac", WORDS, RATE)
    messages = broker.subscribe("vedette/#")
    source = f"wav:{tmp_path / 'words.flac'}?pace=fast"
    ear = {"source": source, "model": str(tone_model(tmp_path))}
    wrong = {"source": source, "model": str(person_model(tmp_path))}
    with Vedette(tmp_path, broker, kitchen=ear, cellar=wrong) as vedette:
        messages.wait(lambda m: [e.track.label for e in events(m, "kitchen")] == ["low", "high"])
        assert "stream cellar" in vedette.wait_said("gives sound, and model")
        vedette.end()


def _running(messages: Messages, stream: str) -> None:
    """Wait until a stream runs."""
    messages.wait(lambda m: (now := health(m)) is not None and now.streams[stream].state == "running")
