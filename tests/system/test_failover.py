"""A stream on a device that crashes in mid-stream: a real delegate, the daemon as a process, a real broker."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from agent.comms.messages import DetectionsMessage
from agent.health import HealthMessage, StreamHealth
from tests.support.delegates import COMPILER, NO_COMPILER, compiled, picture_model
from tests.support.mosquitto import Mosquitto
from tests.support.publishing import TOPICS
from tests.support.received import Messages
from tests.support.running import Vedette, camera, stopped

pytestmark = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)


def stream(folder: Path, mode: str, standby: str, after: int = 60) -> dict[str, object]:
    backend = f"external:{compiled(folder)}?mode={mode}&after={after}{standby}"
    gate, publish = {"motion": False}, {"detections": True}
    return camera(picture_model(folder), backend=backend, gate=gate, publish=publish)


def told(messages: Messages) -> list[StreamHealth]:
    """Every state of the stream that was published."""
    decode = msgspec.json.Decoder(HealthMessage).decode
    return [decode(body).streams["front"] for body in messages.of(TOPICS.health)]


def backends(messages: Messages) -> list[str]:
    """Return the backend of each detection message."""
    decode = msgspec.json.Decoder(DetectionsMessage).decode
    return [decode(body).backend for body in messages.of(TOPICS.detections("front"))]


def test_the_cpu_takes_over_and_the_device_comes_back(tmp_path: Path, broker: Mosquitto) -> None:
    messages = broker.subscribe("vedette/#")
    with Vedette(tmp_path, broker, front=stream(tmp_path, "crash", ",cpu")) as vedette:
        messages.wait(lambda m: any("SIGSEGV" in one.detail for one in told(m)))
        messages.wait(lambda m: [one.state for one in told(m)][-1:] == ["running"], timeout_s=60.0)
        vedette.end()
    assert stopped(messages)
    (why,) = {
        one.detail for one in told(messages) if one.state == "degraded" and "being opened" not in one.detail
    }
    assert "crashed: its process was killed by SIGSEGV" in why
    degraded = next(one for one in told(messages) if one.detail == why)
    assert degraded.backend == "cpu"
    assert [one.backend for one in told(messages) if one.state == "running"][-1].startswith("external:")
    seen = backends(messages)
    assert {"cpu"} < set(seen)
    assert not any(one.state in ("failed", "lost") for one in told(messages))
    assert vedette.said("the CPU answers until it comes back")


def test_one_that_was_asked_for_alone_never_falls_back(tmp_path: Path, broker: Mosquitto) -> None:
    messages = broker.subscribe("vedette/#")
    with Vedette(tmp_path, broker, front=stream(tmp_path, "fail", "", after=20)) as vedette:
        messages.wait(lambda m: any(one.state == "failed" for one in told(m)))
        messages.wait(lambda m: [one.state for one in told(m)].count("failed") >= 2, timeout_s=60.0)
        vedette.end()
    assert stopped(messages)
    failed = next(one for one in told(messages) if one.state == "failed")
    assert "the device has gone" in failed.detail
    assert "cpu" not in backends(messages)


def test_auto_goes_over_to_a_device_in_mid_stream(tmp_path: Path, broker: Mosquitto) -> None:
    device = f"external:{compiled(tmp_path)}?mode=fast"
    messages = broker.subscribe("vedette/#")
    # Some 3 ms on the CPU: the device stays faster, however busy the machine is.
    front = camera(picture_model(tmp_path, 20_000), gate={"motion": False}, publish={"detections": True})
    vedette = Vedette(tmp_path, broker, front=front)
    vedette.config["selection"] = {"candidates": [device], "threads_max": 1, "after_s": 0.5}
    with vedette:
        messages.wait(lambda m: device in backends(m), timeout_s=90.0)
        vedette.end()
    assert stopped(messages)
    seen = backends(messages)
    assert seen[0] == "cpu"
    assert seen[-1] == device
    assert vedette.said(f"now runs on {device}")
    assert {one.state for one in told(messages)} <= {"starting", "running", "ended"}


@pytest.mark.parametrize("standby", ["", ",cpu"])
def test_a_device_that_hangs_while_it_is_opened_holds_nothing_up(
    tmp_path: Path, broker: Mosquitto, standby: str
) -> None:
    messages = broker.subscribe("vedette/#")
    front = stream(tmp_path, "hang-prepare", standby)
    back = {**front, "backend": "cpu"}
    with Vedette(tmp_path, broker, front=front, back=back) as vedette:
        messages.wait(lambda m: m.of(TOPICS.detections("back")))
        if standby:
            messages.wait(lambda m: "cpu" in backends(m))
        messages.wait(lambda m: any("is being opened" in one.detail for one in told(m)))
        code, took_s = vedette.end()
        assert (code, took_s < 60.0) == (0, True)  # opening it would be given up after two minutes
    assert stopped(messages)
    states = {one.state for one in told(messages)}
    assert ("degraded" in states) is bool(standby)
    assert "failed" not in states
    assert standby or not backends(messages)
