"""The service that an update restarts, and what systemd says of it."""

from __future__ import annotations

import shutil
import subprocess
from typing import Protocol

from msgspec import Struct

from agent.errors import UpdateError

UNIT, FOLLOWER = "vedette.service", "vedette-update.service"
_PATIENCE_S = 60.0
"""A stop may take its TimeoutStopSec; what systemd itself needs is far below this."""


class Standing(Struct, frozen=True):
    """How a service stands.

    Attributes:
        active: `active`, `activating`, `deactivating`, `failed`, `inactive` …
        restarts: how often systemd has started it again by itself, since it was started by somebody.
        why: it ended last, such as `exit-code`, `signal`, `watchdog`; `success`: it did not fail, or runs again.
        waits: whether it ended by itself, and waits to be started again.
    """

    active: str = "inactive"
    restarts: int = 0
    why: str = "success"
    waits: bool = False

    @property
    def failures(self) -> int:
        """How often it ended by itself."""
        return self.restarts + (self.active == "failed" or self.waits)


class Service(Protocol):
    """What an update asks of whoever starts the daemon."""

    def restart(self) -> None:
        """Stop the daemon, and start what `current` leads to; does not wait until it is ready."""

    def reload(self) -> None:
        """Have it read its configuration again, and models that have changed."""

    def standing(self) -> Standing:
        """How it stands."""

    def hand_over(self) -> None:
        """Have the update at hand gone on with outside of this session."""

    def idle(self) -> str:
        """Why nobody goes on with the update at hand now; empty: somebody does."""


class Systemd:
    """By `systemctl`. Its errors are `UpdateError`s with what it said."""

    def restart(self) -> None:
        """See `Service`."""
        # A version that failed too often must not keep the next one from being started.
        self._run("reset-failed", UNIT, check=False)
        self._run("restart", "--no-block", UNIT)

    def reload(self) -> None:
        """See `Service`."""
        self._run("reload", UNIT)

    def standing(self) -> Standing:
        """See `Service`."""
        return self._standing(UNIT)

    def _standing(self, unit: str) -> Standing:
        said = self._run("show", "--property=ActiveState,SubState,NRestarts,Result", unit)
        told = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
        restarts = told.get("NRestarts", "0")
        return Standing(
            told.get("ActiveState", "inactive"),
            int(restarts) if restarts.isdigit() else 0,
            told.get("Result", "success"),
            told.get("SubState") == "auto-restart",
        )

    def hand_over(self) -> None:
        """See `Service`."""
        self._run("reset-failed", FOLLOWER, check=False)
        self._run("start", "--no-block", FOLLOWER)

    def idle(self) -> str:
        """See `Service`."""
        found = self._standing(FOLLOWER)
        if found.active in ("active", "activating", "reloading", "deactivating") and not found.waits:
            return ""
        return f"{FOLLOWER} is {'waiting to be started again' if found.waits else found.active}: {found.why}"

    @staticmethod
    def is_there() -> bool:
        """Whether systemd runs here and knows the unit."""
        if shutil.which("systemctl") is None:
            return False
        asks = ["systemctl", "cat", FOLLOWER]
        return subprocess.run(asks, capture_output=True, timeout=_PATIENCE_S, check=False).returncode == 0

    def _run(self, *words: str, check: bool = True) -> str:
        command = ["systemctl", *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UpdateError(f"{' '.join(command)}: {error}") from error
        if check and done.returncode:
            said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
            raise UpdateError(f"{' '.join(command)}: {said}")
        return done.stdout
