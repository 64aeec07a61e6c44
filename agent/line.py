"""The line to the broker: stays where the streams hold it while the publisher behind it is exchanged."""

from __future__ import annotations

import threading

from agent.comms.inbox import Handler
from agent.comms.inquiry import Answer
from agent.comms.mqtt import Publisher


class Line:
    """A board for the streams. Every method may be called from any thread."""

    def __init__(self, publisher: Publisher) -> None:
        self.publisher = publisher
        self._lock = threading.Lock()

    def exchange(self, publisher: Publisher) -> Publisher:
        """Put another publisher behind it, which takes over retained topics and handlers; gives the old one."""
        with self._lock:
            old, self.publisher = self.publisher, publisher
            for topic, payload in old.retained().items():
                publisher.retain(topic, payload)
            for pattern, hearing in old.listened().items():
                publisher.listen(pattern, hearing.handler, as_published=hearing.as_published)
        return old

    def retain(self, topic: str, payload: bytes, *, patient: bool = False) -> None:
        """Set a retained topic; an empty payload deletes it at the broker."""
        with self._lock:  # or a payload could go to a publisher that has just been taken over
            self.publisher.retain(topic, payload, patient=patient)

    def ask(self, topic: str, answer: Answer) -> None:
        """Find out what the broker retains under a topic, see `Publisher.ask`."""
        with self._lock:
            self.publisher.ask(topic, answer)

    def listen(self, pattern: str, handler: Handler, *, as_published: bool = False) -> None:
        """Hand what comes for a pattern to a handler, see `Publisher.listen`."""
        with self._lock:
            self.publisher.listen(pattern, handler, as_published=as_published)

    def ignore(self, pattern: str) -> None:
        """Listen no more."""
        with self._lock:
            self.publisher.ignore(pattern)

    def repeat(self, topic: str) -> None:
        """Send a retained topic again, see `Publisher.repeat`."""
        self.publisher.repeat(topic)

    def answer(self, topic: str, payload: bytes, correlation: bytes = b"") -> None:
        """Answer a request, see `Publisher.answer`."""
        self.publisher.answer(topic, payload, correlation)

    def send(self, topic: str, payload: bytes) -> None:
        """Send once at QoS 0, or drop."""
        self.publisher.send(topic, payload)
