"""With `/sys` or `/proc/cpuinfo` hidden, as a unit may hide them: XNNPACK is off then, which must be noticed."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import ROOT

HIDDEN = {
    "/sys/devices/system/cpu/possible": ["-rm", "mount -t tmpfs none /sys"],
    # As ProcSubset=pid does.
    "/proc/cpuinfo": ["-rmpf", "mount -t proc -o subset=pid proc /proc"],
}
HIDES = ("InaccessiblePaths", "TemporaryFileSystem", "RootDirectory", "RootImage", "ProcSubset")
NOT_ALLOWED = "no namespace may be made here"


def without(path: str, *command: str) -> subprocess.CompletedProcess[str]:
    options, hide = HIDDEN[path]
    whole = ["unshare", options, "sh", "-c", f'{hide} && exec "$@"', "sh", *command]
    return subprocess.run(whole, capture_output=True, text=True)


def skip_where_it_cannot_be_hidden(path: str) -> None:
    try:
        allowed = without(path, "true").returncode == 0
    except OSError:
        allowed = False
    if not allowed:
        pytest.skip(NOT_ALLOWED)
    if without(path, sys.executable, "-c", f"open({path!r}).read()").returncode == 0:
        pytest.skip(f"an emulator shows a {path} of its own")


def examined(path: str) -> tuple[int, dict[str, Any]]:
    """The doctor's exit code and findings by name."""
    skip_where_it_cannot_be_hidden(path)
    done = without(path, sys.executable, "-m", "agent", "doctor", "--json")
    assert done.stderr == ""
    return done.returncode, {one["name"]: one for one in json.loads(done.stdout)["findings"]}


@pytest.mark.system
@pytest.mark.numerics
@pytest.mark.parametrize("path", HIDDEN)
def test_the_doctor_notices(path: str) -> None:
    code, found = examined(path)
    assert found["nanodet 256"]["state"] == "ok", "the answers are right, and late"
    if path.startswith("/sys") and not platform.machine().startswith(("aarch", "arm")):
        assert found["XNNPACK"]["state"] == "ok", "other processors are known without it"
        return
    assert (code, found["XNNPACK"]["state"]) == (1, "problem")
    assert "is off: runs 0 of " in found["XNNPACK"]["value"]
    assert path in found["XNNPACK"]["value"]
    assert "InaccessiblePaths=" in found["XNNPACK"]["advice"]


EMPTY = """
import json, subprocess, sys
from pathlib import Path
from agent.board.proc import cpu_info_unreadable
assert Path("/proc/cpuinfo").read_text() == "", "shown by an emulator"
print(json.dumps(cpu_info_unreadable()), flush=True)
sys.exit(subprocess.run([sys.executable, "-m", "agent", "doctor", "--json"]).returncode)
"""


@pytest.mark.system
@pytest.mark.numerics
def test_an_empty_cpuinfo_turns_nothing_off_and_neither_daemon_nor_doctor_says_so() -> None:
    script = 'mount --bind /dev/null /proc/cpuinfo && exec "$@"'
    whole = ["unshare", "-rm", "sh", "-c", script, "sh", sys.executable, "-c", EMPTY]
    if shutil.which("unshare") is None or subprocess.run([*whole[:6], "true"], capture_output=True).returncode:
        pytest.skip(NOT_ALLOWED)
    done = subprocess.run(whole, capture_output=True, text=True)
    if "shown by an emulator" in done.stderr:
        pytest.skip("an emulator shows a /proc/cpuinfo of its own")
    told_by_daemon, _, told_by_doctor = done.stdout.partition("\n")
    found = {one["name"]: one for one in json.loads(told_by_doctor)["findings"]}
    assert json.loads(told_by_daemon) == []
    assert found["XNNPACK"]["state"] == "ok"
    assert "cpuinfo" not in found["XNNPACK"]["value"]
    assert found["nanodet 256"]["state"] == "ok"


@pytest.mark.parametrize("unit", sorted((ROOT / "systemd").glob("*.service")), ids=lambda path: path.name)
def test_our_units_hide_nothing(unit: Path) -> None:
    settings = [line.partition("=")[0].strip() for line in unit.read_text().splitlines()]
    assert not set(settings) & set(HIDES)
