"""Requests: commands on their way from the line to the daemon, and their answers on the way back.

`take` runs in the thread that keeps the line and only takes note. What is retained is refused, since it would be
done again at every start; what comes twice is done once, and answered again if it has been answered already.

Under MQTT 3.1.1 a broker does not tell of a message that passes whether it will be retained: there such a command
is carried out when it is sent, and refused from the next connection on.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from agent.comms.commands import Command, check_answer_topic, id_of, request_command, set_command, shown
from agent.comms.mqtt.paho_client import IncomingMessage
from agent.comms.topics import Addressed, Topics
from agent.errors import CommandError

log = logging.getLogger(__name__)

_WAITING = 64
_REMEMBERED, _REMEMBERED_S = 128, 60.0
"""Requests that a repetition is known by, and for how long."""
_TOLD = 64
"""Topics of retained commands that are told, each once."""
_LONGEST_MARK = 1024

Answer = Callable[[str, bytes, bytes], None]
"""Sends to a topic a payload with correlation data."""
_Mark = tuple[str, str, bytes, str, bytes]


class Request(Struct, frozen=True):
    """One that waits to be carried out.

    Attributes:
        command: what is to be done; None: it is refused already.
        refusal: why.
        place: stream and what, of a message on `set/…`; both empty: of one on `cmd/…`.
        answer_to: topic that an answer is expected on; empty: none is.
        correlation, id: what the answer carries, so that it is known by it.
        mark: what a repetition is known by; None: it is not.
    """

    command: Command | None
    refusal: str
    place: tuple[str, str]
    answer_to: str
    correlation: bytes
    id: str = ""
    mark: _Mark | None = None


class Requests:
    """Queue of waiting requests. Call `take` from the connection's thread; the rest from any thread."""

    def __init__(self, topics: Topics, answer: Answer, wake: Callable[[], None]) -> None:
        """Begin.

        Args:
            topics: of the device.
            answer: sends one.
            wake: is called when a request waits.
        """
        self._topics, self._answer, self._wake = topics, answer, wake
        self._waiting: deque[Request] = deque()
        self._known: OrderedDict[_Mark, tuple[float, bytes]] = OrderedDict()
        self._lock = threading.Lock()
        self._told: set[str] = set()

    def take(self, received: IncomingMessage) -> None:
        """Take note of a message on one of our command topics."""
        addressed = self._topics.addressed(received.topic)
        if addressed is None:
            return
        if received.retained:
            if received.payload:  # else it deletes one that lay there
                self._refuse_retained(received.topic)
            return
        request = self._request(received, addressed)
        if request.mark is not None and self._is_repeated(request, request.mark):
            return
        if len(self._waiting) >= _WAITING:
            self.answer(request, ok=False, reason="too many commands wait; try again later")
            return
        self._waiting.append(request)
        self._wake()

    def next(self) -> Request | None:
        """The oldest that waits."""
        try:
            return self._waiting.popleft()
        except IndexError:
            return None

    def answer(
        self, request: Request, *, ok: bool, reason: str = "", more: Mapping[str, Any] | None = None
    ) -> None:
        """Answer a request.

        Args:
            request: to be answered.
            ok: whether it was carried out.
            reason: why not, or what is to be said besides.
            more: further keys of the answer.
        """
        said = {"ok": ok, "reason": reason, **({"id": request.id} if request.id else {}), **(more or {})}
        payload = msgspec.json.encode(said)
        if request.mark is not None:
            with self._lock:
                if request.mark in self._known:
                    self._known[request.mark] = time.monotonic(), payload
        if request.answer_to:
            self._answer(request.answer_to, payload, request.correlation)

    def _request(self, received: IncomingMessage, addressed: Addressed) -> Request:
        stream, what = addressed.stream, addressed.what
        place = ("", "") if stream is None else (stream, what)
        # Who sets something by a plain message sees its state; who makes a request waits for an answer.
        usual = self._topics.answer(what) if stream is None else ""
        answer_to, correlation, name = received.response_topic or usual, received.correlation, ""
        try:
            if len(correlation) > _LONGEST_MARK:
                correlation = b""
                raise CommandError(f"more than {_LONGEST_MARK} bytes of correlation data")
            if received.response_topic:
                answer_to = usual  # if it is not fit
                check_answer_topic(received.response_topic, self._topics, what if stream is None else "set")
                answer_to = received.response_topic
            if stream is None:
                command, name = request_command(what, received.payload)
            else:
                command = set_command(stream, what, received.payload)
        except CommandError as error:
            name = id_of(received.payload) if stream is None else ""
            return Request(None, str(error), place, answer_to, correlation, name)
        is_known = bool(correlation or name)
        mark = (received.topic, answer_to, correlation, name, received.payload) if is_known else None
        return Request(command, "", place, answer_to, correlation, name, mark)

    def _is_repeated(self, request: Request, mark: _Mark) -> bool:
        """Return True if the request has come before; if it was answered then, send that answer again."""
        now = time.monotonic()
        with self._lock:
            at, answer = self._known.get(mark, (-math.inf, b""))
            if now - at < _REMEMBERED_S:
                if answer and request.answer_to:
                    self._answer(request.answer_to, answer, request.correlation)
                return True
            self._known[mark] = now, b""
            self._known.move_to_end(mark)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
            return False

    def _refuse_retained(self, topic: str) -> None:
        """It would be done again at every start."""
        if topic not in self._told and len(self._told) < _TOLD:
            self._told.add(topic)
            log.warning(
                "command refused: %s is retained by the broker, and commands never are; "
                "delete it: mosquitto_pub -r -n -t TOPIC",
                shown(topic),
            )
