"""A look at what is retained, over subscriptions whose broker the test is."""

from __future__ import annotations

from agent.comms.mqtt.subscriptions import IncomingMessage, RetainedSubscription
from tests.support.subscribing import Client, subscriptions


def test_what_was_retained_is_found_once_and_what_passes_by_is_not() -> None:
    client = Client()
    look = RetainedSubscription(subscriptions(client), "count/#")
    assert look.received() is None, "the broker has not answered"
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
