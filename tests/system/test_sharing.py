"""Four streams of one model take turns on its sessions; a device that they share serves and fails them all."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from agent.comms.messages import DetectionsMessage
from agent.health import HealthMessage, StreamHealth
from tests.support.delegates import COMPILER, NO_COMPILER, compiled, picture_model
from tests.support.doubles import person_model
from tests.support.mosquitto import Mosquitto
from tests.support.publishing import TOPICS, wait_for
from tests.support.received import Messages
from tests.support.running import Vedette, camera, hear, kinds, left_open, stopped

NAMES = ("front", "back", "side", "yard")


def told(messages: Messages, name: str) -> list[StreamHealth]:
    """Every state of a stream that was published."""
    decode = msgspec.json.Decoder(HealthMessage).decode
    return [decode(body).streams[name] for body in messages.of(TOPICS.health)]


def backends(messages: Messages, name: str) -> list[str]:
    """Return the backend of each detection message."""
    decode = msgspec.json.Decoder(DetectionsMessage).decode
    return [decode(body).backend for body in messages.of(TOPICS.detections(name))]


def workers(pid: int) -> list[int]:
    """Return the worker processes of a daemon."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in task.joinpath("children").read_text().split():
            line = Path(f"/proc/{child}/cmdline")
            if line.exists() and b"infer.worker_main" in line.read_bytes():
                found.append(int(child))
    return found


def test_four_streams_share_and_each_reports_at_the_rate_of_its_camera(tmp_path: Path, broker: Mosquitto) -> None:
    messages, model = broker.subscribe("vedette/#"), person_model(tmp_path)
    with Vedette(tmp_path, broker, **{name: camera(model) for name in NAMES}) as vedette:
        messages.wait(lambda m: all("new" in kinds(m, name) for name in NAMES))
        assert vedette.wait_said("4 streams share its sessions on cpu")
        messages.wait(lambda m: all(any(one.fps > 10.0 for one in told(m, name)[-1:]) for name in NAMES))
        del vedette.config["streams"]["yard"]
        vedette.reload()
        messages.wait(lambda m: "end" in kinds(m, "yard"))
        for name in NAMES[:-1]:
            hear(messages, 3, name)
        vedette.end()
    assert stopped(messages)
    assert all(left_open(messages, name) == set() for name in NAMES)


@pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)
def test_one_device_serves_all_and_when_it_crashes_no_stream_is_lost(tmp_path: Path, broker: Mosquitto) -> None:
    messages, device = broker.subscribe("vedette/#"), f"external:{compiled(tmp_path)}?mode=crash&after=200"
    gate, publish = {"motion": False}, {"detections": True}
    one = camera(picture_model(tmp_path), backend=f"{device},cpu", gate=gate, publish=publish)
    with Vedette(tmp_path, broker, **dict.fromkeys(NAMES, one)) as vedette:
        messages.wait(lambda m: all(device in backends(m, name) for name in NAMES), timeout_s=60.0)
        assert len(workers(vedette.process.pid)) == 1
        messages.wait(
            lambda m: all(any("SIGSEGV" in one.detail for one in told(m, name)) for name in NAMES), timeout_s=30.0
        )
        messages.wait(lambda m: all(told(m, name)[-1].state == "running" for name in NAMES), timeout_s=60.0)
        wait_for(lambda: len(workers(vedette.process.pid)) == 1)
        vedette.end()
    assert stopped(messages)
    for name in NAMES:
        assert not any(one.state in ("failed", "lost") for one in told(messages, name))
        assert {"cpu", device} <= set(backends(messages, name))
