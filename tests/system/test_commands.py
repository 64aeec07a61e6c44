"""A running daemon is commanded over a real broker, killed, started again and reloaded."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.daemon.overrides import UNKNOWN_STATE
from tests.support.doubles import person_model
from tests.support.mosquitto import Mosquitto
from tests.support.operator import Operator
from tests.support.publishing import TOPICS, wait_for
from tests.support.running import Vedette, camera, events, health, hear, kinds, left_open, states, stopped
from tests.support.sizes import LEFT, RIGHT, sizes_model

SQUARE = [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]


@pytest.fixture
def vedette(tmp_path: Path, broker: Mosquitto) -> Iterator[Vedette]:
    """Two cameras that see a person, one with a zone around everything."""
    model = person_model(tmp_path)
    front = camera(model, zones=[{"name": "drive", "polygon": SQUARE}])
    with Vedette(tmp_path, broker, front=front, back=camera(model)) as running:
        yield running


@pytest.fixture
def operator(broker: Mosquitto) -> Operator:
    return Operator(broker)


def alive(operator: Operator) -> None:
    """Wait until both cameras see somebody."""
    operator.messages.wait(lambda m: "update" in kinds(m, "front") & kinds(m, "back"))


def test_the_states_are_there_from_the_start(vedette: Vedette, operator: Operator) -> None:
    for what, value in {"enabled": "on", "threshold": "0.4", "variant": "full", "zone/drive": "on"}.items():
        operator.wait_state("front", what, value)
    operator.wait_state("back", "enabled", "on")
    again = Operator(operator.broker)
    again.wait_state("front", "zone/drive", "on")
    assert all(m.retain for m in again.messages if m.topic == TOPICS.state("front", "zone/drive"))


def test_a_camera_is_switched_off_and_on_and_its_tracks_end(vedette: Vedette, operator: Operator) -> None:
    alive(operator)
    operator.set("front", "enabled", "off")
    operator.wait_state("front", "enabled", "off")
    # Nobody is to see what it saw last.
    operator.messages.wait(lambda m: m.of(TOPICS.snapshot("front"))[-1:] == [b""])
    operator.messages.wait(lambda m: states(m)["front"] == "disabled")
    operator.messages.wait(lambda m: left_open(m) == set())
    assert events(operator.messages)[-1].reason == "shutdown"
    operator.messages.wait(lambda m: m.of(TOPICS.count("front", "person"))[-1] == b"0")
    hear(operator.messages, 3, "back")
    operator.set("front", "enabled", "ON")
    operator.wait_state("front", "enabled", "on")
    hear(operator.messages, 3, "front")


def test_a_camera_that_was_switched_off_stays_off_over_a_kill_and_a_restart(
    vedette: Vedette, operator: Operator
) -> None:
    alive(operator)
    operator.set("front", "enabled", "off")
    operator.wait_state("front", "enabled", "off")
    vedette.end(signal.SIGKILL)
    killed_at, seen = datetime.now(UTC), len(events(operator.messages))
    vedette.start()
    hear(operator.messages, 5, "back")
    assert states(operator.messages)["front"] == "disabled"
    newest = health(operator.messages)
    assert newest is not None
    assert newest.streams["front"].set_by_command == ("enabled",)
    after = events(operator.messages)[seen:]
    assert all(event.reason == "restart" or event.captured_at < killed_at for event in after)
    assert operator.states("front", "enabled")[-1] == b"off"


def test_a_power_cut_between_the_file_and_the_switch_leaves_it_off(
    vedette: Vedette, operator: Operator, tmp_path: Path
) -> None:
    alive(operator)
    vedette.end(signal.SIGKILL)
    kept = {"streams": {"front": {"enabled": {"value": False, "basis": [True]}}}}
    (tmp_path / "state" / "overrides.json").write_text(json.dumps(kept))
    vedette.start()
    operator.wait_state("front", "enabled", "off")
    hear(operator.messages, 3, "back")
    assert states(operator.messages)["front"] == "disabled"


def test_the_file_counts_again_when_its_own_value_changes(vedette: Vedette, operator: Operator) -> None:
    alive(operator)
    operator.set("front", "threshold", "0.6")
    operator.set("back", "enabled", "off")
    operator.wait_state("front", "threshold", "0.6")
    operator.wait_state("back", "enabled", "off")
    vedette.config["streams"]["front"]["track"]["min_hits"] = 2
    vedette.reload()
    vedette.wait_said("reloaded: ")
    hear(operator.messages, 3)
    assert operator.states("front", "threshold")[-1] == b"0.6", "another key has changed"
    vedette.config["streams"]["front"]["decode"] = {"score_threshold": 0.3}
    vedette.reload()
    operator.wait_state("front", "threshold", "0.3")
    assert vedette.said("stream front: the file has changed threshold")
    assert operator.states("back", "enabled")[-1] == b"off"
    assert operator.ask("set", stream="back", what="enabled", value=None)["ok"]
    operator.wait_state("back", "enabled", "on")
    assert not (vedette.state / "overrides.json").exists()


def test_a_threshold_and_a_zone_change_in_mid_stream(vedette: Vedette, operator: Operator) -> None:
    alive(operator)
    operator.set("front", "zone/drive", "off")
    operator.messages.wait(lambda m: events(m)[-1].track.zones == ())
    operator.set("front", "zone/drive", "on")
    operator.messages.wait(lambda m: events(m)[-1].track.zones == ("drive",))
    assert len({event.track.id for event in events(operator.messages)}) == 1, "it is the same person all the time"
    operator.set("front", "threshold", "0.95")
    operator.messages.wait(lambda m: left_open(m) == set())
    assert events(operator.messages)[-1].reason == "lost"
    newest = health(operator.messages)
    assert newest is not None
    assert newest.streams["front"].reopened == 0
    assert newest.streams["front"].state == "running"


def test_a_variant_changes_and_one_that_is_not_there_is_refused_by_name(
    tmp_path: Path, broker: Mosquitto, operator: Operator
) -> None:
    model = sizes_model(tmp_path, {"64": [(0.9, LEFT)], "32": [(0.9, RIGHT)]})
    with Vedette(tmp_path, broker, front=camera(model, gate={"motion": False})) as vedette:
        operator.wait_state("front", "variant", "64")
        hear(operator.messages, 2)
        assert operator.ask("set", stream="front", what="variant", value="32")["ok"]
        operator.messages.wait(lambda m: events(m)[-1].variant == "32")
        assert len([e for e in events(operator.messages) if e.reason == "shutdown"]) == 1, (
            "its source was opened anew"
        )
        answer = operator.ask("set", stream="front", what="variant", value="../x")
        assert not answer["ok"]
        assert "has no variant '../x'; it has: 64, 32" in answer["reason"]
        vedette.end()
    assert stopped(operator.messages)
    assert left_open(operator.messages) == set()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"stream": "frnt", "what": "enabled", "value": True}, "no stream 'frnt'; there are: front, back"),
    ({"stream": "", "what": "enabled", "value": True}, "no stream ''; there are: front, back"),
    ({"stream": "..", "what": "enabled", "value": True}, "no stream '..'; there are: front, back"),
    ({"stream": "front", "what": "zone/road", "value": True}, "stream front has no zone 'road'; it has: drive"),
    ({"stream": "back", "what": "zone/drive", "value": True}, "stream back has no zone 'drive'; it has none"),
    ({"stream": "back", "what": "filter/cats", "value": True}, "stream back has no filter 'cats'; it has none"),
    ({"stream": "back", "what": "motion_masks", "value": True}, "stream back has no motion masks: "),
    ({"stream": "back", "what": "privacy/window", "value": False}, "'privacy/window' cannot be set"),
    ({"stream": "front", "what": "threshold", "value": 1.5}, "threshold is a number from 0 to 1, not 1.5"),
    ({"stream": "front", "what": "source", "value": "x"}, "'source' cannot be set"),
]


def test_what_is_refused_changes_nothing_and_has_its_reason(vedette: Vedette, operator: Operator) -> None:
    alive(operator)
    for body, why in REFUSED:
        answer = operator.ask("set", **body)
        assert not answer["ok"]
        assert answer["reason"].startswith(why)
    status = operator.ask("status")
    assert status["streams"]["front"] == {
        "state": "running",
        "detail": status["streams"]["front"]["detail"],
        "enabled": True,
        "threshold": 0.4,
        "variant": "full",
        "variants": ["full"],
        "zones": {"drive": True},
        "lines": {},
        "filters": {},
        "only_moving": False,
        "motion_masks": None,
        "set_by_command": [],
        "states": {},
        "sound": False,
        "decoding": "",
        "reduced": "",
        "unmet": "",
        "problems": [],
    }
    assert not (vedette.state / "overrides.json").exists()


def test_a_refused_setting_is_logged_and_its_state_told_again(vedette: Vedette, operator: Operator) -> None:
    operator.wait_state("front", "threshold", "0.4")
    told = len(operator.states("front", "threshold"))
    operator.set("front", "threshold", "much")
    operator.messages.wait(lambda _: len(operator.states("front", "threshold")) == told + 1)
    assert operator.states("front", "threshold")[-1] == b"0.4"
    assert vedette.said("command refused: threshold is a number from 0 to 1, not 'much'")


def test_a_snapshot_is_taken_now_and_not_of_a_camera_that_is_off(vedette: Vedette, operator: Operator) -> None:
    alive(operator)
    taken = len(operator.messages.of(TOPICS.snapshot("front")))
    assert operator.ask("snapshot", stream="front") == {
        "ok": True,
        "reason": "",
        "topic": TOPICS.snapshot("front"),
    }
    operator.messages.wait(lambda m: len(m.of(TOPICS.snapshot("front"))) > taken)
    assert operator.messages.of(TOPICS.snapshot("front"))[-1].startswith(b"\xff\xd8")
    assert operator.ask("set", stream="front", what="enabled", value=False)["ok"]
    answer = operator.ask("snapshot", stream="front")
    assert answer == {"ok": False, "reason": "stream front is disabled, so there is no picture"}


def test_the_doctor_examines_while_everything_goes_on_and_one_at_a_time(
    vedette: Vedette, operator: Operator
) -> None:
    alive(operator)
    operator.request("doctor", b"{}", f"{TOPICS.answer('doctor')}/me", b"1")
    second = operator.ask("doctor")
    assert second == {"ok": False, "reason": "vedette doctor is running already; ask again when it has finished"}
    hear(operator.messages, 3)
    operator.messages.wait(lambda m: m.of(f"{TOPICS.answer('doctor')}/me"), 120)
    answer = json.loads(operator.messages.of(f"{TOPICS.answer('doctor')}/me")[0])
    assert answer["ok"]
    assert {finding["section"] for finding in answer["report"]["findings"]} >= {"board", "runtime"}


def test_a_reload_answers_with_what_has_changed_or_why_not(vedette: Vedette, operator: Operator) -> None:
    alive(operator)
    assert operator.ask("reload") == {"ok": True, "reason": "nothing has changed"}
    del vedette.config["streams"]["back"]
    vedette.write()
    assert operator.ask("reload") == {"ok": True, "reason": "stream back is gone"}
    operator.messages.wait(lambda _: operator.states("back", "enabled")[-1] == b"")
    vedette.config["storage"] |= {"clips_max_age_s": 1000.0, "clips_folder": "/elsewhere"}
    vedette.write()
    waits = "[storage] clips_max_age_s; [storage] clips_folder waits for a restart"
    assert operator.ask("reload") == {"ok": True, "reason": waits}
    assert operator.ask("status")["waits_for_restart"] == ["storage.clips_folder"]
    vedette.config["streams"]["front"]["variant"] = "x"
    vedette.write()
    answer = operator.ask("reload")
    assert not answer["ok"]
    assert f"{vedette.file}:" in answer["reason"]
    assert "has no variant 'x'" in answer["reason"]
    hear(operator.messages, 2)


def test_commands_can_be_switched_off_while_it_runs(vedette: Vedette, operator: Operator) -> None:
    alive(operator)
    vedette.config["mqtt"]["commands"] = False
    vedette.reload()
    operator.messages.wait(lambda m: m.of(TOPICS.status)[-2:] == [b"stopped", b"online"])
    operator.messages.wait(lambda _: operator.states("front", "enabled")[-1] == b"")
    operator.set("front", "enabled", "off")
    operator.request("status", b"", f"{TOPICS.answer('status')}/me", b"1")
    hear(operator.messages, 5)
    assert operator.messages.of(f"{TOPICS.answer('status')}/me") == []
    vedette.config["mqtt"]["commands"] = True
    vedette.reload()
    operator.wait_state("front", "enabled", "on")
    wait_for(lambda: operator.messages.of(TOPICS.status)[-1] == b"online")
    assert operator.ask("status")["ok"]


def test_what_a_run_before_has_left_of_states_is_deleted(
    tmp_path: Path, broker: Mosquitto, operator: Operator
) -> None:
    gone = TOPICS.state("attic", "enabled")
    operator.messages.client.publish(gone, b"on", qos=1, retain=True).wait_for_publish(5)
    with Vedette(tmp_path, broker, front=camera(person_model(tmp_path))) as vedette:
        operator.wait_state("front", "enabled", "on")
        operator.messages.wait(lambda m: m.of(gone) == [b"on", b""])
        assert vedette.said("'vedette/porch/attic/state/enabled': deleted")
    assert operator.states("front", "enabled") == [b"on"]


def test_when_nobody_can_tell_what_was_switched_off_every_camera_stays_off_until_it_is_set(
    vedette: Vedette, operator: Operator
) -> None:
    alive(operator)
    operator.set("front", "enabled", "off")
    operator.wait_state("front", "enabled", "off")
    vedette.end(signal.SIGKILL)
    killed = datetime.now(UTC)
    (vedette.state / "overrides.json").write_bytes(b'{"streams": {"front"')
    for _ in range(2):  # a restart does not make it known
        vedette.start()
        operator.messages.wait(
            lambda m: m.of(TOPICS.status)[-1] == b"online" and set(states(m).values()) == {"disabled"}
        )
        newest = health(operator.messages)
        assert newest is not None
        for one in newest.streams.values():
            assert (one.detail, one.set_by_command) == (UNKNOWN_STATE, ())
        vedette.end(signal.SIGKILL)
        operator.messages.wait(lambda m: m.of(TOPICS.status)[-1] == b"offline")
    assert "so every stream stays off" in vedette.wait_said("settings made by commands are lost")
    assert (vedette.state / "overrides.json.damaged").exists()
    # What it saw before it was killed may come only now.
    assert not [e for e in events(operator.messages, "back") if e.kind != "end" and e.captured_at > killed]
    vedette.start()
    operator.messages.wait(lambda m: m.of(TOPICS.status)[-1] == b"online")
    assert operator.ask("status")["streams"]["back"]["detail"] == UNKNOWN_STATE
    assert operator.ask("set", stream="back", what="enabled", value=None)["ok"]
    hear(operator.messages, 3, "back")
    assert operator.ask("set", stream="front", what="enabled", value=False)["ok"]
    operator.messages.wait(lambda m: (h := health(m)) and h.streams["front"].set_by_command == ("enabled",))
    assert states(operator.messages)["front"] == "disabled"
    newest = health(operator.messages)
    assert newest is not None
    assert UNKNOWN_STATE not in [one.detail for one in newest.streams.values()]


def test_when_the_only_camera_is_switched_off_the_daemon_waits_to_be_told_otherwise(
    tmp_path: Path, broker: Mosquitto, operator: Operator
) -> None:
    model = person_model(tmp_path)
    gone = {"source": "file:gone.mp4", "model": str(model)}
    with Vedette(tmp_path, broker, front=camera(model), gone=gone) as vedette:
        hear(operator.messages, 2)
        assert operator.ask("set", stream="front", what="enabled", value="off")["ok"]
        operator.messages.wait(lambda m: states(m) == {"front": "disabled", "gone": "failed"})
        vedette.end(signal.SIGKILL)
        operator.messages.wait(lambda m: m.of(TOPICS.status)[-1] == b"offline")  # what is asked now is lost
        vedette.start()
        operator.messages.wait(
            lambda m: m.of(TOPICS.status)[-1] == b"online" and states(m)["front"] == "disabled"
        )
        assert operator.ask("set", stream="front", what="enabled", value="on")["ok"]
        hear(operator.messages, 2)


def test_one_that_has_failed_is_tried_again_when_it_is_switched_on(
    tmp_path: Path, broker: Mosquitto, operator: Operator
) -> None:
    model, clip = person_model(tmp_path), tmp_path / "pictures"
    streams = {"front": camera(model), "late": camera(model, f"dir:{clip}?loop=1")}
    with Vedette(tmp_path, broker, **streams):
        operator.messages.wait(lambda m: states(m).get("late") == "failed")
        clip.mkdir()
        (clip / "1.png").write_bytes((Path(__file__).parent.parent / "golden" / "walkers-020.png").read_bytes())
        assert operator.ask("set", stream="late", what="enabled", value="on")["ok"]
        operator.messages.wait(lambda m: states(m).get("late") == "running")


def test_strangers_at_a_broker_on_this_machine_command_nothing(
    tmp_path: Path, broker: Mosquitto, operator: Operator
) -> None:
    vedette = Vedette(tmp_path, broker, front=camera(person_model(tmp_path)))
    del vedette.config["mqtt"]["commands"]  # mosquitto lets anonymous clients in, from any network that it serves
    with vedette:
        operator.messages.wait(lambda m: states(m).get("front") == "running")
        operator.set("front", "enabled", "off")
        operator.request("status", b"", TOPICS.answer("status"), b"1")
        came = len(operator.messages.of(TOPICS.health))
        operator.messages.wait(lambda m: len(m.of(TOPICS.health)) >= came + 2)
        assert states(operator.messages)["front"] == "running"
        assert operator.messages.of(TOPICS.answer("status")) == []
        assert operator.states("front", "enabled") == []
        assert len(vedette.said("commands are disabled: the broker ")) == 1
        told = health(operator.messages)
        assert told is not None
        assert "commands = true" in told.commands_off
        announced = broker.subscribe("homeassistant/#").wait(lambda m: len(m))
        assert b"/set/" not in announced.of("homeassistant/device/porch/config")[-1]
