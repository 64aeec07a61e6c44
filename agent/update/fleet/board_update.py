"""The errand: takes one board to a version, whatever happens to the connection; and what became of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path

from msgspec import Struct

from agent.errors import VedetteError, reason_of
from agent.update.fleet.board import STRANGE, parse_state
from agent.update.fleet.inventory import FleetBoard
from agent.update.fleet.policy import BoardOutcome, Kind
from agent.update.fleet.ssh import BUNDLE, Fault, SshFailure, Transport
from agent.update.protocol import Update, UpdateStatus

Watch = Callable[[str, str], None]
"""Is given the name of a board and what it is at."""
_LONGEST = 1000
"""Letters of a reason that are kept: a board may tell what it likes."""
_KINDS: dict[str, Kind] = {"committed": "updated", "refused": "refused", "rolled_back": "rolled_back"}


class BundleInfo(Struct, frozen=True):
    """What the boards are to have.

    Attributes:
        path: of the bundle. sha256: of the file. size: of it, bytes.
        version, counter, kind: as it says.
        shadow_s: that its models may run beside those in use before a board decides, s.
    """

    path: Path
    sha256: str
    size: int
    version: str
    counter: int
    kind: str
    shadow_s: float = 0.0


class Timeouts(Struct, frozen=True):
    """How long a board is waited for, s.

    Attributes:
        send_s: for a bundle to arrive, each time.
        over_s: for an update to be over, from when it is asked for, and beyond the time that its bundle grants a
            shadow; who is away in between is looked for.
        look_s: between two looks at an update.
        tries: how often a lost connection is made again before the update is on its way.
        pause_s: before the second try; doubled before each further one.
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
    """To one board."""

    def __init__(
        self, transport: Transport, board: FleetBoard, wanted: BundleInfo, watch: Watch, patience: Timeouts
    ) -> None:
        self._transport, self._board, self._wanted = transport, board, wanted
        self._watch, self._patience = watch, patience
        self._over_s = patience.over_s + wanted.shadow_s
        self._sent, self._version = 0, ""

    async def run(self) -> BoardOutcome:
        """Take the board there. Whatever fails is the outcome.

        Raises:
            VedetteError: nothing can be done for any board. BrokenPipeError: nobody reads what is told.
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
            kind, reason = "failed", f"the errand broke off: {reason_of(error)}"
        return BoardOutcome(
            self._board.name,
            kind,
            reason[:_LONGEST],
            self._version,
            round(time.monotonic() - began, 1),
            self._sent,
            self._wanted.size,
            downtime_s,
        )

    async def _update(self) -> Update | None:
        """What became of it; None: the board has the version already."""
        self._tell("asking")
        found = await self._standing()
        if self._has(found):
            return None
        before = found.at_hand
        if before is not None and not before.over:
            if not self._is_ours(before):
                what = before.version or before.file
                raise _GaveUpError("failed", f"another update is at hand there: {what} {before.state}")
            return await self._follow(None)
        began_at = None if before is None else before.began_at
        await self._send()
        await self._apply(began_at)
        return await self._follow(began_at)

    def _has(self, found: UpdateStatus) -> bool:
        """Compare counter, version and models: a rollback does not lower a board's counter."""
        wanted = self._wanted
        over = found.at_hand is None or found.at_hand.over
        if not over or found.counter != wanted.counter or found.kind not in ("", wanted.kind):
            return False
        version = wanted.kind == "models" or found.version == wanted.version  # models' own runs nowhere
        return version and found.models in (-1, wanted.counter)

    def _is_ours(self, at_hand: Update) -> bool:
        """Whether an update is one that was cut off here; before it is verified, only its place is known."""
        return at_hand.bundle == self._wanted.sha256 or (
            not at_hand.bundle and at_hand.file.endswith(f"/{BUNDLE}")
        )

    async def _send(self) -> None:
        """Send the bundle; what has come is kept there when the connection is lost."""
        self._tell("sending")

        async def send() -> SshFailure | None:
            reply, sent = await self._transport.send(self._board, self._wanted.path, self._patience.send_s)
            self._sent += sent
            return reply.trouble

        await self._trying(send)

    async def _apply(self, before: datetime | None) -> None:
        """Have the board begin; it goes on by itself from then on, with or without us."""
        self._tell("applying")

        async def apply() -> SshFailure | None:
            reply = await self._transport.ask(self._board, "update apply", self._over_s, self._tell)
            if reply.trouble is None or await self._has_begun(before):
                return None
            return reply.trouble

        await self._trying(apply)

    async def _has_begun(self, before: datetime | None) -> bool:
        at_hand = (await self._standing()).at_hand
        return at_hand is not None and at_hand.began_at != before

    async def _follow(self, before: datetime | None) -> Update:
        """Look until the update is over. The board may be away meanwhile, as when it starts anew."""
        until, away = time.monotonic() + self._over_s, ""
        while True:
            try:
                at_hand, away = (await self._standing()).at_hand, ""
            except _GaveUpError as error:
                if error.fault == "failed":
                    raise
                at_hand, away = None, error.reason
            if at_hand is not None and at_hand.began_at != before:
                if at_hand.over:
                    return self._checked(at_hand)
                self._tell(at_hand.state)
            if time.monotonic() > until:
                raise self._too_long(at_hand, away)
            await asyncio.sleep(self._patience.look_s)

    def _checked(self, done: Update) -> Update:
        """That it was our bundle: somebody else may have sent another one meanwhile."""
        if done.bundle and done.bundle != self._wanted.sha256:
            raise _GaveUpError(
                "failed", f"another bundle was applied there meanwhile: {done.version} {done.state}"
            )
        return done

    def _too_long(self, at_hand: Update | None, away: str) -> _GaveUpError:
        if away:
            return _GaveUpError(
                "unreachable", f"lost while it was updated, and not back yet; it goes on by itself: {away}"
            )
        state = at_hand.state if at_hand else "not begun"
        return _GaveUpError("failed", f"the update is {state} after {self._over_s:.0f} s")

    async def _standing(self) -> UpdateStatus:
        """What the board tells of its versions."""
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

        await self._trying(ask)
        self._version = answers[-1].version
        return answers[-1]

    async def _trying(self, work: Callable[[], Awaitable[SshFailure | None]]) -> None:
        """Do it again where the connection is lost.

        Raises:
            _GaveUpError: it does not help.
        """
        pause_s = self._patience.pause_s
        for left in reversed(range(self._patience.tries)):
            trouble = await work()
            if trouble is None:
                return
            if trouble.fault == "failed" or not left:
                raise _GaveUpError(trouble.fault, trouble.reason)
            await asyncio.sleep(pause_s)
            pause_s *= 2

    def _tell(self, step: str) -> None:
        self._watch(self._board.name, step)
