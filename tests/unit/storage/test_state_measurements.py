"""Verdicts on disk."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import pytest

from agent.errors import StorageError
from agent.storage.state import MeasurementFiles

KEY = "0123456789abcdef" * 4


def test_what_was_written_last_is_read(tmp_path: Path) -> None:
    verdicts = MeasurementFiles(tmp_path)
    assert verdicts.read("nanodet", KEY) == b""
    assert list(tmp_path.iterdir()) == []
    verdicts.write("nanodet", KEY, b"one")
    verdicts.write("nanodet", KEY, b"two")
    assert verdicts.read("nanodet", KEY) == b"two"
    assert [path.name for path in (tmp_path / "verdicts").iterdir()] == ["nanodet-0123456789abcdef.json"]


def test_a_models_name_stays_in_the_folder(tmp_path: Path) -> None:
    verdicts = MeasurementFiles(tmp_path / "state")
    (tmp_path / "state").mkdir()
    verdicts.write("../../etc/passwd\0", KEY, b"x")
    (file,) = (tmp_path / "state" / "verdicts").iterdir()
    assert file.name.startswith("etc-passwd-")
    assert verdicts.read("../../etc/passwd\0", KEY) == b"x"


def test_what_cannot_be_kept_is_told_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "verdicts").write_text("a file where a folder should be")
    verdicts = MeasurementFiles(tmp_path)
    with pytest.raises(StorageError, match="verdicts"):
        verdicts.write("nanodet", KEY, b"x")
    with pytest.raises(StorageError, match="verdicts: is a file where a folder is expected"):
        verdicts.read("nanodet", KEY)


def test_a_file_that_has_grown_is_not_read(tmp_path: Path) -> None:
    verdicts = MeasurementFiles(tmp_path)
    verdicts.write("nanodet", KEY, b"x" * (1024**2 + 1))
    with pytest.raises(StorageError, match="at most 1048576"):
        verdicts.read("nanodet", KEY)


def in_the_way(state: Path, make: Callable[[Path], object]) -> Path:
    """Put something else in place of the result's file, as an attacker or a bad card would."""
    path = MeasurementFiles(state).path("nanodet", KEY)
    path.parent.mkdir(exist_ok=True)
    make(path)
    return path


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one, chdir(path.parent):  # the path of a socket is a short one
        one.bind(path.name)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (os.mkfifo, "a pipe"),
        (Path.mkdir, "a folder"),
        (bound, "a socket"),
        (lambda path: path.symlink_to("/dev/zero"), "a link"),
        (lambda path: path.symlink_to(path.name), "a link"),
        (lambda path: path.symlink_to("nowhere"), "a link"),
    ],
    ids=["pipe", "folder", "socket", "device", "loop", "dangling"],
)
def test_a_pipe_a_folder_or_a_link_in_its_place_is_not_read(
    tmp_path: Path, make: Callable[[Path], object], kind: str
) -> None:
    path = in_the_way(tmp_path, make)
    with pytest.raises(StorageError, match=f"{path}: is {kind} where a file is expected: remove it"):
        MeasurementFiles(tmp_path).read("nanodet", KEY)
    if kind == "a folder":
        with pytest.raises(StorageError, match="cannot be written: Is a directory"):
            MeasurementFiles(tmp_path).write("nanodet", KEY, b"x")
    else:
        MeasurementFiles(tmp_path).write("nanodet", KEY, b"x")
        assert MeasurementFiles(tmp_path).read("nanodet", KEY) == b"x"
    assert [one for one in path.parent.iterdir() if one.name.endswith(".tmp")] == []


def test_a_link_in_its_place_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "shadow").write_text("root:")
    in_the_way(tmp_path, lambda path: path.symlink_to(tmp_path / "shadow"))
    MeasurementFiles(tmp_path).write("nanodet", KEY, b"x")
    assert (tmp_path / "shadow").read_text() == "root:"


def test_a_link_in_place_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "verdicts").symlink_to(tmp_path / "etc")
    verdicts = MeasurementFiles(tmp_path)
    for act in (lambda: verdicts.write("nanodet", KEY, b"x"), lambda: verdicts.read("nanodet", KEY)):
        with pytest.raises(StorageError, match="verdicts: is a link where a folder is expected"):
            act()
    assert list((tmp_path / "etc").iterdir()) == []


def test_a_link_in_place_of_the_temporary_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "shadow").write_text("root:")
    path = in_the_way(tmp_path, lambda path: None)
    path.with_name(f".{path.name}.{os.getpid()}.tmp").symlink_to(tmp_path / "shadow")
    MeasurementFiles(tmp_path).write("nanodet", KEY, b"x")
    assert (tmp_path / "shadow").read_text() == "root:"
    assert list(path.parent.iterdir()) == [path]


NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root writes for others")


def of_nobody(*paths: Path) -> None:
    for path in paths:
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def owners(*paths: Path) -> set[int]:
    return {path.lstat().st_uid for path in paths}


@as_root
def test_what_root_measures_belongs_to_the_owner_of_the_state_folder(tmp_path: Path) -> None:
    of_nobody(tmp_path)
    MeasurementFiles(tmp_path).write("nanodet", KEY, b"x")
    assert owners(tmp_path / "verdicts", MeasurementFiles(tmp_path).path("nanodet", KEY)) == {NOBODY}


@as_root
def test_root_gives_away_nothing_that_a_link_of_the_daemons_user_leads_to(tmp_path: Path) -> None:
    state, foreign = tmp_path / "state", tmp_path / "etc"
    for folder in (state, foreign):
        folder.mkdir()
    (foreign / "shadow").write_text("root:")
    (state / "verdicts").symlink_to(foreign)
    of_nobody(state, state / "verdicts")
    with pytest.raises(StorageError, match="is a link"):
        MeasurementFiles(state).write("nanodet", KEY, b"x")
    (state / "verdicts").unlink()
    path = in_the_way(state, lambda path: path.symlink_to(foreign / "shadow"))
    of_nobody(path.parent, path)
    MeasurementFiles(state).write("nanodet", KEY, b"x")
    assert owners(foreign, foreign / "shadow") == {0}
    assert [one.name for one in foreign.iterdir()] == ["shadow"]
    assert (foreign / "shadow").read_text() == "root:"
    assert owners(path) == {NOBODY}


@as_root
def test_root_does_not_follow_a_state_folder_that_is_another_users_link(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    link = tmp_path / "state"
    link.symlink_to(tmp_path / "etc")
    MeasurementFiles(link).write("nanodet", KEY, b"x")  # as systemd links it for DynamicUser=
    assert MeasurementFiles(link).read("nanodet", KEY) == b"x"
    of_nobody(link)
    with pytest.raises(StorageError, match="is a link of another user"):
        MeasurementFiles(link).write("nanodet", KEY, b"y")
    assert MeasurementFiles(tmp_path / "etc").read("nanodet", KEY) == b"x"
