from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.board.proc import Clock, DiskUsage
from agent.cli.checks import Finding
from agent.cli.checks.board import (
    check_clips,
    check_clock,
    check_commands,
    check_disk,
    check_folder,
    check_storage,
)
from agent.config import ClipsConfig, Config, StorageConfig, StreamConfig
from agent.daemon.overrides import Overrides, OverridesFile, all_off


@pytest.mark.parametrize(
    ("disk", "state"),
    [
        (DiskUsage(Path("/x"), 1000, 500, None, False), "ok"),
        (DiskUsage(Path("/x"), 1000, 255, 10, False), "warning"),
        (DiskUsage(Path("/x"), 1000, 63, 10, False), "problem"),
        (DiskUsage(Path("/x"), 1000, 500, 0, False), "problem"),
        (DiskUsage(Path("/x"), 1000, 500, 10, True), "problem"),
    ],
)
def test_room(disk: DiskUsage, state: str) -> None:
    found = check_disk(disk, 64)
    assert found.state == state
    assert ("/x" in found.advice or "SD card" in found.advice) == (state != "ok")


def test_the_folder_of_the_unit_is_meant_where_systemd_has_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    (tmp_path / "var/lib/vedette").mkdir(parents=True)
    assert str(tmp_path / "var/lib/vedette") in check_folder(StorageConfig(), tmp_path).value
    other = tmp_path / "other"
    other.mkdir()
    assert str(other) in check_folder(StorageConfig(state_dir=str(other)), tmp_path).value


def test_nothing_is_created(tmp_path: Path) -> None:
    check_folder(StorageConfig(state_dir=str(tmp_path / "state")), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_has_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    found = check_folder(StorageConfig(state_dir="$STATE_DIRECTORY"), tmp_path)
    assert found.state == "warning"
    assert "$STATE_DIRECTORY is not set" in found.advice


@pytest.mark.parametrize(
    ("clock", "now_s", "state"),
    [
        (Clock(True, True), 2e9, "ok"),
        (Clock(None, True), 2e9, "ok"),
        (Clock(False, True), 2e9, "warning"),
        (Clock(None, True), 1e9, "problem"),
    ],
)
def test_the_clock(clock: Clock, now_s: float, state: str) -> None:
    (found,) = check_clock(clock, now_s, 1.9e9)
    assert found.state == state
    assert ("timedatectl" in found.advice) == (state != "ok")


def test_a_board_without_a_battery_is_told_so() -> None:
    (found,) = check_clock(Clock(False, False), 2e9, 1.9e9)
    assert "forgets the time" in found.advice


def test_of_this_machine(tmp_path: Path) -> None:
    assert [
        one.name for one in check_storage(Config(storage=StorageConfig(state_dir=str(tmp_path))), tmp_path)
    ] == [
        "state folder",
        "clock",
    ]


def test_what_commands_have_set_and_whether_it_can_be_read(tmp_path: Path) -> None:
    def found() -> Finding | None:
        told = list(check_commands(StorageConfig(state_dir=str(tmp_path)), Path("/")))
        return told[0] if told else None

    config = Config({"front": StreamConfig("test:", "nanodet")})
    file = OverridesFile(tmp_path)
    assert found() is None
    file.write(Overrides().set(config, "front", "enabled", False))
    told = found()
    assert told is not None
    assert told.state == "ok"
    assert "1 stream" in told.value
    file.path.write_bytes(b"{")
    told = found()
    assert told is not None
    assert (told.state, "lost" in told.value, "enabled on" in told.advice) == ("problem", True, True)
    file.write(all_off(config))
    told = found()
    assert told is not None
    assert told.state == "problem"
    assert told.value.endswith(": front")


def test_whether_clips_can_be_saved(tmp_path: Path) -> None:
    config = StorageConfig(state_dir=str(tmp_path), clips_keep_free_bytes=0)
    told = check_clips(config, Path("/"))
    assert told.state == "ok"
    assert re.fullmatch(rf"{tmp_path}/clips, \d+ MB of clips at most", told.value)
    assert list(tmp_path.iterdir()) == [], "nothing is created"
    full = StorageConfig(state_dir=str(tmp_path), clips_keep_free_bytes=1 << 60)
    assert (check_clips(full, Path("/")).state, "MB are free" in check_clips(full, Path("/")).value) == (
        "problem",
        True,
    )
    (tmp_path / "clips").write_bytes(b"")
    told = check_clips(config, Path("/"))
    assert told.state == "problem"
    assert told.value.startswith(f"{tmp_path / 'clips'}: ")
    assert "clips_folder" in told.advice
    stream = StreamConfig("test:", "nanodet", clips=ClipsConfig())
    choices: list[dict[str, StreamConfig]] = [{}, {"front": stream}]
    for streams in choices:
        names = [one.name for one in check_storage(Config(streams, storage=config), Path("/"))]
        assert ("clips folder" in names) == bool(streams)


def test_a_folder_of_clips_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = StorageConfig(state_dir=str(tmp_path), clips_folder="/proc/self", clips_keep_free_bytes=0)
    told = check_clips(config, Path("/"))
    assert (told.state, "clips cannot be saved there" in told.value) == ("problem", True)
