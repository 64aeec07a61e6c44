"""A camera with faults, the daemon as a process, and a real broker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import msgspec
import pytest
from click.testing import CliRunner

from agent.cli.main import vedette as cli
from agent.comms.messages import ConditionMessage
from agent.types import Image
from tests.support.doubles import person_model
from tests.support.mosquitto import HOST, Mosquitto
from tests.support.publishing import TOPICS, wait_for
from tests.support.received import Messages
from tests.support.running import Vedette, camera, health
from tests.support.staged_camera import HEIGHT, WIDTH, StagedCamera

FPS = 2
ZONE = {"name": "drive", "polygon": [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]}


def write_clip(path: Path, pictures: Iterable[Image]) -> str:
    """Write pictures to a file, and return its URI for a stream that is read as fast as it goes."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), FPS, (WIDTH, HEIGHT))
    for picture in pictures:
        writer.write(picture)
    writer.release()
    return f"file:{path}?pace=fast"


def staged(*parts: tuple[int, float, float]) -> Iterator[Image]:
    """Yield pictures for so many seconds each, of a camera that was moved to the right, in some light."""
    staged_camera = StagedCamera()
    for seconds, right, gain in parts:
        for _ in range(seconds * FPS):
            yield staged_camera.picture(staged_camera.view(right), gain)


def told(messages: Messages) -> list[ConditionMessage]:
    topic = TOPICS.condition("front")
    found = [one.payload for one in messages if one.topic == topic and one.payload]
    return [msgspec.json.decode(body, type=ConditionMessage) for body in found]


def words(messages: Messages) -> list[list[str]]:
    return [[one.problem for one in message.problems] for message in told(messages)]


@pytest.fixture
def messages(broker: Mosquitto) -> Messages:
    return broker.subscribe(f"vedette/{TOPICS.device}/#")


@pytest.fixture
def watched() -> dict[str, Any]:
    return {"zones": [ZONE], "condition": {"enabled": True}}


def test_each_fault_is_told_once_when_it_begins_and_once_when_it_ends(
    tmp_path: Path, broker: Mosquitto, messages: Messages, watched: dict[str, Any]
) -> None:
    clip = staged((60, 0.0, 1.0), (60, 0.0, 0.02), (60, 0.0, 1.0), (60, 0.15, 1.0), (60, 0.0, 1.0))
    stream = camera(person_model(tmp_path), write_clip(tmp_path / "clip.avi", clip), **watched)
    with Vedette(tmp_path, broker, front=stream).online_first() as vedette:
        wait_for(lambda: vedette.said("the camera has moved no longer"), 60)
        messages.wait(lambda m: words(m)[-1] == [])
        assert len(vedette.said("the picture is dark")) == len(vedette.said("the camera has moved")) == 2
        # The state is retained, and the clip is played fast: a state that is over before it was sent is left out.
        states = iter([[], ["dark"], [], ["moved"], []])
        assert all(word in states for word in words(messages)), words(messages)
        assert [one.zones_suspended for one in told(messages)] == [word == ["moved"] for word in words(messages)]


def test_the_view_of_a_camera_that_is_watched_can_be_accepted_by_command(
    tmp_path: Path, broker: Mosquitto, messages: Messages, watched: dict[str, Any]
) -> None:
    model = person_model(tmp_path)
    streams = {"front": camera(model, **watched), "back": camera(model)}
    with Vedette(tmp_path, broker, **streams).online_first() as vedette:
        messages.wait(lambda m: told(m))
        assert _command(broker, "front", "accept") == "done\n"
        assert vedette.said("stream front: the present view was accepted")
        assert "refused: stream back: its camera is not watched" in _command(broker, "back", "accept")
        _command(broker, "front", "enabled", "off")
        assert "refused: stream front: it is disabled" in _command(broker, "front", "accept")


def test_a_stream_that_is_off_has_no_condition(
    tmp_path: Path, broker: Mosquitto, messages: Messages, watched: dict[str, Any]
) -> None:
    with Vedette(tmp_path, broker, front=camera(person_model(tmp_path), **watched)).online_first():
        messages.wait(lambda m: told(m))
        _command(broker, "front", "enabled", "off")
        messages.wait(lambda m: m.of(TOPICS.condition("front"))[-1] == b"")


def test_health_and_status_name_the_problems(
    tmp_path: Path, broker: Mosquitto, messages: Messages, watched: dict[str, Any]
) -> None:
    clip = write_clip(tmp_path / "clip.avi", staged((20, 0.0, 0.02)))
    source = clip.replace("pace=fast", "pace=realtime&loop=1")
    with Vedette(tmp_path, broker, front=camera(person_model(tmp_path), source, **watched)).online_first():
        messages.wait(lambda m: words(m)[-1:] == [["dark"]])
        messages.wait(lambda m: (now := health(m)) is not None and now.streams["front"].problems == ("dark",))
        found = health(messages)
        assert found is not None
        assert found.streams["front"].detail == "the picture is dark"
        assert "problems: dark" in _command(broker, "status")


def _command(broker: Mosquitto, *what: str) -> str:
    where = ("--host", HOST, "--port", str(broker.port))
    return CliRunner().invoke(cli, ["command", *where, TOPICS.device, *what]).output
