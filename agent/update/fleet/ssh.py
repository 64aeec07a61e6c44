"""The transport: one command of a board, or a bundle to it, by the workstation's own ssh and rsync."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from msgspec import Struct

from agent.errors import FleetError
from agent.fleet.inventory import Board
from agent.fleet.trouble import Trouble, trouble

Tell = Callable[[str], None]

_CONNECT_S, _ALIVE_S, _ALIVE_TIMES = 10, 10, 3
_SENT = re.compile(r"^Total bytes sent: ([\d,]+)$", re.MULTILINE)
_SAID_MOST = 64 * 1024
"""Bytes of stderr that are kept: a board says a line or two."""
_ANSWER_MOST = 1 << 20
"""Bytes of stdout that are taken: the longest answer of a board, a history, has some thousands."""
_PIECE = 16 * 1024
_END_S = 5.0
_RSYNC = ("--checksum", "--copy-links", "--partial", "--timeout=60", "--stats", "--no-human-readable")
"""The other half is started by vedette-ssh, which knows exactly these. By a checksum: another bundle may have the
same size and time."""
BUNDLE = "bundle.vedette"
"""Its name on the board, whatever it is called here."""


class Reply(Struct, frozen=True):
    """What came of a command.

    Attributes:
        code: its exit code. out, err: what it said.
    """

    code: int
    out: str
    err: str

    @property
    def trouble(self) -> Trouble | None:
        """See `trouble.trouble`."""
        return trouble(self.code, self.err)


class Transport:
    """To the boards of an inventory."""

    def __init__(self, known_hosts: Path) -> None:
        """Nothing is connected yet.

        Args:
            known_hosts: the pinned host keys, by the names of boards.
        """
        self._known_hosts = known_hosts

    async def ask(self, board: Board, command: str, patience_s: float = 60.0, tell: Tell | None = None) -> Reply:
        """Have a board do one of the commands that its `vedette-ssh` allows.

        Args:
            board: to ask.
            command: as `vedette-ssh` knows it.
            patience_s: after that it counts as unreachable.
            tell: is given each line of its output as it comes.

        Raises:
            FleetError: there is no ssh here.
        """
        return await _run([*self.ssh(board), "--", board.name, command], patience_s, tell)

    async def send(self, board: Board, bundle: Path, patience_s: float) -> tuple[Reply, int]:
        """Send a bundle and its signature; what the board has of it already is not sent.

        Args:
            board: to send it to.
            bundle: the file; its signature lies beside it.
            patience_s: after that it counts as unreachable; what has come until then is kept there.

        Returns:
            what came of it, and the bytes that were sent.

        Raises:
            FleetError: there is no rsync here.
        """
        with TemporaryDirectory(prefix="vedette-fleet-") as folder:
            files = [Path(folder, BUNDLE), Path(folder, f"{BUNDLE}.sig")]
            for file, source in zip(files, (bundle, bundle.with_name(f"{bundle.name}.sig")), strict=True):
                file.symlink_to(source.absolute())
            shell = shlex.join(self.ssh(board))
            words = ["rsync", "-e", shell, *_RSYNC, *map(str, files), f"{board.name}:."]
            reply = await _run(words, patience_s)
        found = _SENT.search(reply.out)
        return reply, int(found[1].replace(",", "")) if found else 0

    def ssh(self, board: Board) -> list[str]:
        """The words of ssh that come before `--`."""
        known = str(self._known_hosts).replace("%", "%%")
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": f'"{known}"',
            "GlobalKnownHostsFile": "/dev/null",
            "UpdateHostKeys": "no",
            # Pinned under the board's name: an address may change, and may become another board's.
            "HostKeyAlias": board.name,
            "HostName": board.address,
            "CheckHostIP": "no",
            "ConnectTimeout": _CONNECT_S,
            "ServerAliveInterval": _ALIVE_S,
            "ServerAliveCountMax": _ALIVE_TIMES,
            "ForwardAgent": "no",
            "ClearAllForwardings": "yes",
            "ControlPath": "none",
            "LogLevel": "ERROR",
        }
        words = ["ssh", "-T", "-p", str(board.port), "-l", board.user]
        for name, value in options.items():
            words += ["-o", f"{name}={value}"]
        if board.key:
            words += ["-o", "IdentitiesOnly=yes", "-i", str(Path(board.key).expanduser())]
        return words


def _environment() -> dict[str, str]:
    """Ours, without what would make rsync or ssh say or do other things."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RSYNC_", "LC_"))}
    return {**kept, "LC_ALL": "C"}


class _TooLongError(Exception):
    """More has come than is taken."""


async def _run(words: Sequence[str], patience_s: float, tell: Tell | None = None) -> Reply:
    process = await _begin(words)
    try:
        async with asyncio.timeout(patience_s):
            return await _hear(process, tell)
    except TimeoutError:
        return Reply(255, "", f"no answer within {patience_s:.0f} s")
    except ExceptionGroup as errors:
        if not isinstance(errors.exceptions[0], _TooLongError):
            raise errors.exceptions[0] from None
        return Reply(1, "", f"its answer is too long: more than {_ANSWER_MOST >> 20} MiB")
    finally:
        await _end(process)


async def _begin(words: Sequence[str]) -> asyncio.subprocess.Process:
    """In a session of its own: Ctrl-C is for us, and what it starts itself can be ended with it."""
    pipe = asyncio.subprocess.PIPE
    try:
        return await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            env=_environment(),
            start_new_session=True,
        )
    except FileNotFoundError as error:
        package = {"ssh": "openssh-client"}.get(words[0], words[0])
        raise FleetError(f"there is no {words[0]} here: install {package}") from error


async def _hear(process: asyncio.subprocess.Process, tell: Tell | None) -> Reply:
    assert process.stdout is not None
    assert process.stderr is not None
    async with asyncio.TaskGroup() as group:
        out = group.create_task(_lines(process.stdout, tell))
        err = group.create_task(_tail(process.stderr))
        code = group.create_task(process.wait())
    return Reply(code.result(), out.result(), err.result())


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill what still runs, with the ssh of an rsync: it keeps the pipes open as long as a board likes."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), _END_S)
    # Pipes that something on the way still holds open are closed now, and not by chance after the loop is.
    process._transport.close()  # type: ignore[attr-defined]  # asyncio has no other way


async def _lines(stream: asyncio.StreamReader, tell: Tell | None) -> str:
    """All of it; `tell` is given each line, however long, when its end has come."""
    said, begun = bytearray(), 0
    while piece := await stream.read(_PIECE):
        said += piece
        if len(said) > _ANSWER_MOST:
            raise _TooLongError
        while tell is not None and (end := said.find(b"\n", begun)) >= 0:
            tell(_text(said[begun:end]).rstrip())
            begun = end + 1
    if tell is not None and begun < len(said):
        tell(_text(said[begun:]).rstrip())
    return _text(said)


async def _tail(stream: asyncio.StreamReader) -> str:
    kept = b""
    while piece := await stream.read(_PIECE):
        kept = (kept + piece)[-_SAID_MOST:]
    return _text(kept)


def _text(said: bytes | bytearray) -> str:
    return said.decode("utf-8", "replace")
