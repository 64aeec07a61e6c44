"""Words are taught over a real broker to a real daemon, whose microphone is a recording of what the test says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

pytest.importorskip("ai_edge_litert", reason="the bundled embedding needs it")

from agent.cli.main import vedette
from tests.support.mosquitto import HOST, Mosquitto
from tests.support.publishing import TOPICS
from tests.support.received import Messages
from tests.support.running import Vedette, events, states
from tests.support.sound import tone_model
from tests.unit.compute.spoken_words import RATE, quiet, said


def recording(folder: Path, name: str, *words: tuple[str, int]) -> str:
    """Write a recording of words, and return its path."""
    path = folder / f"{name}.flac"
    soundfile.write(path, np.concatenate([quiet(1.5), *(said(*one) for one in words), quiet(0.8)]), RATE)
    return str(path)


def spoken_again_and_again(folder: Path, word: str) -> str:
    """A source in which a word is said without end."""
    path = recording(folder, word[:4], *((word, number) for number in range(8)))
    return f"wav:{path}?pace=realtime&loop=true"


def teach(broker: Mosquitto, *words: str) -> tuple[int, Any]:
    place = ("--host", HOST, "--port", str(broker.port), "--device", TOPICS.device, "--json")
    done = CliRunner().invoke(vedette, ["teach", *place, *words])
    return done.exit_code, json.loads(done.stdout.splitlines()[-1])


def words_of_home_assistant(messages: Messages) -> set[str]:
    """The types of the event "word heard", as announced last."""
    announced = [one for one in messages if b"mic.keyword" in one.payload]
    return set(json.loads(announced[-1].payload)["cmps"]["mic.keyword"]["evt_typ"]) if announced else set()


def heard(stream: str) -> Callable[[Messages], list[str]]:
    return lambda messages: [one.track.label for one in events(messages, stream) if one.kind == "keyword"]


def test_two_words_are_taught_heard_and_known_after_a_restart(tmp_path: Path, broker: Mosquitto) -> None:
    messages = broker.subscribe("#")
    lesson = {word: spoken_again_and_again(tmp_path, word) for word in ("alexa", "okay nabu")}
    spoken = recording(tmp_path, "spoken", ("okay nabu", 31), ("three", 32), ("alexa", 33), ("seven", 34))
    mic = {"source": lesson["alexa"], "model": "speech-embedding"}
    with Vedette(tmp_path, broker, mic=mic) as running:
        messages.wait(lambda m: states(m).get("mic") == "running")
        code, answer = teach(broker, "mic", "command", "--value", "alexa", "--examples", "5")
        assert (code, answer.get("examples")) == (0, {"alexa": 5}), answer
        running.config["streams"]["mic"]["source"] = lesson["okay nabu"]
        before = len(running.said("stream mic: wav:"))
        running.reload()
        messages.wait(
            lambda m: len(running.said("stream mic: wav:")) > before and states(m).get("mic") == "running"
        )
        code, answer = teach(broker, "mic", "command", "--value", "okay nabu", "--examples", "5")
        assert (code, answer.get("examples")) == (0, {"alexa": 5, "okay nabu": 5}), answer
        assert all(one["wrong"] == 0 for one in answer["check"].values())
        messages.wait(lambda m: words_of_home_assistant(m) == {"alexa", "okay nabu"})
        code, listed = teach(broker, "mic")
        assert (code, listed["command"]["examples"]) == (0, {"alexa": 5, "okay nabu": 5})
        assert running.end()[0] == 0
    again = broker.subscribe("#")
    mic["source"] = f"wav:{spoken}?pace=fast"
    with Vedette(tmp_path, broker, mic=mic):
        again.wait(lambda m: heard("mic")(m) == ["okay nabu", "alexa"])
        again.wait(lambda m: states(m).get("mic") == "ended")
    assert heard("mic")(again) == ["okay nabu", "alexa"], "no other word is one of them"


def test_what_cannot_be_taught_is_refused_with_its_reason(tmp_path: Path, broker: Mosquitto) -> None:
    messages = broker.subscribe("#")
    source = f"wav:{recording(tmp_path, 'some', ('seven', 1))}?pace=realtime&loop=true"
    mic = {"source": source, "model": "speech-embedding"}
    own = {"source": source, "model": str(tone_model(tmp_path))}
    with Vedette(tmp_path, broker, mic=mic, own=own):
        messages.wait(lambda m: states(m).get("mic") == states(m).get("own") == "running")
        for words, why in (
            (("own", "command", "--value", "stop"), "has its own words"),
            (("mic", "command", "--value", "stop", "--region", "0,0,1,1"), "region"),
            (("mic", "command", "--forget"), "no state 'command'"),
        ):
            code, answer = teach(broker, *words)
            assert (code, why in answer["error"]) == (1, True), answer
        assert teach(broker, "mic") == (0, {})
    assert not list((tmp_path / "state").glob("states/*.json"))
