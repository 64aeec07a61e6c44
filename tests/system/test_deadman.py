"""The rollback watchdog (`systemd/deadman`) on a simulated root: limits, rollbacks, interruptions."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.running import ROOT

pytestmark = pytest.mark.board

_SCRIPT = ROOT / "systemd/deadman"
_TOOLS = ("mv", "ln", "rm", "cp", "sync", "cat")


class Root:
    """A board's files, with slot b on trial."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home, self.etc = folder / "opt/vedette", folder / "etc/vedette"
        self.state, self.kernel = folder / "var/lib/vedette-update", folder / "proc"
        for place in ("slots/a", "slots/b"):
            (self.home / place).mkdir(parents=True)
        for made in (self.etc, self.state / "kept", self.kernel / "sys/kernel/random", folder / "bin"):
            made.mkdir(parents=True)
        self.calls = folder / "calls"
        self.calls.touch()
        self.systemctl = folder / "bin/systemctl"
        self.systemctl.write_text(f'#!/bin/sh\necho "$@" >> {self.calls}\n')
        self.systemctl.chmod(0o755)
        self.point("keeper", "a")
        self.boot("first", 1000)

    def point(self, link: str, slot: str) -> None:
        (self.home / link).unlink(missing_ok=True)
        (self.home / link).symlink_to(f"slots/{slot}")

    def boot(self, boot_id: str, uptime_s: float) -> None:
        """Which boot this is, and how long it has lasted."""
        (self.kernel / "sys/kernel/random/boot_id").write_text(f"{boot_id}\n")
        (self.kernel / "uptime").write_text(f"{uptime_s:.2f} 12.34\n")

    def begin(self, state: str = "trial", **keys: object) -> None:
        """Begin the trial, with a configuration that it has changed."""
        (self.etc / "vedette.toml").write_text("new")
        (self.state / "kept/vedette.toml").write_text("old")
        told = {"new": "b", "old": "a", "config": "/etc/vedette/vedette.toml", "allowed_s": 600, "boots": 3}
        lines = [f"{key}={value}\n" for key, value in {**told, "state": state, **keys}.items()]
        (self.state / "trial").write_text("".join(lines))
        self.point("current", "b")

    def run(self, *words: str, path: str = "") -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{path}{':' if path else ''}{os.environ['PATH']}",
            "VEDETTE_ROOT": str(self.folder),
            "VEDETTE_SYSTEMCTL": str(self.systemctl),
        }
        command = [str(_SCRIPT), *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    def tick(self, *words: str) -> None:
        done = self.run(*words)
        assert done.returncode == 0, done.stderr

    @property
    def slots(self) -> tuple[str, str]:
        current, keeper = (str((self.home / link).readlink()) for link in ("current", "keeper"))
        return current, keeper

    @property
    def verdict(self) -> dict[str, str]:
        path = self.state / "verdict"
        lines = path.read_text().splitlines() if path.exists() else []
        return dict(line.split("=", 1) for line in lines)

    def assert_old(self, reason: str, by: str = "deadman") -> None:
        assert self.slots == ("slots/a", "slots/a")
        assert self.verdict == {"by": by, "reason": reason}
        assert (self.etc / "vedette.toml").read_text() == "old"
        assert (self.etc / "vedette.toml.undone").read_text() == "new"
        assert [path.name for path in self.state.iterdir() if path.is_file()] == ["verdict"]

    def assert_on_trial(self) -> None:
        assert self.slots == ("slots/b", "slots/a")
        assert (self.verdict, self.calls.read_text()) == ({}, "")


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path)


def test_without_a_trial_nothing_is_done_and_its_own_count_goes(root: Root) -> None:
    root.point("current", "b")
    (root.state / "deadman").write_text("elapsed_s=599\n")
    for words in ((), ("settle",)):
        root.tick(*words)
    assert [path for path in root.state.iterdir() if path.is_file()] == []
    root.assert_on_trial()


def test_a_trial_has_its_time_and_not_more(root: Root) -> None:
    root.begin(allowed_s=60)
    for uptime_s in (1000, 1030, 1060):
        root.boot("first", uptime_s)
        root.tick()
        root.assert_on_trial()
    root.boot("first", 1061)
    root.tick()
    root.assert_old("the trial took longer than 60 s")
    assert root.calls.read_text().splitlines() == [
        "stop vedette-update.service",
        "reset-failed vedette.service",
        "restart --no-block vedette.service",
        "start --no-block vedette-update.service",
    ]


def test_time_is_counted_over_boots(root: Root) -> None:
    root.begin(allowed_s=60)
    for boot_id, uptime_s in (("first", 1000), ("first", 1025), ("second", 20), ("second", 35)):
        root.boot(boot_id, uptime_s)
        root.tick()
        root.assert_on_trial()
    root.boot("second", 40)
    root.tick()
    root.assert_old("the trial took longer than 60 s")


def test_a_version_that_takes_the_board_down_before_the_first_look_has_its_boots_counted(root: Root) -> None:
    root.begin(boots=3)
    root.tick()
    for boot in ("second", "third", "fourth"):
        root.boot(boot, 3)
        root.tick("settle")
        root.assert_on_trial()
    root.boot("fifth", 3)
    root.tick("settle")
    root.assert_old("the board was started 4 times during the trial, 3 are allowed", by="settle")
    assert root.calls.read_text() == ""  # the daemon is not started yet: there is nothing to restart


def test_a_switch_that_was_cut_off_is_undone_at_boot(root: Root) -> None:
    root.begin(state="switching")
    root.boot("second", 3)
    root.tick("settle")
    root.assert_old("a power cut interrupted the switch", by="settle")


def test_a_trial_goes_on_after_a_boot(root: Root) -> None:
    root.begin()
    root.boot("second", 3)
    root.tick("settle")
    root.assert_on_trial()


def test_the_count_of_an_earlier_trial_is_none_of_this_one(root: Root) -> None:
    root.begin(allowed_s=60)
    (root.state / "deadman").write_text("for=b-a\nelapsed_s=59\nboots=3\nboot_id=first\nat_s=900\n")
    root.tick()
    root.assert_on_trial()


@pytest.mark.parametrize(
    "count",
    [
        "",
        "\0\0\0\0",
        "for=a-b\nelapsed_s=$(reboot)\nboots=x\nboot_id=first\nat_s=\n",
        f"for=a-b\nelapsed_s={'9' * 20}\nboots=08\nboot_id=first\nat_s=\n",
    ],
)
def test_a_damaged_count_begins_anew(root: Root, count: str) -> None:
    root.begin(allowed_s=60)
    (root.state / "deadman").write_text(count)
    root.tick()
    root.assert_on_trial()
    root.boot("first", 1061)
    root.tick()
    root.assert_old("the trial took longer than 60 s")


def test_a_look_that_lies_ahead_of_the_clock_takes_no_time_away(root: Root) -> None:
    root.begin(allowed_s=60)
    (root.state / "deadman").write_text("for=a-b\nelapsed_s=61\nboots=0\nboot_id=first\nat_s=900000\n")
    root.tick()
    root.assert_old("the trial took longer than 60 s")


def linked(root: Root) -> Path:
    """The configuration lies elsewhere, and a link leads to it."""
    elsewhere = root.folder / "boot/vedette.toml"
    elsewhere.parent.mkdir()
    (root.etc / "vedette.toml").rename(elsewhere)
    (root.etc / "vedette.toml").symlink_to("../../boot/vedette.toml")
    return elsewhere


def test_of_a_configuration_that_is_a_link_the_target_is_replaced_and_the_link_stays(root: Root) -> None:
    root.begin(state="switching")
    elsewhere = linked(root)
    root.tick("settle")
    assert (root.etc / "vedette.toml").is_symlink()
    assert elsewhere.read_text() == "old"
    assert [path.name for path in elsewhere.parent.iterdir()] == ["vedette.toml"]
    root.assert_old("a power cut interrupted the switch", by="settle")


def test_a_target_that_cannot_be_written_does_not_keep_the_old_version_from_its_configuration(root: Root) -> None:
    root.begin(state="switching")
    elsewhere = linked(root)
    (
        elsewhere.parent / "vedette.toml.tmp"
    ).mkdir()  # stands for a disk that is read-only: root may write anywhere
    (elsewhere.parent / "vedette.toml.tmp/vedette.toml").mkdir()
    done = root.run("settle")
    assert (done.returncode, f"{elsewhere}: cannot be written" in done.stderr) == (0, True)
    assert not (root.etc / "vedette.toml").is_symlink()
    assert elsewhere.read_text() == "new"
    root.assert_old("a power cut interrupted the switch", by="settle")


@pytest.mark.parametrize("old", ["", "c", "../../etc", "a b"])
def test_a_trial_that_names_no_slot_to_go_back_to_changes_nothing(root: Root, old: str) -> None:
    root.begin(state="switching", old=old)
    done = root.run("settle")
    assert (done.returncode, "is no slot" in done.stderr) == (1, True)
    root.assert_on_trial()


def test_a_slot_that_is_gone_is_not_rolled_back_to(root: Root) -> None:
    root.begin(state="switching")
    (root.home / "slots/a").rmdir()
    done = root.run("settle")
    assert (done.returncode, "slots/a is gone" in done.stderr) == (1, True)
    root.assert_on_trial()


def test_a_configuration_that_was_not_changed_is_left_alone(root: Root) -> None:
    root.begin(state="switching", config="")
    root.tick("settle")
    assert root.slots == ("slots/a", "slots/a")
    assert (root.etc / "vedette.toml").read_text() == "new"


def cutting(root: Root, tool: str, at: int) -> str:
    """A folder with a program in the place of a real one; called so many times, it kills its caller."""
    folder = root.folder / f"cut-{tool}-{at}"
    folder.mkdir()
    real, calls = shutil.which(tool), folder / "calls"
    (folder / tool).write_text(
        f'#!/bin/sh\necho >> {calls}\n[ "$(wc -l < {calls})" != {at} ] || kill -KILL "$PPID"\nexec {real} "$@"\n'
    )
    (folder / tool).chmod(0o755)
    return str(folder)


@pytest.mark.parametrize("tool", _TOOLS)
def test_wherever_it_is_cut_off_the_next_look_ends_what_it_began(tmp_path: Path, tool: str) -> None:
    cuts = 0
    for at in range(1, 12):
        root = Root(tmp_path / str(at))
        root.begin(state="switching")
        path = cutting(root, tool, at)
        root.run("settle", path=path)
        assert root.slots[0] in ("slots/a", "slots/b")  # there is a version at any moment
        assert (root.etc / "vedette.toml").read_text() in ("old", "new")
        root.boot("second", 3)
        root.tick("settle")
        assert root.slots == ("slots/a", "slots/a")
        assert (root.etc / "vedette.toml").read_text() == "old"
        assert root.verdict["by"] == "settle"
        if len((Path(path) / "calls").read_text().splitlines()) < at:
            break
        cuts += 1
    assert cuts >= 1


@pytest.mark.parametrize("tool", _TOOLS)
def test_a_cut_on_the_way_back_leaves_no_trial_on_the_configuration_of_before(tmp_path: Path, tool: str) -> None:
    for at in range(1, 25):
        root = Root(tmp_path / str(at))
        root.begin(allowed_s=60)
        root.tick()
        root.boot("first", 2000)
        path = cutting(root, tool, at)
        root.run(path=path)
        trial = root.state / "trial"
        if root.slots[0] == "slots/b" and (root.etc / "vedette.toml").read_text() == "old":
            assert "state=switching" in trial.read_text()
        root.boot("second", 700)
        root.tick("settle")
        root.tick()
        assert (root.slots, trial.exists()) == (("slots/a", "slots/a"), False)
        assert root.verdict["reason"] == "the trial took longer than 60 s", "the cut is not why"
        if len((Path(path) / "calls").read_text().splitlines()) < at:
            return
    raise AssertionError("it never came to its end")


def test_an_updater_that_it_stopped_a_moment_too_late_is_started_again(root: Root) -> None:
    """It had committed the trial, and may not have noted that yet."""
    root.begin(allowed_s=60)
    root.tick()
    root.boot("first", 2000)
    root.systemctl.write_text(f'#!/bin/sh\necho "$@" >> {root.calls}\nrm -f {root.state}/trial\n')
    root.tick()
    assert root.slots[0] == "slots/b"
    assert root.calls.read_text().splitlines() == [
        "stop vedette-update.service",
        "start --no-block vedette-update.service",
    ]
