"""The announcer at a broker and beside a Home Assistant that the test plays, with a clock that the test turns."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable
from typing import Any, cast

import pytest
from msgspec.structs import replace

from agent.comms.mqtt.inbox import IncomingMessage
from agent.comms.mqtt.publisher import Publisher
from agent.comms.topics import Topics
from agent.config import HomeAssistantConfig
from agent.features.homeassistant.discovery import DeviceEntitySource, StreamEntitySource, ZoneLabel
from agent.features.homeassistant.part import Announcer

TOPIC, STATUS = "homeassistant/device/porch/config", "homeassistant/status"
FRONT = StreamEntitySource("front", "things", ("person", "car"), (ZoneLabel("", "person"),))
DEVICE = DeviceEntitySource(
    Topics("vedette", "porch"), "", "0.1.0", frozenset(), (FRONT, replace(FRONT, name="back"))
)


class World:
    """A line, a broker that retains, and a clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.kept: dict[str, bytes] = {}
        self.sent: list[bytes] = []
        self.handlers: dict[str, Callable[[IncomingMessage], None]] = {}
        self.asked: list[tuple[str, Callable[[bytes], None]]] = []

    @property
    def publisher(self) -> Publisher:
        return cast("Publisher", self)

    def retain(self, topic: str, payload: bytes, *, patient: bool = False) -> None:
        assert topic == TOPIC
        self.kept[topic] = payload
        self.sent.append(payload)

    def repeat(self, topic: str) -> None:
        self.sent.append(self.kept[topic])

    def listen(self, pattern: str, handler: Callable[[IncomingMessage], None]) -> None:
        self.handlers[pattern] = handler

    def ignore(self, pattern: str) -> None:
        self.handlers.pop(pattern, None)

    def ask(self, topic: str, answer: Callable[[bytes], None]) -> None:
        self.asked.append((topic, answer))

    def answer(self) -> None:
        for topic, answer in self.asked:
            answer(self.kept.get(topic, b""))
        self.asked.clear()

    def birth(self, payload: bytes = b"online", *, retained: bool = False) -> None:
        self.handlers[STATUS](IncomingMessage(STATUS, payload, retained))

    def announcer(
        self, config: HomeAssistantConfig | None = None, device: DeviceEntitySource = DEVICE
    ) -> Announcer:
        made = Announcer(
            self.publisher,
            config or HomeAssistantConfig(),
            device,
            clock=lambda: self.now,
            jitter=lambda low, high: high,
        )
        self.answer()
        return made

    def live(
        self, announcer: Announcer, device: DeviceEntitySource = DEVICE, seconds: float = 60.0
    ) -> list[dict[str, Any]]:
        """Let time pass; gives the components of what was sent."""
        before = len(self.sent)
        for _ in range(int(seconds * 2)):
            announcer.update(device)
            self.now += 0.5
        return [json.loads(body)["cmps"] for body in self.sent[before:] if body]


@pytest.fixture
def world() -> World:
    return World()


def removed(parts: dict[str, Any]) -> set[str]:
    return {name for name, part in parts.items() if set(part) == {"p"}}


def test_nothing_is_said_before_the_broker_has_told_what_it_retains(world: World) -> None:
    announcer = Announcer(world.publisher, HomeAssistantConfig(), DEVICE, clock=lambda: world.now)
    assert not world.live(announcer)
    world.answer()
    assert len(world.live(announcer)) == 1


def test_what_has_not_changed_is_said_once(world: World) -> None:
    announcer = world.announcer()
    (parts,) = world.live(announcer, seconds=600)
    assert "front.occupancy.person" in parts
    assert not removed(parts)


def test_a_start_of_home_assistant_is_answered_once_and_not_at_once(world: World) -> None:
    announcer = world.announcer()
    world.live(announcer)
    world.birth()
    world.birth()
    assert not world.live(announcer, seconds=9.0)
    assert len(world.live(announcer)) == 1
    world.birth()
    assert len(world.live(announcer)) == 1


@pytest.mark.parametrize(("payload", "retained"), [(b"offline", False), (b"online", True), (b"\xff", False)])
def test_nothing_else_on_that_topic_is_a_start(world: World, payload: bytes, retained: bool) -> None:
    announcer = world.announcer()
    world.live(announcer)
    world.birth(payload, retained=retained)
    assert not world.live(announcer)


def test_a_stream_that_is_gone_is_removed(world: World) -> None:
    announcer = world.announcer()
    world.live(announcer)
    (parts,) = world.live(announcer, replace(DEVICE, streams=(FRONT,)))
    assert removed(parts) == {name for name in parts if name.startswith("back.")}
    assert "back.occupancy.person" in removed(parts)


def test_a_stream_that_went_between_two_runs_is_removed(world: World) -> None:
    world.live(world.announcer())
    (parts,) = world.live(world.announcer(), replace(DEVICE, streams=(FRONT,)))
    assert "back.occupancy.person" in removed(parts)
    (parts,) = world.live(world.announcer(), replace(DEVICE, streams=(FRONT,)))
    assert "back.occupancy.person" in removed(parts), "Home Assistant may not have been there yet"


def test_after_a_start_of_home_assistant_what_was_removed_is_left_out(world: World) -> None:
    announcer, left = world.announcer(), replace(DEVICE, streams=(FRONT,))
    world.live(announcer)
    world.live(announcer, left)
    world.birth()
    (again,) = world.live(announcer, left)
    assert not [name for name in again if name.startswith("back.")]
    world.birth()
    assert world.live(announcer, left) == [again]


def test_two_messages_are_never_close_together(world: World) -> None:
    announcer = world.announcer()
    times = []
    for number in range(40):
        before = len(world.sent)
        seen = tuple(ZoneLabel("", label) for label in ("person", "car")[: number % 3])
        world.live(
            announcer,
            replace(DEVICE, streams=(replace(FRONT, configured_labels=(), counted_labels=seen),)),
            seconds=0.5,
        )
        times += [world.now] * (len(world.sent) - before)
    assert len(times) >= 3
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) >= 5


def test_a_label_that_is_seen_is_added_and_stays_over_a_restart(world: World) -> None:
    open_ended = replace(DEVICE, streams=(replace(FRONT, configured_labels=()),))
    announcer = world.announcer(device=open_ended)
    (parts,) = world.live(announcer, open_ended)
    assert "front.occupancy.car" not in parts
    seen = replace(
        DEVICE, streams=(replace(FRONT, configured_labels=(), counted_labels=(ZoneLabel("", "car"),)),)
    )
    (parts,) = world.live(announcer, seen)
    assert "front.occupancy.car" in parts
    (parts,) = world.live(world.announcer(device=open_ended), open_ended)
    assert "front.occupancy.car" in parts
    assert not removed(parts)


def test_what_a_stream_without_its_model_would_find_is_neither_announced_nor_removed(world: World) -> None:
    announcer = world.announcer()
    (whole,) = world.live(announcer)
    broken = replace(DEVICE, streams=(FRONT, StreamEntitySource("back")))
    (parts,) = world.live(announcer, broken)
    assert "back.occupancy.person" not in parts
    assert not removed(parts)
    (again,) = world.live(announcer)
    assert again == whole
    world.live(announcer, broken)
    (parts,) = world.live(announcer, replace(DEVICE, streams=(FRONT,)))
    assert "back.occupancy.person" in removed(parts), "it is gone with its stream"


def test_another_programs_device_is_left_alone(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.kept[TOPIC] = theirs = b'{"o": {"name": "other"}, "dev": {"ids": ["x"]}, "cmps": {}}'
    with caplog.at_level(logging.WARNING):
        announcer = world.announcer()
        world.live(announcer)
    assert world.kept[TOPIC] == theirs
    assert not world.sent
    assert not world.handlers
    (said,) = caplog.messages
    assert "belongs to other, device x" in said


def test_switched_off_it_takes_back_what_it_announced(world: World) -> None:
    world.live(world.announcer())
    announcer = world.announcer(HomeAssistantConfig(enabled=False))
    world.live(announcer)
    assert world.kept[TOPIC] == b""
    assert world.sent[1:] == [b""]


def test_when_the_message_of_another_program_is_deleted_ours_takes_its_place(world: World) -> None:
    world.kept[TOPIC] = b'{"o": {"name": "other"}, "dev": {"ids": ["x"]}, "cmps": {}}'
    announcer = world.announcer()
    world.live(announcer)
    assert announcer.trouble.startswith(f"{TOPIC} belongs to other, device x: left alone")
    world.kept[TOPIC] = b""
    world.live(announcer, seconds=120.0)
    world.answer()
    (parts,) = world.live(announcer, seconds=120.0)
    assert "front.occupancy.person" in parts
    assert announcer.trouble == ""


@pytest.mark.parametrize("kept", [b"", b'{"o": {"name": "other"}, "dev": {"ids": ["x"]}, "cmps": {}}', b"?"])
def test_switched_off_it_touches_nothing_else(
    world: World, kept: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    world.kept[TOPIC] = kept
    announcer = world.announcer(HomeAssistantConfig(enabled=False))
    world.live(announcer)
    assert not world.sent
    assert not world.handlers
    assert not caplog.messages


def test_labels_beyond_the_bound_become_no_entities(world: World) -> None:
    config = HomeAssistantConfig(max_labels=1)
    seen = (ZoneLabel("", "person"), ZoneLabel("", "car"))
    many = replace(DEVICE, streams=(replace(FRONT, configured_labels=(), counted_labels=seen),))
    (parts,) = world.live(world.announcer(config, many), many)
    assert "front.occupancy.person" in parts
    assert "front.occupancy.car" not in parts
