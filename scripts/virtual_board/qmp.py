"""Client of QEMU's monitor socket. Protocol: https://www.qemu.org/docs/master/interop/qmp-spec.html"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any, Self

from machine import BoardError

_PATIENCE_S = 120.0


class Monitor:
    """Monitor of one emulated board; a context manager."""

    def __init__(self, path: Path) -> None:
        # A path in a clone may be longer than a socket's may be.
        folder = os.open(path.parent, os.O_PATH)
        try:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(_PATIENCE_S)
            self._socket.connect(f"/proc/self/fd/{folder}/{path.name}")
        except OSError as error:
            raise BoardError(f"{path}: QEMU does not answer: {error}") from error
        finally:
            os.close(folder)
        self._lines = self._socket.makefile("rb")
        self._lines.readline()
        self.execute("qmp_capabilities")

    def execute(self, verb: str, **arguments: Any) -> Any:
        """Execute a command, and return QEMU's answer.

        Raises:
            BoardError: it refuses.
        """
        self._socket.sendall(json.dumps({"execute": verb, "arguments": arguments}).encode())
        while line := self._lines.readline():
            told = json.loads(line)
            if "error" in told:
                raise BoardError(f"QEMU: {verb}: {told['error']['desc']}")
            if "return" in told:
                return told["return"]
        raise BoardError(f"QEMU: {verb}: it ended")

    def say(self, words: str) -> str:
        """Execute a command of the human monitor, such as for snapshots, and return its output."""
        return str(self.execute("human-monitor-command", **{"command-line": words})).strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()
