"""One board of a fleet: its answer to `status`, the commands that it allows, and its update.

The connection may break at any time: send, apply, follow, report the outcome.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Literal, get_args

from msgspec import Struct

from agent.backoff import Backoff
from agent.errors import NO_JSON, VedetteError, reason_of
from agent.health import DaemonHealth
from agent.structs import from_json
from agent.text import plural
from agent.update.fleet import FleetBoard
from agent.update.fleet.ssh import BUNDLE, Fault, SshFailure, Transport
from agent.update.install.journal import Update, UpdateStatus

_UPDATE = re.compile(r'\s*\{\s*"update"\s*:\s*')
_DESCRIPTION_MAX = 200
STRANGE = "unexpected answer, not from vedette-ssh: run scripts/install on the board"


class BoardState(Struct, frozen=True):
    """Answer of a board to `status`.

    Attributes:
        update: versions and the current update.
        health: None: the daemon does not run, or its health cannot be read.
        unclear: why the health cannot be read; empty: it can, or there is none.
    """

    update: UpdateStatus
    health: DaemonHealth | None = None
    unclear: str = ""

    def describe(self) -> str:
        """Describe the daemon in a few words."""
        if self.health is None:
            return f"health unknown: {self.unclear}" if self.unclear else "daemon does not run"
        streams = self.health.streams
        wrong = [f"{name} {one.state}" for name, one in streams.items() if one.state not in ("running", "off")]
        return (
            ", ".join(wrong)[:_DESCRIPTION_MAX] or f"{len(streams)} of {plural(len(streams), 'stream')} running"
        )


class _Answer(Struct, frozen=True):
    health_base64: str = ""


def parse_state(text: str) -> BoardState | None:
    """Parse an answer to `status`; return None if it is not one.

    The update comes first and is written by root. The health is written by the daemon, which is not trusted:
    nothing in it can change the update.
    """
    found = _UPDATE.match(text)
    if found is None:
        return None
    try:
        _, end = json.JSONDecoder().raw_decode(text, found.end())
        update = from_json(text[found.end() : end], UpdateStatus)
    except NO_JSON:
        return None
    try:
        return BoardState(update, _health(text))
    except NO_JSON:
        return BoardState(update, unclear="the daemon's health file is damaged")


def _health(text: str) -> DaemonHealth | None:
    raw = base64.b64decode(from_json(text, _Answer).health_base64, validate=True)
    return from_json(raw, DaemonHealth) if raw else None


Kind = Literal["updated", "current", "refused", "rolled_back", "failed", "unreachable"]
"""Outcome: `updated`: it has committed the version. `current`: it had the version already. `refused`: it
has refused the update. `rolled_back`: it tried, and rolled back. `failed`: it could not be asked to, or does not
say why. `unreachable`: it did not answer, which says nothing about the version."""
KINDS: tuple[Kind, ...] = get_args(Kind)
GOOD: frozenset[Kind] = frozenset(("updated", "current"))
BAD: frozenset[Kind] = frozenset(("refused", "rolled_back", "failed"))


class BoardOutcome(Struct, frozen=True, omit_defaults=True):
    """Outcome of an update on one board.

    Attributes:
        board: its name.
        kind: see `Kind`.
        reason: in words.
        version: that runs now; empty: unknown.
        seconds: duration of the update.
        sent: bytes of the bundle that were sent. size: of the bundle, bytes.
        downtime_s: time without inferences; None: the daemon was not stopped, or this is unknown.
    """

    board: str
    kind: Kind
    reason: str = ""
    version: str = ""
    seconds: float = 0.0
    sent: int = 0
    size: int = 0
    downtime_s: float | None = None

    @property
    def is_good(self) -> bool:
        """True if the board has the version."""
        return self.kind in GOOD


# Update of one board over a connection that may break: send, apply, follow, report the outcome.

Watch = Callable[[str, str], None]
"""Called with the name of a board and its current step."""
_REASON_MAX = 1000
"""Longest reason, characters: a board may send any text."""
_KINDS: dict[str, Kind] = {"committed": "updated", "refused": "refused", "rolled_back": "rolled_back"}


class BundleInfo(Struct, frozen=True):
    """The bundle of a rollout.

    Attributes:
        path, sha256, size: of the file; bytes.
        version, counter, kind: from its description.
        shadow_s: longest time that a board may compare its models with those in use, s.
    """

    path: Path
    sha256: str
    size: int
    version: str
    counter: int
    kind: str
    shadow_s: float = 0.0


class Timeouts(Struct, frozen=True):
    """Timeouts for one board, s.

    Attributes:
        send_s: each attempt to send a bundle.
        over_s: from the order to the end of the update, plus `BundleInfo.shadow_s`.
        look_s: between two polls of an update.
        tries: attempts to reach a board before its update has begun.
        pause_s: before the second attempt; doubled before each further one.
    """

    send_s: float = 3600.0
    over_s: float = 3600.0
    look_s: float = 2.0
    tries: int = 3
    pause_s: float = 2.0


class _GaveUpError(Exception):
    def __init__(self, fault: Fault, reason: str) -> None:
        super().__init__(reason)
        self.fault, self.reason = fault, reason


class BoardUpdate:
    """Updates one board."""

    def __init__(
        self, transport: Transport, board: FleetBoard, wanted: BundleInfo, watch: Watch, patience: Timeouts
    ) -> None:
        self._transport, self._board, self._wanted = transport, board, wanted
        self._watch, self._patience = watch, patience
        self._over_s = patience.over_s + wanted.shadow_s
        self._sent, self._version = 0, ""

    async def run(self) -> BoardOutcome:
        """Update the board. A failure of this board is its outcome.

        Raises:
            VedetteError: no board can be updated, as without ssh. BrokenPipeError: stdout is closed.
        """
        began = time.monotonic()
        kind: Kind = "current"
        reason, downtime_s = "", None
        try:
            if (done := await self._update()) is not None:
                kind, reason, downtime_s = _KINDS[done.state], done.reason, done.downtime_s
        except _GaveUpError as error:
            kind, reason = error.fault, error.reason
        except (VedetteError, BrokenPipeError):
            raise
        except Exception as error:
            kind, reason = "failed", f"internal error (please report): {reason_of(error)}"
        return BoardOutcome(
            self._board.name,
            kind,
            reason[:_REASON_MAX],
            self._version,
            round(time.monotonic() - began, 1),
            self._sent,
            self._wanted.size,
            downtime_s,
        )

    async def _update(self) -> Update | None:
        """Return the finished update; None if the board has the version already."""
        self._tell("asking")
        found = await self._status()
        if self._has(found):
            return None
        before = found.at_hand
        if before is not None and not before.finished:
            if not self._is_ours(before):
                what = before.version or before.file
                raise _GaveUpError("failed", f"another update is running there: {what} {before.state}")
            return await self._follow(None)
        began_at = None if before is None else before.began_at
        await self._send()
        await self._apply(began_at)
        return await self._follow(began_at)

    def _has(self, found: UpdateStatus) -> bool:
        """Compare counter, version and models: a rollback does not lower a board's counter."""
        wanted = self._wanted
        over = found.at_hand is None or found.at_hand.finished
        if not over or found.counter != wanted.counter or found.kind not in ("", wanted.kind):
            return False
        version = wanted.kind == "models" or found.version == wanted.version  # models have their own version
        return version and found.models == wanted.counter

    def _is_ours(self, at_hand: Update) -> bool:
        """Compare by hash; before the bundle is verified, only its path is known."""
        return at_hand.bundle == self._wanted.sha256 or (
            not at_hand.bundle and at_hand.file.endswith(f"/{BUNDLE}")
        )

    async def _send(self) -> None:
        """Send the bundle; the board keeps a partial one when the connection is lost."""
        self._tell("sending")

        async def send() -> SshFailure | None:
            reply, sent = await self._transport.send(self._board, self._wanted.path, self._patience.send_s)
            self._sent += sent
            return reply.trouble

        await self._retry(send)

    async def _apply(self, before: datetime | None) -> None:
        """Start the update; from then on the board continues without a connection."""
        self._tell("applying")

        async def apply() -> SshFailure | None:
            reply = await self._transport.ask(self._board, "update apply", self._over_s, self._tell)
            if reply.trouble is None or await self._has_begun(before):
                return None
            return reply.trouble

        await self._retry(apply)

    async def _has_begun(self, before: datetime | None) -> bool:
        at_hand = (await self._status()).at_hand
        return at_hand is not None and at_hand.began_at != before

    async def _follow(self, before: datetime | None) -> Update:
        """Poll until the update is over. The board may be unreachable meanwhile, as during a reboot."""
        until, away = time.monotonic() + self._over_s, ""
        while True:
            try:
                at_hand, away = (await self._status()).at_hand, ""
            except _GaveUpError as error:
                if error.fault == "failed":
                    raise
                at_hand, away = None, error.reason
            if at_hand is not None and at_hand.began_at != before:
                if at_hand.finished:
                    return self._checked(at_hand)
                self._tell(at_hand.state)
            if time.monotonic() > until:
                raise self._too_long(at_hand, away)
            await asyncio.sleep(self._patience.look_s)

    def _checked(self, done: Update) -> Update:
        """Refuse the result of a bundle that another client sent meanwhile."""
        if done.bundle and done.bundle != self._wanted.sha256:
            raise _GaveUpError(
                "failed", f"another bundle was applied there meanwhile: {done.version} {done.state}"
            )
        return done

    def _too_long(self, at_hand: Update | None, away: str) -> _GaveUpError:
        if away:
            return _GaveUpError(
                "unreachable", f"unreachable during its update, which continues without a connection: {away}"
            )
        state = at_hand.state if at_hand else "not begun"
        return _GaveUpError("failed", f"the update is {state} after {self._over_s:.0f} s")

    async def _status(self) -> UpdateStatus:
        """Ask the board for its versions."""
        answers: list[UpdateStatus] = []

        async def ask() -> SshFailure | None:
            reply = await self._transport.ask(self._board, "status")
            if reply.trouble is not None:
                return reply.trouble
            state = parse_state(reply.out)
            if state is None:
                return SshFailure("failed", STRANGE)
            answers.append(state.update)
            return None

        await self._retry(ask)
        self._version = answers[-1].version
        return answers[-1]

    async def _retry(self, work: Callable[[], Awaitable[SshFailure | None]]) -> None:
        """Retry while the connection fails; raise _GaveUpError if the board refuses, or at last."""
        backoff = Backoff(self._patience.pause_s, jitter=0.0)
        for left in reversed(range(self._patience.tries)):
            trouble = await work()
            if trouble is None:
                return
            if trouble.fault == "failed" or not left:
                raise _GaveUpError(trouble.fault, trouble.reason)
            await asyncio.sleep(backoff.next_s())

    def _tell(self, step: str) -> None:
        self._watch(self._board.name, step)
