"""The daemon on a state folder that is mounted read-only, as an SD card is when it dies."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.cli.checks.board import check_folder
from agent.config import StorageConfig
from agent.errors import StorageError
from agent.storage.state import OwnedFolder, state_folder
from tests.support.doubles import person_model
from tests.support.mosquitto import Mosquitto
from tests.support.operator import Operator
from tests.support.running import Vedette, camera, events, health, hear, states


@pytest.fixture
def card(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of its own."""
    if os.geteuid() != 0:
        pytest.skip("a filesystem of its own needs root")
    folder = tmp_path / "state"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "vedette-test", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is refused here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


def test_a_daemon_on_a_read_only_disk_runs_from_memory_and_says_so(
    tmp_path: Path, card: Path, broker: Mosquitto
) -> None:
    messages = broker.subscribe("vedette/#")
    model = person_model(tmp_path)
    vedette = Vedette(tmp_path, broker, front=camera(model, clips={}), back=camera(model))
    operator = Operator(broker)
    with vedette:
        hear(messages, 3)
        operator.set("back", "enabled", "off")
        operator.wait_state("back", "enabled", "off")
        vedette.end()
    before = events(messages)[-1].seq
    remount(card, "ro")
    with vedette:
        hear(messages, 3)
        vedette.wait_said("Read-only file system: running from memory")
        vedette.wait_said("events are kept in memory")
        messages.wait(lambda m: (told := health(m)) is not None and told.spool.on == "memory")
        assert events(messages)[-1].seq > before
        assert states(messages)["back"] == "disabled", "what commands have set can be read"
        finding = check_folder(StorageConfig(state_dir=str(card)), Path("/"))
        assert (finding.state, finding.value) == ("problem", f"{card} is mounted read-only")
        remount(card, "rw")
        vedette.wait_said("back on the disk")
        assert vedette.end()[0] == 0


@pytest.mark.parametrize("has_file", [True, False])
def test_a_folder_on_a_read_only_disk_is_locked_as_well(card: Path, has_file: bool) -> None:
    with OwnedFolder(state_folder(StorageConfig(state_dir=str(card)))):
        pass
    if not has_file:
        (card / "lock").unlink()
    remount(card, "ro")
    folder = state_folder(StorageConfig(state_dir=str(card)))
    told = "in use by another vedette"
    with OwnedFolder(folder), pytest.raises(StorageError, match=told), OwnedFolder(folder):
        pass
    with OwnedFolder(folder):
        pass


def test_a_folder_that_is_not_there_cannot_be_made_on_a_read_only_disk(card: Path) -> None:
    remount(card, "ro")
    with pytest.raises(StorageError, match=r"Read-only file system; set .* to another place"):
        state_folder(StorageConfig(state_dir=str(card / "new")))
