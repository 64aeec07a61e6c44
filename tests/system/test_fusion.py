"""Fused events of a real daemon at a real broker: evidence, ends, reloads, Home Assistant, and odd texts."""

from __future__ import annotations

import json
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

pytest.importorskip("ai_edge_litert", reason="models are written with ai-edge-litert")

from agent.cli.main import vedette
from tests.support.doubles import person_model
from tests.support.mosquitto import Mosquitto
from tests.support.publishing import TOPICS
from tests.support.received import Messages
from tests.support.running import Table, Vedette, camera, events, health, left_open, states, stopped
from tests.support.sound import RATE, quiet, tone_model, word

COUNT = TOPICS.count("alarm", "alarm")


def daemon(folder: Path, broker: Mosquitto, **fusion: object) -> Vedette:
    running = Vedette(folder, broker, front=camera(person_model(folder)))
    running.config["text"] = {"gate": {}}
    running.config["fusion"] = {"alarm": {"when": 'person and "help"', "window_s": 1.0, **fusion}}
    return running


def say(messages: Messages, payload: str | bytes, *, retain: bool = False) -> None:
    messages.client.publish(TOPICS.text("gate"), payload, qos=1, retain=retain).wait_for_publish(10.0)


def ready(messages: Messages) -> None:
    """Wait until the camera runs, has somebody in view, and the fused event knows that."""
    messages.wait(lambda m: states(m).get("front") == "running" and events(m))
    messages.wait(lambda m: (now := health(m)) is not None and "alarm" in now.fusion)


def test_a_word_while_somebody_is_in_view_is_published_like_any_other_event(
    tmp_path: Path, broker: Mosquitto
) -> None:
    messages = broker.subscribe("#")
    with daemon(tmp_path, broker) as running:
        ready(messages)
        said_at = time.time()
        say(messages, "Please HELP me!")
        messages.wait(lambda m: len(events(m, "alarm")) >= 2)
        new, *_, end = events(messages, "alarm")
        assert (new.kind, new.reason, end.kind, end.reason) == ("new", "appeared", "end", "ended")
        assert {(one.source, one.label) for one in new.track.evidence} == {("gate", "help"), ("front", "person")}
        (seen,) = [one for one in new.track.evidence if one.source == "front"]
        assert seen.track == events(messages)[0].track.id
        assert abs(new.captured_at.timestamp() - said_at) < 10.0
        assert new.latency_ms.total > 0.0
        assert 0.5 < (end.captured_at - new.captured_at).total_seconds() < 30.0
        assert [new.seq, new.model.name, new.backend] == [new.seq, "rule", "fusion"]
        messages.wait(lambda m: m.of(COUNT)[-3:] == [b"0", b"1", b"0"])
        say(messages, "nobody calls")
        assert running.end()[0] == 0
    assert left_open(messages, "alarm") == set()
    assert b"Please" not in (tmp_path / "stderr").read_bytes() + _stored(running)
    tail = CliRunner().invoke(vedette, ["events", "tail", "-c", str(running.file), "--stream", "alarm"])
    assert tail.output.count("alarm") >= 2
    assert _replayed(running, said_at) == 1


def _replayed(running: Vedette, said_at: float) -> int:
    """Number of fused events that the recorded events of the streams and the text give again."""
    recording = running.file.parent / "day.jsonl"
    export = ["events", "export", "-c", str(running.file), "-o", str(recording), "--stream", "front"]
    assert CliRunner().invoke(vedette, export).exit_code == 0
    text = {"text": "Please HELP me!", "source": "gate", "at": datetime.fromtimestamp(said_at, UTC).isoformat()}
    with recording.open("a") as file:
        file.write(json.dumps(text) + "\n")
    tried = CliRunner().invoke(
        vedette, ["optimise", "fusion", "test", "alarm", str(recording), "-c", str(running.file), "--json"]
    )
    return len(json.loads(tried.stdout)["events"])


def _stored(running: Vedette) -> bytes:
    return b"".join(path.read_bytes() for path in running.state.rglob("*") if path.is_file())


def test_a_word_that_the_microphone_hears_joins_what_the_camera_sees(tmp_path: Path, broker: Mosquitto) -> None:
    words = np.concatenate((quiet(4.0), word("low"), quiet(1.0), word("high"), quiet(2.0)))
    soundfile.write(tmp_path / "words.flac", words, RATE)
    messages = broker.subscribe("#")
    running = daemon(tmp_path, broker, when='front:person and kitchen:"high" and not gate:"cancel"')
    source = f"wav:{tmp_path / 'words.flac'}?pace=realtime"
    running.config["streams"]["kitchen"] = {"source": source, "model": str(tone_model(tmp_path))}
    with running:
        messages.wait(lambda m: "end" in {one.kind for one in events(m, "alarm")}, timeout_s=60.0)
    (new, *_, end) = events(messages, "alarm")
    assert {(one.source, one.label) for one in new.track.evidence} == {("front", "person"), ("kitchen", "high")}
    (heard,) = [one for one in events(messages, "kitchen") if one.track.label == "high"]
    assert heard.track.id in {one.track for one in new.track.evidence}
    assert 500.0 < new.latency_ms.total < 3000.0, "a `not` waits for what comes late"
    assert end.track.id == new.track.id


def test_a_crash_ends_the_event_at_the_next_start(tmp_path: Path, broker: Mosquitto) -> None:
    messages = broker.subscribe("#")
    with daemon(tmp_path, broker, window_s=60.0) as running:
        ready(messages)
        say(messages, "help")
        messages.wait(lambda m: events(m, "alarm"))
        running.end(signal.SIGKILL)
        running.start()
        messages.wait(lambda m: len(events(m, "alarm")) == 2)
        assert events(messages, "alarm")[1].reason == "restart"
        messages.wait(lambda m: m.of(COUNT)[-1:] == [b"0"])


def test_a_stop_ends_the_event(tmp_path: Path, broker: Mosquitto) -> None:
    messages = broker.subscribe("#")
    with daemon(tmp_path, broker, window_s=60.0) as running:
        ready(messages)
        say(messages, "help")
        messages.wait(lambda m: events(m, "alarm"))
        running.end()
    assert stopped(messages)
    assert left_open(messages, "alarm") == set()
    assert events(messages, "alarm")[-1].reason == "shutdown"


def test_a_reload_changes_the_rule_while_the_stream_runs_on(tmp_path: Path, broker: Mosquitto) -> None:
    messages = broker.subscribe("#")
    with daemon(tmp_path, broker, window_s=60.0) as running:
        ready(messages)
        say(messages, "help")
        messages.wait(lambda m: events(m, "alarm"))
        running.config["streams"]["back"] = camera(person_model(tmp_path), "test:?size=96x96&fps=5")
        running.config["fusion"]["alarm"]["when"] = 'front:person and "help"'
        running.config["fusion"]["fire"] = {"when": '"fire" and front:person'}
        running.reload()
        messages.wait(lambda m: events(m, "alarm")[-1].reason == "reloaded")
        messages.wait(lambda m: (now := health(m)) is not None and "fire" in now.fusion)
        say(messages, "fire")
        messages.wait(lambda m: events(m, "fire"))
        running.config["streams"]["back"]["capture"] = {"max_fps": 3}  # a stream that the rules do not ask for
        running.reload()
        messages.wait(lambda m: len(running.said("reloaded")) == 2)
        assert left_open(messages, "fire") != set()
        del running.config["fusion"]["fire"], running.config["fusion"]["alarm"], running.config["text"]
        running.reload()
        messages.wait(lambda m: m.of(TOPICS.count("fire", "fire"))[-1:] == [b""])
        messages.wait(lambda m: not left_open(m, "fire"))
        assert len({one.track.id for one in events(messages)}) == 1, "the camera was not disturbed"


def test_odd_texts_are_refused_told_once_and_hold_nothing_up(tmp_path: Path, broker: Mosquitto) -> None:
    messages = broker.subscribe("#")
    say(messages, "help", retain=True)
    with daemon(tmp_path, broker) as running:
        ready(messages)
        say(messages, "help " * 220_000)  # a megabyte
        say(messages, "help " * 1000)
        say(messages, b"\xff\xfehelp")
        say(messages, '{"text": 5}')
        messages.wait(lambda m: (now := health(m)) is not None and now.texts_refused.get("gate") == 4)
        assert events(messages, "alarm") == []
        assert len(running.said("text gate: refused")) == 4, "each kind once"
        far = (datetime.now(UTC) - timedelta(hours=5)).isoformat()
        say(messages, json.dumps({"text": "help", "at": far}))
        messages.wait(lambda m: events(m, "alarm"))
        assert abs(events(messages, "alarm")[0].captured_at.timestamp() - time.time()) < 60.0


def test_a_lost_camera_is_unknown_and_not_empty(tmp_path: Path, broker: Mosquitto) -> None:
    messages = broker.subscribe("#")
    with daemon(tmp_path, broker, when='"help" and not person', late_s=0.0) as running:
        running.config["streams"]["front"]["enabled"] = False
        messages.wait(lambda m: (now := health(m)) is not None and bool(now.fusion))
        running.reload()
        messages.wait(lambda m: states(m).get("front") == "disabled")
        messages.wait(lambda m: (now := health(m)) is not None and now.fusion["alarm"].away == ("front",))
        time.sleep(1.1)  # longer than the window: what was seen before does not count any more
        say(messages, "help")
        time.sleep(1.0)
        assert events(messages, "alarm") == []


def test_home_assistant_gets_a_sensor_for_each_fused_event(tmp_path: Path, broker: Mosquitto) -> None:
    messages = broker.subscribe("#")
    with daemon(tmp_path, broker):
        messages.wait(lambda m: [one for one in m if one.topic.startswith("homeassistant/device/")])
        newest = [one for one in messages if one.topic.startswith("homeassistant/device/")][-1]
        sensor = json.loads(newest.payload)["cmps"]["alarm.fused"]
        assert (sensor["p"], sensor["stat_t"], sensor["name"]) == ("binary_sensor", COUNT, "Alarm")


def test_without_commands_no_text_is_taken_and_the_check_says_so(tmp_path: Path, broker: Mosquitto) -> None:
    messages = broker.subscribe("#")
    running = daemon(tmp_path, broker)
    mqtt: Table = running.config["mqtt"]
    mqtt["commands"] = False
    with running:
        ready(messages)
        say(messages, "help")
        messages.wait(lambda m: (now := health(m)) is not None and "gate" in now.fusion["alarm"].away)
        assert events(messages, "alarm") == []
    done = CliRunner().invoke(vedette, ["config", "check", str(running.file)])
    assert done.exit_code == 0
    assert "text gate: nothing is taken from the broker" in done.output
