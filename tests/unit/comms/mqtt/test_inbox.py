"""Subscriptions of the inbox; the test plays the broker."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.comms.mqtt import inbox as intake
from agent.comms.mqtt.inbox import (
    BURST,
    LARGEST,
    PER_S,
    Inbox,
    IncomingMessage,
    RateLimiter,
    RetainedSubscription,
)
from tests.support.subscribing import Client, subscriptions

SET = "vedette/porch/+/set/#"


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock of every intake, to be turned by the test."""
    now = [1000.0]
    monkeypatch.setattr(intake.RateLimiter.__init__, "__defaults__", (lambda: now[0],))
    return now


@pytest.fixture
def heard() -> list[IncomingMessage]:
    return []


@pytest.fixture
def inbox(now: list[float], heard: list[IncomingMessage]) -> Inbox:
    inbox = Inbox("host:1883")
    inbox.listen(SET, heard.append)
    return inbox


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_handler_gets_what_comes_with_where_to_answer(inbox: Inbox, heard: list[IncomingMessage]) -> None:
    client = Client()
    inbox.restart(subscriptions(client))
    client.message("vedette/porch/front/set/enabled", b"on")
    client.message("vedette/porch/front/set/variant", b"n", retain=True)
    client.message("vedette/porch/front/set/x", b"", ResponseTopic="me/answers", CorrelationData=b"7")
    client.message("vedette/porch/front/state/enabled", b"off")
    assert heard == [
        IncomingMessage("vedette/porch/front/set/enabled", b"on"),
        IncomingMessage("vedette/porch/front/set/variant", b"n", retained=True),
        IncomingMessage("vedette/porch/front/set/x", b"", response_topic="me/answers", correlation=b"7"),
    ]


def test_every_connection_is_subscribed_anew_and_once(inbox: Inbox) -> None:
    for _ in range(3):
        client = Client()
        line = subscriptions(client)
        inbox.restart(line)
        inbox.update(line)
        assert client.asked == [f"+{SET}"]


def test_what_is_to_be_retained_is_told_so_where_that_is_asked_for(
    inbox: Inbox, heard: list[IncomingMessage]
) -> None:
    client = Client()
    inbox.listen("homeassistant/status", heard.append, as_published=True)
    inbox.restart(subscriptions(client))
    assert client.options["homeassistant/status"].retainAsPublished
    assert not client.options[SET].retainAsPublished


def test_what_is_listened_to_later_is_subscribed_on_the_same_connection(
    inbox: Inbox, heard: list[IncomingMessage]
) -> None:
    client = Client()
    line = subscriptions(client)
    inbox.restart(line)
    inbox.listen("homeassistant/status", heard.append)
    inbox.update(line)
    assert client.asked == [f"+{SET}", "+homeassistant/status"]
    client.message("homeassistant/status", b"online")
    assert [received.payload for received in heard] == [b"online"]


def test_what_is_ignored_is_unsubscribed_and_may_be_listened_to_again(
    inbox: Inbox, heard: list[IncomingMessage]
) -> None:
    client = Client()
    line = subscriptions(client)
    inbox.restart(line)
    inbox.ignore(SET)
    inbox.ignore("never/listened/to")
    inbox.update(line)
    client.message("vedette/porch/front/set/enabled", b"on")
    assert (heard, client.asked) == ([], [f"+{SET}", f"-{SET}"])
    inbox.listen(SET, heard.append)
    inbox.update(line)
    client.message("vedette/porch/front/set/enabled", b"on")
    assert len(heard) == 1
    assert client.asked == [f"+{SET}", f"-{SET}", f"+{SET}"]


def test_a_refused_subscription_is_told_once_in_words(inbox: Inbox, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        client = Client()
        inbox.restart(subscriptions(client))
        client.answer(0x87)
    assert len(said(caplog)) == 1
    assert f"refuses the subscription to {SET}: not authorized" in said(caplog)[0]
    client = Client()
    inbox.restart(subscriptions(client))
    client.answer(1)
    inbox.restart(subscriptions(client))
    client.answer(0x87)
    assert len(said(caplog)) == 2, "it was taken in between"


def test_a_payload_that_is_too_large_does_not_reach_the_handler(
    inbox: Inbox, heard: list[IncomingMessage], caplog: pytest.LogCaptureFixture
) -> None:
    client = Client()
    inbox.restart(subscriptions(client))
    for _ in range(3):
        client.message("vedette/porch/front/set/enabled", b"x" * (LARGEST + 1))
    client.message("vedette/porch/front/set/enabled", b"x" * LARGEST)
    assert len(heard) == 1
    assert len(said(caplog)) == 1
    assert f"{LARGEST + 1} bytes, the limit is {LARGEST}" in said(caplog)[0]


def test_a_handler_that_fails_does_not_end_the_line(now: list[float], caplog: pytest.LogCaptureFixture) -> None:
    def fail(received: IncomingMessage) -> None:
        raise RuntimeError("oh")

    inbox, client = Inbox("host:1883"), Client()
    inbox.listen(SET, fail)
    inbox.restart(subscriptions(client))
    client.message("vedette/porch/front/set/enabled", b"on")
    assert "internal error" in said(caplog)[0]


def test_of_a_flood_no_more_is_taken_than_can_be_processed(
    inbox: Inbox, heard: list[IncomingMessage], now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    client = Client()
    inbox.restart(subscriptions(client))
    for _ in range(BURST + 1000):
        client.message("vedette/porch/front/set/enabled", b"on")
    assert len(heard) == BURST
    now[0] += 1.0
    for _ in range(100):
        client.message("vedette/porch/front/set/enabled", b"on")
    assert len(heard) == BURST + PER_S
    assert [text.split(": ", 1)[1] for text in said(caplog)] == ["too many messages; some are dropped"]


def test_a_flood_of_one_pattern_is_none_of_another(inbox: Inbox, heard: list[IncomingMessage]) -> None:
    client = Client()
    inbox.listen("homeassistant/status", heard.append)
    inbox.restart(subscriptions(client))
    for _ in range(BURST + 1000):
        client.message("vedette/porch/front/set/enabled", b"on")
    client.message("homeassistant/status", b"online")
    assert heard[-1].payload == b"online"


@given(st.lists(st.floats(0.0, 2.0), max_size=400))
def test_no_more_is_taken_than_the_bucket_holds(pauses: list[float]) -> None:
    now = [0.0]
    door = RateLimiter(lambda: now[0])
    taken = 0
    for pause in pauses:
        now[0] += pause
        taken += door.allow()
    assert taken <= BURST + now[0] * PER_S + 1e-6


def test_what_is_retained_is_the_answer() -> None:
    inbox, client, answers = Inbox("host:1883"), Client(), list[bytes]()
    line = subscriptions(client)
    inbox.restart(line)
    inbox.ask("a/b", answers.append)
    inbox.update(line)
    client.answer(0)
    inbox.update(line)
    assert not answers
    client.message("a/b", b"kept", retain=True)
    inbox.update(line)
    inbox.update(line)
    assert answers == [b"kept"]
    assert client.asked == ["+a/b", "-a/b"]


def test_when_nothing_comes_nothing_is_retained(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    inbox, client, answers = Inbox("host:1883"), Client(), list[bytes]()
    line = subscriptions(client)
    inbox.ask("a/b", answers.append)
    inbox.update(line)
    client.answer(0x87)  # not allowed to know
    inbox.update(line)
    assert not answers
    now[0] += 2.9
    inbox.update(line)
    assert not answers, "a slow line takes a little"
    now[0] += 0.2
    inbox.update(line)
    assert answers == [b""]


def test_a_question_is_asked_again_on_the_next_connection() -> None:
    inbox, first, second, answers = Inbox("host:1883"), Client(), Client(), list[bytes]()
    inbox.ask("a/b", answers.append)
    inbox.restart(subscriptions(first))
    line = subscriptions(second)
    inbox.restart(line)
    second.answer(0)
    second.message("a/b", b"kept", retain=True)
    inbox.update(line)
    assert answers == [b"kept"]
    assert first.asked == ["+a/b"]


def test_what_was_retained_is_found_once_and_what_passes_by_is_not() -> None:
    client = Client()
    look = RetainedSubscription(subscriptions(client), "count/#")
    assert look.received() == [], "the broker has not answered"
    client.message("count/cat", b"3", retain=True)
    client.answer(0)
    client.message("count/dog", b"3")
    client.message("count/cow", b"3", retain=True)
    assert look.received() == [IncomingMessage("count/cat", b"3", True), IncomingMessage("count/cow", b"3", True)]
    assert look.received() == []
    look.end()
    client.message("count/hen", b"3", retain=True)
    assert look.received() == [], "what was on its way is left aside"
    assert client.asked == ["+count/#", "-count/#"]
