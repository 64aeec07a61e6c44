"""Decides what each stream may use: a function of the newest readings and of what was decided before.

What a stream is promised (`[streams.NAME.service]`) is kept as long as streams of a lower, then of the same,
priority can give way. The load is reduced before the temperature reaches its limit, not when it has.
What gave way comes back as soon as there is room for it. Every change has a reason.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Container, Iterator, Mapping

from agent.config.features import Giving, GovernorConfig
from agent.features.governor.readings import (
    BLIND_S,
    COLD_C,
    RESERVE,
    BoardReading,
    Readings,
    broken_promise,
    heat_trouble,
    is_far_below,
)
from agent.features.governor.steps import (
    CONFIGURED,
    EVERYTHING,
    FOR_PROMISES,
    OFF,
    REDUCTIONS,
    ROOM,
    SYNC_S,
    TRIAL,
    Budgets,
    Change,
    Decision,
    Domain,
    Pause,
    StreamState,
    longest_stride,
    smaller_variant,
)

NO_INFERENCE = "`governor.order` lets no inference give way"

_CONFIRM_S, _SETTLE_S, _CALM_S = 0.9, 2.5, 3.0
"""Time for which a promise must be broken, or something short, until it counts; from a change until its effect
can be judged; and without trouble until something comes back, s."""
_HALF, _RELIEFS = 0.5, 2
"""Share of its cost that a stream keeps when it gives way; where a promise is far from kept, or has not been kept
after so many decisions, all give way at once, and less important ones keep as little as they can."""
_IDLE, _FUTILE_S = 0.3, 20.0
"""Idle share of the processors from which on a stream is not short of processor time; what others gave is in vain
when its promise is not kept beside so much for so long, s."""
_OTHERS = 0.25
"""Share of the processors from which on other programs are named as those that use them."""
_TRIAL_S = 120.0
"""Time without trouble after which a stream gets more for a trial although no time is idle, s."""
_DEARER = 1.15
"""Factor on the estimated cost of what comes back."""
_BATTERY_BACK = 5.0
"""The battery is no longer low when its charge has risen by so much, percentage points."""
_HEAT_SETTLE_S, _HEAT_CALM_S = 20.0, 60.0
"""Pause between two reductions because of heat or a weak supply, and from one until something comes back, s:
boards take minutes to follow."""
_LAST_STEP = 0.95
"""Share of the load that is kept when what came back last was too much for the supply."""
_LEAST_KEPT, _MOST_KEPT = 0.3, 0.9
"""Least and greatest share of the load that one reduction because of heat leaves."""
_UNLOADED_C, _BY_LOAD_C, _COOL_C = 40.0, 4.0, 2.0
"""Assumed temperature of a board without load, °C: in a warm place the load is reduced too far. Part of a
temperature that comes from the load at least; and what comes back must leave so much below the limit, °C."""
_WEAK_S, _WEAK_SOON_S, _CAREFUL_S = 60.0, 90.0, 1200.0
"""First pause from a weak supply until something comes back, and time after which that was not too early; for the
third after the pause, what the supply bears is unknown, and things come back one by one, s."""
_SHORT_S, _SHORT_SOON_S = 10.0, 90.0
"""First pause between two steps back after memory, the disk or the network was short, and time after which a step
was not too early, s."""


class Governor(Budgets):
    """Keeps what streams are promised, and the board below its limits. For one thread; no clock, no I/O."""

    def __init__(self, config: GovernorConfig) -> None:
        super().__init__(config)
        self._board = BoardReading()
        self._unmet: dict[str, str] = {}
        self._hot, self._saves = "", False
        self._supply = Pause(_WEAK_S, _WEAK_SOON_S)
        self._shortages: dict[Domain, Pause] = {
            domain: Pause(_SHORT_S, _SHORT_SOON_S) for domain in ("memory", "disk", "link")
        }
        self._short_s: dict[Domain, float] = {}
        self._trouble_s = self._heat_s = self._cooled_s = self._warm_s = -math.inf

    def decide(self, readings: Readings) -> Decision:
        """Decide what holds from now on. Times of readings must not run backwards."""
        self._now_s, self._board, self._streams = readings.now_s, readings.board, readings.streams
        self._changes, self._unmet, broken = {}, {}, dict[str, str]()
        for name in self._states.keys() - readings.streams.keys() - readings.known:
            del self._states[name]
        for name in readings.streams:
            self._apply_configuration(name, self._states.setdefault(name, StreamState()))
        if not self._config.enabled:
            self._give_everything()
        else:
            if any([self._handle_heat(), self._handle_battery(), self._handle_promises()]):
                self._trouble_s = self._now_s
            self._handle_shortages(readings.shortages)
            self._give_back()
            broken = {
                name: broken_promise(stream)
                for name, stream in self._streams.items()
                if self._states[name].broken_s is not None
            }
            if self._hot:
                broken[""] = self._hot
        states = {name: self._states[name] for name in self._streams}
        return Decision(
            {name: state.budget(self._streams[name]) for name, state in states.items()},
            SYNC_S[self._sync],
            tuple(self._changes.values()),
            {name: state.why for name, state in states.items() if state.is_reduced},
            self._unmet,
            broken,
        )

    def _apply_configuration(self, name: str, state: StreamState) -> None:
        """Give back at once what may no longer be reduced, and a stride that leaves less than is promised.

        While no processor is idle, a camera that is read too late only seems to be slower.
        """
        stream, order, before = self._streams[name], self._config.order, state.text
        if state.promise != (stream.min_fps, stream.max_latency_ms):
            state.promise = stream.min_fps, stream.max_latency_ms
            state.keeps_promise()
        for giving in list(state.taken):
            if giving not in order or (giving == "decoding" and not stream.has_decoding):
                del state.taken[giving]
        if "inference" not in order:
            state.stride, state.variant = 1, ""
        longest = self._config.max_stride
        if stream.min_fps or self._board.idle >= RESERVE:
            longest = longest_stride(stream, longest)
        state.stride = min(state.stride, longest)
        if state.variant not in [variant.name for variant in stream.variants]:
            state.variant = ""
        if state.text != before:
            self._changes[name] = Change(name, state.text, CONFIGURED)
            state.broken_s = self._now_s + _SETTLE_S - _CONFIRM_S  # until the change can be judged

    def _give_everything(self) -> None:
        for name, state in self._states.items():
            if state.is_reduced:
                self._changes[name] = Change(name, EVERYTHING, OFF)
            self._states[name] = StreamState()
        if self._sync:
            self._set_sync(0, OFF)

    # Heat, a weak supply, a low battery

    def _handle_heat(self) -> bool:
        """Reduce the load that leads above the temperature's limit, or is too much for the supply."""
        board, now_s = self._board, self._now_s
        if board.celsius is not None:
            self._warm_s = now_s if board.celsius >= board.limit_c - COLD_C else -math.inf
        why = heat_trouble(board)
        if why or not self._is_blind:
            self._hot = why
        if not why:
            return False
        is_early = bool(board.slowed) and self._supply.trouble(now_s)
        if "inference" not in self._config.order:
            self._unmet[""] = f"{why}: {NO_INFERENCE}"
            return True
        if is_early or now_s - self._heat_s >= _HEAT_SETTLE_S:
            self._heat_s = now_s
            self._shed(_LAST_STEP if is_early else _kept_share(board), why)
        is_least = all(self._cheaper(name, 0.0) == self._step(name) for name in self._streams)
        if is_least and now_s - self._cooled_s >= _HEAT_SETTLE_S:
            self._unmet[""] = f"{why}, and nothing is left that could give way"
        return True

    @property
    def _is_blind(self) -> bool:
        """True for some time after the temperature of a warm board could be read last."""
        return self._board.celsius is None and self._now_s - self._warm_s < BLIND_S

    def _shed(self, kept: float, why: str) -> None:
        """Reduce the load to a share of it: the least important streams first, equal ones by turns."""
        wanted = {name: self._step(name) for name in self._streams}
        excess = sum(step.cost for step in wanted.values()) * (1.0 - kept)
        for priority in sorted({stream.priority for stream in self._streams.values()}):
            left = {name for name, stream in self._streams.items() if stream.priority == priority}
            while left and excess > 0.0:
                name = max(left, key=lambda one: (wanted[one].cost, one))
                step = self._cheaper(name, wanted[name].cost, wanted[name])
                left -= {name} if step == wanted[name] else set()
                excess -= wanted[name].cost - step.cost
                wanted[name] = step
        for name, step in wanted.items():
            if self._set_step(name, step, why, urgent=True):
                self._cooled_s = self._now_s

    def _handle_battery(self) -> bool:
        """Let every stream infer as little as it may while the battery is low. Return True while it is."""
        charge, limit = self._board.battery_percent, self._config.save_below_percent
        back = _BATTERY_BACK if self._saves and limit else 0.0
        self._saves = charge is not None and charge < limit + back
        if charge is None or not self._saves or "inference" not in self._config.order:
            return False
        for name in self._streams:
            self._set_step(name, self._cheaper(name, 0.0), f"{charge:.0f} % of the battery are left")
        return True

    # What streams are promised

    def _handle_promises(self) -> bool:
        """Take from others what a stream lacks that is promised more than it gets. Return True if one does."""
        broken = self._confirmed()
        helped = [name for name in broken if not self._states[name].is_futile]
        if self._now_s - self._settled_s >= _SETTLE_S:
            for name in sorted(helped, key=lambda one: -self._streams[one].priority):
                if self._relieve(name, broken):
                    self._settled_s, self._states[name].is_alone = self._now_s, False
                    break
                self._states[name].is_alone = self._may_change()
        for name, what in broken.items():
            state = self._states[name]
            self._note_futile(state)
            if state.is_alone or name not in helped:
                self._unmet[name] = f"{what}: {self._who_has_it()}"
        return any(
            self._states[name].broken_s is not None and not self._states[name].is_futile for name in self._streams
        )

    def _confirmed(self) -> dict[str, str]:
        """Return what is not kept, by stream, of promises that have not been kept for some time."""
        found = {}
        for name, stream in self._streams.items():
            state, what = self._states[name], broken_promise(stream)
            if not what:
                state.keeps_promise()
                continue
            state.broken_s = self._now_s if state.broken_s is None else state.broken_s
            if self._now_s - state.broken_s >= _CONFIRM_S:
                found[name] = what
        return found

    def _note_futile(self, state: StreamState) -> None:
        """Let others have back what they gave for a promise that is not kept although processors are idle."""
        if not state.is_alone or self._board.idle < _IDLE:
            state.idle_s = None
            return
        state.idle_s = self._now_s if state.idle_s is None else state.idle_s
        state.is_futile = state.is_futile or self._now_s - state.idle_s >= _FUTILE_S

    def _who_has_it(self) -> str:
        """Return who uses what a stream lacks for which nothing can give way."""
        board = self._board
        if board.slowed:
            return board.slowed
        if "inference" not in self._config.order:
            return NO_INFERENCE
        if board.idle >= _IDLE:
            return f"its inferences take too long, though {board.idle:.0%} of the processors are idle"
        if board.quota is not None:
            return f"the daemon may use {board.quota:.2g} processors alone (CPUQuota)"
        if board.others >= _OTHERS:
            return f"other programs use {board.others:.0%} of the processors"
        return "this board is too slow for it"

    def _relieve(self, name: str, broken: Mapping[str, str]) -> bool:
        """Let another stream give way, or this one itself. Return True if something has changed."""
        state, stream, why = self._states[name], self._streams[name], f"{name} {broken[name]}"
        is_far = is_far_below(stream)
        takes_all = is_far or state.reliefs >= _RELIEFS
        if self._board.idle >= _IDLE and self._infer_smaller(name, broken[name]):
            return True
        has_given = False
        for donor in self._donors(name, broken):
            has_given |= self._give_way(donor, stream.priority, why, takes_all=takes_all)
            if has_given and not takes_all:
                break
        if is_far or not has_given:
            has_given |= self._infer_smaller(name, broken[name])
        state.reliefs += has_given
        return has_given

    def _infer_smaller(self, name: str, what: str) -> bool:
        """Use a smaller variant: fewer pictures would break the promise of a rate, and help no latency."""
        smaller = smaller_variant(self._streams[name], self._step(name))
        return "inference" in self._config.order and self._set_step(name, smaller, what)

    def _donors(self, name: str, broken: Container[str]) -> Iterator[str]:
        """Yield the streams that may give way for another: lower priorities first, then the dearest ones."""
        streams, costs = self._streams, {one: self._step(one).cost for one in self._streams}
        for one in sorted(streams, key=lambda other: (streams[other].priority, -costs[other])):
            is_lower = streams[one].priority < streams[name].priority
            is_equal = streams[one].priority == streams[name].priority and one not in broken
            if one != name and (is_lower or is_equal) and (costs[one] > 0.0 or streams[one].has_clips):
                yield one

    def _give_way(self, name: str, priority: int, why: str, *, takes_all: bool) -> bool:
        """Let a stream give up the first thing of the order that takes processor time, or all such things.

        Of inferences it gives half of the cost, or of all things what it can if it is less important than the
        stream of this priority. Key frames alone are decoded after everything else: what moves is hardly tracked
        then.
        """
        stream, has_given = self._streams[name], False
        is_lower, others = stream.priority < priority, self._givings("processors")
        for giving in self._config.order:
            if giving in others and getattr(stream, f"has_{giving}", True):
                has_given |= self._take(name, giving, why, "processors")
                while takes_all and self._take(name, giving, why, "processors"):
                    pass
            elif giving == "inference":
                kept = 0.0 if takes_all and is_lower else _HALF
                has_given |= self._set_step(name, self._cheaper(name, self._step(name).cost * kept), why)
            if has_given and not takes_all:
                break
        if not has_given and is_lower and stream.has_decoding and "decoding" in self._config.order:
            has_given = self._take(name, "decoding", why, "processors")
        return has_given

    # Memory, the disk, the network

    def _handle_shortages(self, shortages: Mapping[str, str]) -> None:
        """Let the least important streams give way to what is short, equal ones together."""
        for domain, pause in self._shortages.items():
            why = shortages.get(domain, "")
            if not why:
                self._short_s.pop(domain, None)
                continue
            pause.trouble(self._now_s)
            since_s = self._short_s.setdefault(domain, self._now_s)
            if self._now_s - since_s < _CONFIRM_S:
                continue
            self._short_s[domain] = self._now_s + _SETTLE_S - _CONFIRM_S
            givings = [
                one for one in self._config.order if one in REDUCTIONS and domain in REDUCTIONS[one].relieves
            ]
            if any(self._take_least(giving, why, domain) for giving in givings) or domain != "disk":
                continue
            if self._sync < len(SYNC_S) - 1 and self._may_change(FOR_PROMISES):
                self._set_sync(self._sync + 1, why)

    def _givings(self, domain: Domain) -> list[Giving]:
        """Return what relieves a shortage, the first to be given up first; decoding comes after all else."""
        order = [giving for giving in self._config.order if giving not in ("inference", "decoding")]
        return [giving for giving in order if domain in REDUCTIONS[giving].relieves]

    def _take_least(self, giving: Giving, why: str, domain: Domain) -> bool:
        able = {
            name: (stream.priority, level)
            for name, stream in self._streams.items()
            if getattr(stream, f"has_{giving}", True)
            and (level := self._states[name].level(giving)) < len(REDUCTIONS[giving].levels)
        }
        first = min(able.values(), default=None)
        taken = [self._take(name, giving, why, domain) for name, rank in able.items() if rank == first]
        return any(taken)

    # Back to everything

    def _give_back(self) -> None:
        """Give back what has room again: what was short each when that is over, inferences as time is idle."""
        for domain, pause in self._shortages.items():
            if pause.is_over(self._now_s) and self._may_change(FOR_PROMISES):
                if domain == "disk" and self._sync:
                    self._set_sync(self._sync - 1, ROOM)
                    pause.returned(self._now_s)
                elif self._return_level(domain, self._streams, ROOM):
                    pause.returned(self._now_s)
        now_s, board, states = self._now_s, self._board, self._states
        if now_s - max(self._trouble_s, self._settled_s) < _CALM_S or (free := self._spare()) < 0.0:
            return
        waiting = [name for name in self._streams if states[name].pause.is_over(now_s)]
        left = {name for name in waiting if states[name].infers_less and not states[name].level("decoding")}
        if left and self._raise(free / _DEARER, left):
            return
        if free > 0.0 and self._may_change(FOR_PROMISES):
            whole = [name for name in waiting if name not in left]
            if self._return_level("processors", whole, ROOM):
                return
        is_cold = board.celsius is None or board.celsius < board.limit_c - COLD_C
        if is_cold and now_s - self._trouble_s >= _TRIAL_S:
            self._try_one(waiting, left)

    def _return_level(self, domain: Domain, names: Collection[str], why: str) -> bool:
        """Give back a level that a domain took, to the most important of these streams, equal ones together.

        Each has the last thing back that it gave.
        """
        owed: dict[str, Giving] = {}
        for name in names:
            for giving in self._config.order:
                if self._states[name].has_given(giving, domain):
                    owed[name] = giving
        highest = max((self._streams[name].priority for name in owed), default=0)
        for name, giving in owed.items():
            if self._streams[name].priority != highest:
                continue
            self._states[name].give_back(giving, domain)
            if domain == "processors":
                self._states[name].pause.returned(self._now_s)
                self._settled_s = self._now_s
            self._record(name, self._states[name].text, why)
        return bool(owed)

    def _try_one(self, waiting: list[str], left: Container[str]) -> None:
        """Let the most important stream have something back although no time is idle: others may give way to it.

        Of equal ones it is the one that has waited for the longest time.
        """
        states, streams = self._states, self._streams
        reduced = [
            name
            for name in waiting
            if name in left or any(states[name].has_given(giving, "processors") for giving in REDUCTIONS)
        ]
        if reduced:
            name = min(reduced, key=lambda one: (-streams[one].priority, states[one].pause.returned_s, one))
            self._trouble_s = self._now_s
            if name in left:
                self._set_step(name, self._dearer(name), TRIAL)
            elif self._may_change(FOR_PROMISES):
                self._return_level("processors", [name], TRIAL)

    def _spare(self) -> float:
        """Return the processor time per second that may be used in addition, as a share of one processor.

        It is negative where heat or the supply allow nothing, or where that is not known well enough yet.
        """
        board, now_s = self._board, self._now_s
        if now_s < self._supply.until_s or self._is_blind:
            return -1.0
        idle = (board.idle - RESERVE) * board.cores
        if board.celsius is None or board.celsius < board.limit_c - COLD_C:
            return max(0.0, idle)
        if board.settles_c is None or now_s - self._heat_s < _HEAT_CALM_S:
            return -1.0
        busy = max(0.05, 1.0 - board.idle) * board.cores
        by_heat = busy * (_coolest_share(board, board.settles_c) - 1.0)
        return max(0.0, min(idle, by_heat)) if by_heat >= 0.0 else -1.0

    def _raise(self, spare: float, left: set[str]) -> bool:
        """Let streams infer more: the most important first, equal ones by turns. Return False if none can.

        For some time after the supply was weak, a stream gets one step more at a time, first one with which that
        was not too much before.
        """
        now, left = {name: self._step(name) for name in left}, set(left)
        wanted, is_careful = dict(now), self._now_s - self._supply.until_s < _CAREFUL_S

        def rank(name: str) -> tuple[float, int, float, str]:
            failed = self._states[name].pause.pause_s if is_careful else 0.0
            return failed, -self._streams[name].priority, wanted[name].cost, name

        while left:
            name = min(left, key=rank)
            step = self._dearer(name, wanted[name])
            if step == wanted[name] or step.cost - wanted[name].cost > spare:
                left.discard(name)
                continue
            spare -= step.cost - wanted[name].cost
            wanted[name] = step
            if is_careful:
                break
        for name, step in wanted.items():
            if step != now[name] and self._set_step(name, step, ROOM):
                self._supply.returned(self._now_s)
        return wanted != now


def _kept_share(board: BoardReading) -> float:
    """Return the share of the load that keeps the board a little below its limit."""
    if board.settles_c is None or board.settles_c <= board.limit_c:
        return 0.75
    return min(_MOST_KEPT, max(_LEAST_KEPT, _coolest_share(board, board.settles_c)))


def _coolest_share(board: BoardReading, settles_c: float) -> float:
    """Return the share of the load that leads to a little below the limit instead of to this temperature."""
    unloaded_c = _UNLOADED_C if board.celsius is None else min(_UNLOADED_C, board.celsius - _BY_LOAD_C)
    return (board.limit_c - _COOL_C - unloaded_c) / max(1.0, settles_c - unloaded_c)
