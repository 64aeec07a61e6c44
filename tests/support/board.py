"""A board in a container: systemd as process 1 on a disk of its own, see `scripts/virtual_board/container`.

with Board(folder) as board:
    board.install()
    board.sh("systemctl", "restart", "vedette")
    board.cut()
    board.up()
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import pytest
import tomli_w

from agent.health import DaemonHealth
from tests.support.doubles import person_model
from tests.support.mosquitto import HOST
from tests.support.publishing import TOPICS, wait_for
from tests.support.running import ROOT, camera

_CONTAINER = ROOT / "scripts/virtual_board/container"
_PATIENCE_S = 60.0
CLONE = "/clone"
"""Where the board sees this clone."""


class Board:
    """Off at first. Skips the test where there cannot be one."""

    def __init__(self, folder: Path, network: str = "", base: Path = Path("/")) -> None:
        """Prepare.

        Args:
            folder: for its disk.
            network: namespace that it is in; empty: this machine's.
            base: files that its disk begins with.
        """
        if os.geteuid() != 0:
            pytest.skip("a board in a container needs root")
        if not Path("/lib/systemd/systemd").exists() or shutil.which("dbus-daemon") is None:
            pytest.skip("systemd is not installed (systemd-sysv, dbus)")
        self._folder, self._network, self._base = folder, network, base
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def disk(self) -> Path:
        """Folder of the board's disk; read it only while the board is down."""
        return self._folder / "disk"

    def become(self, other: Board) -> None:
        """Begin with a copy of the disk of another one, which is off."""
        self._container("like", str(other._folder))

    def up(self) -> None:
        """Boot; returns when systemd has started everything."""
        self._container("up", f"{ROOT}:{CLONE}")

    def cut(self) -> None:
        """The power goes."""
        self._container("cut")

    def down(self) -> None:
        """Shut down as a board does."""
        self._container("down")

    def _container(self, verb: str, *words: str) -> None:
        command = [str(_CONTAINER), verb, str(self._folder), *words]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=False,
            env={**os.environ, "NETNS": self._network, "BASE": str(self._base)},
        )
        assert done.returncode == 0, f"{verb}: {done.stdout}{done.stderr}"

    def sh(self, *words: str, check: bool = True, given: str = "", patience_s: float = _PATIENCE_S) -> str:
        """Run a command; gives what it said on stdout, stripped.

        Args:
            words: of the command.
            check: whether it has to succeed.
            given: on its stdin.
            patience_s: for it.
        """
        command = [str(_CONTAINER), "sh", str(self._folder), *words]
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, timeout=patience_s, check=False
        )
        assert not check or done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def write(self, path: str, content: str | bytes) -> None:
        """Write a file, and the folders above it."""
        self.sh("mkdir", "-p", str(Path(path).parent))
        command = [str(_CONTAINER), "sh", str(self._folder), "tee", path]
        data = content.encode() if isinstance(content, str) else content
        subprocess.run(command, input=data, check=True, capture_output=True, timeout=_PATIENCE_S)

    def configure(self, config: dict[str, Any]) -> None:
        """Write the configuration; nobody is told."""
        self.write("/etc/vedette/vedette.toml", tomli_w.dumps(config))

    def show(self, name: str, unit: str = "vedette.service") -> str:
        """A property of a unit."""
        return self.sh("systemctl", "show", "--value", f"--property={name}", unit)

    def exists(self, path: str) -> bool:
        return self.sh("sh", "-c", 'test -e "$1" && echo yes || true', "sh", path) == "yes"

    def health(self) -> DaemonHealth | None:
        """Return the health file of the daemon; None if there is none now."""
        told = self.sh("cat", "/run/vedette/health.json", check=False)
        return msgspec.json.decode(told, type=DaemonHealth) if told else None

    def wait_active(self, but: int = 0) -> int:
        """Wait until the service is ready; gives its process.

        Args:
            but: not while it is this one.
        """
        found = 0

        def is_there() -> bool:
            nonlocal found
            said = self.sh("systemctl", "show", "--property=ActiveState,MainPID", "vedette.service")
            told = dict(line.split("=", 1) for line in said.splitlines())
            found = int(told["MainPID"])
            return told["ActiveState"] == "active" and found not in (0, but)

        wait_for(is_there)
        return found

    def journal(self, unit: str = "vedette.service") -> str:
        """Return the log of a unit, and of systemd about it, since the boot."""
        return self.sh("journalctl", "--no-pager", "--output=cat", f"--unit={unit}")

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container("down")


def watch_somebody(board: Board, port: int, folder: Path) -> dict[str, Any]:
    """Configure a board, and restart its service: one stream that always sees somebody; gives the configuration.

    Args:
        board: that is up and installed.
        port: of the broker on this machine.
        folder: for the model.
    """
    model = person_model(folder)
    for path in (model, model.with_suffix(".tflite")):
        board.write(f"/etc/vedette/models/{path.name}", path.read_bytes())
    config: dict[str, Any] = {
        "device": {"name": TOPICS.device},
        "mqtt": {"host": HOST, "port": port, "reconnect_max_s": 0.5},
        "health": {"every_s": 0.5},
        "streams": {"front": camera(Path("/etc/vedette/models/person.toml"))},
    }
    board.configure(config)
    board.sh("systemctl", "restart", "vedette")
    return config
