"""Heat, a weak supply and a low battery: how much the load is reduced for them, and when it may rise again."""

from __future__ import annotations

from collections.abc import Mapping

from agent.compute.governor import pace
from agent.compute.governor.budgets import Budgets
from agent.compute.governor.readings import BoardReading, StreamReading
from agent.compute.governor.steps import cheaper, steps
from agent.compute.governor.trouble import COLD_C, NO_INFERENCE, heat_trouble, kept_share, spare
from agent.config.governor import GovernorConfig

_LAST_STEP = 0.95
"""Share of the load that is kept when what came back last was too much for the supply."""


class PowerLimits:
    """Keeps a board below its limits; no clock: times are CLOCK_MONOTONIC, s.

    Attributes:
        trouble: why the load must be less, also while that cannot be read for some time; empty: it need not.
        unmet: why the board is above its limits although nothing is left that could give way; empty: it is not.
    """

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets
        self.trouble = self.unmet = ""
        self._now_s, self._saves, self._weak_s = 0.0, False, pace.HEAT_CALM_S
        self._heat_at = self._cooled_at = self._warm_at = self._weak_until = self._weak_at = float("-inf")

    def spare(self, board: BoardReading) -> float:
        """Return the processor time per second that may be used in addition, as a share of one processor.

        It is negative where heat or the supply allow nothing.
        """
        if self._now_s < self._weak_until:
            return -1.0
        return spare(board, now_s=self._now_s, warm_s=self._warm_at, heat_s=self._heat_at)

    @property
    def is_careful(self) -> bool:
        """True for some time after the supply was weak: what it bears is unknown."""
        return self._now_s - self._weak_until < pace.WEAK_MAX_S

    def handle_battery(
        self, board: BoardReading, streams: Mapping[str, StreamReading], config: GovernorConfig
    ) -> bool:
        """Let every stream infer as little as it may while the battery is low. Return True while it is."""
        charge, limit = board.battery_percent, config.save_below_percent
        back = pace.BATTERY_BACK if self._saves and limit else 0.0
        self._saves = charge is not None and charge < limit + back
        if charge is None or not self._saves or "inference" not in config.order:
            return False
        for name, stream in streams.items():
            least = self._budgets.cheaper(name, stream, 0.0)
            self._budgets.set_step(name, least, stream, f"{charge:.0f} % of the battery are left")
        return True

    def handle_heat(
        self,
        board: BoardReading,
        streams: Mapping[str, StreamReading],
        config: GovernorConfig,
        *,
        now_s: float,
        returned_s: float,
    ) -> bool:
        """Reduce the load that leads above the temperature's limit, or is too much for the supply.

        Return True while it is.

        Args:
            board: the newest reading.
            streams: that run, their newest readings.
            config: what may be reduced.
            now_s: the time.
            returned_s: when a stream has had more again.
        """
        self._now_s, self.unmet = now_s, ""
        if board.celsius is not None:
            self._warm_at = now_s if board.celsius >= board.limit_c - COLD_C else float("-inf")
        why, is_blind = heat_trouble(board), self._is_blind(board)
        if why or not is_blind:
            self.trouble = why
        if not why:
            return False
        returned_too_much = bool(board.slowed) and self._wait_for_supply(returned_s)
        if "inference" not in config.order:
            self.unmet = f"{why}: {NO_INFERENCE}"
            return True
        if returned_too_much or now_s - self._heat_at >= pace.HEAT_SETTLE_S:
            self._heat_at = now_s
            self._shed(_LAST_STEP if returned_too_much else kept_share(board), why, streams, config)
        if self._is_least(streams) and now_s - self._cooled_at >= pace.HEAT_SETTLE_S:
            self.unmet = f"{why}, {self._given(streams)}"
        return True

    def _is_blind(self, board: BoardReading) -> bool:
        """Return True if what was too hot or weak cannot be read any more, for some time."""
        self._weak_at = (
            self._now_s if board.slowed else self._weak_at if not board.is_supply_known else float("-inf")
        )
        if not board.slowed and self._now_s - self._weak_at < pace.BLIND_S:
            self._weak_until = max(self._weak_until, self._now_s + 1.0)
            return True
        return board.celsius is None and self._now_s - self._warm_at < pace.BLIND_S

    def _wait_for_supply(self, returned_s: float) -> bool:
        """Let nothing come back for some time, and longer each time that this was too much for the supply.

        Return True if it is too much for it now.
        """
        begins, was_too_soon = self._now_s >= self._weak_until, self._now_s - returned_s < pace.TOO_SOON_S
        if begins and was_too_soon:
            self._weak_s = min(pace.WEAK_MAX_S, 2.0 * self._weak_s)
        elif begins and not self.is_careful:
            self._weak_s = pace.HEAT_CALM_S
        self._weak_until = self._now_s + self._weak_s
        return begins and was_too_soon

    def _shed(self, kept: float, why: str, streams: Mapping[str, StreamReading], config: GovernorConfig) -> None:
        """Reduce the load to a share of it: the least important streams first, equal ones by turns."""
        now = {name: self._budgets.states[name].step(stream) for name, stream in streams.items()}
        wanted = dict(now)
        excess = sum(step.cost for step in now.values()) * (1.0 - kept)
        for priority in sorted({stream.priority for stream in streams.values()}):
            left = {name for name, stream in streams.items() if stream.priority == priority}
            while left and excess > 0.0:
                name = max(left, key=lambda one: (wanted[one].cost, one))
                ladder = steps(streams[name], config.max_stride)
                step = cheaper(ladder, wanted[name], wanted[name].cost)
                left -= {name} if step == wanted[name] else set()
                excess -= wanted[name].cost - step.cost
                wanted[name] = step
        for name, step in wanted.items():
            if self._budgets.set_step(name, step, streams[name], why, urgent=True):
                self._cooled_at = self._now_s

    def _is_least(self, streams: Mapping[str, StreamReading]) -> bool:
        states, least = self._budgets.states, self._budgets.cheaper
        return all(least(name, stream, 0.0) == states[name].step(stream) for name, stream in streams.items())

    def _given(self, streams: Mapping[str, StreamReading]) -> str:
        """Return what streams have given that can give no more."""
        states = self._budgets.states
        if not any(states[name].step(stream).cost for name, stream in streams.items()):
            return "though nothing is inferred"
        if not any(states[name].infers_less for name in streams):
            return "and no stream may give way"
        return "though every stream has given way"
