"""Transport to boards by the workstation's ssh and rsync: their errors, many boards at once, and host keys."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeVar

from msgspec import Struct

from agent.errors import FleetError, VedetteError, reason_of
from agent.storage.files import add_line
from agent.update.fleet import FleetBoard
from agent.update.run import run

Item = TypeVar("Item")
Result = TypeVar("Result")
Fault = Literal["unreachable", "failed"]

_SSH_FAILED = 255
_LINK_CODES = frozenset((_SSH_FAILED, 10, 12, 30, 35))
"""Exit codes for a failed connection, of ssh and of rsync: see rsync(1), EXIT VALUES."""
_FATAL: tuple[tuple[str, str], ...] = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|host key .* has changed",
        "another host key than the pinned one: if the board was set up again, delete its line in known_hosts "
        "and run `vedette fleet pin`; else the connection is intercepted",
    ),
    (
        r"No .* host key is known|Host key verification failed",
        "its host key is not pinned: run `vedette fleet pin`",
    ),
    (
        r"Permission denied \(",
        "it accepts none of this machine's keys: add the public key to /etc/vedette/update_keys on the board",
    ),
    (r"bad permissions|UNPROTECTED PRIVATE KEY", "the private key may be read by others: chmod 600 it"),
)
_FULL = ("No space left on device", "its disk is full: make room in /var/lib/vedette-upload")
_OWN = re.compile(r"^vedette(?:-ssh)?: (.+)$", re.MULTILINE)
_LONGEST = 300


class SshFailure(Struct, frozen=True):
    """Failure of ssh or rsync.

    Attributes:
        fault: `unreachable`: no connection. `failed`: another attempt would not help.
        reason: in words.
    """

    fault: Fault
    reason: str


def trouble(code: int, output: str) -> SshFailure | None:
    """Classify the end of ssh or rsync; None if it succeeded.

    Args:
        code: exit code.
        output: stderr of the program and of the board.
    """
    if code == 0:
        return None
    for pattern, reason in _FATAL:
        if re.search(pattern, output):
            return SshFailure("failed", reason)
    if own := _OWN.findall(output):  # written by the board itself
        return SshFailure("failed", own[-1][:_LONGEST])
    if _FULL[0] in output:  # without an explanation of the board
        return SshFailure("failed", _FULL[1])
    text = _first_line(output) or f"exit code {code}"
    return SshFailure("unreachable" if code in _LINK_CODES else "failed", text)


def _first_line(output: str) -> str:
    """Return the first line with text: later ones are consequences."""
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith("sudo: unable")]
    lines.sort(key=lambda line: line.startswith("Warning: "))  # ssh continues after a warning
    return lines[0][:_LONGEST] if lines else ""


Tell = Callable[[str], None]

_CONNECT_S, _ALIVE_S, _ALIVE_TIMES = 10, 10, 3
_SENT = re.compile(r"^Total bytes sent: ([\d,]+)$", re.MULTILINE)
_STDERR_MAX = 64 * 1024
"""Limit of stderr, bytes; the end is kept."""
_STDOUT_MAX = 1 << 20
"""Limit of stdout, bytes; the longest answer, a history, has some thousands."""
_PIECE = 16 * 1024
_END_S = 5.0
_RSYNC = ("--checksum", "--copy-links", "--partial", "--timeout=60", "--stats", "--no-human-readable")
"""vedette-ssh allows exactly these options. `--checksum`: another bundle may have the same size and time."""
BUNDLE = "bundle.vedette"
"""Name of the bundle on the board."""


class Reply(Struct, frozen=True):
    """Result of a command.

    Attributes:
        code: exit code.
        out, err: stdout and stderr.
    """

    code: int
    out: str
    err: str

    @property
    def trouble(self) -> SshFailure | None:
        """Failure of the command; None if it succeeded."""
        return trouble(self.code, self.err)


class Transport:
    """Runs commands on boards, and sends them bundles. Raises FleetError if ssh or rsync is missing here."""

    def __init__(self, known_hosts: Path) -> None:
        """Create a transport; nothing is connected yet.

        Args:
            known_hosts: file of the pinned host keys, under the names of boards.
        """
        self._known_hosts = known_hosts

    async def ask(
        self, board: FleetBoard, command: str, patience_s: float = 60.0, tell: Tell | None = None
    ) -> Reply:
        """Run a command of `vedette-ssh` on a board.

        Args:
            board: to ask.
            command: see `systemd/vedette-ssh`.
            patience_s: timeout, after which the board counts as unreachable.
            tell: called with each line of stdout as it comes.
        """
        return await _run([*self.ssh(board), "--", board.name, command], patience_s, tell)

    async def send(self, board: FleetBoard, bundle: Path, patience_s: float) -> tuple[Reply, int]:
        """Send a bundle and its signature; rsync skips the parts that the board has.

        Args:
            board: to send it to.
            bundle: the file; its signature lies beside it.
            patience_s: timeout, after which the board counts as unreachable; it keeps the part that has arrived.

        Returns:
            the result, and the number of bytes sent.
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

    def ssh(self, board: FleetBoard) -> list[str]:
        """Build the arguments of ssh before `--`."""
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
    """Return our environment without the variables that change what rsync and ssh do or print."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RSYNC_", "LC_"))}
    return {**kept, "LC_ALL": "C"}


class _TooLongError(Exception):
    """The answer exceeds `_STDOUT_MAX`."""


async def _run(words: Sequence[str], patience_s: float, tell: Tell | None = None) -> Reply:
    process = await _begin(words)
    try:
        async with asyncio.timeout(patience_s):
            return await _communicate(process, tell)
    except TimeoutError:
        return Reply(255, "", f"no answer within {patience_s:.0f} s")
    except ExceptionGroup as errors:
        if not isinstance(errors.exceptions[0], _TooLongError):
            raise errors.exceptions[0] from None
        return Reply(1, "", f"its answer is too long: more than {_STDOUT_MAX >> 20} MiB")
    finally:
        await _end(process)


async def _begin(words: Sequence[str]) -> asyncio.subprocess.Process:
    """Start in a session of its own: Ctrl-C does not reach it, and its children can be killed with it."""
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


async def _communicate(process: asyncio.subprocess.Process, tell: Tell | None) -> Reply:
    assert process.stdout is not None
    assert process.stderr is not None
    async with asyncio.TaskGroup() as group:
        out = group.create_task(_lines(process.stdout, tell))
        err = group.create_task(_tail(process.stderr))
        code = group.create_task(process.wait())
    return Reply(code.result(), out.result(), err.result())


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill the process group: the ssh of an rsync would keep the pipes open."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), _END_S)
    # Another process may hold the pipes open; close them before the loop ends.
    process._transport.close()  # type: ignore[attr-defined]  # asyncio has no other way


async def _lines(stream: asyncio.StreamReader, tell: Tell | None) -> str:
    """Read to the end; call `tell` with each complete line."""
    output, begun = bytearray(), 0
    while piece := await stream.read(_PIECE):
        output += piece
        if len(output) > _STDOUT_MAX:
            raise _TooLongError
        while tell is not None and (end := output.find(b"\n", begun)) >= 0:
            tell(_text(output[begun:end]).rstrip())
            begun = end + 1
    if tell is not None and begun < len(output):
        tell(_text(output[begun:]).rstrip())
    return _text(output)


async def _tail(stream: asyncio.StreamReader) -> str:
    kept = b""
    while piece := await stream.read(_PIECE):
        kept = (kept + piece)[-_STDERR_MAX:]
    return _text(kept)


def _text(output: bytes | bytearray) -> str:
    return output.decode("utf-8", "replace")


async def run_parallel(
    items: Iterable[Item], work: Callable[[Item], Awaitable[Result]], *, at_once: int
) -> list[Result]:
    """Run `work` on each item; return the results in order.

    Args:
        items: such as boards.
        work: returns the failure of one item as its result. An exception cancels the other items and is raised.
        at_once: items at the same time.
    """
    gate = asyncio.Semaphore(at_once)

    async def one(item: Item) -> Result:
        async with gate:
            return await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in items]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


class BoardAnswer(Struct, frozen=True, omit_defaults=True):
    """Answer of one board to a command.

    Attributes:
        board: its name.
        fault: None: the command has succeeded.
        reason: of the fault, in words.
        code: exit code of the command. out: its stdout.
    """

    board: str
    fault: Fault | None = None
    reason: str = ""
    code: int = 0
    out: str = ""


async def ask_all(
    transport: Transport,
    boards: Iterable[FleetBoard],
    command: str,
    *,
    at_once: int,
    patience_s: float = 120.0,
    show: Callable[[BoardAnswer], None] = lambda answer: None,
) -> list[BoardAnswer]:
    """Run a command on boards and return their answers.

    Args:
        transport: to the boards.
        boards: to ask.
        command: see `systemd/vedette-ssh`.
        at_once: boards at the same time.
        patience_s: timeout for each board.
        show: called with each answer as it comes.
    """

    async def ask(board: FleetBoard) -> BoardAnswer:
        answer = await _ask(transport, board, command, patience_s)
        show(answer)
        return answer

    return await run_parallel(boards, ask, at_once=at_once)


async def _ask(transport: Transport, board: FleetBoard, command: str, patience_s: float) -> BoardAnswer:
    """Return a failure of this board or its connection as its answer."""
    try:
        reply = await transport.ask(board, command, patience_s)
    except VedetteError:
        raise
    except Exception as error:
        return BoardAnswer(board.name, "failed", f"it could not be asked: {reason_of(error)}")
    if reply.trouble is None:
        return BoardAnswer(board.name, out=reply.out)
    return BoardAnswer(board.name, reply.trouble.fault, reply.trouble.reason, reply.code, reply.out)


_SCAN_S = 15.0


class HostKey(Struct, frozen=True):
    """Host key of a board.

    Attributes:
        line: for known_hosts, under the board's name.
        fingerprint: as `ssh-keygen -l` prints it.
    """

    line: str
    fingerprint: str


def check_pinned(known_hosts: Path, boards: Iterable[FleetBoard]) -> None:
    """Refuse boards whose host key is not pinned; raise FleetError with their names."""
    if missing := unpinned(known_hosts, boards):
        raise FleetError(
            f"{known_hosts}: no host key of {', '.join(board.name for board in missing)}: "
            f"`vedette fleet pin {missing[0].name}` shows and pins it; compare it with the output "
            "of `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on the board"
        )


def unpinned(known_hosts: Path, boards: Iterable[FleetBoard]) -> list[FleetBoard]:
    """Return the boards without a line in known_hosts; raise FleetError if it cannot be read."""
    try:
        text = known_hosts.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        text = ""
    except OSError as error:
        raise FleetError(
            f"{known_hosts}: cannot be read: {reason_of(error)}; host keys are pinned there"
        ) from error
    fields = [line.split()[0] for line in text.splitlines() if line.strip() and not line.startswith(("#", "@"))]
    known = {name for field in fields for name in field.split(",")}
    return [board for board in boards if board.name not in known]


def scan(board: FleetBoard) -> HostKey:
    """Return the host key that an address presents now; a person has to compare it with the board's.

    Raises:
        FleetError: it presents none.
    """
    command = ["ssh-keyscan", "-T", "10", "-t", "ed25519", "-p", str(board.port), "--", board.address]
    output = run(command, board.name, _SCAN_S, FleetError)
    lines = [line.split() for line in output.stdout.splitlines() if line and not line.startswith("#")]
    if not lines or len(lines[0]) < 3:
        raise FleetError(f"{board.name}: {board.address} port {board.port} presents no host key: is it on?")
    line = " ".join((board.name, *lines[0][1:3]))
    shown = run(["ssh-keygen", "-l", "-f", "-"], board.name, _SCAN_S, FleetError, input=line)
    return HostKey(line, shown.stdout.strip())


def pin(known_hosts: Path, key: HostKey) -> None:
    """Pin a host key; raise StorageError after a disk error."""
    add_line(known_hosts, key.line.encode())
