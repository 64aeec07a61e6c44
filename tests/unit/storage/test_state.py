"""The state folder: found, created, locked and checked."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from agent.config import StorageConfig
from agent.errors import InUseError, StorageError
from agent.storage.spool.spool import Spool
from agent.storage.state import (
    MeasurementFiles,
    OwnedFolder,
    StateFile,
    check_state_folder,
    clips_path,
    state_folder,
)


def test_a_second_daemon_is_told_who_has_the_folder(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from agent.storage.state import OwnedFolder\n"
        "with OwnedFolder(Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        told = rf"{tmp_path}: in use by another vedette, pid {other.pid};"
        with pytest.raises(StorageError, match=told), OwnedFolder(tmp_path):
            pass
        other.kill()
    with OwnedFolder(tmp_path) as owned:
        assert owned.path == tmp_path
    with OwnedFolder(tmp_path):
        pass


def test_a_folder_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match="nowhere/lock: cannot be opened: No such file"),
        OwnedFolder(tmp_path / "nowhere"),
    ):
        pass


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", "state"),
        ("$STATE_DIRECTORY/spool", "state/spool"),
        ("${STATE_DIRECTORY}", "state"),
        ("~/here", "home/here"),
    ],
)
def test_the_state_folder_is_expanded_and_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, expected: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path}/state:{tmp_path}/other")
    assert state_folder(StorageConfig(state_dir=given)) == tmp_path / expected
    assert (tmp_path / expected).is_dir()


def test_without_systemd_it_is_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    assert state_folder(StorageConfig()) == tmp_path / ".local/state/vedette"
    with pytest.raises(StorageError, match=r"\$STATE_DIRECTORY is not set"):
        state_folder(StorageConfig(state_dir="$STATE_DIRECTORY/x"))


@pytest.mark.parametrize(
    ("folder", "clips", "expected"),
    [
        ("", "", "state/clips"),
        ("elsewhere", "", "elsewhere/clips"),
        ("", "~/clips", "home/clips"),
        ("", "$STATE_DIRECTORY/video", "state/video"),
    ],
)
def test_clips_lie_in_the_state_folder_or_where_they_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, clips: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path}/state:{tmp_path}/other")
    assert clips_path(StorageConfig(state_dir=folder, clips_folder=clips)) == tmp_path / expected
    assert list(tmp_path.iterdir()) == [], "nothing is created"


def test_clips_without_a_place_are_an_error_that_names_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    with pytest.raises(StorageError, match=r"clips_folder = .*\$STATE_DIRECTORY is not set"):
        clips_path(StorageConfig(clips_folder="$STATE_DIRECTORY/x"))


@pytest.mark.parametrize("folder", ["x", "x/y", "./clips", "../clips", "."])
def test_clips_whose_place_depends_on_the_working_directory_are_refused(folder: str) -> None:
    with pytest.raises(StorageError, match=r"\[storage\] clips_folder = .*expected a full path"):
        clips_path(StorageConfig(clips_folder=folder))


def test_a_user_that_does_not_exist_has_no_home() -> None:
    with pytest.raises(StorageError, match=r"~nobody-of-that-name/x.*set it to a full path"):
        state_folder(StorageConfig(state_dir="~nobody-of-that-name/x"))


@pytest.mark.parametrize(
    ("folder", "why"),
    [
        (
            "file",
            r"file: cannot be used as the state folder: something that is no folder is in its place; set",
        ),
        (
            "file/state",
            "file/state: cannot be used as the state folder: something that is no folder",
        ),
        ("n" * 300, "File name too long; set .storage. state_dir to another place"),
    ],
)
def test_a_state_folder_that_cannot_be_one_is_named_with_advice(tmp_path: Path, folder: str, why: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=why):
        state_folder(StorageConfig(state_dir=str(tmp_path / folder)))


@pytest.mark.parametrize("name", ["/proc/version", "/dev/null", "/dev/null/x", "file", "link"])
def test_the_check_and_the_daemon_say_the_same_of_a_folder_that_cannot_be_one(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    folder = tmp_path / name
    with pytest.raises(StorageError) as checked:
        check_state_folder(folder)
    with pytest.raises(StorageError) as used:
        state_folder(StorageConfig(state_dir=str(folder)))
    assert str(checked.value) == str(used.value)
    assert "write access" not in str(used.value)


def test_a_state_folder_that_is_not_ours_wants_write_access(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(StorageError, match="Permission denied; give the user that runs vedette write access"):
        state_folder(StorageConfig(state_dir=str(tmp_path)))


def test_every_file_of_the_state_folder_is_for_its_user_and_group(tmp_path: Path) -> None:
    with OwnedFolder(tmp_path):
        spool = Spool(tmp_path, StorageConfig())
        spool.put("vedette/porch/front/events", b"{}")
        spool.flush(5.0)
        StateFile(tmp_path / "overrides.json").write(b"{}")
        MeasurementFiles(tmp_path).write("model", "0" * 64, b"{}")
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
        spool.close()
    assert {"lock", "spool.db", "spool.db-wal", "spool.db-shm", "spool.seq", "overrides.json"} < set(modes)
    assert set(modes.values()) == {0o640}


def moved(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def replaced(folder: Path) -> None:
    shutil.copytree(folder, folder.with_name("copy"))
    moved(folder)
    folder.with_name("copy").rename(folder)


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def is_gone(owned: OwnedFolder) -> bool:
    return owned.is_gone


@pytest.mark.parametrize(
    "lose", [shutil.rmtree, moved, replaced, emptied, lambda folder: (folder / "lock").unlink()]
)
def test_a_folder_that_was_deleted_or_replaced_is_noticed_and_owned_anew(
    tmp_path: Path, lose: Callable[[Path], None]
) -> None:
    (tmp_path / "state").mkdir()
    owned = OwnedFolder(tmp_path / "state")
    (owned.path / "file").touch()
    assert not is_gone(owned)
    lose(owned.path)
    assert is_gone(owned)
    owned.renew()
    assert not is_gone(owned)
    with pytest.raises(InUseError):
        OwnedFolder(tmp_path / "state")
    owned.close()
    OwnedFolder(tmp_path / "state").close()


def test_a_folder_that_cannot_be_made_again_is_named(tmp_path: Path) -> None:
    (tmp_path / "disk/state").mkdir(parents=True)
    owned = OwnedFolder(tmp_path / "disk/state")
    shutil.rmtree(tmp_path / "disk")
    (tmp_path / "disk").touch()
    for _ in range(2):
        assert is_gone(owned)
        with pytest.raises(StorageError, match="disk/state: cannot be used as the state folder"):
            owned.renew()
    (tmp_path / "disk").unlink()
    owned.renew()
    assert not is_gone(owned)
    owned.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can judge for another user")
@pytest.mark.parametrize(("mode", "usable"), [(0o755, False), (0o757, True), (0o777, True)])
def test_root_judges_a_state_folder_for_the_user_of_the_daemon(tmp_path: Path, mode: int, usable: bool) -> None:
    tmp_path.chmod(mode)
    with nullcontext() if usable else pytest.raises(StorageError, match="Permission denied; give the user"):
        check_state_folder(tmp_path / "state", 4321)
    check_state_folder(tmp_path / "state", 0)
    assert not (tmp_path / "state").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused")
def test_root_does_not_run_in_the_state_folder_of_another_user(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    expected = f"{tmp_path}: belongs to the user nobody; .* sudo -u nobody vedette run"
    with pytest.raises(StorageError, match=expected):
        state_folder(StorageConfig(state_dir=str(tmp_path)))
    check_state_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused")
def test_root_does_not_adopt_a_folder_of_another_user_that_took_the_place_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    owned = OwnedFolder(tmp_path / "state")
    emptied(owned.path)
    os.chown(owned.path, 65534, 65534)
    with pytest.raises(StorageError, match="state: belongs to the user nobody"):
        owned.renew()
    assert list(owned.path.iterdir()) == []
    assert is_gone(owned)
    os.chown(owned.path, 0, 0)
    owned.renew()
    assert not is_gone(owned)
    owned.close()


@pytest.mark.parametrize("content", [b"root's own\n", b""])
@pytest.mark.parametrize(
    "name",
    ["lock", "overrides.json", "spool.db", "spool.db-wal", "spool.db-shm", "spool.seq"],
)
def test_a_link_in_place_of_a_file_of_the_state_folder_is_not_followed(
    tmp_path: Path, name: str, content: bytes
) -> None:
    target, state = tmp_path / "target", tmp_path / "state"
    target.write_bytes(content)
    state.mkdir()
    (state / name).symlink_to(target)
    refused = pytest.raises(StorageError, match="lock: is a link where a file is expected")
    with refused if name == "lock" else nullcontext(), OwnedFolder(state):
        spool = Spool(state, StorageConfig())
        spool.put("topic", b"event")
        spool.flush(1.0)
        spool.close()
        StateFile(state / "overrides.json").write(b"{}")
    assert target.read_bytes() == content


def test_a_temporary_file_is_new_and_what_a_power_cut_left_is_replaced(tmp_path: Path) -> None:
    target, path = tmp_path / "target", tmp_path / "state" / "overrides.json"
    target.write_bytes(b"root's own")
    path.parent.mkdir()
    left = path.with_name(f".{path.name}.new")
    left.symlink_to(target)
    StateFile(path).write(b"new")
    assert (target.read_bytes(), path.read_bytes()) == (b"root's own", b"new")
    assert list(path.parent.iterdir()) == [path]
    assert target.exists()
