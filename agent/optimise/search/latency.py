"""Latency of candidates: on this machine, or on a board over SSH."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import tarfile
from collections.abc import Mapping
from typing import Any, Protocol

from agent.compute.infer.benchmark import Selection
from agent.config.toml import to_toml
from agent.errors import NO_JSON, FleetError, ModelError
from agent.optimise.evaluate import time_ms
from agent.optimise.report import describe_machine
from agent.structs import from_json
from agent.text import plain

_ROUNDS = 30
_SSH = ("ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=10")
_SSH_FAILED = 255
_PATIENCE_S = 600.0
_LONGEST = 300
_REMOTE = (
    'exec 9<. ; flock 9 2>/dev/null ; d=$(mktemp -d) && trap \'rm -rf "$d"\' EXIT && tar -x -C "$d" -f - '
    '&& vedette bench "$d/net.toml" --backend cpu --json'
)
"""What the board runs; an archive with the model comes on stdin. One worker at a time measures, by a lock on the
home folder, so that they do not slow each other."""
_HAS_VEDETTE = "command -v vedette > /dev/null"
_OWN = re.compile(r"^vedette: (.+)$", re.MULTILINE)
_CORES = re.compile(r", \d+ cores?\b")


class LatencyMeter(Protocol):
    """Measures latency.

    Attributes:
        place: where; two places that differ give times that cannot be compared.
    """

    @property
    def place(self) -> str: ...

    def check(self) -> None:
        """Check before the search that it can measure; raises as `measure`."""

    def measure(self, content: bytes) -> float:
        """Return the time of an inference of a `.tflite` file, ms.

        Raises:
            ModelError: the file cannot be run. FleetError: the board cannot be asked.
        """


class LocalMeter:
    """Measures on one thread of this machine."""

    def __init__(self, rounds: int = _ROUNDS) -> None:
        """Create a meter; `rounds`: see `time_ms`."""
        self._rounds = rounds

    @property
    def place(self) -> str:
        return _CORES.sub("", describe_machine())

    def check(self) -> None:
        """Do nothing: this machine is there."""

    def measure(self, content: bytes) -> float:
        return time_ms([content], self._rounds)[0]


class BoardMeter:
    """Measures by `vedette bench` on a board, which chooses the number of threads."""

    def __init__(self, board: str, manifest: Mapping[str, Any]) -> None:
        """Create a meter; nothing is connected yet.

        Args:
            board: for ssh: `user@host`, `ssh://user@host:port`, or a name of its configuration.
            manifest: keys of the candidates' manifest, but for `file`.

        Raises:
            FleetError: ssh would read the name as an option.
        """
        if not board or board.startswith("-"):
            raise FleetError(f"{board!r}: expected a board, such as user@host")
        self._board, self._manifest = board, manifest

    @property
    def place(self) -> str:
        return f"board {self._board}"

    def check(self) -> None:
        if self._run(_HAS_VEDETTE, b"").returncode:
            raise FleetError(f"{self._board}: has no command `vedette`: install it there")

    def measure(self, content: bytes) -> float:
        done = self._run(_REMOTE, _archive(content, self._manifest))
        if done.returncode:
            raise ModelError(f"{self._board}: vedette bench failed: {_reason(done.stderr)}")
        return self._median(done.stdout)

    def _run(self, script: str, given: bytes) -> subprocess.CompletedProcess[bytes]:
        words = [*_SSH, "--", self._board, f"sh -c {shlex.quote(script)}"]
        try:
            done = subprocess.run(words, input=given, capture_output=True, timeout=_PATIENCE_S, check=False)
        except FileNotFoundError as error:
            raise FleetError("there is no ssh here: install openssh-client") from error
        except subprocess.TimeoutExpired as error:
            raise FleetError(f"{self._board}: did not answer within {_PATIENCE_S:.0f} s") from error
        if done.returncode == _SSH_FAILED:
            raise FleetError(f"{self._board}: cannot be reached: {_reason(done.stderr)}")
        return done

    def _median(self, out: bytes) -> float:
        try:
            found = from_json(out, Selection)
        except NO_JSON as error:
            raise FleetError(f"{self._board}: this is no answer of `vedette bench --json`: {error}") from error
        timed = [one for one in found.measured if one.name == found.cpu.backend and one.p50_ms > 0]
        chosen = [one for one in timed if one.threads == found.cpu.threads] or timed
        if not chosen:
            refused = next((one.refused for one in found.measured if one.refused), "it was not measured")
            raise ModelError(f"{self._board}: {plain(refused)}")
        return chosen[0].p50_ms


def _archive(content: bytes, manifest: Mapping[str, Any]) -> bytes:
    written = io.BytesIO()
    files = {"net.toml": to_toml({"file": "net.tflite", **manifest}, {}).encode(), "net.tflite": content}
    with tarfile.TarFile(fileobj=written, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return written.getvalue()


def _reason(output: bytes) -> str:
    """Return what Vedette has written to stderr, else the last line of it."""
    text = output.decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    own = _OWN.findall(text) or lines
    return plain(own[-1])[:_LONGEST] if own else "no reason given"
