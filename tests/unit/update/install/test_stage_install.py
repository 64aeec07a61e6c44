"""Wheels are installed by the real pip, without a network."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from agent.errors import UpdateError
from agent.update.install.stage import install
from tests.support.tiny_bundles import tiny_wheel

pytestmark = pytest.mark.board

PROGRAM = {
    "hello.py": "def main(): print('hello')\n",
    "entry_points.txt": "[console_scripts]\nhello = hello:main\n",
}


def wheel(folder: Path, name: str, content: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


@pytest.fixture
def hello(tmp_path: Path) -> Path:
    return wheel(tmp_path / "wheels", "hello-1.0-py3-none-any.whl", tiny_wheel("hello", files=PROGRAM))


def test_a_wheel_becomes_a_command(tmp_path: Path, hello: Path) -> None:
    install(sys.executable, tmp_path / "venv", [hello])
    assert subprocess.check_output([tmp_path / "venv/bin/hello"], text=True) == "hello\n"


def test_a_wheel_that_is_missing_is_named(tmp_path: Path) -> None:
    content = _with_requirement(tiny_wheel("needs"))
    path = wheel(tmp_path / "wheels", "needs-1.0-py3-none-any.whl", content)
    with pytest.raises(UpdateError, match=r"a wheel is missing: needs 1\.0 requires otherthing"):
        install(sys.executable, tmp_path / "venv", [path])


def _with_requirement(content: bytes) -> bytes:
    with io.BytesIO(content) as file, zipfile.ZipFile(file) as old, io.BytesIO() as new:
        with zipfile.ZipFile(new, "w") as archive:
            for info in old.infolist():
                text = old.read(info)
                if info.filename.endswith("METADATA"):
                    text += b"Requires-Dist: otherthing\n"
                if not info.filename.endswith("RECORD"):
                    archive.writestr(info, text)
            archive.writestr("needs-1.0.dist-info/RECORD", "needs-1.0.dist-info/METADATA,,\n")
        return new.getvalue()


def test_what_is_no_wheel_is_refused(tmp_path: Path) -> None:
    path = wheel(tmp_path / "wheels", "broken-1.0-py3-none-any.whl", b"<html>")
    with pytest.raises(UpdateError, match=r"the wheels cannot be installed: .*broken"):
        install(sys.executable, tmp_path / "venv", [path])


def test_without_an_interpreter_there_is_no_environment(tmp_path: Path) -> None:
    with pytest.raises(UpdateError, match="the environment cannot be created"):
        install("/nowhere/python3", tmp_path / "venv", [])
    with pytest.raises(UpdateError, match="the environment cannot be created"):
        install("/bin/false", tmp_path / "venv", [])
