"""A look at what is retained, with a client whose broker the test is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from agent.comms.retained import Look, Retained


class Client:
    """Keeps what it is asked for."""

    on_subscribe: Any = None
    on_message: Any = None

    def __init__(self) -> None:
        self.asked: list[str] = []

    def subscribe(self, pattern: str, qos: int) -> None:
        self.asked.append(f"+{pattern}")

    def unsubscribe(self, pattern: str) -> None:
        self.asked.append(f"-{pattern}")

    def message(self, topic: str, *, retain: bool) -> None:
        self.on_message(self, None, SimpleNamespace(topic=topic, payload=b"3", retain=retain))


def test_what_was_retained_is_found_once_and_what_passes_by_is_not() -> None:
    client: Any = Client()
    look = Look(client, "count/#")
    assert look.found() is None, "the broker has not answered"
    client.message("count/cat", retain=True)
    client.on_subscribe(client, None, 1, [], None)
    client.message("count/dog", retain=False)
    client.message("count/cow", retain=True)
    assert look.found() == [Retained("count/cat", b"3"), Retained("count/cow", b"3")]
    assert look.found() == []
    look.end()
    assert client.asked == ["+count/#", "-count/#"]
