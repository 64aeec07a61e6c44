"""Tests of `scripts/lib.sh`, and of the scripts' errors for unknown arguments."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.support.running import ROOT


def run(script: str, *words: str) -> str:
    command = ["bash", "-euo", "pipefail", "-c", f". {ROOT}/scripts/lib.sh\n{script}", "bash", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_uv_is_found_in_a_lock_file_however_much_comes_after_it(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    wanted = "uv==1.0 \\\n    --hash=sha256:12 \\\n    --hash=sha256:34\n    # via -r tools.in\n"
    more = "".join(f"z{number}==1.0 \\\n    --hash=sha256:{'0' * 8000}\n" for number in range(100))
    lock.write_text(f"click==8.0 \\\n    --hash=sha256:56\nuvicorn==1.0\n{wanted}{more}", encoding="utf-8")
    assert run('locked_uv "$1"', str(lock)) == wanted
    ours = run('locked_uv "$1"', str(ROOT / "requirements.lock")).splitlines()
    assert ours[0].startswith("uv==")
    assert all(line.startswith("    ") for line in ours[1:])
    assert len(ours) > 1


def said(folder: Path, script: str, *words: str) -> tuple[int, str]:
    """Return status and output of a script with wrong arguments, called by a relative path from elsewhere."""
    path = os.path.relpath(ROOT / "scripts" / script, folder)
    done = subprocess.run([path, *words], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_an_option_that_is_mistyped_is_answered_with_those_that_there_are(tmp_path: Path) -> None:
    code, told = said(tmp_path, "install", "--bundel", "x")
    assert (code, "--bundle FILE --signers FILE" in told) == (2, True)
    assert not {"sed:", "set"} & set(told.split())
    assert told.startswith("Installs Vedette as a systemd service")


@pytest.mark.parametrize("script", ["install", "uninstall"])
def test_what_a_script_says_of_itself_is_its_first_remark(script: str) -> None:
    told = run(f"cd {ROOT}; (usage scripts/{script}) 2>&1 || echo $?").splitlines()
    lines = (ROOT / "scripts" / script).read_text(encoding="utf-8").splitlines()[1:]
    assert [f"# {line}".rstrip() for line in told[:-1]] == lines[: len(told) - 1]
    assert lines[len(told) - 1].startswith("set -")
    assert told[-1] == "2"
    assert f"usage scripts/{script}" in "\n".join(lines)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--bundle",), "--bundle: expected a file\n"),
        (("--bundle", ""), "--bundle: expected a file\n"),
        (("--signers", "."), "--signers .: not found, or not a regular file\n"),
        (("--bundle", "nosuch"), "--bundle nosuch: not found, or not a regular file\n"),
        (("--bundle", "no/such"), "--bundle no/such: not found, or not a regular file\n"),
        (("--bundle", "pipe"), "--bundle pipe: not found, or not a regular file\n"),
    ],
)
def test_what_is_no_file_is_nothing_to_install_from(tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert said(tmp_path, "install", *words) == (1, told)


def test_no_two_modules_that_a_bench_may_import_have_one_name() -> None:
    folders = ("bench", "bench/apps", "bench/optimise", "build_models")
    paths = [path for folder in folders for path in (ROOT / "scripts" / folder).glob("*.py")]
    names = Counter(path.stem for path in paths if path.stem != "__init__")
    assert names["common"] == 1
    assert [path for path in paths if names[path.stem] > 1] == []
