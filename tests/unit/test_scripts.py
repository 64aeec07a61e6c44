"""Tests of `scripts/lib.sh`, and of the scripts' errors for unknown arguments."""

from __future__ import annotations

import os
import subprocess
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
        (("--signers", "."), "--signers .: is a folder, expected a file\n"),
        (("--bundle", "nosuch"), "--bundle nosuch: no such file\n"),
        (("--bundle", "no/such"), "--bundle no/such: no such file\n"),
        (("--bundle", "pipe"), "--bundle pipe: is a pipe or a device, expected a file\n"),
    ],
)
def test_what_is_no_file_is_nothing_to_install_from(tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert said(tmp_path, "install", *words) == (1, told)


@pytest.mark.parametrize(
    ("had", "counter", "told"),
    [
        (
            "40\n",
            "3",
            "x.vedette: counter 3, this board had 40: older than what it ran; installed because root asked",
        ),
        ("040\n", "39", "this board had 040"),
        ("40\n", "40", ""),
        ("40\n", "41", ""),
        ("9\n", "10", ""),
        ("", "3", ""),
        ("junk\n", "3", ""),
        ("40\n", "", ""),
        (None, "3", ""),
    ],
)
def test_a_bundle_that_is_older_than_what_the_board_ran_is_told_of(
    tmp_path: Path, had: str | None, counter: str, told: str
) -> None:
    if had is not None:
        (tmp_path / "counter").write_text(had)
    function = f"""eval "$(sed -n '/^tell_older()/,/^}}/p' {ROOT}/scripts/install)"; UPDATES=$1"""
    found = run(f'{function}; tell_older x.vedette "$2" 2>&1', str(tmp_path), counter)
    assert told in found
    assert bool(told) == bool(found)


@pytest.mark.parametrize(("mode", "then"), [(0o644, 0o640), (0o600, 0o600), (0o666, 0o660), (0o640, 0o640)])
def test_a_configuration_that_every_user_may_read_is_closed(tmp_path: Path, mode: int, then: int) -> None:
    file, link = tmp_path / "vedette.toml", tmp_path / "link.toml"
    file.write_text("")
    file.chmod(mode)
    link.symlink_to(file)
    group = os.getgroups()[-1] if os.getuid() else 12
    run('close_config "$1" "$2"', str(link), str(group))
    assert file.stat().st_mode & 0o777 == then
    assert mode == then or file.stat().st_gid == group
