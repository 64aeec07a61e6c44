"""The units, as systemd itself reads them, without a systemd that runs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.running import ROOT

_FOLDER = ROOT / "systemd"
_UNITS = sorted([*_FOLDER.glob("*.service"), *_FOLDER.glob("*.timer")])


def say(program: str, *words: str) -> str:
    """Return the output of a program of systemd, both streams; skip where it is not installed."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    done = subprocess.run([program, *words], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def test_the_units_are_all_that_are_promised() -> None:
    assert [unit.name for unit in _UNITS] == [
        "vedette-deadman.service",
        "vedette-deadman.timer",
        "vedette-settle.service",
        "vedette-update.service",
        "vedette.service",
    ]


def test_the_units_are_clean(tmp_path: Path) -> None:
    for unit in _UNITS:
        # What they start is installed on boards only; there it is looked at as it is, see test_board.
        (tmp_path / unit.name).write_text(
            re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.M)
        )
    assert say("systemd-analyze", "verify", *(str(tmp_path / unit.name) for unit in _UNITS)) == ""


@pytest.mark.parametrize(
    ("unit", "exposure"),
    [("vedette", 2.5), ("vedette-update", 4.0), ("vedette-deadman", 2.9), ("vedette-settle", 2.9)],
)
def test_units_are_hardly_exposed(unit: str, exposure: float) -> None:
    said = say("systemd-analyze", "security", "--offline=yes", str(_FOLDER / f"{unit}.service"))
    level = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert level is not None, said
    assert float(level[1]) <= exposure


def test_the_daemon_keeps_what_it_computes_with() -> None:
    lines = (_FOLDER / "vedette.service").read_text().splitlines()
    kept = {"ProcSubset=pid", "MemoryDenyWriteExecute=yes", "PrivateDevices=yes", "PrivateNetwork=yes"}
    assert kept & set(lines) == set()
    assert not any(
        line.startswith(("InaccessiblePaths=", "TemporaryFileSystem=")) and "/sys" in line for line in lines
    )


def test_what_lets_somebody_update_over_ssh_can_be_read() -> None:
    assert "parsed OK" in say("visudo", "-cf", str(_FOLDER / "vedette.sudoers"))
    assert say("sh", "-n", str(_FOLDER / "vedette-ssh")) == ""


def test_every_file_is_in_the_table() -> None:
    told = (_FOLDER / "README.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in told.splitlines() if line.startswith("| `")]
    files = {path.name for path in _FOLDER.iterdir()} - {"README.md", "vedette-deadman.service"}
    assert {name for name in files if not any(f"`{name}`" in row for row in rows)} == set()


def test_the_rules_for_devices_are_clean() -> None:
    said = say("udevadm", "verify", str(_FOLDER / "60-vedette.rules"))
    if "Unknown command" in said:
        pytest.skip("this udevadm cannot verify: it is older than 254")
    assert re.search(r"Success: +1\s+Fail: +0", said), said
