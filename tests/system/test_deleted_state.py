"""The state folder is deleted under a running daemon, over a real broker; then that is killed and started."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.health import HealthMessage
from tests.support.doubles import person_model
from tests.support.mosquitto import Mosquitto
from tests.support.operator import Operator
from tests.support.received import Messages
from tests.support.running import Vedette, camera, events, health, hear, left_open, states, stopped


@pytest.fixture
def vedette(tmp_path: Path, broker: Mosquitto) -> Iterator[Vedette]:
    """Two cameras that see a person; the state lies in a folder of its own folder."""
    model = person_model(tmp_path)
    running = Vedette(tmp_path, broker, front=camera(model), back=camera(model))
    running.state = tmp_path / "disk" / "state"
    running.config["storage"]["state_dir"] = str(running.state)
    with running:
        yield running


def told(messages: Messages) -> HealthMessage:
    newest = health(messages)
    assert newest is not None
    return newest


def test_what_is_known_is_written_anew_and_a_kill_after_that_costs_nothing(
    vedette: Vedette, broker: Mosquitto
) -> None:
    operator = Operator(broker)
    messages = operator.messages
    hear(messages, 3, "front")
    operator.set("back", "enabled", "off")
    operator.wait_state("back", "enabled", "off")
    shutil.rmtree(vedette.state)
    messages.wait(lambda m: told(m).state_folder.endswith("; it was restored"))
    hear(messages, 5, "front")
    assert told(messages).spool.on == "disk"
    assert len(vedette.said("was deleted or replaced while Vedette runs")) == 1
    vedette.end(signal.SIGKILL)
    vedette.start()
    hear(messages, 5, "front")
    messages.wait(lambda m: states(m)["back"] == "disabled")
    assert told(messages).state_folder == ""
    vedette.end()
    assert stopped(messages)
    assert left_open(messages, "front") == set()
    numbers = sorted({event.seq for name in ("front", "back") for event in events(messages, name)})
    assert numbers == list(range(1, len(numbers) + 1)), "none is missing, and none was given twice"


def test_while_it_cannot_be_written_anew_events_flow_from_memory(vedette: Vedette, broker: Mosquitto) -> None:
    operator = Operator(broker)
    messages = operator.messages
    hear(messages, 3, "front")
    shutil.rmtree(vedette.state.parent)
    vedette.state.parent.touch()
    messages.wait(lambda m: told(m).spool.on == "memory")
    assert "cannot be used as the state folder" in told(messages).state_folder
    operator.set("back", "enabled", "off")
    messages.wait(lambda m: "settings made by commands are not on the disk yet" in told(m).state_folder)
    hear(messages, 5, "front")
    vedette.state.parent.unlink()
    messages.wait(lambda m: told(m).spool.on == "disk")
    messages.wait(lambda m: told(m).state_folder.endswith("; it was restored"))
    vedette.end(signal.SIGKILL)
    vedette.start()
    hear(messages, 5, "front")
    messages.wait(lambda m: states(m)["back"] == "disabled")
    assert len(vedette.said("lost at the next restart")) == 1
