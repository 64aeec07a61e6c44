"""Sessions of one model, for several streams that take turns on them, one inference each.

A session that fails is replaced or ends the pool. One that hangs is left to the stream that waits for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import Struct

from agent.compute.infer.session import Session
from agent.compute.infer.turns import Turns
from agent.errors import BackendError, ModelError, VedetteError, reason_of
from agent.text import plural

if TYPE_CHECKING:
    from agent.compute.tflite.model import TensorSpec

log = logging.getLogger(__name__)

_WINDOW_S = 2.0
"""Span over which waiting is measured, s."""
_WAITING = 0.1
"""Another session is opened if more than so many streams wait for a turn on average."""
_HANGS = 20.0
"""A turn on the CPU hangs after so many times the mean turn, if that is longer than `PoolRules.hangs_s`."""
_LOST_MAX = 2
"""Most sessions that may hang at once and be replaced: each holds memory, and another would hang as well."""


class PoolRules(Struct, frozen=True):
    """How a pool is run.

    Attributes:
        limit: most sessions at once.
        reopens: True: a session that failed is replaced; False: all streams get the error, until they open the
            model again.
        hangs_s: shortest turn that counts as hanging, s; None: a turn ends by itself.
        check_s: time between two looks of a waiting stream for a turn that hangs, s.
    """

    limit: int = 1
    reopens: bool = True
    hangs_s: float | None = None
    check_s: float = 0.5


class Ticket:
    """One stream's place in the queue of a pool.

    Attributes:
        session: that it got; None: it gets none.
        error: why.
    """

    def __init__(self) -> None:
        self.session: Session | None = None
        self.error = ""
        self._called = threading.Semaphore(0)

    def call(self, session: Session | None, error: str = "") -> None:
        self.session, self.error = session, error
        self._called.release()

    def is_called(self, within_s: float) -> bool:
        return self._called.acquire(timeout=within_s)


class SessionPool:
    """The sessions of one model on one backend. Any thread may use it.

    Attributes:
        backend: name of it.
        members: number of streams.
    """

    def __init__(self, name: str, opens: Callable[[], Session], rules: PoolRules) -> None:
        """Open nothing before the first `join`. `name` is the model's path, for messages."""
        self.backend, self.members = "", 0
        self._name, self._opens, self._rules = name, opens, rules
        self._lock, self._joining = threading.Lock(), threading.Lock()
        self._turns: Turns[Ticket, Session] = Turns()
        self._ends: dict[str, tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]] = {}
        self._opening = self._lost = 0
        self._failed: list[Session] = []
        self._broken = ""
        self._limit = max(1, rules.limit)
        self._measured_s, self._waited_s = time.monotonic(), 0.0

    @property
    def is_over(self) -> bool:
        """True if nobody can join: its last member has left, or its session has failed."""
        return bool(self._broken) or (self._opens is _closed)

    @property
    def is_exclusive(self) -> bool:
        """True if a turn may begin early: one stream has joined, and no fallback needs its input afterwards."""
        return self.members == 1 and self._rules.reopens

    def join(self) -> bool:
        """Add a stream, for the first one with a session; return False if the pool is over. Raises as `opens`."""
        with self._joining:
            with self._lock:
                if self.is_over:
                    return False
                self.members += 1
            if not self.backend:
                try:
                    self._open_first()
                except BaseException:
                    self.leave()
                    raise
        if self.members > 1:
            log.info("%s: %d streams share its sessions on %s", self._name, self.members, self.backend)
        return True

    def leave(self) -> None:
        """Remove a stream, which has no turn. Close the sessions that are no longer needed."""
        with self._lock:
            unused, self._failed = self._failed, []
            self.members -= 1
            if not self.members:
                self._opens = _closed
            most = min(self._limit, self.members)
            while self._turns.items > most and (session := self._turns.remove_free()) is not None:
                unused.append(session)
        for session in unused:
            session.close()

    def ends(self, variant: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return the inputs and outputs of a variant. Takes a turn if they are not known yet."""
        if variant not in self._ends:
            ticket = Ticket()
            session, error = self.take(ticket), ""
            try:
                session.select(variant)
                self._ends[variant] = session.inputs, session.outputs
            except BaseException as caught:
                is_refusal = isinstance(caught, ModelError) and not isinstance(caught, BackendError)
                error = "" if is_refusal else described(caught)
                raise
            finally:
                self.give_back(ticket, session, error)
        return self._ends[variant]

    def take(self, ticket: Ticket) -> Session:
        """Wait for a turn, and return the session to use until `give_back`.

        Raises:
            BackendError: there is no session, and none can be opened.
        """
        with self._lock:
            if self._broken:
                raise BackendError(self._broken)
            self._turns.ask(ticket, time.monotonic())
            self._serve()
            if self._turns.is_awaited:
                self._grow()
        while not ticket.is_called(self._rules.check_s):
            with self._lock:
                self._revoke_hanging()
                if self._turns.is_awaited:
                    self._grow()
        if ticket.session is None:
            raise BackendError(ticket.error)
        return ticket.session

    def give_back(self, ticket: Ticket, session: Session, error: str = "") -> None:
        """End a turn; `error`: why its session cannot be used again, empty: it can."""
        with self._lock:
            self._end(ticket)
            is_kept = self._keeps(session, error)
            self._serve()
        if not is_kept:
            session.close()  # before another is opened: a device may have room for one
        with self._lock:
            if self._turns.is_awaited:
                self._grow()

    def _end(self, ticket: Ticket) -> None:
        if self._turns.end(ticket, time.monotonic()) is None:
            self._lost -= 1
            log.warning("%s: the inference on %s that took so long has ended", self._name, self.backend)

    def _keeps(self, session: Session, error: str) -> bool:
        """Take a session back, and return True unless it has to be closed."""
        if error and not self._rules.reopens:
            self._broken = self._broken or error
            self._refuse(self._broken)
            self._failed.append(session)  # closing it may take long: whoever leaves does that
            return True
        if error or self._turns.items + self._opening >= min(self._limit, self.members):
            return False
        self._turns.add(session)
        return True

    def _open_first(self) -> None:
        session = self._opens()
        self.backend = session.backend
        self._ends[session.variant] = session.inputs, session.outputs
        with self._lock:
            self._turns.add(session)

    def _serve(self) -> None:
        for ticket, session in self._turns.grants(time.monotonic()):
            ticket.call(session)

    def _grow(self) -> None:
        """Open another session if there is none, or if streams wait for each other."""
        available = self._turns.items + self._opening
        if available == 0:
            if self._lost > _LOST_MAX:
                self._refuse(f"{self._name}: {plural(self._lost, 'inference')} on {self.backend} hang")
            else:
                self._open_another()
        elif available < min(self._limit, self.members) and self._must_wait():
            log.info("%s: another session on %s, because streams wait for it", self._name, self.backend)
            self._open_another()

    def _must_wait(self) -> bool:
        """Return True if streams have waited much in the span of time that has just ended."""
        now_s = time.monotonic()
        elapsed_s = now_s - self._measured_s
        if elapsed_s < _WINDOW_S:
            return False
        total_s = self._turns.waited_s(now_s)
        waited_s, self._waited_s, self._measured_s = total_s - self._waited_s, total_s, now_s
        return waited_s > _WAITING * elapsed_s

    def _refuse(self, error: str) -> None:
        """Let the turns of all who wait fail."""
        for ticket in self._turns.dismiss():
            ticket.call(None, error)

    def _revoke_hanging(self) -> None:
        if self._rules.hangs_s is None:
            return
        limit_s = max(self._rules.hangs_s, _HANGS * self._turns.mean_turn_s)
        if not (revoked := self._turns.revoke(limit_s, time.monotonic())):
            return
        self._lost += revoked
        log.error(
            "%s: an inference on %s takes longer than %.0f s; the other streams go on without its session",
            self._name,
            self.backend,
            limit_s,
        )

    def _open_another(self) -> None:
        """Open a session in a thread of its own: nobody has to wait for it who could have another one."""
        self._opening += 1
        try:
            threading.Thread(target=self._open, name="sessions", daemon=True).start()
        except RuntimeError as error:  # no more threads
            self._opened(None, str(error))

    def _open(self) -> None:
        session, error = None, ""
        try:
            session = self._opens()
        except Exception as caught:
            if not isinstance(caught, VedetteError | OSError):
                log.exception("%s: internal error (please report)", self._name)
            error = reason_of(caught)
        with self._lock:
            is_kept = self._opened(session, error)
        if session is not None and not is_kept:
            session.close()

    def _opened(self, session: Session | None, error: str) -> bool:
        """Add an opened session and return True, unless it is not needed any more."""
        self._opening -= 1
        if session is None:
            if self._turns.items:
                self._limit = self._turns.items  # what there is must do
                log.warning("%s: no other session on %s: %s", self._name, self.backend, error)
            else:
                self._refuse(error)
            return False
        if not self.members:
            return False
        self._turns.add(session)
        self._serve()
        return True


def described(error: BaseException) -> str:
    """Return an error's message, or its name if it has none."""
    return str(error) or type(error).__name__


def _closed() -> Session:
    raise BackendError("closed")
