"""A board in a folder: real slots, bundles, signatures and files; what systemd and the daemon would say.

How a version behaves is in its name: `2.0+crash` ends by itself, `2.0+slow` infers slowly.
"""

from __future__ import annotations

import itertools
import json
import os
import stat
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.board.proc import boot_id
from agent.storage.state import read_shadow_order
from agent.update.bundle import HealthGate
from agent.update.install.health_check import ServiceState, Systemd
from agent.update.install.journal import Update
from agent.update.install.slots import ModelSets, Paths, Slots, parse_slot
from agent.update.install.switch import Rollback
from agent.update.install.updater import Updater
from tests.support.tiny_bundles import Key, make_key, models_bundle, tiny_bundle

_PIDS = itertools.count(101)
ROOT = Path(__file__).parent.parent.parent
GATE = HealthGate(steady_s=5, within_s=30, p95_factor=1.5, p95_floor_ms=5, memory_mb=200)
CONFIG = '# Of the porch.\n[mqtt]\nhost = "broker.example"  # in the cellar\n'
COMMAND = """#!/bin/sh
case "$1 $2" in
  "update selftest") {selftest} ;;
  "config check") printf '{{"problems": [%s]}}' "{problems}" ;;
esac
"""


def write_command(venv: Path, selftest: str = "true", problem: str = "") -> None:
    """Write a stand-in for the Python environment of a version."""
    problems = f'\\"$4:1: {problem}\\"' if problem else ""
    path = venv / "bin/vedette"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(COMMAND.format(selftest=selftest, problems=problems), encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


class PretendService(Systemd):
    """Starts what `current` leads to, and writes the health that it would have."""

    def __init__(self, where: Paths) -> None:
        self._where, self._slots = where, Slots(where.home)
        self.version, self.restarts, self.reloads, self.pid = "", 0, 0, 100
        self.failures = 0
        self.models = 0
        self.hidden = False  # whether it tells nothing
        self.ready, self.reads = True, True  # whether it is ready, and takes up what it is asked to
        self.refuses = ""  # why it does not
        self.shadow: dict[str, object] = {"compared": 10, "agreement": 1.0}

    def boot(self) -> None:
        """As after power came back: settle, then the daemon."""
        self.deadman("settle")
        self.failures = 0
        self._start()

    def deadman(self, *words: str) -> None:
        """The script itself, with its own systemctl."""
        environment = {
            "PATH": os.environ["PATH"],
            "VEDETTE_ROOT": str(self._where.root),
            "VEDETTE_SYSTEMCTL": "true",
        }
        subprocess.run(["sh", str(ROOT / "systemd/deadman"), *words], check=True, env=environment)

    def restart(self) -> None:
        self.restarts += 1
        self._start()

    def reload(self) -> None:
        if self.reads:
            self.reloads += 1
        if self.reads and not self.refuses:
            self._look_at_models()

    def hand_over(self) -> None:
        raise AssertionError("nobody to hand over to")

    def idle(self) -> str:
        return ""

    def state(self) -> ServiceState:
        self.write_health()
        if "+crash" in self.version:
            self.failures += 1
        return ServiceState("active", self.failures, "exit-code" if self.failures else "success")

    def _start(self) -> None:
        self.pid = next(_PIDS)
        running = self._slots.target("current")
        self.version = self._slots.version(running) if running else ""
        self._look_at_models()

    def _look_at_models(self) -> None:
        running = self._slots.target("current")
        self.models = ModelSets(self._slots.path(running)).current if running else 0

    def write_health(self) -> None:
        """Write the health file of the daemon as it is now; a version that hangs writes none."""
        path = self._where.health
        path.parent.mkdir(parents=True, exist_ok=True)
        if "+hang" in self.version or self.hidden:
            path.unlink(missing_ok=True)
            return
        health: dict[str, Any] = {
            "version": self.version,
            "pid": self.pid,
            "boot_id": boot_id(),
            "at_s": time.clock_gettime(time.CLOCK_BOOTTIME),
            "ready": self.ready,
            "reloads": self.reloads,
            "reload_refused": self.refuses,
            "rss_mb": 500.0 if "+large" in self.version else 100.0,
            "streams": {
                "front": {
                    "state": "lost" if "+lost" in self.version else "running",
                    "inferred": 10,
                    "infer_p95_ms": 90.0 if "+slow" in self.version or self.models == 66 else 20.0,
                },
                "attic": {"state": "lost", "detail": "no camera"},
            },
            "link": None,
        }
        order = read_shadow_order(self._where.shadow_order)
        if order is not None:
            health["shadow"] = order.update
            health["streams"]["front"]["shadow"] = self.shadow
        path.write_text(json.dumps(health), encoding="utf-8")


class Board:
    """The board, with version 1.0 in slot a.

    Attributes:
        where: things are. key: whose bundles are taken. said: what was told, line by line.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch | None = None) -> None:
        self.where, self.key = Paths(root / "root"), make_key(root / "key")
        self._outside = root
        self.said: list[str] = []
        self.slots = Slots(self.where.home)
        for folder in (self.where.home, self.where.config.parent, self.where.daemon_state, self.where.state):
            folder.mkdir(parents=True)
        self.where.config.write_text(CONFIG, encoding="utf-8")
        self.where.allowed_signers.write_text(self.key.allowed("ops@example.org"), encoding="utf-8")
        write_command(self.slots.empty("a") / "venv")
        self.slots.make_ready("a", "1.0")
        self.slots.point("current", "a")
        self.slots.point("keeper", "a")
        self.now = 0.0
        self.restart_service()
        if monkeypatch is not None:
            monkeypatch.setattr("agent.update.install.stage.install", self.install)
            monkeypatch.setattr("agent.update.install.preflight.check_board", lambda wanted, facts: None)

    def restart_service(self) -> None:
        """A service that knows nothing of before."""
        self.service = PretendService(self.where)
        self.service.boot()
        self.service.write_health()

    def install(self, python: str, venv: Path, wheels: list[Path]) -> None:
        """Instead of Python: its files would be thousands."""
        name = next(wheel.name for wheel in wheels if wheel.name.startswith("vedette-"))
        selftest = "true"
        if "+crashimport" in name:
            selftest = "echo 'ImportError: no module named cv2' >&2; exit 1"
        elif "+golden" in name:
            selftest = "echo 'model small-speech: output 0 is 0.3 off' >&2; exit 1"
        write_command(venv, selftest, "unknown key" if "+config" in name else "")

    def updater(self) -> Updater:
        """As a process would make it anew."""
        return Updater(self.where, self.service, self.said.append, clock=lambda: self.now, sleep=self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def bundle(self, version: str = "2.0", counter: int = 2, key: Key | None = None, **other: object) -> Path:
        """A signed bundle."""
        fields = {"health": GATE, **other}
        return tiny_bundle(self._outside / f"{counter}.vedette", key or self.key, version, counter, **fields)

    def models(self, counter: int = 7, **other: object) -> Path:
        """A signed bundle of models."""
        fields = {"health": GATE, **other}
        return models_bundle(self._outside / f"{counter}.vedette", self.key, counter, **fields)

    def apply(self, bundle: Path) -> Update:
        """Receive a bundle and go on to the end."""
        updater = self.updater()
        updater.receive(bundle)
        done = updater.resume()
        assert done is not None
        return done

    def go_back(self) -> Update:
        """As an operator asks."""
        updater = self.updater()
        Rollback(self.where, self.service, updater.journal, self.said.append).begin()
        done = updater.resume()
        assert done is not None
        return done

    @property
    def runs(self) -> str:
        """The version that `current` leads to."""
        running = self.slots.target("current")
        assert running is not None
        return self.slots.version(running)

    @property
    def config(self) -> str:
        """The configuration as it is."""
        return self.where.config.read_text(encoding="utf-8")

    def check_sound(self) -> None:
        """Whatever happened: one complete version runs and manages updates, and nothing is half done."""
        assert self.slots.target("keeper") == self.slots.target("current")
        assert self.runs
        assert (self.slots.path(parse_slot(self.slots.target("current") or "")) / "venv/bin/vedette").exists()
        assert not self.where.trial.exists()
        assert not self.where.verdict.exists()
        assert self.service.version == self.runs

    def states(self) -> Mapping[str, float]:
        """Return the states of the newest update with their durations, s."""
        return self.updater().journal.history()[-1].seconds
