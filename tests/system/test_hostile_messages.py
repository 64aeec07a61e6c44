"""Attacks by whoever may publish to a device's command topics: each leaves the cameras at work."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.comms.mqtt.inbox import BURST, PER_S
from agent.comms.topics import Topics
from tests.support.doubles import person_model
from tests.support.mosquitto import Mosquitto
from tests.support.operator import Operator
from tests.support.publishing import TOPICS, wait_for
from tests.support.received import Messages
from tests.support.running import Vedette, camera, events, hear, kinds, left_open, states

ENABLED = TOPICS.set("front", "enabled")


@pytest.fixture
def vedette(tmp_path: Path, broker: Mosquitto) -> Iterator[Vedette]:
    with Vedette(tmp_path, broker, front=camera(person_model(tmp_path))) as running:
        yield running


@pytest.fixture
def operator(broker: Mosquitto) -> Operator:
    return Operator(broker)


def at_work(operator: Operator) -> None:
    """The camera sees, and commands are taken."""
    hear(operator.messages, 3)
    assert operator.ask("status")["streams"]["front"]["state"] == "running"


def test_retained_commands_are_refused_at_every_start_and_done_at_none(
    tmp_path: Path, broker: Mosquitto, operator: Operator
) -> None:
    for topic in (
        ENABLED,
        TOPICS.command("reload"),
        TOPICS.set("front", "x\u202e"),
        TOPICS.set("..", "enabled"),
    ):
        operator.messages.client.publish(topic, b"off", qos=1, retain=True).wait_for_publish(5)
    with Vedette(tmp_path, broker, front=camera(person_model(tmp_path))) as vedette:
        at_work(operator)
        vedette.end()
        vedette.start()
        operator.messages.wait(lambda m: m.of(TOPICS.status)[-2:] == [b"stopped", b"online"])
        at_work(operator)
        said = vedette.said("is retained by the broker, and would be executed at every start")
        assert len(said) == 8, "four at each start"
        assert all(line.isprintable() for line in vedette.said())


def test_a_command_that_is_to_be_retained_is_refused_when_it_is_sent_and_at_the_next_start(
    vedette: Vedette, operator: Operator
) -> None:
    at_work(operator)
    voice = operator.messages.client
    voice.publish(ENABLED, b"off", qos=1, retain=True).wait_for_publish(5)
    assert "is retained by the broker" in vedette.wait_said("command refused: ")
    at_work(operator)
    assert operator.states("front", "enabled")[-1] == b"on"
    vedette.end()
    vedette.start()
    wait_for(lambda: len(vedette.said("is retained by the broker")) == 2)
    at_work(operator)
    # Whoever deletes it commands nothing: a request without a body would be one.
    for topic in (ENABLED, TOPICS.set("front", "snapshot"), TOPICS.command("doctor")):
        voice.publish(topic, b"", qos=1, retain=True).wait_for_publish(5)
    at_work(operator)
    assert len(vedette.said("refused")) == 2
    assert not vedette.said("command: ")
    assert operator.messages.of(TOPICS.answer("doctor")) == []


def test_under_mqtt_3_1_1_it_is_carried_out_when_it_is_sent_and_refused_at_the_next_start(
    tmp_path: Path, broker: Mosquitto, operator: Operator
) -> None:
    vedette = Vedette(tmp_path, broker, front=camera(person_model(tmp_path)))
    vedette.config["mqtt"]["protocol"] = "3.1.1"
    with vedette:
        hear(operator.messages, 3)  # to a request of MQTT 5 it has no answer
        operator.messages.client.publish(ENABLED, b"off", qos=1, retain=True).wait_for_publish(5)
        operator.wait_state("front", "enabled", "off")
        operator.set("front", "enabled", "on")
        operator.wait_state("front", "enabled", "on")
        vedette.end()
        vedette.start()
        vedette.wait_said("is retained by the broker")
        hear(operator.messages, 3)
        assert operator.states("front", "enabled")[-1] == b"on"


def settled_mb(operator: Operator) -> float:
    """Memory of the daemon when what it loads at its first frames and commands has been loaded."""

    def newest(messages: Messages) -> list[float]:
        return [json.loads(one)["rss_mb"] for one in messages.of(TOPICS.health)[since:]]

    since = len(operator.messages.of(TOPICS.health))
    operator.messages.wait(lambda m: len(told := newest(m)) > 2 and max(told[-3:]) - min(told[-3:]) < 0.5)
    return newest(operator.messages)[-1]


def test_ten_megabytes_do_not_reach_the_daemon(vedette: Vedette, operator: Operator) -> None:
    at_work(operator)
    before = settled_mb(operator)
    for _ in range(5):
        operator.messages.client.publish(ENABLED, b"x" * 10_000_000, qos=1)
        operator.messages.client.publish(TOPICS.command("set"), b"[" * 10_000_000, qos=1)
    at_work(operator)
    assert settled_mb(operator) - before < 10.0, "MB"


HOSTILE = [
    b"\xff\xfe\xfd",
    b"\x00" * 100,
    b"[" * 16_000,
    b'{"a":' * 3000,
    b'{"stream":"front","what":"threshold","value":' + b"[" * 8000 + b"]" * 8000 + b"}",
    b'{"stream":"front","what":"threshold","value":NaN}',
    b'{"stream":"front","what":"threshold","value":1e400}',
    b'{"stream":"front","what":"threshold","value":-1e-400}',
    b'{"stream":"front","what":"threshold","value":' + b"9" * 10_000 + b"}",
    b'{"stream":"front","what":"enabled","value":"\xed\xa0\x80"}',
    b'{"stream":"front","what":"enabled","value":false,"value":true,"\\u0000":1}',
    b'{"stream":"front/../back","what":"enabled","value":false}',
    b'{"stream":"front","what":"zone/../enabled","value":false}',
    b'{"stream":"#","what":"enabled","value":false}',
    b'{"stream":["front"],"what":"enabled","value":false}',
    b"null",
    b'"set"',
]


def test_broken_and_deep_and_huge_json_is_refused_and_nothing_changes(
    vedette: Vedette, operator: Operator
) -> None:
    at_work(operator)
    for number, payload in enumerate(HOSTILE):
        answer_to = f"{TOPICS.answer('set')}/{number}"
        operator.request("set", payload, answer_to, b"1")
        operator.messages.wait(lambda m, topic=answer_to: m.of(topic))  # type: ignore[misc]
        answer = json.loads(operator.messages.of(answer_to)[0])
        if number != 7:  # that is a zero
            assert answer["ok"] is False, payload[:60]
            assert answer["reason"].isprintable()
    for payload in HOSTILE:
        operator.messages.client.publish(ENABLED, payload, qos=1)
        operator.messages.client.publish(TOPICS.set("front", "threshold"), payload, qos=1)
        time.sleep(0.1)  # else it is a flood
    at_work(operator)
    assert operator.states("front", "enabled")[-1] == b"on"
    assert not vedette.said("internal error")
    assert not vedette.said("Traceback")
    assert all(line.isprintable() for line in vedette.said())


def test_a_stream_whose_name_is_a_topic_is_refused_by_the_configuration(
    tmp_path: Path, broker: Mosquitto
) -> None:
    for name in ("a/set/enabled", "+", "#", "..", "", "cmd", "x" * 100):
        with Vedette(tmp_path, broker, **{name: camera(person_model(tmp_path))}) as vedette:
            assert vedette.exit_code() == 1, name


def test_an_answer_is_no_command_of_this_device_or_of_another(vedette: Vedette, operator: Operator) -> None:
    """Else one request could make two devices command each other for ever."""
    at_work(operator)
    others = Operator(operator.broker, Topics("vedette", "shed"))
    targets = [
        TOPICS.command("status"),
        TOPICS.command("reload"),
        others.topics.command("status"),
        ENABLED,
        others.topics.set("front", "enabled"),
        others.topics.answer("status"),
        TOPICS.state("front", "enabled"),
        TOPICS.status,
        "homeassistant/device/porch/config",
    ]
    for target in targets:
        operator.request("status", b"", target, b"x")
        operator.request("set", b'{"stream":"front","what":"threshold","value":7}', target, b"x")
    refused = TOPICS.answer("status")
    operator.messages.wait(lambda m: len(m.of(refused)) == len(targets))
    at_work(operator)
    assert {json.loads(payload)["reason"].split(" to ")[0] for payload in operator.messages.of(refused)} == {
        "no answer is sent"
    }
    for target in targets:
        for payload in operator.messages.of(target):
            assert b'"ok"' not in payload, target


def test_a_response_topic_with_a_wildcard_does_not_end_the_connection(
    vedette: Vedette, operator: Operator
) -> None:
    at_work(operator)
    for target in ("a/#", "+", "#", "$SYS/broker", "x" * 2000, "x" * 60_000):
        Operator(operator.broker).request("status", b"", target, b"x")  # the broker may throw such a one out
    refused = TOPICS.answer("status")
    operator.messages.wait(lambda m: len(m.of(refused)) >= 2)  # no broker minds the fourth and the fifth
    at_work(operator)
    assert operator.messages.of(TOPICS.status) == [b"online"]


def test_a_repeated_delivery_is_done_once_and_answered_twice(vedette: Vedette, operator: Operator) -> None:
    at_work(operator)
    taken = len(operator.messages.of(TOPICS.snapshot("front")))
    answer_to = f"{TOPICS.answer('snapshot')}/me"
    for answers in (1, 2, 3):  # what is repeated before the first is answered has its answer in that
        operator.request("snapshot", b'{"stream":"front"}', answer_to, b"once")
        wait_for(lambda: len(operator.messages.of(answer_to)) == answers)  # noqa: B023 - it is called here
    at_work(operator)
    assert len(operator.messages.of(TOPICS.snapshot("front"))) <= taken + 2, "one, and perhaps that of an event"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("qos", [0, 1])
def test_a_flood_of_commands_does_not_stop_the_events(
    vedette: Vedette, operator: Operator, broker: Mosquitto, qos: int
) -> None:
    at_work(operator)
    flooder = broker.subscribe("x")
    seen = len(events(operator.messages))
    for number in range(3000):
        flooder.client.publish(ENABLED, b"on" if number % 2 else b"off", qos=qos)
        flooder.client.publish(TOPICS.command("status"), b"", qos=qos)
    wait_for(lambda: vedette.said("too many messages; some are dropped"), 60.0)
    operator.messages.wait(lambda m: len(events(m)) > seen)
    operator.messages.wait(lambda m: states(m)["front"] in ("running", "disabled"))
    assert len(operator.messages.of(TOPICS.answer("status"))) < BURST + 1000
    assert operator.messages.of(TOPICS.status) == [b"online"], "the line holds"
    time.sleep(BURST / PER_S)
    operator.set("front", "enabled", "on")
    operator.wait_state("front", "enabled", "on")
    hear(operator.messages, 3)
    assert len(left_open(operator.messages)) <= 1
    assert kinds(operator.messages) >= {"new", "update"}
    assert not vedette.said("Traceback")
