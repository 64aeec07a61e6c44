"""The daemon as systemd runs it: a real process, real signals, a real broker."""

from __future__ import annotations

import re
import resource
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from agent.comms.mqtt.endpoint import client_id
from agent.daemon.runtime import STOP_TIMES
from tests.support.doubles import person_model
from tests.support.mosquitto import HOST, Mosquitto
from tests.support.publishing import TOPICS, wait_for
from tests.support.received import Messages
from tests.support.running import (
    WALK,
    Vedette,
    camera,
    events,
    has_rate,
    health,
    hear,
    kinds,
    left_open,
    states,
    stopped,
)
from tests.support.tflite_builder import crashing_model

_CLIP = f"{WALK}&frames=40"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return person_model(tmp_path)


@pytest.fixture
def messages(broker: Mosquitto) -> Messages:
    return broker.subscribe("vedette/#")


@pytest.fixture
def vedette(tmp_path: Path, broker: Mosquitto, model: Path) -> Iterator[Vedette]:
    """Running, with two cameras."""
    with Vedette(tmp_path, broker, front=camera(model), back=camera(model)) as running:
        yield running


def status(messages: Messages) -> list[bytes]:
    return messages.of(TOPICS.status)


def line_of(vedette: Vedette, text: str) -> str:
    """`file:line` of the first line that begins with this text."""
    lines = vedette.file.read_text().splitlines()
    return f"{vedette.file}:{next(n for n, line in enumerate(lines, 1) if line.startswith(text))}"


def both_see(messages: Messages) -> Messages:
    return messages.wait(lambda m: {"new", "update"} <= kinds(m, "front") & kinds(m, "back"))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_every_track_and_says_so_in_two_seconds(
    vedette: Vedette, messages: Messages, how: signal.Signals
) -> None:
    both_see(messages)
    code, _ = vedette.end(how)
    assert (code, stopped(messages)) == (0, True)
    assert sum(STOP_TIMES) < 2.0
    for stream in ("front", "back"):
        assert left_open(messages, stream) == set()
        assert events(messages, stream)[-1].reason == "shutdown"
        assert messages.of(TOPICS.count(stream, "person"))[-1] == b"0"
    assert states(messages) == {"front": "ended", "back": "ended"}


def test_a_model_that_crashes_the_runtime_fails_its_stream_and_no_other(
    tmp_path: Path, broker: Mosquitto, messages: Messages, model: Path
) -> None:
    bad = tmp_path / "bad.toml"
    bad.with_suffix(".tflite").write_bytes(crashing_model())
    bad.write_text('name = "bad"\n[output]\ndecoder = "classify"\n')
    with Vedette(tmp_path, broker, front=camera(model), back=camera(bad)) as vedette:
        messages.wait(lambda m: "new" in kinds(m, "front") and states(m).get("back") == "failed")
        (line,) = vedette.said("ERROR ")
        assert re.search(rf"stream back: {bad}: crashed \S+ \S+ when it was first run \(SIGSEGV\); ", line)
        newest = health(messages)
        assert newest is not None
        assert "(SIGSEGV)" in newest.streams["back"].detail
        bad.with_suffix(".tflite").write_bytes(model.with_suffix(".tflite").read_bytes())
        bad.write_text(model.read_text().replace(model.stem, bad.stem))
        vedette.reload()
        messages.wait(lambda m: "new" in kinds(m, "back"))
        vedette.end(signal.SIGTERM)
    with vedette:  # what ran once is not tried again
        messages.wait(lambda m: states(m) == {"front": "running", "back": "running"})
        assert len(vedette.said("testing it in a separate process first")) == 2  # of the same bytes once


def test_the_log_tells_the_board_and_its_profile_once(
    tmp_path: Path, broker: Mosquitto, messages: Messages, model: Path
) -> None:
    vedette = Vedette(tmp_path, broker, front=camera(model))
    vedette.config["device"]["profile"] = "pi5"
    with vedette:
        messages.wait(events)
        (line,) = vedette.said("INFO board: ")
    assert re.search(r"; profile: pi5: Raspberry Pi 5.* \(/.*/pi5\.toml\)$", line)


def test_a_killed_daemon_is_offline_by_its_will(vedette: Vedette, messages: Messages) -> None:
    both_see(messages)
    vedette.end(signal.SIGKILL)
    messages.wait(lambda m: status(m) == [b"online", b"offline"])


def test_tracks_that_a_killed_daemon_left_open_end_at_the_next_start(
    vedette: Vedette, messages: Messages
) -> None:
    both_see(messages)
    vedette.end(signal.SIGKILL)
    del vedette.config["streams"]["back"]
    vedette.start()
    messages.wait(lambda m: [e.kind for e in events(m) if e.kind != "update"] == ["new", "end", "new"])
    messages.wait(lambda m: not left_open(m, "back"))
    for stream in ("front", "back"):
        (end,) = (event for event in events(messages, stream) if event.kind == "end")
        assert end.reason == "restart"
        gone = b"" if stream == "back" else b"0"
        messages.wait(lambda m, stream=stream, gone=gone: gone in m.of(TOPICS.count(stream, "person"))[1:])  # type: ignore[misc]  # mypy cannot infer a lambda with defaults
    assert "2 open tracks" in vedette.wait_said("unclean shutdown")
    vedette.end(signal.SIGKILL)
    vedette.start()
    messages.wait(lambda m: len([e for e in events(m) if e.kind == "end"]) == 2)
    assert not left_open(messages, "back"), "executed once"


def test_a_reload_swaps_the_changed_stream_and_no_other(vedette: Vedette, messages: Messages) -> None:
    both_see(messages)
    vedette.config["streams"]["front"]["track"]["min_hits"] = 2
    vedette.reload()
    messages.wait(lambda m: [e.kind for e in events(m) if e.kind != "update"] == ["new", "end", "new"])
    hear(messages, 5, "back")
    assert len({event.track.id for event in events(messages, "back")}) == 1
    assert [e.kind for e in events(messages, "back") if e.kind != "update"] == ["new"]
    assert len({event.track.id for event in events(messages, "front")}) == 2
    assert status(messages) == [b"online"]


def test_a_reload_of_a_broken_file_changes_nothing_and_names_the_line(
    vedette: Vedette, messages: Messages
) -> None:
    both_see(messages)
    vedette.file.write_text('[streams.front]\nsource = "test:"\nmodell = "nanodet"\n')
    vedette.process.send_signal(signal.SIGHUP)
    said = vedette.wait_said("reload refused, keeping the old configuration")
    assert f"{vedette.file}:3: unknown key `streams.front.modell`; did you mean 'model'?" in said
    assert len(vedette.said("refused")) == 1
    hear(messages, 3, "front")
    hear(messages, 3, "back")
    assert "end" not in kinds(messages) | kinds(messages, "back")


@pytest.mark.parametrize(
    ("table", "key", "value", "why"),
    [
        ("mqtt", "password_file", "/nothing/here", r"password_file is set but username is not"),
        ("mqtt", "key_file", "/nothing/here", r"key_file is set but cert_file is not"),
    ],
)
def test_a_reload_that_cannot_be_done_is_refused_as_a_whole(
    vedette: Vedette, messages: Messages, table: str, key: str, value: str, why: str
) -> None:
    both_see(messages)
    vedette.config[table][key] = value
    del vedette.config["streams"]["back"]
    vedette.reload()
    said = vedette.wait_said("reload refused")
    assert why in said
    assert f"keeping the old configuration: {line_of(vedette, f'{key} = ')}: [{table}] " in said
    assert "end" not in kinds(messages, "back")


def test_a_reload_takes_up_what_it_can_and_says_what_waits_for_a_restart(
    vedette: Vedette, messages: Messages
) -> None:
    both_see(messages)
    del vedette.config["streams"]["back"]
    vedette.config["storage"] |= {"clips_max_age_s": 70_000.0, "clips_folder": "/elsewhere"}
    vedette.config["device"]["name"] = "shed"
    vedette.reload()
    said = vedette.wait_said("reloaded: ")
    assert said.endswith(
        "reloaded: [storage] clips_max_age_s; stream back is gone; [device] name waits for a restart; "
        "[storage] clips_folder waits for a restart"
    )
    messages.wait(lambda m: "end" in kinds(m, "back"))
    waiting = ("device.name", "storage.clips_folder")
    messages.wait(lambda m: (told := health(m)) is not None and told.waits_for_restart == waiting)
    hear(messages, 3)
    vedette.end()
    vedette.start()
    messages.wait(lambda m: m.of("vedette/shed/status")[-1:] == [b"online"])


def test_a_reload_with_a_model_that_is_not_there_keeps_the_old_one(
    vedette: Vedette, messages: Messages, tmp_path: Path
) -> None:
    both_see(messages)
    vedette.config["streams"]["front"]["model"] = str(tmp_path / "gone.tflite")
    vedette.reload()
    vedette.wait_said("reload refused")
    (line,) = vedette.said("gone.tflite")
    assert f"keeping the old configuration: {line_of(vedette, 'model = ')}: stream front: " in line
    hear(messages, 3)
    assert "end" not in kinds(messages)


def test_a_reload_after_a_manifest_was_edited_swaps_its_streams(
    vedette: Vedette, messages: Messages, model: Path
) -> None:
    both_see(messages)
    sound = model.read_text()
    model.write_text(sound.replace('"ssd"', '"yolo"'))
    vedette.reload()
    said = vedette.wait_said("reload refused")
    assert f"{line_of(vedette, 'model = ')}: stream front: {model}: " in said
    model.write_text(sound.replace('["person"]', '["walker"]'))
    vedette.reload()
    messages.wait(lambda m: "walker" in {event.track.label for event in events(m)})
    assert "end" in kinds(messages)


def test_a_reload_adds_and_removes_streams(vedette: Vedette, messages: Messages, model: Path) -> None:
    both_see(messages)
    vedette.config["streams"]["side"] = camera(model)
    del vedette.config["streams"]["back"]
    vedette.reload()
    messages.wait(lambda m: set(states(m)) == {"front", "side"} and "new" in kinds(m, "side"))
    assert left_open(messages, "back") == set()
    assert "end" not in kinds(messages, "front")
    kept = (TOPICS.snapshot("back"), TOPICS.count("back", "person"))
    messages.wait(lambda m: all(m.of(topic)[-1] == b"" for topic in kept))


def test_a_reload_moves_to_another_broker(vedette: Vedette, messages: Messages, tmp_path: Path) -> None:
    both_see(messages)
    with Mosquitto(tmp_path / "other") as other:
        there = other.subscribe("vedette/#")
        vedette.use(other)
        vedette.reload()
        messages.wait(lambda m: status(m) == [b"online", b"stopped"])
        assert vedette.wait_said("reloaded").endswith("reloaded: [mqtt] port")
        there.wait(lambda m: status(m) == [b"online"] and states(m) and len(events(m)) > 3)
        for stream in ("front", "back"):
            assert there.of(TOPICS.count(stream, "person")) == [b"1"]
            assert there.of(TOPICS.snapshot(stream))[-1].startswith(b"\xff\xd8")
        assert len({event.track.id for event in (*events(messages), *events(there))}) == 1
        seqs = {
            e.seq for where in (messages, there) for stream in ("front", "back") for e in events(where, stream)
        }
        assert seqs == set(range(1, max(seqs) + 1))


def test_a_reload_that_moves_and_swaps_leaves_no_old_count_behind(
    vedette: Vedette, messages: Messages, tmp_path: Path
) -> None:
    both_see(messages)
    with Mosquitto(tmp_path / "other") as other:
        there = other.subscribe("vedette/#")
        vedette.use(other)
        vedette.config["streams"]["back"] = camera("nanodet", _CLIP, publish={"events": False})
        vedette.reload()
        there.wait(lambda m: m.of(TOPICS.count("back", "person")))
        assert there.of(TOPICS.count("back", "person"))[-1] == b"0"


def test_a_stream_that_cannot_run_leaves_the_others_alone(
    tmp_path: Path, broker: Mosquitto, messages: Messages, model: Path
) -> None:
    garbage = tmp_path / "garbage.tflite"
    garbage.write_bytes(b"no model")
    streams = {
        "front": camera(model),
        "clip": camera(model, f"file:{tmp_path}/gone.mp4"),
        "broken": camera(garbage),
        "off": camera(model, enabled=False),
    }
    with Vedette(tmp_path, broker, **streams) as vedette:
        expected = {"front": "running", "clip": "failed", "broken": "failed", "off": "disabled"}
        messages.wait(lambda m: states(m) == expected and "update" in kinds(m) and has_rate(m, "front"))
        newest = health(messages)
        assert newest is not None
        assert "gone.mp4" in newest.streams["clip"].detail
        assert "garbage.tflite" in newest.streams["broken"].detail
        assert newest.streams["front"].model == "person"
        assert len(vedette.said("gone.mp4")) == len(vedette.said("garbage.tflite")) == 1
        assert vedette.end()[0] == 0


def test_a_reload_tries_a_failed_stream_again(
    tmp_path: Path, broker: Mosquitto, messages: Messages, model: Path
) -> None:
    streams = {"front": camera(model), "late": camera(tmp_path / "late.toml")}
    with Vedette(tmp_path, broker, **streams) as vedette:
        messages.wait(lambda m: states(m) == {"front": "running", "late": "failed"})
        vedette.reload()
        vedette.wait_said("reloaded")
        (tmp_path / "late.toml").write_text('file = "person.tflite"\n' + model.read_text())
        vedette.reload()
        messages.wait(lambda m: states(m).get("late") == "running" and "new" in kinds(m, "late"))
        assert "end" not in kinds(messages)


def test_when_nothing_can_run_the_daemon_says_why_once(tmp_path: Path, broker: Mosquitto, model: Path) -> None:
    streams = {"front": camera(model, f"file:{tmp_path}/gone.mp4"), "off": camera(model, enabled=False)}
    with Vedette(tmp_path, broker, **streams) as vedette:
        assert vedette.exit_code() == 1
        (line,) = vedette.said("gone.mp4")
        assert " ERROR stream front: file:" in line
        assert not vedette.said("vedette: ")
        assert not vedette.said("Traceback")


def test_a_model_that_nobody_has_ends_the_daemon_with_one_line(tmp_path: Path, broker: Mosquitto) -> None:
    with Vedette(tmp_path, broker, front=camera("nanodett")) as vedette:
        assert vedette.exit_code() == 1
        (line,) = vedette.said()
        assert (
            f" ERROR {line_of(vedette, 'model = ')}: stream front: "
            "no bundled model is called 'nanodett'; did you mean 'nanodet'?"
        ) in line


def test_a_broker_that_cannot_be_used_is_told_at_its_line(tmp_path: Path, broker: Mosquitto, model: Path) -> None:
    vedette = Vedette(tmp_path, broker, front=camera(model))
    vedette.config["mqtt"]["password_file"] = "/nothing/here"
    with vedette:
        assert vedette.exit_code() == 1
        (line,) = vedette.said()
        assert line.startswith(
            f"vedette: {line_of(vedette, 'password_file = ')}: [mqtt] password_file is set but"
        )


def test_a_second_daemon_on_the_same_state_is_refused(
    vedette: Vedette, messages: Messages, tmp_path: Path, broker: Mosquitto, model: Path
) -> None:
    both_see(messages)
    (tmp_path / "second").mkdir()
    second = Vedette(tmp_path / "second", broker, front=camera(model))
    second.config["storage"]["state_dir"] = str(vedette.state)
    with second:
        assert second.exit_code() == 1
        (line,) = second.said()
        assert line.startswith(f"vedette: {vedette.state}: in use by another vedette, pid {vedette.process.pid};")
    assert status(messages) == [b"online"]


def test_a_broker_that_is_restarted_misses_nothing(tmp_path: Path, model: Path) -> None:
    with Mosquitto(tmp_path, persistence=True) as broker:
        messages = broker.subscribe("vedette/#", lasting=True)
        with Vedette(tmp_path, broker, front=camera(model)) as vedette:
            for _ in range(2):
                hear(messages, 5)
                broker.stop()
                vedette.wait_said("events wait in the spool")
                broker.start()
            hear(messages, 10)
            vedette.end()
            stopped(messages)
        assert [event.seq for event in events(messages)] == list(range(1, len(events(messages)) + 1))
        assert left_open(messages) == set()


def test_events_of_a_broker_that_was_away_arrive_after_the_next_start(tmp_path: Path, model: Path) -> None:
    with Mosquitto(tmp_path) as broker:
        broker.stop()
        with Vedette(tmp_path, broker, front=camera(model)) as vedette:
            vedette.wait_said("nothing listens there")
            wait_for(lambda: (vedette.state / "spool.db").exists())
            wait_for(lambda: _stored_events(vedette.state / "spool.db") > 0)
            assert vedette.end()[0] == 0
            broker.start()
            messages = broker.subscribe("vedette/#")
            vedette.start()
            messages.wait(
                lambda m: [e.kind for e in events(m) if e.kind != "update"][:3] == ["new", "end", "new"]
            )
        assert [event.seq for event in events(messages)][:3] == [1, 2, 3]


def _stored_events(file: Path) -> int:
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(file, timeout=60.0)) as connection:
        return int(connection.execute("SELECT count(*) FROM spool").fetchone()[0])
    return 0  # its table is not there yet


def test_a_wrong_password_is_said_once_and_tried_on(tmp_path: Path, model: Path) -> None:
    with Mosquitto(tmp_path, users={"porch": "right", "wrong": "other"}) as broker:
        messages = broker.subscribe("vedette/#")
        (tmp_path / "password").write_text("wrong\n")
        vedette = Vedette(tmp_path, broker, front=camera(model))
        vedette.config["mqtt"] |= {"username": "porch", "password_file": str(tmp_path / "password")}
        with vedette:
            vedette.wait_said("refuses user 'porch': ")
            wait_for(lambda: (broker.folder / "mosquitto.log").read_text().count("not authorised") > 2)
            assert len(vedette.said("refuses user")) == 1
            assert status(messages) == []
            assert vedette.process.poll() is None
            (tmp_path / "password").write_text("right\n")
            messages.wait(lambda m: status(m) == [b"online"] and "update" in kinds(m))


def test_a_clip_is_reported_to_its_end(
    tmp_path: Path, broker: Mosquitto, messages: Messages, model: Path
) -> None:
    vedette = Vedette(tmp_path, broker, front=camera(model, _CLIP), back=camera(model, f"{_CLIP}&pace=fast"))
    vedette.options = ("--exit-when-done",)
    with vedette:
        assert vedette.exit_code() == 0
    assert stopped(messages)
    for stream in ("front", "back"):
        assert kinds(messages, stream) >= {"new", "end"}
        assert left_open(messages, stream) == set()
        assert events(messages, stream)[-1].reason == "ended"
    assert (status(messages), states(messages)) == ([b"online", b"stopped"], {"front": "ended", "back": "ended"})


def test_readings_that_fail_when_files_run_out_do_not_end_the_daemon(
    vedette: Vedette, messages: Messages
) -> None:
    both_see(messages)
    pid = vedette.process.pid
    usual = resource.prlimit(pid, resource.RLIMIT_NOFILE, (8, resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]))
    vedette.wait_said("memory: cannot be read: Too many open files")
    told = len(messages.of(TOPICS.health))
    messages.wait(lambda m: len(m.of(TOPICS.health)) > told + 2)
    newest = health(messages)
    assert newest is not None
    assert newest.rss_mb > 10.0, "what was read last"
    hear(messages, 2)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)
    vedette.wait_said("memory: can be read again")
    assert len(vedette.said("memory: cannot be read")) == 1
    assert vedette.end()[0] == 0


def test_the_health_tells_which_broker_is_used_and_of_another_with_our_name(
    tmp_path: Path, broker: Mosquitto, messages: Messages, model: Path
) -> None:
    running = Vedette(tmp_path, broker, front=camera(model))
    with running:
        messages.wait(lambda m: (now := health(m)) and now.link)
        newest = health(messages)
        assert newest is not None
        assert newest.link is not None
        assert newest.link.broker == f"{HOST}:{broker.port}"
        twin = paho.Client(CallbackAPIVersion.VERSION2, client_id(TOPICS), protocol=paho.MQTTv5)
        twin.connect(HOST, broker.port)
        twin.loop_start()
        running.wait_said("another client connected with the same client id")
        twin.disconnect()
        twin.loop_stop()
        messages.wait(lambda m: (now := health(m)) and now.link and "same client id" in now.link.trouble)
