"""Events, retained states and samples over a connection whose answers the test decides."""

from __future__ import annotations

import logging
import time
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.comms.mqtt import outbox as events_module
from agent.comms.mqtt.connection import Connection, PubAck
from agent.comms.mqtt.outbox import EventSender, RetainedTopics, TransientQueue
from agent.types import Stored
from tests.support.publishing import EVENTS, TOPICS, Kept, event, events_of

OTHER = TOPICS.events("other")


CLOCK = "agent.comms.mqtt.outbox.time.monotonic"


class Line:
    """Stands in for a connection: keeps what is published."""

    max_packet = 0

    def __init__(self) -> None:
        self.published: list[tuple[str, bytes]] = []
        self.answered: list[tuple[str, bytes, bytes]] = []

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False, kind: str = "state") -> int:
        if "+" in topic:
            raise ValueError("a wildcard")
        self.published.append((topic, payload))
        return len(self.published)

    def answer(self, topic: str, payload: bytes, correlation: bytes) -> None:
        if "+" in topic:
            raise ValueError("a wildcard")
        self.answered.append((topic, payload, correlation))

    def check_size(self, topic: str, payload: bytes) -> None:
        if self.max_packet and len(payload) > self.max_packet:
            raise ValueError("too large")

    @property
    def numbers(self) -> list[int]:
        return [message.seq for message in events_of(payload for _, payload in self.published)]


def wire(line: Line) -> Connection:
    """A line has what flows use of a connection."""
    return cast("Connection", line)


def kept(count: int, topics: tuple[str, ...] = (EVENTS,)) -> Kept:
    return Kept(Stored(n, topics[n % len(topics)], event(), time.time()) for n in range(1, count + 1))


def flow(outgoing: Kept) -> EventSender:
    return EventSender(outgoing, "host:1883", 0.2)


def send(events: EventSender, line: Line, free: int) -> None:
    events.send(wire(line), free)


def test_events_are_sent_in_order_within_the_limit_and_settled_together() -> None:
    outgoing, line = kept(10), Line()
    events = flow(outgoing)
    send(events, line, 4)
    assert line.numbers == [1, 2, 3, 4]
    assert (events.in_flight, events.sent, events.acknowledged) == (4, 4, 0)
    for mid in (1, 2):
        assert events.acknowledge(PubAck(mid, 0x10))
    assert not events.acknowledge(PubAck(2, 0)), "a repeated acknowledgement is no news"
    assert outgoing.settled == []
    events.settle()
    assert outgoing.settled == [1, 2]
    send(events, line, 99)
    assert line.numbers == list(range(1, 11))
    assert not events.is_waiting


def test_a_new_connection_begins_with_the_oldest_that_was_not_acknowledged() -> None:
    outgoing, line = kept(6), Line()
    events = flow(outgoing)
    send(events, line, 4)
    events.acknowledge(PubAck(2, 0))
    events.settle()
    events.restart()
    line = Line()
    assert not events.acknowledge(PubAck(1, 0)), "of the connection before"
    send(events, line, 99)
    assert line.numbers == [1, 3, 4, 5, 6]


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_whatever_is_lost_or_refused_every_event_arrives(
    data: st.DataObject,
) -> None:
    outgoing, line = kept(20, (EVENTS, OTHER)), Line()
    events = flow(outgoing)
    arrived: list[tuple[str, int]] = []
    open_mids: list[int] = []
    for _ in range(150):
        step = data.draw(st.sampled_from(["send", "acknowledge", "acknowledge", "lose", "refuse"]))
        if step == "send":
            before = len(line.published)
            send(events, line, data.draw(st.integers(1, 8)))
            open_mids += range(before + 1, len(line.published) + 1)
        elif step == "lose":
            events.restart()
            line, open_mids = Line(), []
        elif open_mids:
            mid = open_mids.pop(0)
            if step == "acknowledge":
                arrived.append((line.published[mid - 1][0], line.numbers[mid - 1]))
            else:  # everything that is in flight on that topic is refused with it
                events._holds = dict.fromkeys(events._holds, 0.0)
            events.acknowledge(PubAck(mid, 0 if step == "acknowledge" else 0x97))
            events.settle()
        if not outgoing.rows:
            break
    events._holds.clear()
    events.restart()
    line = Line()
    send(events, line, 99)
    arrived += [(topic, number) for (topic, _), number in zip(line.published, line.numbers, strict=True)]
    assert {number for _, number in arrived} == set(range(1, 21))


def test_a_refused_topic_waits_and_others_go_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    outgoing, line = kept(8, (EVENTS, OTHER)), Line()
    events = flow(outgoing)
    send(events, line, 4)
    for mid, code in ((1, 0x87), (2, 0), (3, 0x87), (4, 0)):
        events.acknowledge(PubAck(mid, code))
    events.settle()
    assert outgoing.settled == [2, 4]
    send(events, line, 99)
    assert line.numbers[4:] == [6, 8], "odd ones are of the refused topic"
    assert 0 < events.retry_in() <= 0.21
    assert not events.is_waiting
    now[0] += 0.3
    send(events, line, 1)
    assert line.numbers[6:] == [1], "the oldest first"
    events.acknowledge(PubAck(7, 0))
    send(events, line, 99)
    assert line.numbers[7:] == [3, 5, 7]
    warned = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warned) == 1
    assert OTHER in warned[0].getMessage()
    assert "accepts" in caplog.records[-1].getMessage()


def test_one_event_alone_tries_a_refused_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were several sent and the first refused, the others would overtake it."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    outgoing, line = kept(5), Line()
    events = flow(outgoing)
    send(events, line, 2)
    for mid in (1, 2):
        events.acknowledge(PubAck(mid, 0x87))
    for mid in (3, 4):
        now[0] += 0.5
        send(events, line, 99)
        send(events, line, 99)
        assert line.numbers[2:] == [1] * (mid - 2)
        events.acknowledge(PubAck(mid, 0x87))
    now[0] += 0.5
    send(events, line, 99)
    events.restart()  # the connection was lost with the attempt on its way
    send(events, line, 99)
    assert line.numbers[4:] == [1, 1]
    events.acknowledge(PubAck(6, 0))
    send(events, line, 99)
    assert line.numbers[6:] == [2, 3, 4, 5]


def test_what_can_never_be_sent_does_not_stand_in_the_way(caplog: pytest.LogCaptureFixture) -> None:
    outgoing, line = kept(3), Line()
    line.max_packet = 10_000
    rows = [
        Stored(4, EVENTS, b"{broken", 0.0),
        Stored(5, "a/+/b", event(), 0.0),
        Stored(6, EVENTS, event("x" * 20_000), 0.0),
        Stored(7, EVENTS, event(), 0.0),
    ]
    outgoing.rows.update({row.seq: row for row in rows})
    events = flow(outgoing)
    send(events, line, 99)
    events.settle()
    assert line.numbers == [1, 2, 3, 7]
    assert (outgoing.settled, outgoing.dropped) == ([], [4, 5, 6])
    assert len(caplog.records) == 3


def test_a_search_through_many_refused_events_is_cut_into_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "_SCAN", 10)
    monkeypatch.setattr(events_module, "_AHEAD", 8)
    outgoing, line = kept(40), Line()
    outgoing.rows[41] = Stored(41, OTHER, event(), 0.0)
    events = flow(outgoing)
    send(events, line, 1)
    events.acknowledge(PubAck(1, 0x87))
    for _ in range(10):
        assert events.is_waiting or len(line.published) == 2
        send(events, line, 1)
    assert line.numbers == [1, 41]


def test_events_that_come_back_late_from_a_disk_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    outgoing, line = kept(5), Line()
    older = outgoing.rows.pop(2)
    events = flow(outgoing)
    send(events, line, 99)
    for mid in range(1, 5):
        events.acknowledge(PubAck(mid, 0))
    events.settle()
    outgoing.rows[2] = older
    send(events, line, 99)
    now[0] += 61.0
    send(events, line, 99)
    assert line.numbers == [1, 3, 4, 5, 2]


DAMAGED = [b"{}", b"\xff", event().replace(b"person", b"per\xffon"), b'{"x":' + b"[" * 100_000]


@pytest.mark.parametrize("body", DAMAGED)
def test_a_damaged_row_is_dropped_and_stands_in_nobodys_way(
    body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    outgoing, line = kept(3), Line()
    outgoing.rows[2] = Stored(2, EVENTS, body, time.time())
    events = flow(outgoing)
    send(events, line, 99)
    assert line.numbers == [1, 3]
    assert (outgoing.settled, outgoing.dropped) == ([], [2])
    assert f"event 2 on {EVENTS} cannot be sent and is dropped" in caplog.text


def test_an_answer_is_sent_to_whom_waits_and_to_nobody_after_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers, line = TransientQueue(), Line()
    answers.reply("me", b"{}", b"7")
    answers.reply("long", bytes(9000), b"7")
    line.max_packet = 50
    answers.send(wire(line), 0)
    assert line.answered == [("me", b"{}", b"7")]
    assert not answers.is_waiting
    answers.reply("me/+", b"{}", b"")
    answers.reply("me", bytes(100), b"")
    answers.send(wire(line), 1000)
    answers.send(wire(line), 1000)
    assert line.answered == [("me", b"{}", b"7")]
    assert len(caplog.records) == 3
    answers.reply("me", b"{}", b"8")
    answers.restart()
    answers.send(wire(line), 1000)
    assert len(line.answered) == 1


def test_answers_that_nobody_can_take_are_bounded() -> None:
    answers, line = TransientQueue(), Line()
    for number in range(1000):
        answers.reply("me", str(number).encode(), b"")
    answers.send(wire(line), 100_000)
    assert [payload for _, payload, _ in line.answered] == [str(n).encode() for n in range(936, 1000)]


def test_samples_are_dropped_and_counted_when_the_network_is_slow() -> None:
    samples, line = TransientQueue(), Line()
    for number in range(100):
        samples.put("t", b"%d" % number)
    samples.send(wire(line), 0)
    assert not line.published
    assert (samples.dropped, samples.bytes) == (36, 2 * 64)
    line.max_packet = 50
    samples.put("t", bytes(100))
    samples.send(wire(line), 10_000)
    assert (samples.is_waiting, samples.bytes) == (False, 0)
    assert [payload for _, payload in line.published] == [b"%d" % number for number in range(37, 100)]
    assert samples.dropped == 38
    samples.put("t", b"x")
    samples.drop(2)
    assert samples.dropped == 41


def test_of_samples_only_a_few_bytes_are_handed_on_at_once() -> None:
    samples, line = TransientQueue(), Line()
    for _ in range(10):
        samples.put("t", bytes(1000))
    samples.send(wire(line), 2500)
    assert len(line.published) == 3, "the one that goes beyond the room among them"
    samples.put("t", bytes(100_000))
    samples.send(wire(line), 1)
    assert len(line.published) == 4


def test_a_sample_that_has_waited_for_too_long_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, line = TransientQueue(), Line()
    samples.put("t", b"old")
    now_s = time.monotonic() + 1.5
    monkeypatch.setattr(CLOCK, lambda: now_s)
    samples.put("t", b"new")
    samples.send(wire(line), 100)
    assert line.published == [("t", b"new")]
    assert samples.dropped == 1


def test_the_age_of_the_oldest_event_in_flight_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    outgoing, line, now_s = kept(3), Line(), [time.monotonic()]
    events = flow(outgoing)
    assert events.oldest_s == 0.0
    monkeypatch.setattr(CLOCK, lambda: now_s[0])
    for _ in range(2):
        send(events, line, 1)
        now_s[0] += 1.0
    assert events.oldest_s == pytest.approx(2.0)
    events.acknowledge(PubAck(1, 0))
    assert events.oldest_s == pytest.approx(1.0)
    events.restart()
    assert events.oldest_s == 0.0


def test_a_topic_that_is_allowed_again_while_some_are_in_flight_forgets_none() -> None:
    outgoing, line = kept(8), Line()
    events = flow(outgoing)
    send(events, line, 5)
    events.acknowledge(PubAck(1, 0x87))
    for mid in range(2, 6):
        events.acknowledge(PubAck(mid, 0))
    events.settle()
    time.sleep(0.3)
    send(events, line, 99)
    events.settle()
    assert 1 in line.numbers[5:]


def test_who_wants_to_know_is_told_of_each_event_of_this_run_that_is_sent() -> None:
    now, told = time.time(), list[tuple[str, float]]()
    rows = [Stored(1, EVENTS, event(), put_at=now + 3600.0), Stored(2, EVENTS, event(), put_at=now - 10.0)]
    sender = EventSender(Kept([*rows, Stored(3, EVENTS, event(), put_at=now - 1000.0)]), "broker", 60.0)
    sender.on_sent = lambda topic, waited_s: told.append((topic, waited_s))
    sender._began -= 100.0
    send(sender, Line(), 10)
    ((topic, waited_s),) = told
    assert topic == EVENTS
    assert 10.0 <= waited_s < 100.0


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
        states.set("front/snapshot", content * 80_000)
        states.set("back/snapshot", content * 50_000)
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


def test_a_large_state_that_cannot_be_sent_does_not_hold_up_the_next() -> None:
    states, line = RetainedTopics("host:1883"), Line()
    states.set("+/snapshot", bytes(50_000))
    states.set("front/snapshot", bytes(50_000))
    states.send_large(wire(line))
    states.send_large(wire(line))
    assert [topic for topic, _ in line.published] == ["front/snapshot"]
