"""Limits of a board: heat, a weak supply, a low battery, and shortages of memory, disk and network."""

from __future__ import annotations

from agent.config.governor import Giving
from agent.features.governor.budgets import (
    FOR_PROMISES,
    FOR_PROMISES_BACK,
    LEVELS,
    ROOM,
    SYNC_S,
    Budgets,
    Domain,
    sync_text,
)
from agent.features.governor.readings import (
    BLIND_S,
    COLD_C,
    RESERVE,
    BoardReading,
    Readings,
    disk_trouble,
    heat_trouble,
    link_trouble,
    memory_trouble,
)

CONFIRM_S = 0.9
"""A promise is broken, and something is short, if it was in every window for so long, s."""
SETTLE_S = 2.5
"""Pause after a change until its effect can be judged, s."""
FORGIVEN_S = 600.0
"""Time after which it no longer counts that something came back too early, s."""
NO_INFERENCE = "`governor.order` lets no inference give way"
_BATTERY_BACK = 5.0
"""The battery is no longer low when its charge has risen by so much, percentage points."""
_SETTLE_S, _CALM_S = 20.0, 60.0
"""Pause between two reductions because of heat or a weak supply, and from one until something comes back, s:
boards take minutes to follow."""
_WEAK_MAX_S = 1200.0
"""Longest pause from a weak supply until something comes back, s: it doubles each time that this was too much.
For so long afterwards, things come back one by one."""
_RELAX_S, _RELAX_MAX_S, _TOO_SOON_S = 10.0, 640.0, 90.0
"""First and longest pause between two steps back after memory, the disk or the network was short, s: it doubles
when trouble comes again so soon after a step, and halves with each step from `FORGIVEN_S` after that on."""
_LAST_STEP = 0.95
"""Share of the load that is kept when what came back last was too much for the supply."""
_LEAST_KEPT, _MOST_KEPT = 0.3, 0.9
"""Least and greatest share of the load that one reduction because of heat leaves."""
_UNLOADED_C = 40.0
"""Temperature of a board without load that is assumed, °C; in a warm place the load is reduced too far."""
_BY_LOAD_C = 4.0
"""Part of a temperature that comes from the load at least, °C."""
_COOL_C = 2.0
"""What comes back must leave the temperature so far below its limit, °C."""
_NEVER = float("-inf")


class PowerLimits:
    """Keeps a board below its limits; no clock: times are CLOCK_MONOTONIC, s.

    Attributes:
        trouble: why the load must be less, also while that cannot be read for some time; empty: it need not.
        unmet: why the board is above its limits although nothing is left that could give way; empty: it is not.
    """

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets
        self.trouble = self.unmet = ""
        self._saves, self._weak_s = False, _CALM_S
        self._heat_at = self._cooled_at = self._warm_at = self._weak_until = self._weak_at = _NEVER

    def spare(self) -> float:
        """Return the processor time per second that may be used in addition, as a share of one processor.

        It is negative where heat or the supply allow nothing, or where that is not known well enough yet.
        """
        board, now_s = self._budgets.board, self._budgets.now_s
        if now_s < self._weak_until or (board.celsius is None and now_s - self._warm_at < BLIND_S):
            return -1.0
        idle = (board.idle - RESERVE) * board.cores
        if board.celsius is None or board.celsius < board.limit_c - COLD_C:
            return max(0.0, idle)
        if board.settles_c is None or now_s - self._heat_at < _CALM_S:
            return -1.0
        busy = max(0.05, 1.0 - board.idle) * board.cores
        by_heat = busy * (_coolest_share(board, board.settles_c) - 1.0)
        return max(0.0, min(idle, by_heat)) if by_heat >= 0.0 else -1.0

    @property
    def is_careful(self) -> bool:
        """True for some time after the supply was weak: what it bears is unknown."""
        return self._budgets.now_s - self._weak_until < _WEAK_MAX_S

    def handle_battery(self) -> bool:
        """Let every stream infer as little as it may while the battery is low. Return True while it is."""
        charge, config = self._budgets.board.battery_percent, self._budgets.config
        limit = config.save_below_percent
        back = _BATTERY_BACK if self._saves and limit else 0.0
        self._saves = charge is not None and charge < limit + back
        if charge is None or not self._saves or "inference" not in config.order:
            return False
        for name in self._budgets.streams:
            least = self._budgets.cheaper(name, 0.0)
            self._budgets.set_step(name, least, f"{charge:.0f} % of the battery are left")
        return True

    def handle_heat(self, returned_s: float) -> bool:
        """Reduce the load that leads above the temperature's limit, or is too much for the supply.

        Return True while it is. `returned_s`: when a stream has had more again.
        """
        board, now_s, self.unmet = self._budgets.board, self._budgets.now_s, ""
        if board.celsius is not None:
            self._warm_at = now_s if board.celsius >= board.limit_c - COLD_C else _NEVER
        why, is_blind = heat_trouble(board), self._is_blind(board, now_s)
        if why or not is_blind:
            self.trouble = why
        if not why:
            return False
        returned_too_much = bool(board.slowed) and self._wait_for_supply(now_s, returned_s)
        if "inference" not in self._budgets.config.order:
            self.unmet = f"{why}: {NO_INFERENCE}"
            return True
        if returned_too_much or now_s - self._heat_at >= _SETTLE_S:
            self._heat_at = now_s
            self._shed(_LAST_STEP if returned_too_much else _kept_share(board), why)
        if self._is_least() and now_s - self._cooled_at >= _SETTLE_S:
            self.unmet = f"{why}, {self._given()}"
        return True

    def _is_blind(self, board: BoardReading, now_s: float) -> bool:
        """Return True if what was too hot or weak cannot be read any more, for some time."""
        self._weak_at = now_s if board.slowed else self._weak_at if not board.is_supply_known else _NEVER
        if not board.slowed and now_s - self._weak_at < BLIND_S:
            self._weak_until = max(self._weak_until, now_s + 1.0)
            return True
        return board.celsius is None and now_s - self._warm_at < BLIND_S

    def _wait_for_supply(self, now_s: float, returned_s: float) -> bool:
        """Let nothing come back for some time, and longer each time that this was too much for the supply.

        Return True if it is too much for it now.
        """
        begins, was_too_soon = now_s >= self._weak_until, now_s - returned_s < _TOO_SOON_S
        if begins and was_too_soon:
            self._weak_s = min(_WEAK_MAX_S, 2.0 * self._weak_s)
        elif begins and not self.is_careful:
            self._weak_s = _CALM_S
        self._weak_until = now_s + self._weak_s
        return begins and was_too_soon

    def _shed(self, kept: float, why: str) -> None:
        """Reduce the load to a share of it: the least important streams first, equal ones by turns."""
        budgets, streams = self._budgets, self._budgets.streams
        wanted = {name: budgets.step(name) for name in streams}
        excess = sum(step.cost for step in wanted.values()) * (1.0 - kept)
        for priority in sorted({stream.priority for stream in streams.values()}):
            left = {name for name, stream in streams.items() if stream.priority == priority}
            while left and excess > 0.0:
                name = max(left, key=lambda one: (wanted[one].cost, one))
                step = budgets.cheaper(name, wanted[name].cost, wanted[name])
                left -= {name} if step == wanted[name] else set()
                excess -= wanted[name].cost - step.cost
                wanted[name] = step
        for name, step in wanted.items():
            if budgets.set_step(name, step, why, urgent=True):
                self._cooled_at = budgets.now_s

    def _is_least(self) -> bool:
        budgets = self._budgets
        return all(budgets.cheaper(name, 0.0) == budgets.step(name) for name in budgets.streams)

    def _given(self) -> str:
        """Return what streams have given that can give no more."""
        budgets = self._budgets
        if not any(budgets.step(name).cost for name in budgets.streams):
            return "though nothing is inferred"
        if not any(budgets.states[name].infers_less for name in budgets.streams):
            return "and no stream may give way"
        return "though every stream has given way"


def _kept_share(board: BoardReading) -> float:
    """Return the share of the load that keeps the board a little below its limit."""
    if board.settles_c is None or board.settles_c <= board.limit_c:
        return 0.75
    return min(_MOST_KEPT, max(_LEAST_KEPT, _coolest_share(board, board.settles_c)))


def _coolest_share(board: BoardReading, settles_c: float) -> float:
    """Return the share of the load that leads to a little below the limit instead of to this temperature."""
    unloaded_c = _UNLOADED_C if board.celsius is None else min(_UNLOADED_C, board.celsius - _BY_LOAD_C)
    return (board.limit_c - _COOL_C - unloaded_c) / max(1.0, settles_c - unloaded_c)


class Shortage:
    """One of memory, disk and network, which recovers whatever else is short; times are CLOCK_MONOTONIC, s."""

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._trouble_s = self._relaxed_s = self._doubled_s = _NEVER
        self._pause_s = _RELAX_S

    def needs_more(self, why: str, now_s: float) -> bool:
        """Return True if there has been trouble for some time, and the last change has had its effect.

        `why` is what is short; empty: nothing.
        """
        if not why:
            self._since_s = None
            return False
        self._trouble_s = now_s
        if self._since_s is None:
            self._since_s = now_s
            if now_s - self._relaxed_s < _TOO_SOON_S:
                self._pause_s, self._doubled_s = min(_RELAX_MAX_S, 2.0 * self._pause_s), now_s
        if now_s - self._since_s < CONFIRM_S:
            return False
        self._since_s = now_s + SETTLE_S - CONFIRM_S
        return True

    def is_over(self, now_s: float) -> bool:
        """Return True if a step may come back."""
        return now_s - max(self._relaxed_s, self._trouble_s) >= self._pause_s

    def relaxed(self, now_s: float) -> None:
        """Record that a step has come back."""
        if now_s - self._doubled_s >= FORGIVEN_S:
            self._pause_s = max(_RELAX_S, 0.5 * self._pause_s)
        self._relaxed_s = now_s


class Shortages:
    """Memory, the disk and the network, and the time for which events may wait for the disk.

    Attributes:
        sync: level of that, see `SYNC_S`.
    """

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets
        self._all: dict[Domain, Shortage] = {"memory": Shortage(), "disk": Shortage(), "link": Shortage()}
        self.sync = 0

    def handle(self, readings: Readings) -> None:
        """Let the least important streams give way to what is short."""
        order = self._budgets.config.order
        if (why := self._why("memory", memory_trouble(readings.board))) and "clips" in order:
            self._lower("clips", why, "memory")
        if why := self._why("disk", disk_trouble(readings.disk)):
            done = "clips" in order and self._lower("clips", why, "disk")
            if not done and self.sync < len(SYNC_S) - 1 and self._budgets.may_change(FOR_PROMISES):
                self.sync += 1
                self._budgets.record("", sync_text(self.sync), why)
        if why := self._why("link", link_trouble(readings.link)):
            for giving in order:
                if giving in ("samples", "snapshots") and self._lower(giving, why, "link"):
                    break

    def _why(self, domain: Domain, trouble: str) -> str:
        """Return why something more must give way; empty: nothing must, or not yet."""
        return trouble if self._all[domain].needs_more(trouble, self._budgets.now_s) else ""

    def _lower(self, giving: Giving, why: str, domain: Domain) -> bool:
        """Lower something of the least important streams that can, equal ones together; False: none could."""
        levels = {name: self._budgets.states[name].levels[giving] for name in self._budgets.streams}
        able = {
            name: (stream.priority, levels[name])
            for name, stream in self._budgets.streams.items()
            if getattr(stream, f"has_{giving}") and levels[name] < LEVELS[giving] - 1
        }
        first = min(able.values(), default=None)
        lowered = [self._budgets.lower(name, giving, why, domain) for name, rank in able.items() if rank == first]
        return any(lowered)

    def over(self) -> set[Domain]:
        """Return what is not short any more: a level of it may come back. Here the wait for the disk does so."""
        if not self._budgets.may_change(FOR_PROMISES_BACK):
            return set()
        found = {domain for domain, one in self._all.items() if one.is_over(self._budgets.now_s)}
        if "disk" in found and self.sync:
            self.sync -= 1
            self._budgets.record("", sync_text(self.sync), ROOM)
            self.relaxed("disk")
            found.discard("disk")
        return found

    def relaxed(self, domain: Domain) -> None:
        """Record that a level has come back."""
        self._all[domain].relaxed(self._budgets.now_s)
