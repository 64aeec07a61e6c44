from __future__ import annotations

import pytest

from agent.comms.mqtt.connection import PubAck
from agent.comms.mqtt.retained import RetainedTopics
from tests.unit.comms.mqtt.test_outbox import Line, wire

CLOCK = "agent.comms.mqtt.retained.time.monotonic"


def test_of_a_state_only_the_newest_is_sent_and_never_twice() -> None:
    states, line = RetainedTopics("host:1883"), Line()
    assert states.set("a", b"1")
    assert states.set("a", b"2")
    assert not states.set("a", b"2")
    states.set("b", b"x")
    states.send(wire(line), 1)
    assert line.published == [("a", b"2")]
    assert states.is_waiting
    states.send(wire(line), 9)
    assert (line.published[1:], states.in_flight, states.is_waiting) == ([("b", b"x")], 2, False)
    assert states.acknowledge(PubAck(1, 0))
    assert not states.acknowledge(PubAck(1, 0))
    states.restart()
    again = Line()
    states.send(wire(again), 9)
    assert again.published == [("a", b"2"), ("b", b"x")]
    assert states.all() == {"a": b"2", "b": b"x"}


def test_a_state_is_sent_again_unchanged_for_whom_has_a_wrong_idea_of_it() -> None:
    states, line = RetainedTopics("host:1883"), Line()
    states.set("a", b"on")
    states.send(wire(line), 9)
    assert states.repeat("a")
    assert not states.repeat("b"), "it is none of ours"
    states.send(wire(line), 9)
    assert line.published == [("a", b"on"), ("a", b"on")]


def test_what_is_set_after_the_turn_began_waits_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    states, line, now_s = RetainedTopics("host:1883"), Line(), [100.0]
    monkeypatch.setattr(CLOCK, lambda: now_s[0])
    states.set("a", b"1")
    now_s[0] = 101.0
    states.set("b", b"2")
    states.set("c", bytes(10_000))
    states.send(wire(line), 9, set_by=100.5)
    states.send_large(wire(line), set_by=100.5)
    assert line.published == [("a", b"1")]
    states.send(wire(line), 9, set_by=101.0)
    states.send_large(wire(line), set_by=101.0)
    assert line.published[1:] == [("b", b"2"), ("c", bytes(10_000))]


def test_a_refused_state_is_said_once_until_it_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    states, line = RetainedTopics("host:1883"), Line()
    for code in (0x87, 0x87, 0, 0x87):
        states.set("a", str(len(line.published)).encode())
        states.send(wire(line), 9)
        states.acknowledge(PubAck(len(line.published), code))
    line.max_packet = 10
    states.set("b", bytes(100))
    states.send(wire(line), 9)
    assert [("a is refused" in r.getMessage(), "b cannot be sent" in r.getMessage()) for r in caplog.records] == [
        (True, False),
        (True, False),
        (False, True),
    ]


def waits(states: RetainedTopics) -> bool:
    return states.wants_large


def test_large_states_wait_for_each_other_and_only_the_newest_of_a_topic_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states, line, now_s = RetainedTopics("host:1883"), Line(), [100.0]
    monkeypatch.setattr(CLOCK, lambda: now_s[0])
    for content in (b"1", b"2"):
        states.set("front/snapshot", content * 80_000, urgent=False)
        states.set("back/snapshot", content * 50_000, urgent=False)
    states.set("front/count", b"1")
    states.send(wire(line), 9)
    assert [topic for topic, _ in line.published] == ["front/count"]
    assert (waits(states), states.large_bytes) == (True, 130_000)
    states.send_large(wire(line))
    states.send_large(wire(line))
    assert line.published[1:] == [("front/snapshot", b"2" * 80_000)]
    assert not waits(states), "one is in flight"
    now_s[0] += 2.0
    assert states.acknowledge(PubAck(2, 0))
    states.send_large(wire(line))
    assert len(line.published) == 2, "the network was slow: it is left to others for a while"
    now_s[0] += 6.0
    assert waits(states)
    states.send_large(wire(line))
    assert line.published[2:] == [("back/snapshot", b"2" * 50_000)]
    states.restart()
    assert waits(states), "a new connection gets all of them again"


def test_the_size_that_a_network_takes_quickly_is_known_from_the_newest_large_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states, line, now_s = RetainedTopics("host:1883"), Line(), [100.0]
    monkeypatch.setattr(CLOCK, lambda: now_s[0])
    quick = [states.quick_bytes]
    states.set("front/snapshot", bytes(80_000))
    states.send_large(wire(line))
    now_s[0] += 4.0
    quick.append(states.quick_bytes)
    now_s[0] += 4.0
    states.acknowledge(PubAck(1, 0))
    quick.append(states.quick_bytes)
    now_s[0] += 100.0
    quick.append(states.quick_bytes)
    states.set("front/snapshot", bytes(10_000))
    states.send_large(wire(line))
    now_s[0] += 0.1
    states.acknowledge(PubAck(2, 0))
    quick.append(states.quick_bytes)
    assert quick[0] > 10**8
    assert quick[1:] == [30_000, 15_000, 15_000, 150_000]


def test_a_state_that_would_take_long_waits_for_a_smaller_one_in_its_place_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states, line, now_s = RetainedTopics("host:1883"), Line(), [100.0]
    monkeypatch.setattr(CLOCK, lambda: now_s[0])
    for name in ("front", "back", "yard"):
        states.set(name, bytes(80_000), urgent=False)
    states.send_large(wire(line))
    now_s[0] += 6.0
    states.acknowledge(PubAck(1, 0))
    now_s[0] += 18.0
    assert not waits(states)
    states.set("yard", bytes(15_000), urgent=False)
    states.send_large(wire(line))
    assert [topic for topic, _ in line.published] == ["front", "yard"]
    now_s[0] += 1.2
    states.acknowledge(PubAck(2, 0))
    now_s[0] += 6.0
    assert waits(states)
    states.send_large(wire(line))
    assert [topic for topic, _ in line.published] == ["front", "yard", "back"]


def test_an_urgent_large_state_waits_for_nothing_but_the_one_in_flight_and_is_not_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states, line, now_s = RetainedTopics("host:1883"), Line(), [100.0]
    monkeypatch.setattr(CLOCK, lambda: now_s[0])
    states.set("back", bytes(80_000), urgent=False)
    states.send_large(wire(line))
    now_s[0] += 6.0
    assert states.set("front", b"full" * 20_000)
    assert not states.set("front", bytes(15_000), urgent=False)
    assert not waits(states)
    states.acknowledge(PubAck(1, 0))
    states.send_large(wire(line))
    assert line.published[1:] == [("front", b"full" * 20_000)]
    assert states.set("front", bytes(15_000), urgent=False), "it has been sent"
    assert states.set("front", b""), "it is deleted"


def test_a_large_state_that_cannot_be_sent_does_not_hold_up_the_next() -> None:
    states, line = RetainedTopics("host:1883"), Line()
    states.set("+/snapshot", bytes(50_000))
    states.set("front/snapshot", bytes(50_000))
    states.send_large(wire(line))
    states.send_large(wire(line))
    assert [topic for topic, _ in line.published] == ["front/snapshot"]
