"""Published messages can be read back, and fit the schema that is made from the same structs."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.comms import messages
from agent.comms.messages import ClipMessage, clip_message
from agent.health import HealthMessage, SpoolHealth, StreamHealth
from agent.types import Clip, ClipReason, Detection, Keypoint, Stored, Track

unit = st.floats(0.0, 1.0)
text = st.text(max_size=20)
moment = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
box = st.none() | st.tuples(unit, unit, unit, unit)
milliseconds = st.floats(0.0, 1e6)
latency = st.builds(messages.Latency, *[milliseconds] * 8)
detection = st.builds(
    Detection,
    text,
    unit,
    box,
    st.lists(st.builds(Keypoint, text, unit, unit, unit), max_size=3).map(tuple),
    st.lists(st.tuples(unit, unit), max_size=3).map(tuple),
    st.none() | unit,
)
track = st.builds(
    Track,
    text,
    text,
    unit,
    unit,
    st.integers(1, 10**6),
    moment,
    moment,
    box,
    zones=st.lists(text, max_size=3).map(tuple),
)
model = st.builds(messages.ModelId, text, text)
kind = st.sampled_from(["new", "update", "end"])
event = st.builds(
    messages.EventMessage,
    text,
    text,
    text,
    kind,
    text,
    track,
    moment,
    latency,
    model,
    text,
    text,
    st.integers(0, 2**53),
)
detections = st.builds(
    messages.DetectionsMessage,
    text,
    text,
    st.integers(0, 2**53),
    moment,
    st.lists(detection, max_size=3),
    latency,
    model,
    text,
    text,
)
stream = st.builds(StreamHealth, text, text, milliseconds)
health = st.builds(
    HealthMessage,
    text,
    moment,
    milliseconds,
    st.dictionaries(text, stream, max_size=2),
    st.builds(SpoolHealth, *[st.integers(0, 2**53)] * 3, st.sampled_from(["disk", "memory"])),
    milliseconds,
    st.none() | st.floats(-50, 150),
    st.booleans(),
)


clip = st.builds(
    ClipMessage,
    text,
    text,
    text,
    text,
    moment,
    moment,
    milliseconds,
    st.integers(0, 10**6),
    st.integers(0, 2**53),
    text,
    text,
    st.lists(text, max_size=3).map(tuple),
    text,
    st.booleans(),
)


@given(st.one_of(event, detections, health, clip))
def test_a_message_survives_the_journey(message: msgspec.Struct) -> None:
    assert msgspec.json.decode(messages.encode(message), type=type(message)) == message


@given(st.one_of(event, detections, health, clip))
def test_a_message_has_every_field_that_its_schema_requires_and_no_other(message: msgspec.Struct) -> None:
    schema = messages.schema()["$defs"][type(message).__name__]
    found: dict[str, Any] = msgspec.json.decode(messages.encode(message))
    assert set(schema["required"]) <= set(found) <= set(schema["properties"])


@given(event, st.integers(1, 2**53), st.floats(0.0, 1e5))
def test_an_event_is_finished_with_its_number_and_its_wait(
    message: messages.EventMessage, seq: int, waited_s: float
) -> None:
    stored = Stored(seq, "t", messages.encode(message), 1e9)
    sent = msgspec.json.decode(messages.complete_spooled(stored, 1e9 + waited_s), type=messages.EventMessage)
    assert sent.seq == seq
    assert sent.latency_ms.publish == pytest.approx(waited_s * 1e3, abs=0.01)
    assert sent.latency_ms.total == pytest.approx(message.latency_ms.total + waited_s * 1e3, abs=0.01)
    unchanged = {"seq": message.seq, "latency_ms": message.latency_ms}
    assert msgspec.structs.replace(sent, **unchanged) == message


@given(clip, st.integers(1, 2**53))
def test_news_of_a_clip_get_their_number_and_are_else_as_they_were(message: ClipMessage, seq: int) -> None:
    stored = Stored(seq, "vedette/porch/front/clips", messages.encode(message), 0.0)
    sent = msgspec.json.decode(messages.complete_spooled(stored), type=ClipMessage)
    assert sent == msgspec.structs.replace(message, seq=seq)


def test_a_path_that_is_no_text_can_be_told() -> None:
    now = datetime.now(UTC)
    lying = Clip(os.fsdecode(b"/state/\xff/clip.mp4"), ClipReason("s", "asked"), (), now, now, 1.0, 1, 1)
    assert b'"path":"/state/?/clip.mp4"' in messages.encode(clip_message(lying, "d"))


def test_a_clock_that_was_set_back_gives_no_negative_wait() -> None:
    now = datetime.now(UTC)
    message = messages.EventMessage(
        "i",
        "d",
        "s",
        "new",
        "r",
        Track("t", "l", 0.5, 0.5, 1, now, now),
        now,
        messages.Latency(1, 1, 1, 1, 1, 1, total=6.0),
        messages.ModelId("m", "0"),
        "cpu",
        "full",
    )
    sent = msgspec.json.decode(messages.complete_spooled(Stored(1, "t", messages.encode(message), 2e9), 1e9))
    assert sent["latency_ms"]["publish"] == 0
    assert sent["latency_ms"]["total"] == 6


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"\xff\xfe", b'{"id": 3}', b"[1, 2", b'{"id":"a\xff","seq":0}', b'{"id":"a"}']
)
def test_a_damaged_row_is_no_event(body: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        messages.complete_spooled(Stored(1, "t", body, 0.0))


def test_ids_are_unique_and_the_schema_names_every_message() -> None:
    assert len({messages.new_id() for _ in range(1000)}) == 1000
    schema = messages.schema()
    assert {"EventMessage", "DetectionsMessage", "ClipMessage", "HealthMessage"} <= set(schema["$defs"])
    assert schema["$schema"].endswith("2020-12/schema")
