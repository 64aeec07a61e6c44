"""Requests between the line and the daemon: what is retained, comes twice, or comes too much."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent.comms import requests as module
from agent.comms.mqtt.paho_client import IncomingMessage
from agent.comms.requests import Request, Requests
from agent.comms.topics import Topics

TOPICS = Topics("vedette", "porch")
ENABLED = TOPICS.set("front", "enabled")
STATUS = TOPICS.command("status")


class Desk:
    """Requests, and what is answered."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, dict[str, Any], bytes]] = []
        self.woken = 0
        self.requests = Requests(TOPICS, self._answer, self._wake)

    def _answer(self, topic: str, payload: bytes, correlation: bytes) -> None:
        self.answers.append((topic, json.loads(payload), correlation))

    def _wake(self) -> None:
        self.woken += 1

    def take(self, topic: str, payload: bytes = b"", **more: Any) -> Request | None:
        self.requests.take(IncomingMessage(topic, payload, **more))
        return self.requests.next()


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_request_waits_and_is_answered_where_its_sender_waits(desk: Desk) -> None:
    request = desk.take(STATUS, b'{"id": "x"}', response_topic="me/answers", correlation=b"7")
    assert request is not None
    assert request.command is not None
    assert (request.command.verb, desk.woken) == ("status", 1)
    desk.requests.answer(request, ok=True, more={"version": "1"})
    assert desk.answers == [("me/answers", {"ok": True, "reason": "", "id": "x", "version": "1"}, b"7")]


def test_without_a_response_topic_a_request_is_answered_beneath_it_and_a_setting_is_not(desk: Desk) -> None:
    for topic in (STATUS, ENABLED):
        request = desk.take(topic, b"" if topic == STATUS else b"on")
        assert request is not None
        desk.requests.answer(request, ok=True)
    assert [topic for topic, _, _ in desk.answers] == [TOPICS.answer("status")]


def test_a_setting_tells_its_place_so_that_its_state_can_be_told_again(desk: Desk) -> None:
    request = desk.take(TOPICS.set("front", "zone/drive"), b"maybe", response_topic="me/answers")
    assert request is not None
    assert (request.command, request.place, request.answer_to) == (None, ("front", "zone/drive"), "me/answers")
    assert "on or off" in request.refusal


def test_a_retained_command_is_refused_once_in_the_log_and_never_done(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        assert desk.take(ENABLED, b"off", retained=True, response_topic="me/answers") is None
        assert desk.take(STATUS, b"{}", retained=True) is None
    assert desk.answers == [], "there would be one at every start"
    assert len(caplog.records) == 2
    assert all("is retained by the broker" in record.getMessage() for record in caplog.records)


def test_what_deletes_a_retained_command_is_none_itself(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    for topic in (ENABLED, TOPICS.set("front", "snapshot"), STATUS, TOPICS.command("reload")):
        assert desk.take(topic, b"", retained=True) is None
    assert (desk.answers, desk.woken, caplog.records) == ([], 0, [])


def test_hostile_retained_topics_fill_neither_the_log_nor_the_memory(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1000):
        desk.take(TOPICS.set(f"x{number}\n", "enabled"), b"on", retained=True)
    assert len(caplog.records) == module._TOLD
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_what_comes_twice_is_done_once_and_answered_twice(desk: Desk) -> None:
    snapshot = TOPICS.command("snapshot")
    asked: dict[str, Any] = {
        "payload": b'{"stream": "front"}',
        "response_topic": "me/answers",
        "correlation": b"1",
    }
    request = desk.take(snapshot, **asked)
    assert request is not None
    assert desk.take(snapshot, **asked) is None, "it is at work"
    assert desk.answers == []
    desk.requests.answer(request, ok=True)
    assert desk.take(snapshot, **asked) is None
    assert desk.answers[0] == desk.answers[1]
    assert len(desk.answers) == 2
    assert desk.take(snapshot, **{**asked, "correlation": b"2"}) is not None
    assert desk.take(snapshot, **{**asked, "response_topic": "you/answers"}) is not None, "somebody else asks"


def test_an_id_in_the_payload_does_what_correlation_data_does(desk: Desk) -> None:
    payload = b'{"stream": "front", "id": "42"}'
    assert desk.take(TOPICS.command("snapshot"), payload) is not None
    assert desk.take(TOPICS.command("snapshot"), payload) is None


def test_a_refusal_carries_the_id_too(desk: Desk) -> None:
    for payload in (b'{"stream": "front", "what": "threshold", "value": 5, "id": "42"}', b'{"x": 1, "id": "42"}'):
        request = desk.take(TOPICS.command("set"), payload)
        assert request is not None
        assert (request.command, request.id) == (None, "42")
    for payload in (b'{"id": 42}', b'{"id": "' + b"x" * 200 + b'"}', b"\xff", b"[" * 9999):
        request = desk.take(TOPICS.command("set"), payload)
        assert request is not None
        assert request.id == ""


def test_without_either_the_same_may_be_wanted_again(desk: Desk) -> None:
    assert desk.take(ENABLED, b"on") is not None
    assert desk.take(ENABLED, b"on") is not None


def test_after_a_minute_the_same_is_no_repetition(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED_S", 0.0)
    for _ in range(2):
        assert desk.take(ENABLED, b"on", correlation=b"1", response_topic="me") is not None


def test_what_is_remembered_is_bounded(desk: Desk) -> None:
    for number in range(10 * module._REMEMBERED):
        desk.take(ENABLED, b"on", correlation=str(number).encode(), response_topic="me")
    assert len(desk.requests._known) == module._REMEMBERED


@pytest.mark.parametrize("topic", [STATUS, ENABLED, "vedette/shed/cmd/status", "a/#"])
def test_a_hostile_response_topic_gets_nothing_and_nothing_is_done(desk: Desk, topic: str) -> None:
    request = desk.take(STATUS, response_topic=topic, correlation=b"1")
    assert request is not None
    assert request.command is None
    assert request.answer_to == TOPICS.answer("status")
    setting = desk.take(ENABLED, b"off", response_topic=topic)
    assert setting is not None
    assert (setting.command, setting.answer_to) == (None, "")


def test_huge_correlation_data_is_neither_kept_nor_sent_back(desk: Desk) -> None:
    request = desk.take(STATUS, correlation=b"x" * 30_000, response_topic="me")
    assert request is not None
    assert (request.command, request.correlation, request.mark) == (None, b"", None)


def test_more_than_can_be_done_is_refused_at_once(desk: Desk) -> None:
    for _ in range(module._WAITING + 5):
        desk.requests.take(IncomingMessage(STATUS, b"", response_topic="me"))
    assert len(desk.answers) == 5
    assert desk.answers[0][1] == {"ok": False, "reason": "too many commands wait; try again later"}


def test_topics_of_others_are_left_alone(desk: Desk) -> None:
    assert desk.take("vedette/shed/cmd/status") is None
    assert desk.take(TOPICS.answer("status")) is None
    assert desk.woken == 0
