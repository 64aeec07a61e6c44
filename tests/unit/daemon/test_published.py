"""What a device remembers of the names under which it has published."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.comms.mqtt.cleanup import FormerName
from agent.comms.topics import Topics
from agent.config import Config
from agent.config.device import FallbackConfig, HomeAssistantConfig, MqttConfig
from agent.config.stream import StreamConfig
from agent.daemon.published import RetainedHistory
from agent.storage.state_file import StateFile

PORCH = Topics("vedette", "porch")
HERE, THERE = "localhost:1883", "there:1883"
NODE = "homeassistant/device/porch/config"


def config(*streams: str, prefix: str = "homeassistant") -> Config:
    fallback = (FallbackConfig("there"),)
    return Config(
        {name: StreamConfig("test:", "none") for name in streams},
        mqtt=MqttConfig(fallback=fallback),
        homeassistant=HomeAssistantConfig(prefix=prefix),
    )


@pytest.fixture
def file(tmp_path: Path) -> StateFile:
    return StateFile(tmp_path / "published.json")


def begun(file: StateFile, config: Config, topics: Topics = PORCH) -> RetainedHistory:
    """As a start does."""
    made = RetainedHistory(file)
    made.note(config, topics)
    return made


def test_as_long_as_nothing_changes_there_is_nothing_to_erase(file: StateFile) -> None:
    begun(file, config("front"))
    written = file.read()
    assert begun(file, config("front")).at(HERE) == []
    assert file.read() == written


def test_a_former_name_is_remembered_at_each_broker_until_it_is_erased_there(file: StateFile) -> None:
    begun(file, config("front"))
    made = begun(file, config("front"), Topics("vedette", "gate"))
    former = [FormerName("vedette", "porch", ("front",)), FormerName("vedette", "porch", (), NODE)]
    assert made.at(HERE) == made.at(THERE) == former
    assert made.former_identifiers() == ("vedette/porch",)
    for trace in former:
        made.erased(HERE, trace)
    made.look()
    again = begun(file, config("front"), Topics("vedette", "gate"))
    assert again.at(HERE) == []
    assert again.at(THERE) == former


def test_a_name_that_is_in_use_again_is_not_erased(file: StateFile) -> None:
    begun(file, config("front"))
    begun(file, config("front"), Topics("vedette", "gate"))
    made = begun(file, config("front"))
    assert {one.device for one in made.at(HERE)} == {"gate"}


def test_streams_that_are_gone_are_erased_and_no_others(file: StateFile) -> None:
    begun(file, config("front", "back"))
    made = begun(file, config("front"))
    (gone,) = made.at(HERE)
    assert gone == FormerName("vedette", "porch", ("back",))
    assert (made.has("front"), made.has("back")) == (True, False)
    made.note(config("front", "back"), PORCH)
    assert made.at(HERE) == []
    made.erased(HERE, gone)  # it was under way when the stream came back
    made.note(config("front"), PORCH)
    assert made.at(HERE) == [gone]
    made.erased(HERE, gone)
    made.look()
    assert made.at(HERE) == []
    assert begun(file, config("front")).at(HERE) == []


def test_another_prefix_of_home_assistant_leaves_a_message_and_the_same_one_is_the_announcers(
    file: StateFile,
) -> None:
    begun(file, config("front"))
    made = begun(file, config("front", prefix="ha"))
    assert made.at(HERE) == [FormerName("vedette", "porch", (), NODE)]
    moved = begun(file, config("front"), Topics("farm", "porch"))
    assert [one.discovery for one in moved.at(HERE)] == ["", "ha/device/porch/config"]


@pytest.mark.parametrize("content", [b"{", b'{"brokers": 3}', b"\xff"])
def test_a_damaged_memory_is_begun_anew(
    file: StateFile, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file.write(content)
    assert begun(file, config("front")).at(HERE) == []
    assert "published.json: begun anew" in caplog.text
    assert begun(file, config("front", "back")).at(HERE) == []


def test_a_disk_that_refuses_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = begun(StateFile(tmp_path / "nowhere" / "published.json"), config("front"))
    assert made.at(HERE) == []
    assert "cannot be remembered" in caplog.text
