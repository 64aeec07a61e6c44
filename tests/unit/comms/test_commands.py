"""Commands as strangers send them, and their queue."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from agent.comms import commands
from agent.comms.commands import (
    _NAMED,
    _READERS,
    Command,
    Request,
    Requests,
    Value,
    check_answer_topic,
    quoted,
    request_command,
    set_command,
)
from agent.comms.mqtt.inbox import LARGEST, IncomingMessage
from agent.comms.topics import Addressed, Topics
from agent.errors import CommandError

TOPICS = Topics("vedette", "porch")
WHATS = st.sampled_from(
    ["enabled", "threshold", "variant", "zone/drive", "snapshot", "record", "teach", "forget"]
) | st.text(max_size=20)
VERBS = st.sampled_from(["set", "snapshot", "record", "teach", "forget", "reload", "doctor", "status"]) | st.text(
    max_size=20
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["stream", "what", "value", "seconds", "id", "state", "examples", "region"]) | st.text(
    max_size=5
)
BODIES = (
    st.binary(max_size=200)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(KEYS, JSON, max_size=5).map(lambda value: json.dumps(value).encode())
)


def in_plain_words(error: CommandError) -> None:
    text = str(error)
    assert text
    assert text.isprintable(), "a log is read on a terminal"
    assert len(text) < 400


@given(WHATS, st.binary(max_size=200) | st.text(max_size=40).map(str.encode))
def test_whatever_is_set_is_a_command_or_a_refusal(what: str, payload: bytes) -> None:
    try:
        command = set_command("front", what, payload)
    except CommandError as error:
        in_plain_words(error)
    else:
        sound(command)


@given(VERBS, BODIES)
def test_whatever_is_requested_is_a_command_or_a_refusal(verb: str, payload: bytes) -> None:
    try:
        command, name = request_command(verb, payload)
    except CommandError as error:
        in_plain_words(error)
    else:
        assert len(name) <= 128
        sound(command)


def sound(command: Command) -> None:
    """Check that a command's values have the right type and are within bounds."""
    if command.verb == "record":
        assert 1.0 <= command.seconds <= 600.0
    if command.verb == "set" and command.value is not None:
        kinds = {"enabled": bool, "threshold": float, "variant": str}
        assert type(command.value) is kinds.get(command.what, bool)
        if command.what == "threshold":
            assert 0.0 <= float(command.value) <= 1.0


@pytest.mark.parametrize(
    ("what", "payload", "value"),
    [
        ("enabled", b"on", True),
        ("enabled", b" OFF\n", False),
        ("zone/drive", b"Off", False),
        ("line/gate", b"on", True),
        ("filter/cats", b"off", False),
        ("only_moving", b"on", True),
        ("motion_masks", b"off", False),
        ("threshold", b"0.45", 0.45),
        ("threshold", b"1", 1.0),
        ("threshold", b"5e-1", 0.5),
        ("threshold", b"-0", 0.0),
        ("variant", b"256", "256"),
        ("variant", b"auto", "auto"),
        ("threshold", b"default", None),
        ("enabled", b"default", None),
    ],
)
def test_a_setting_is_read_from_text(what: str, payload: bytes, value: Value) -> None:
    assert set_command("front", what, payload) == Command("set", "front", what, value)


@pytest.mark.parametrize("value", [True, "on", "ON"])
def test_a_request_says_the_same_as_a_setting(value: object) -> None:
    body = {"stream": "front", "what": "enabled", "value": value, "id": "7"}
    assert request_command("set", json.dumps(body).encode()) == (set_command("front", "enabled", b"on"), "7")
    assert request_command("set", b'{"stream":"front","what":"threshold","value":0.5}')[0].value == 0.5
    assert request_command("set", b'{"stream":"front","what":"threshold","value":null}')[0].value is None
    assert request_command("record", b'{"stream":"front","seconds":9}')[0] == set_command("front", "record", b"9")
    assert request_command("snapshot", b'{"stream":"front"}')[0] == set_command("front", "snapshot", b"PRESS")


def test_a_reset_names_a_line_or_all_of_them() -> None:
    assert set_command("front", "reset", b"gate") == Command("reset", "front", line="gate")
    assert set_command("front", "reset", b"all") == Command("reset", "front")
    for nothing in (b"", b"  "):
        with pytest.raises(CommandError, match="reset takes the name of a line, or all"):
            set_command("front", "reset", nothing)
    assert request_command("reset", b'{"stream":"front","line":"gate"}')[0] == Command(
        "reset", "front", line="gate"
    )
    assert request_command("reset", b'{"stream":"front"}')[0] == Command("reset", "front")
    assert request_command("reset", b'{"stream":"front","line":"all"}')[0] == Command("reset", "front")


@pytest.mark.parametrize("verb", ["status", "reload", "doctor"])
def test_what_needs_nothing_takes_nothing(verb: str) -> None:
    for payload in (b"", b"{}", b' {"id": ""} '):
        assert request_command(verb, payload)[0].verb == verb


@pytest.mark.parametrize(
    ("what", "payload", "why"),
    [
        ("enabled", b"", "'enabled' is on or off, not ''"),
        ("enabled", b"1", "'enabled' is on or off, not '1'"),
        ("enabled", b"\xff\xfe", "'enabled': the payload is not UTF-8"),
        ("threshold", b"1.01", "threshold is a number from 0 to 1, not '1.01'"),
        ("threshold", b"nan", "threshold is a number from 0 to 1, not 'nan'"),
        ("threshold", b"inf", "threshold is a number from 0 to 1, not 'inf'"),
        ("threshold", b"1e999", "threshold is a number from 0 to 1, not '1e999'"),
        ("threshold", b"0_1", "threshold is a number from 0 to 1, not '0_1'"),
        ("threshold", "٠".encode(), "threshold is a number from 0 to 1, not '٠'"),
        ("threshold", b"9" * 100, "threshold is a number from 0 to 1, not '9999"),
        ("threshold", b"9" * 5000, "'threshold': 5000 characters are no value"),
        ("variant", b" ", "variant is the name of one, or auto, not ''"),
        ("record", b"0", "record takes 1 to 600 seconds, not '0'"),
        ("record", b"1e9", "record takes 1 to 600 seconds, not '1e9'"),
        (
            "zone/",
            b"on",
            "'zone/' cannot be set; there are: enabled, threshold, variant, only_moving, motion_masks",
        ),
        ("thresold", b"0.5", "'thresold' cannot be set; there are: enabled"),
        ("source", b"file:/etc/shadow", "'source' cannot be set; there are: enabled"),
        ("x\x1b[2J\n", b"on", r"'x\x1b[2J\n' cannot be set"),
        ("", b"on", "'' cannot be set"),
    ],
)
def test_a_setting_is_refused_with_its_reason(what: str, payload: bytes, why: str) -> None:
    with pytest.raises(CommandError) as caught:
        set_command("front", what, payload)
    assert str(caught.value).startswith(why)


DEEP = b"[" * (LARGEST // 2) + b"]" * (LARGEST // 2)
SET = b'{"stream":"front","what":"threshold","value":'


@pytest.mark.parametrize(
    ("verb", "payload", "why"),
    [
        ("set", b"{", "set: "),
        ("set", b"[]", "set: expected a table; found a list"),
        ("set", b"", "set: missing key `stream`"),
        ("set", DEEP, "set: "),
        ("set", SET + DEEP + b"}", "set: expected "),
        ("set", b'{"a":' * (LARGEST // 5), "set: unknown key `a`"),
        ("set", SET + b"1e999}", "set: number out of range"),
        ("set", SET + b"NaN}", "set: JSON is malformed"),
        ("set", SET + b"-Infinity}", "set: JSON is malformed"),
        ("set", SET + b"9" * 6000 + b"}", "set: integer value out of range"),
        ("set", b'{"stream":"front","what":"snapshot","value":5}', "'snapshot' cannot be set"),
        ("set", SET + b"true}", "threshold is a number from 0 to 1, not true"),
        ("record", b'{"stream":"front","seconds":null}', "record takes 1 to 600 seconds, not null"),
        ("set", SET + b'"\xff"}', "set: the payload is not UTF-8"),
        (
            "set",
            b'{"stream":"' + b"x" * 200 + b'","what":"variant","value":"a"}',
            "set: `stream` has 200 characters",
        ),
        ("set", b'{"stream":"front","what":"enabled","value":true,"source":"x"}', "set: unknown key"),
        ("status", b'{"\\u001b[2J":1}', "status: unknown key `\\x1b[2J`"),
        (
            "reboot",
            b"",
            "no command 'reboot'; there are: set, snapshot, record, inspect, accept, reset, teach, forget, "
            "reload, doctor, status",
        ),
        ("", b"", "no command ''"),
    ],
)
def test_a_request_is_refused_with_its_reason(verb: str, payload: bytes, why: str) -> None:
    with pytest.raises(CommandError) as caught:
        request_command(verb, payload)
    assert str(caught.value).startswith(why)
    in_plain_words(caught.value)


@pytest.mark.parametrize(
    "topic",
    [
        "vedette/porch/cmd/status",
        "vedette/shed/cmd/status",
        "vedette/shed/front/set/enabled",
        "vedette/porch/front/state/enabled",
        "vedette/shed/status",
        "vedette/porch/cmd/reload/answer",
        "vedette/porch/cmd/status/answers",
        "vedette",
        "homeassistant/device/porch/config",
        "$SYS/x",
        "$share/g/vedette/shed/cmd/status",
        "me/+/x",
        "me/#",
        "#",
        "me\0",
        "m" * 2000,
        "",
    ],
)
def test_no_answer_is_sent_where_it_would_do_something(topic: str) -> None:
    with pytest.raises(CommandError, match="no answer is sent to"):
        check_answer_topic(topic, TOPICS, "status")


@pytest.mark.parametrize(
    "topic", ["me/answers", "vedette/porch/cmd/status/answer", "vedette/porch/cmd/status/answer/me"]
)
def test_who_asks_may_name_a_topic_of_its_own(topic: str) -> None:
    check_answer_topic(topic, TOPICS, "status")


@given(st.text(max_size=60))
def test_no_answer_is_itself_a_command(topic: str) -> None:
    """Else two devices could be made to command each other for ever."""
    try:
        check_answer_topic(topic, TOPICS, "status")
    except CommandError as error:
        in_plain_words(error)
    else:
        for device in ("porch", "shed"):
            assert Topics("vedette", device).addressed(topic) is None


@pytest.mark.parametrize("what", [f"{name}/x" if name in _NAMED else name for name in _READERS])
def test_every_setting_is_heard(what: str) -> None:
    assert any(topic_matches_sub(pattern, TOPICS.set("front", what)) for pattern in TOPICS.commands)


LEVELS = st.sampled_from(["cmd", "set", "answer", "zone", "front", "state", "status", ""])


@given(st.lists(LEVELS, min_size=1, max_size=5).map("/".join))
def test_a_topic_is_heard_once_and_an_answer_is_no_command(rest: str) -> None:
    """Else the answer to `cmd/set` were a message on `set/answer` of a stream called cmd."""
    topic = f"vedette/porch/{rest}"
    heard = [pattern for pattern in TOPICS.commands if topic_matches_sub(pattern, topic)]
    assert len(heard) <= 1
    if rest.startswith("cmd/"):
        assert (TOPICS.addressed(topic) is not None) == (rest.count("/") == 1)
    for verb in ("set", "status", rest):
        for answer in (TOPICS.answer(verb), f"{TOPICS.answer(verb)}/me"):
            assert TOPICS.addressed(answer) is None


@pytest.mark.parametrize(
    ("topic", "addressed"),
    [
        ("vedette/porch/front/set/enabled", Addressed("front", "enabled")),
        ("vedette/porch/front/set/zone/drive", Addressed("front", "zone/drive")),
        ("vedette/porch/front/set/", Addressed("front", "")),
        ("vedette/porch//set/enabled", Addressed("", "enabled")),
        ("vedette/porch/../set/enabled", Addressed("..", "enabled")),
        ("vedette/porch/cmd/status", Addressed(None, "status")),
        ("vedette/porch/cmd/", Addressed(None, "")),
        ("vedette/porch/cmd/status/answer", None),
        ("vedette/porch/front/state/enabled", None),
        ("vedette/shed/front/set/enabled", None),
        ("vedette/porch", None),
        ("x/vedette/porch/cmd/status", None),
    ],
)
def test_a_topic_tells_whom_it_commands(topic: str, addressed: Addressed | None) -> None:
    assert TOPICS.addressed(topic) == addressed


@given(st.text())
def test_a_strangers_text_is_shown_short_and_harmless(text: str) -> None:
    assert quoted(text).isprintable()
    assert len(quoted(text)) < 500


ENABLED = TOPICS.set("front", "enabled")
STATUS = TOPICS.command("status")


class Queue:
    """Requests, and what is answered."""

    def __init__(self, remembered_s: float = 60.0) -> None:
        self.answers: list[tuple[str, dict[str, Any], bytes]] = []
        self.woken = 0
        self.requests = Requests(TOPICS, self._answer, self._wake, remembered_s)

    def _answer(self, topic: str, payload: bytes, correlation: bytes) -> None:
        self.answers.append((topic, json.loads(payload), correlation))

    def _wake(self) -> None:
        self.woken += 1

    def take(self, topic: str, payload: bytes = b"", **more: Any) -> Request | None:
        self.requests.receive(IncomingMessage(topic, payload, **more))
        return self.requests.next()


@pytest.fixture
def queue() -> Queue:
    return Queue()


def test_a_request_waits_and_is_answered_where_its_sender_waits(queue: Queue) -> None:
    request = queue.take(STATUS, b'{"id": "x"}', response_topic="me/answers", correlation=b"7")
    assert request is not None
    assert request.command is not None
    assert (request.command.verb, queue.woken) == ("status", 1)
    queue.requests.answer(request, ok=True, more={"version": "1"})
    assert queue.answers == [("me/answers", {"ok": True, "reason": "", "id": "x", "version": "1"}, b"7")]


def test_without_a_response_topic_a_request_is_answered_beneath_it_and_a_setting_is_not(queue: Queue) -> None:
    for topic in (STATUS, ENABLED):
        request = queue.take(topic, b"" if topic == STATUS else b"on")
        assert request is not None
        queue.requests.answer(request, ok=True)
    assert [topic for topic, _, _ in queue.answers] == [TOPICS.answer("status")]


def test_a_setting_tells_its_place_so_that_its_state_can_be_told_again(queue: Queue) -> None:
    request = queue.take(TOPICS.set("front", "zone/drive"), b"maybe", response_topic="me/answers")
    assert request is not None
    assert (request.command, request.place, request.answer_to) == (None, ("front", "zone/drive"), "me/answers")
    assert "on or off" in request.refusal


def test_a_retained_command_is_refused_once_in_the_log_and_never_done(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        assert queue.take(ENABLED, b"off", retained=True, response_topic="me/answers") is None
        assert queue.take(STATUS, b"{}", retained=True) is None
    assert queue.answers == [], "there would be one at every start"
    assert len(caplog.records) == 2
    assert all("is retained by the broker" in record.getMessage() for record in caplog.records)


def test_what_deletes_a_retained_command_is_none_itself(queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    for topic in (ENABLED, TOPICS.set("front", "snapshot"), STATUS, TOPICS.command("reload")):
        assert queue.take(topic, b"", retained=True) is None
    assert (queue.answers, queue.woken, caplog.records) == ([], 0, [])


def test_the_advice_to_delete_a_retained_command_brings_no_other_warning_under_mqtt_3(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    assert queue.take(ENABLED, b"off", retained=True) is None
    assert queue.take(ENABLED, b"") is None
    assert (queue.answers, queue.woken, len(caplog.records)) == ([], 0, 1)
    assert queue.take(ENABLED, b"off") is not None


def test_hostile_retained_topics_fill_neither_the_log_nor_the_memory(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1000):
        queue.take(TOPICS.set(f"x{number}\n", "enabled"), b"on", retained=True)
    assert len(caplog.records) == commands._RETAINED_LOGGED
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_what_comes_twice_is_done_once_and_answered_twice(queue: Queue) -> None:
    snapshot = TOPICS.command("snapshot")
    asked: dict[str, Any] = {
        "payload": b'{"stream": "front"}',
        "response_topic": "me/answers",
        "correlation": b"1",
    }
    request = queue.take(snapshot, **asked)
    assert request is not None
    assert queue.take(snapshot, **asked) is None, "it is at work"
    assert queue.answers == []
    queue.requests.answer(request, ok=True)
    assert queue.take(snapshot, **asked) is None
    assert queue.answers[0] == queue.answers[1]
    assert len(queue.answers) == 2
    assert queue.take(snapshot, **{**asked, "correlation": b"2"}) is not None
    assert queue.take(snapshot, **{**asked, "response_topic": "you/answers"}) is not None, "somebody else asks"


def test_an_id_in_the_payload_does_what_correlation_data_does(queue: Queue) -> None:
    payload = b'{"stream": "front", "id": "42"}'
    assert queue.take(TOPICS.command("snapshot"), payload) is not None
    assert queue.take(TOPICS.command("snapshot"), payload) is None


def test_a_refusal_carries_the_id_too(queue: Queue) -> None:
    for payload in (b'{"stream": "front", "what": "threshold", "value": 5, "id": "42"}', b'{"x": 1, "id": "42"}'):
        request = queue.take(TOPICS.command("set"), payload)
        assert request is not None
        assert (request.command, request.id) == (None, "42")
    for payload in (b'{"id": 42}', b'{"id": "' + b"x" * 200 + b'"}', b"\xff", b"[" * 9999):
        request = queue.take(TOPICS.command("set"), payload)
        assert request is not None
        assert request.id == ""


def test_without_either_the_same_may_be_wanted_again(queue: Queue) -> None:
    assert queue.take(ENABLED, b"on") is not None
    assert queue.take(ENABLED, b"on") is not None


def test_after_a_minute_the_same_is_no_repetition() -> None:
    queue = Queue(remembered_s=0.0)
    for _ in range(2):
        assert queue.take(ENABLED, b"on", correlation=b"1", response_topic="me") is not None


def test_what_is_remembered_is_bounded(queue: Queue) -> None:
    for number in range(10 * commands._REMEMBERED):
        queue.take(ENABLED, b"on", correlation=str(number).encode(), response_topic="me")
    assert len(queue.requests._known) == commands._REMEMBERED


@pytest.mark.parametrize("topic", [STATUS, ENABLED, "vedette/shed/cmd/status", "a/#"])
def test_a_hostile_response_topic_gets_nothing_and_nothing_is_done(queue: Queue, topic: str) -> None:
    request = queue.take(STATUS, response_topic=topic, correlation=b"1")
    assert request is not None
    assert request.command is None
    assert request.answer_to == TOPICS.answer("status")
    setting = queue.take(ENABLED, b"off", response_topic=topic)
    assert setting is not None
    assert (setting.command, setting.answer_to) == (None, "")


def test_huge_correlation_data_is_neither_kept_nor_sent_back(queue: Queue) -> None:
    request = queue.take(STATUS, correlation=b"x" * 30_000, response_topic="me")
    assert request is not None
    assert (request.command, request.correlation, request.mark) == (None, b"", None)
    assert request.answer_to == "me"


@pytest.mark.parametrize("size", [8, 1025])
def test_a_foreign_response_topic_gets_no_answer_however_long_the_correlation_data(
    queue: Queue, size: int
) -> None:
    request = queue.take(STATUS, correlation=b"x" * size, response_topic="homeassistant/intruder/config")
    assert request is not None
    assert request.answer_to == TOPICS.answer("status")


def test_more_than_can_be_done_is_refused_at_once(queue: Queue) -> None:
    for _ in range(commands._WAITING_MAX + 5):
        queue.requests.receive(IncomingMessage(STATUS, b"", response_topic="me"))
    assert len(queue.answers) == 5
    assert queue.answers[0][1] == {"ok": False, "reason": "too many commands wait; try again later"}


def test_topics_of_others_are_left_alone(queue: Queue) -> None:
    assert queue.take("vedette/shed/cmd/status") is None
    assert queue.take(TOPICS.answer("status")) is None
    assert queue.woken == 0


def test_a_state_is_taught_and_forgotten_by_message_or_request() -> None:
    taught = Command("teach", "front", state="gate", name="half open", examples=10)
    assert set_command("front", "teach", b"gate=half open") == taught
    assert set_command("front", "forget", b"gate") == Command("forget", "front", state="gate")
    body = {"stream": "front", "state": "gate", "value": "open", "examples": 5, "region": [0, 0.1, 0.5, 1]}
    command, _ = request_command("teach", json.dumps(body).encode())
    assert command == Command(
        "teach", "front", state="gate", name="open", examples=5, region=(0.0, 0.1, 0.5, 1.0)
    )
    for wrong in ({"region": [0, 1]}, {"examples": "many"}, {"state": "x" * 200}, {"colour": 1}):
        with pytest.raises(CommandError):
            request_command("teach", json.dumps({**body, **wrong}).encode())
