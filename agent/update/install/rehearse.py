"""The rehearsal: what is staged is run as it will be, by its own code and user, while the old version goes on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import NO_JSON, UpdateError
from agent.models.files import read
from agent.storage.files import make_folder, remove, write_like
from agent.update.install.paths import Paths
from agent.update.install.slots import ModelSets, Slots
from agent.update.install.stage import CONFIG

_PATIENCE_S = 600.0
"""An emulated or busy board may take minutes for the golden answers of all models."""
_TAIL = 400
_CHECKED = "config/checked.toml"


class Rehearsal:
    """Rehearses the contents of a slot before they go live: models and configuration."""

    def __init__(self, where: Paths) -> None:
        self._where, self._slots = where, Slots(where.home)

    def models(self, slot: Path, number: int) -> None:
        """Have the version in a slot answer the golden inputs of a set of models.

        Raises:
            UpdateError: it cannot be imported, crashes, hangs, or answers otherwise: says what it said.
        """
        folder = ModelSets(slot).path(number)
        done = self._run(slot, "update", "selftest", str(folder))
        if done.returncode:
            raise UpdateError(f"the self-test of the new version fails: {_said(done)}")

    def config(self, slot: Path, number: int) -> None:
        """Have the version in a slot check the configuration that it would run on, with a set of models.

        What the version that runs now finds wrong with its own, such as a model that is not there, is no reason,
        as long as a daemon starts on it.

        Raises:
            UpdateError: it finds something else wrong, or would not start.
        """
        if not self._where.config.exists():
            return
        running = self._slots.of("current")
        migrated = slot / CONFIG
        # Of the version that runs it is as old as that version: what it runs on now is in use.
        is_new = migrated.exists() and (running is None or slot != self._slots.path(running))
        config = read(migrated if is_new else self._where.config)
        # Its models lie where `current/models` does not lead to yet.
        checked, models = slot / _CHECKED, ModelSets(slot).path(number)
        make_folder(checked.parent)
        config = config.replace(f"{self._where.home}/current/models/".encode(), f"{models}/".encode())
        config = config.replace(f"{self._where.home}/current/".encode(), f"{slot}/".encode())
        write_like(checked, config, self._where.config)
        found, loads = self._problems(slot, checked)
        remove(checked)
        if not found:
            return
        if not loads:
            raise UpdateError(f"no daemon would start on the configuration: {'; '.join(found)}")
        known, _ = self._problems(self._slots.path(running), self._where.config) if running else ([], True)
        if new := [problem for problem in found if problem not in known]:
            raise UpdateError(f"the new version refuses the configuration: {'; '.join(new)}")

    def _problems(self, slot: Path, config: Path) -> tuple[list[str], bool]:
        """In words, without the places in the file; and whether a daemon would start on it all the same."""
        done = self._run(slot, "config", "check", "--json", str(config))
        try:
            told: dict[str, Any] = msgspec.json.decode(done.stdout, type=dict[str, Any])
            found = [_without_place(str(one), config) for one in told["problems"]]
        except (KeyError, TypeError, *NO_JSON) as error:
            raise UpdateError(f"{slot.name}: cannot check a configuration: {_said(done)}") from error
        return found, bool(told.get("loads", True))  # earlier versions do not tell

    def _run(self, slot: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
        command = [str(slot / "venv/bin/vedette"), *words]
        try:
            return subprocess.run(
                command, capture_output=True, timeout=_PATIENCE_S, check=False, cwd="/", **self._as_daemon()
            )
        except subprocess.TimeoutExpired as error:
            raise UpdateError(
                f"the new version hangs: `vedette {words[0]}` took over {_PATIENCE_S:.0f} s"
            ) from error
        except OSError as error:
            raise UpdateError(f"the new version cannot be started: {error}") from error

    def _as_daemon(self) -> dict[str, Any]:
        """Not as root: what runs here is new, and its models are to be parsed as anybody's."""
        environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/nonexistent"}
        try:
            owner = self._where.daemon_state.stat()
        except OSError:
            return {"env": environment}
        if os.geteuid() or not owner.st_uid:
            return {"env": environment}
        return {"env": environment, "user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    text = " ".join((done.stderr or done.stdout).decode("utf-8", "replace").split())[-_TAIL:]
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}{': ' if text else ''}{text}"
    return text or f"exit code {done.returncode}"


def _without_place(problem: str, config: Path) -> str:
    """`FILE:LINE: what` and `FILE: what` → `what`."""
    if not problem.startswith(str(config)):
        return problem
    place, _, what = problem.removeprefix(str(config)).partition(": ")
    return what if not place or place.removeprefix(":").isdigit() else problem
