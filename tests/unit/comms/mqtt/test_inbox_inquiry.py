"""What the broker retains, asked over subscriptions whose broker the test is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from agent.comms.mqtt.connection import Connection
from agent.comms.mqtt.inbox import RetainedQuery
from agent.comms.mqtt.subscriptions import RetainedSubscription
from tests.support.subscribing import Client, subscriptions


def connection(client: Client) -> Connection:
    ours = subscriptions(client)
    return cast(
        "Connection", SimpleNamespace(subscribe_retained=lambda pattern: RetainedSubscription(ours, pattern))
    )


def test_what_is_retained_is_the_answer() -> None:
    inquiry, client, answers = RetainedQuery(), Client(), list[bytes]()
    line = connection(client)
    inquiry.restart()
    inquiry.ask("a/b", answers.append)
    inquiry.poll(line)
    client.answer(0)
    inquiry.poll(line)
    assert not answers
    client.message("a/b", b"kept", retain=True)
    inquiry.poll(line)
    inquiry.poll(line)
    assert answers == [b"kept"]
    assert client.asked == ["+a/b", "-a/b"]


def test_when_nothing_comes_nothing_is_retained() -> None:
    now = 10.0
    inquiry, client, answers = RetainedQuery(lambda: now), Client(), list[bytes]()
    line = connection(client)
    inquiry.ask("a/b", answers.append)
    inquiry.poll(line)
    client.answer(0x87)  # not allowed to know
    inquiry.poll(line)
    assert not answers
    now += 2.9
    inquiry.poll(line)
    assert not answers, "a slow line takes a little"
    now += 0.2
    inquiry.poll(line)
    assert answers == [b""]


def test_a_question_is_asked_again_on_the_next_connection() -> None:
    inquiry, first, second, answers = RetainedQuery(), Client(), Client(), list[bytes]()
    inquiry.ask("a/b", answers.append)
    inquiry.restart()
    inquiry.poll(connection(first))
    line = connection(second)
    inquiry.restart()
    inquiry.poll(line)
    second.answer(0)
    second.message("a/b", b"kept", retain=True)
    inquiry.poll(line)
    assert answers == [b"kept"]
    assert first.asked == ["+a/b"]
