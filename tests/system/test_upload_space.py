"""A bundle is sent to a board whose disk is small: vedette-ssh and the rsync of both sides, no ssh between."""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.update.fleet.ssh import BUNDLE, SshFailure, trouble
from tests.support.running import ROOT

pytestmark = pytest.mark.board

MB = 1 << 20
SIZE_MB = 16
_SHELL = """#!/bin/sh
shift # the name of the board
ASKED="$*" PATH={programs}:$PATH exec sh {programs}/vedette-ssh clean
"""
_SUDO = '#!/bin/sh\n[ "$*" = "-n /usr/bin/cat {asked}" ] && exec cat {present}\n'


class SmallBoard:
    """Its folder for bundles is a file system of its own.

    Attributes:
        folder: that bundles come to. present: the bundle of the version that runs.
    """

    def __init__(self, root: Path) -> None:
        self.folder, self.present, self._programs, self._here = (
            root / name for name in ("upload", "present", "programs", "here")
        )
        for folder in (self.folder, self._programs, self._here):
            folder.mkdir()
        script = (ROOT / "systemd/vedette-ssh").read_text(encoding="utf-8")
        script, count = re.subn(r"^folder=.*$", f"folder={self.folder}", script, flags=re.MULTILINE)
        asked = re.findall(r"^present=(.*)$", script, flags=re.MULTILINE)
        assert (count, len(asked)) == (1, 1)
        (self._programs / "vedette-ssh").write_text(script, encoding="utf-8")
        for name, text in (("shell", _SHELL), ("sudo", _SUDO)):
            path = self._programs / name
            path.write_text(text.format(programs=self._programs, asked=asked[0], present=self.present))
            path.chmod(0o755)

    def send(self, content: bytes) -> tuple[SshFailure | None, int]:
        """Upload a bundle; return the failure, if any, and the number of bytes sent."""
        files = [self._here / BUNDLE, self._here / f"{BUNDLE}.sig"]
        for file, data in zip(files, (content, b"signature"), strict=True):
            file.write_bytes(data)
        command = ["rsync", "-e", str(self._programs / "shell"), "--checksum", "--copy-links", "--partial"]
        command += ["--timeout=60", "--stats", "--no-human-readable", *map(str, files), "board:."]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        sent = re.search(r"^Total bytes sent: (\d+)$", done.stdout, re.MULTILINE)
        return trouble(done.returncode, done.stderr), int(sent[1]) if sent else 0

    @property
    def bundle(self) -> bytes:
        """Return the content of the uploaded bundle."""
        path = self.folder / BUNDLE
        return path.read_bytes() if path.exists() else b""

    @property
    def known(self) -> str:
        """Return the digest that the board has recorded for the bundle."""
        return (self.folder / ".known").read_text(encoding="ascii").split()[1]

    @property
    def free(self) -> int:
        """Bytes."""
        told = os.statvfs(self.folder)
        return told.f_bavail * told.f_frsize


@pytest.fixture
def board(tmp_path: Path) -> Iterator[SmallBoard]:
    if os.geteuid() != 0:
        pytest.skip("a file system of its own needs root")
    made = SmallBoard(tmp_path)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "vedette-test", str(made.folder)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting a tmpfs is refused here")
    yield made
    subprocess.run(["umount", "-l", str(made.folder)], check=True)


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def test_with_room_only_what_is_new_is_sent(board: SmallBoard) -> None:
    board.present.write_bytes(noise(5 * MB))
    content = noise(5 * MB) + noise(MB, 1)
    found, sent = board.send(content)
    assert found is None
    assert sent < 2 * MB
    assert board.bundle == content
    assert board.known == "whole"


@pytest.mark.parametrize("size", [9 * MB, 20 * MB])
def test_the_bundle_that_runs_is_left_out_where_there_is_no_room_for_it(board: SmallBoard, size: int) -> None:
    """One leaves too little for what is to come, and one does not fit at all."""
    board.present.write_bytes(noise(size))
    content = noise(9 * MB, 1)
    found, sent = board.send(content)
    assert found is None
    assert sent >= len(content)
    assert board.bundle == content
    assert board.known == "whole"


def test_a_part_that_has_come_is_kept_where_there_is_no_room_beside_it(board: SmallBoard) -> None:
    board.present.write_bytes(noise(20 * MB))
    content = noise(6 * MB, 1)
    (board.folder / BUNDLE).write_bytes(content[: 5 * MB])
    found, sent = board.send(content)
    assert found is None
    assert sent < 2 * MB
    assert board.bundle == content


@pytest.mark.parametrize("lies_there", [0, 3 * MB])
def test_a_disk_that_a_bundle_has_filled_is_given_back(board: SmallBoard, lies_there: int) -> None:
    if lies_there:
        (board.folder / BUNDLE).write_bytes(noise(lies_there, 2))
    found, _ = board.send(noise((SIZE_MB + 4) * MB, 1))
    assert found is not None
    assert found.fault == "failed"
    assert re.match(rf"no room: .* {SIZE_MB - 1} MB are free now in {board.folder}$", found.reason), found.reason
    assert board.bundle == b""
    assert board.free > (SIZE_MB - 1) * MB
    content = noise(9 * MB, 3)
    assert board.send(content)[0] is None
    assert board.bundle == content


def test_what_was_begun_with_is_left_out_when_the_bundle_does_not_fit_beside_it(board: SmallBoard) -> None:
    """Nothing new had come, so that trying again would have ended alike for ever."""
    board.present.write_bytes(noise(7 * MB))
    content = noise(7 * MB) + noise(6 * MB, 1)
    found, _ = board.send(content)
    assert found is not None
    assert "no room" in found.reason
    found, sent = board.send(content)
    assert found is None
    assert sent >= len(content)
    assert board.bundle == content


def test_a_disk_that_is_full_of_a_part_has_room_for_the_next(board: SmallBoard) -> None:
    board.present.write_bytes(noise(MB))
    left = board.free
    (board.folder / BUNDLE).write_bytes(bytes(left))
    assert board.free == 0
    content = noise(9 * MB, 1)
    found, _ = board.send(content)
    assert found is not None
    assert "no room" in found.reason
    assert board.send(content)[0] is None
    assert board.bundle == content
