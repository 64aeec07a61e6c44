"""Commands as strangers send them: whatever comes is a command or a refusal in plain words."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from agent.comms.commands import Command, Value, check_answer_topic, request_command, set_command, shown
from agent.comms.mqtt.inbox import LARGEST
from agent.comms.topics import Addressed, Topics
from agent.errors import CommandError

TOPICS = Topics("vedette", "porch")
WHATS = st.sampled_from(["enabled", "threshold", "variant", "zone/drive", "snapshot", "record"]) | st.text(
    max_size=20
)
VERBS = st.sampled_from(["set", "snapshot", "record", "reload", "doctor", "status"]) | st.text(max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["stream", "what", "value", "seconds", "id"]) | st.text(max_size=5)
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
    """Of the right type and within bounds, whatever was sent."""
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
        ("zone/", b"on", "'zone/' cannot be set; there are: enabled, threshold, variant, zone/NAME"),
        ("thresold", b"0.5", "'thresold' cannot be set; did you mean 'threshold'? there are: enabled"),
        ("rung", b"416", "'rung' is called 'variant' now"),
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
        ("set", b"[]", "set: Expected `object`, got `array`"),
        ("set", b"", "set: Object missing required field `stream`"),
        ("set", DEEP, "set: "),
        ("set", SET + DEEP + b"}", "set: Expected "),
        ("set", b'{"a":' * (LARGEST // 5), "set: Object contains unknown field `a`"),
        ("set", SET + b"1e999}", "set: Number out of range"),
        ("set", SET + b"NaN}", "set: JSON is malformed"),
        ("set", SET + b"-Infinity}", "set: JSON is malformed"),
        ("set", SET + b"9" * 6000 + b"}", "set: Integer value out of range"),
        ("set", SET + b"true}", "threshold is a number from 0 to 1, not 'True'"),
        ("set", SET + b'"\xff"}', "set: the payload is not UTF-8"),
        (
            "set",
            b'{"stream":"' + b"x" * 200 + b'","what":"variant","value":"a"}',
            "set: `stream` has 200 characters",
        ),
        ("set", b'{"stream":"front","what":"enabled","value":true,"source":"x"}', "set: Object contains unknown"),
        ("status", b'{"\\u001b[2J":1}', "status: Object contains unknown field `\\x1b[2J`"),
        ("reboot", b"", "no command 'reboot'; there are: set, snapshot, record, reload, doctor, status"),
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
    assert shown(text).isprintable()
    assert len(shown(text)) < 500
