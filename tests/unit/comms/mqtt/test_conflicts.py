"""What somebody else says on our states, with a client whose broker the test is, and a clock that it turns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.comms.mqtt import conflicts as module
from agent.comms.mqtt.conflicts import StateConflicts
from agent.comms.mqtt.outbox import RetainedTopics
from agent.comms.topics import Topics
from tests.support.subscribing import Client, connection
from tests.unit.comms.mqtt.test_flows import Line, wire

TOPICS = Topics("vedette", "porch")
ENABLED, RUNG = TOPICS.state("front", "enabled"), TOPICS.state("front", "variant")
GONE = TOPICS.state("attic", "enabled")


class World:
    """A device that says `on`, its broker, and a clock."""

    def __init__(self) -> None:
        self.now, self.client, self.line = 1000.0, Client(), Line()
        self.states = RetainedTopics("host:1883")
        self.states.set(ENABLED, b"on")
        self.intruder = StateConflicts(self.states, TOPICS, "host:1883", lambda: self.now)
        self.connection = connection(self.client)
        self.intruder.begin(self.connection)
        self.sent()

    def sent(self) -> list[tuple[str, bytes]]:
        """What goes out now; the broker acknowledges it."""
        from agent.comms.mqtt.connection import PubAck

        before = len(self.line.published)
        self.states.send(wire(self.line), 1000)
        for number in range(before, len(self.line.published)):
            self.states.take(PubAck(number + 1, 0))
        return self.line.published[before:]

    def live(self, seconds: float) -> list[tuple[str, bytes]]:
        said = []
        for _ in range(round(seconds * 2)):
            self.now += 0.5
            self.intruder.go_on(self.connection)
            said += self.sent()
        return said


@pytest.fixture
def world() -> World:
    return World()


def test_what_another_one_says_is_put_right_and_told_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    for payload in (b"off", b"", b"x" * 200_000):
        world.client.message(ENABLED, payload)
        assert world.live(5) == [(ENABLED, b"on")]
    assert world.intruder.count == 3
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"another client overwrote {ENABLED!r} with 'off': value restored")


def test_the_broker_of_mqtt_5_is_asked_to_keep_our_own_to_itself(world: World) -> None:
    options = world.client.options["vedette/porch/+/state/#"]
    assert options.noLocal
    assert not options.retainAsPublished


@given(st.lists(st.sampled_from([b"on", b"off", b"", b"x"]), max_size=8))
def test_our_own_that_come_back_are_nobody_elses(said: list[bytes]) -> None:
    """As under MQTT 3.1.1, and late."""
    world = World()
    for payload in said:
        world.states.set(ENABLED, payload)
    world.sent()
    for payload in said:
        world.client.message(ENABLED, payload)
    assert (world.live(5), world.intruder.count) == ([], 0)


def test_while_our_own_is_on_its_way_nothing_is_judged(world: World) -> None:
    world.states.set(ENABLED, b"off")
    world.client.message(ENABLED, b"on")  # the echo of what we said before
    for _ in range(5):
        world.now += 1.0
        world.intruder.go_on(world.connection)
    world.client.message(ENABLED, b"off")
    world.sent()
    assert (world.live(5), world.intruder.count) == ([], 0)


def test_what_lies_at_the_broker_is_deleted_if_it_is_of_nothing_that_there_is_and_else_sent_anew_anyway(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    world.client.message(ENABLED, b"off", retain=True)
    world.client.message(GONE, b"on", retain=True)
    assert world.live(5) == [(GONE, b"")]
    assert world.intruder.count == 0
    assert [record.getMessage() for record in caplog.records] == [
        f"{GONE!r}: deleted, an earlier run left it at 'on'"
    ]
    world.client.message(GONE, b"")  # the echo of that
    assert world.live(5) == []


def test_what_somebody_says_of_a_stream_that_there_is_not_is_deleted(world: World) -> None:
    world.client.message(GONE, b"on")
    assert world.live(5) == [(GONE, b"")]
    assert world.intruder.count == 1


def test_two_of_one_name_do_not_contradict_each_other_for_ever(world: World) -> None:
    said = []
    for _ in range(600):
        world.client.message(ENABLED, b"off")
        said += world.live(1)
    assert module._BURST <= len(said) <= module._BURST + 11, "ten minutes"
    world.client.message(ENABLED, b"off")
    assert world.live(120)[-1:] == [(ENABLED, b"on")], "and the last word is ours"


def test_a_flood_of_topics_is_bounded(world: World) -> None:
    for number in range(5 * module._MOST):
        world.client.message(TOPICS.state(f"x{number}", "enabled"), b"on", retain=number % 2 == 0)
    assert len(world.intruder._suspects) <= module._MOST
    assert len(world.live(5)) <= module._MOST + module._BURST


def test_a_request_called_state_is_no_state(world: World) -> None:
    world.client.message(TOPICS.command("state"), b"{}")
    world.client.message(TOPICS.command("state"), b"{}", retain=True)
    assert (world.live(5), world.intruder.count) == ([], 0)
