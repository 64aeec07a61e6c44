"""Decides what each stream may use: a function of the newest readings and of what was decided before.

What a stream is promised (`[streams.NAME.service]`) is kept as long as streams of a lower, then of the same,
priority can give way. The load is reduced before the temperature reaches its limit, not when it has.
What gave way comes back as soon as the processors have the idle time for it. Every change has a reason.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping

from msgspec.structs import replace

from agent.config.governor import Giving, GovernorConfig
from agent.features.governor.budgets import (
    CHANGES_PER_MINUTE,
    CLIPS,
    CONFIGURED,
    EVERYTHING,
    FOR_PROMISES_ROOM,
    OFF,
    PROCESSORS,
    RETRY_MAX_S,
    RETRY_S,
    ROOM,
    SYNC_S,
    TRIAL,
    Budgets,
    Domain,
    StreamState,
    described,
    leaves_too_little,
    longest_stride,
    sharers,
    smaller_variant,
    strides_too_far,
    sync_text,
)
from agent.features.governor.limits import CONFIRM_S, FORGIVEN_S, NO_INFERENCE, SETTLE_S, PowerLimits, Shortages
from agent.features.governor.readings import (
    COLD_C,
    RESERVE,
    Decision,
    Readings,
    StreamReading,
    broken_promise,
    is_far_below,
    is_hopeless,
)

_CALM_S = 3.0
"""Time without trouble after which something comes back, s."""
_HALF, _RELIEFS = 0.5, 2
"""Share of its cost that a stream keeps when it gives way; where a promise is far from kept, or has not been kept
after so many decisions, all give way at once, and less important ones keep as little as they can."""
_IDLE, _FUTILE_S = 0.3, 20.0
"""Idle share of the processors from which on a stream is not short of processor time; what others gave is in vain
when its promise is not kept beside so much for so long, s."""
_RELAPSE_S = 45.0
"""Time after a return within which giving way again shows that it was too early, s."""
_DEARER = 1.15
"""Factor on the estimated cost of what comes back."""
_SLOWER = "its camera gives fewer pictures now"
_TRIAL_S = 120.0
"""Time without trouble after which a stream gets more for a trial although no time is idle, s."""
_OTHERS = 0.25
"""Share of the processors from which on other programs are named as those that use them."""


class Governor:
    """Keeps what streams are promised, and the board below its limits. For one thread; no clock, no I/O."""

    def __init__(self, config: GovernorConfig) -> None:
        self._budgets = Budgets(config)
        self._states = self._budgets.states
        self._power, self._shortages = PowerLimits(self._budgets), Shortages(self._budgets)
        self._now_s = 0.0
        self._unmet: dict[str, str] = {}
        self._waiting: set[str] = set()
        self._settled_at = self._returned_at = self._trouble_s = float("-inf")

    def configure(self, config: GovernorConfig) -> None:
        """Use another configuration from the next decision on."""
        self._budgets.config = config

    def decide(self, readings: Readings) -> Decision:
        """Decide what holds from now on. Times of readings must not run backwards."""
        self._now_s = readings.now_s
        self._unmet, self._waiting = {}, set()
        self._budgets.begin(readings)
        for name in readings.streams:
            self._apply_configuration(name)
        if not self._config.enabled:
            self._give_everything()
        else:
            troubled = [self._handle_heat(), self._power.handle_battery(), self._handle_service()]
            self._trouble_s = self._now_s if any(troubled) else self._trouble_s
            self._shortages.handle(readings)
            self._raise_inferences()
            self._relax()
        return self._decision()

    @property
    def _config(self) -> GovernorConfig:
        return self._budgets.config

    @property
    def _streams(self) -> Mapping[str, StreamReading]:
        return self._budgets.streams

    def _handle_heat(self) -> bool:
        is_hot = self._power.handle_heat(self._returned_at)
        if self._budgets.board.slowed:
            for name in self._streams:
                self._note_relapse(name)
        if self._power.unmet:
            self._unmet[""] = self._power.unmet
        return is_hot

    def _decision(self) -> Decision:
        states = {name: self._states[name] for name in self._streams}
        broken = {
            name: broken_promise(self._streams[name])
            for name, state in states.items()
            if state.broken_s is not None
        }
        if self._config.enabled and self._power.trouble:
            broken[""] = self._power.trouble
        return Decision(
            {name: state.budget(self._streams[name]) for name, state in states.items()},
            SYNC_S[self._shortages.sync],
            self._budgets.changes,
            {name: state.why for name, state in states.items() if state.is_reduced},
            self._unmet,
            broken,
            self._waiting,
        )

    def _apply_configuration(self, name: str) -> None:
        """Give back what may no longer be reduced, at once."""
        state = self._states[name]
        before = described(state)
        state.forget_unknown(self._streams[name], self._config)
        if (now := described(state)) != before:
            self._budgets.tell(name, now, CONFIGURED)

    def _give_everything(self) -> None:
        for name, state in self._states.items():
            state.keeps_promise()
            if state.is_reduced:
                self._states[name] = StreamState()
                self._budgets.tell(name, EVERYTHING, OFF)
        if self._shortages.sync:
            self._shortages.sync = 0
            self._budgets.tell("", sync_text(0), OFF)

    # What streams are promised

    def _handle_service(self) -> bool:
        """Take from others what a stream lacks that is promised more than it gets. Return True if one does."""
        broken = self._confirmed()
        helped = {name: what for name, what in broken.items() if self._may_be_helped(name)}
        if self._keep_own_rates(broken):
            self._settled_at = self._now_s
        elif helped and self._now_s - self._settled_at >= SETTLE_S:
            name = max(helped, key=lambda one: self._streams[one].priority)
            if self._relieve(name, helped):
                self._settled_at = self._now_s
        self._tell_unmet(helped)
        return any(
            self._states[name].broken_s is not None and self._may_be_helped(name) for name in self._streams
        )

    def _may_be_helped(self, name: str) -> bool:
        return not is_hopeless(self._streams[name]) and not self._states[name].is_futile

    def _tell_unmet(self, helped: Container[str]) -> None:
        """Keep for the decision why nothing gives way for a broken promise: at all, or not yet."""
        for name, what in self._confirmed().items():
            is_last = not self._can_be_helped(name, helped)
            self._note_futile(self._states[name], is_in_vain=is_last and self._budgets.board.idle >= _IDLE)
            if name not in helped or is_last:
                self._unmet[name] = f"{what}: {self._who_has_it(name, helped)}"
            elif not self._budgets.may_change():
                self._waiting.add(name)
                self._unmet[name] = (
                    f"{what}: others give way for it in {self._budgets.wait_s:.0f} s, since no more than "
                    f"{CHANGES_PER_MINUTE} decisions of a minute change something"
                )

    def _note_futile(self, state: StreamState, *, is_in_vain: bool) -> None:
        """Let others have back what they gave for a promise that is not kept although processors are idle."""
        if not is_in_vain:
            state.idle_s = None
            return
        state.idle_s = self._now_s if state.idle_s is None else state.idle_s
        state.is_futile = state.is_futile or self._now_s - state.idle_s >= _FUTILE_S

    def _who_has_it(self, name: str, broken: Container[str]) -> str:
        """Return who uses what a stream lacks for which nothing can give way; `broken` lack something, too."""
        stream, board = self._streams[name], self._budgets.board
        if board.slowed:
            return board.slowed
        if is_hopeless(stream):
            return f"an inference alone takes {stream.least_ms:.3g} ms of processor time here"
        if "inference" not in self._config.order:
            return NO_INFERENCE
        if board.idle >= _IDLE:
            return f"its inferences take too long, though {board.idle:.0%} of the processors are idle"
        if board.quota is not None:
            return f"the daemon may use {board.quota:.2g} processors alone (CPUQuota)"
        if board.others >= _OTHERS:
            return f"other programs use {board.others:.0%} of the processors"
        return self._rivals_of(name, broken)

    def _rivals_of(self, name: str, broken: Container[str]) -> str:
        """Return which streams have what one of them lacks."""
        priority = self._streams[name].priority
        rivals = {one: other for one, other in self._streams.items() if one != name and other.inferred_fps}
        lacking = [one for one, other in rivals.items() if other.priority == priority and one in broken]
        least = [
            one for one, other in rivals.items() if other.priority <= priority and self._states[one].is_reduced
        ]
        spared = [one for one in rivals if one not in lacking and one not in least]
        if spared:
            return f"{', '.join(spared)} may not give way for it"
        least = [one for one in least if one not in lacking]
        text = f"this board is too slow for it{''.join(f' and {one}' for one in lacking)}"
        return f"{text}, with as little as possible for {', '.join(least)}" if least else text

    def _confirmed(self) -> dict[str, str]:
        """Return what is not kept, by stream, of promises that have not been kept for some time."""
        found = {}
        for name, stream in self._streams.items():
            state, what = self._states[name], broken_promise(stream)
            if not what:
                state.keeps_promise()
                continue
            state.broken_s = self._now_s if state.broken_s is None else state.broken_s
            if self._now_s - state.broken_s >= CONFIRM_S:
                found[name] = what
        return found

    def _relieve(self, name: str, broken: Mapping[str, str]) -> bool:
        """Let another stream give way, or this one itself. Return True if something has changed."""
        state, stream, why = self._states[name], self._streams[name], f"{name} {broken[name]}"
        is_far = is_far_below(stream)
        takes_all = is_far or state.reliefs >= _RELIEFS
        if self._budgets.board.idle >= _IDLE and self._help_itself(name, broken[name]):
            return True
        has_given = False
        for giving in self._donors(name, broken):
            is_lower = self._streams[giving].priority < stream.priority
            given = self._give_way(giving, why, is_lower=is_lower, takes_all=takes_all)
            if not given and not has_given and is_lower:
                given = self._decode_less(giving, stream.priority, why)
            if given:
                self._note_relapse(giving)
            has_given |= given
            if has_given and not takes_all:
                break
        if is_far or not has_given:
            has_given |= self._help_itself(name, broken[name])
        state.reliefs += has_given
        return has_given

    def _keep_own_rates(self, broken: Container[str]) -> bool:
        """Shorten strides that leave less than is promised: a promise or a camera is another one now.

        While no processor is idle, a camera that is read too late only seems to give less. Return True if
        something has changed.
        """
        has_changed, is_starved = False, self._budgets.board.idle < RESERVE
        for name, stream in self._streams.items():
            now, most = self._budgets.step(name), longest_stride(stream, self._config.max_stride)
            if name in broken and leaves_too_little(stream, now.stride):
                most = min(most, now.stride - 1)
            if now.stride > most and (
                name in broken or (strides_too_far(stream, now.stride) and (stream.min_fps or not is_starved))
            ):
                why = f"it is promised {stream.min_fps:g} per second" if stream.min_fps else _SLOWER
                if self._budgets.set_step(name, replace(now, stride=most), why):
                    has_changed = True
                    if self._states[name].broken_s is not None:  # until the change can be judged
                        self._states[name].broken_s = self._now_s + SETTLE_S - CONFIRM_S
        return has_changed

    def _donors(self, name: str, broken: Container[str]) -> Iterator[str]:
        """Yield the streams that may give way for another: lower priorities first, then the dearest ones."""
        streams, costs = self._streams, {one: self._budgets.step(one).cost for one in self._streams}
        for one in sorted(streams, key=lambda other: (streams[other].priority, -costs[other])):
            is_lower = streams[one].priority < streams[name].priority
            is_equal = streams[one].priority == streams[name].priority and one not in broken
            if one != name and (is_lower or is_equal) and (costs[one] > 0.0 or streams[one].has_clips):
                yield one

    def _give_way(self, name: str, why: str, *, is_lower: bool, takes_all: bool) -> bool:
        """Let a stream give up the first thing of the configured order that takes processor time.

        Args:
            name: of the stream.
            why: the reason.
            is_lower: it is less important than the one for which it gives way.
            takes_all: it gives up all such things; of inferences half of the cost, or what it can if it is lower.
        """
        kept = 0.0 if takes_all and is_lower else _HALF
        has_given = False
        for giving in self._config.order:
            if giving == "clips" and self._streams[name].has_clips:
                has_given |= self._budgets.lower(name, "clips", why, PROCESSORS)
                while takes_all and self._budgets.lower(name, "clips", why, PROCESSORS):
                    pass
            if giving == "inference":
                step = self._budgets.cheaper(name, self._budgets.step(name).cost * kept)
                has_given |= self._budgets.set_step(name, step, why)
            if has_given and not takes_all:
                break
        return has_given

    def _decode_less(self, name: str, priority: int, why: str) -> bool:
        """Decode key frames alone, after everything else: what moves is hardly tracked then."""
        if not self._may_decode_less(name, priority):
            return False
        lowered = [self._budgets.lower(one, "decoding", why, PROCESSORS) for one in sharers(name, self._streams)]
        return any(lowered)

    def _may_decode_less(self, name: str, priority: int) -> bool:
        """Return True if all streams of a camera may have less decoded, for a stream of this priority."""
        users = [self._streams[one] for one in sharers(name, self._streams)]
        may_give = all(one.has_decoding and one.priority < priority for one in users)
        return "decoding" in self._config.order and may_give

    def _help_itself(self, name: str, what: str) -> bool:
        """Use a smaller variant: fewer pictures would break the promise of a rate, and help no latency."""
        if "inference" not in self._config.order:
            return False
        smaller = smaller_variant(self._streams[name], self._budgets.step(name))
        if not self._budgets.set_step(name, smaller, what):
            return False
        self._note_relapse(name)
        return True

    def _can_be_helped(self, name: str, broken: Container[str]) -> bool:
        """Return True if something is left that can give way for a stream."""
        stream, infers = self._streams[name], "inference" in self._config.order
        if infers and smaller_variant(stream, (now := self._budgets.step(name))) != now:
            return True
        for one in self._donors(name, broken):
            levels = self._states[one].levels
            if infers and self._budgets.cheaper(one, 0.0) != self._budgets.step(one):
                return True
            may_take_clips = self._streams[one].has_clips and "clips" in self._config.order
            if may_take_clips and levels["clips"] < len(CLIPS) - 1:
                return True
            if not levels["decoding"] and self._may_decode_less(one, stream.priority):
                return True
        return False

    def _note_relapse(self, name: str) -> None:
        """Let what has given way soon after it came back wait longer each time before it comes back again."""
        state = self._states[name]
        if self._now_s - state.came_back_s >= _RELAPSE_S:
            return
        if self._now_s - state.retry_at > FORGIVEN_S:
            state.retry_s = RETRY_S
        state.retry_at, state.retry_s = self._now_s + state.retry_s, min(RETRY_MAX_S, 2.0 * state.retry_s)
        state.came_back_s = float("-inf")

    # Back to everything

    def _raise_inferences(self) -> None:
        """Let streams infer more again as far as there is idle time for it."""
        if not self._has_room() or (free := self._power.spare()) < 0.0:
            return
        board, states = self._budgets.board, self._states
        waiting = [name for name in self._streams if self._now_s >= states[name].retry_at]
        is_cold = board.celsius is None or board.celsius < board.limit_c - COLD_C
        raised = self._raise(
            free / _DEARER,
            {name for name in waiting if states[name].infers_less and not states[name].levels["decoding"]},
        )
        if not raised and is_cold and self._now_s - self._trouble_s >= _TRIAL_S:
            self._try_one(waiting)

    def _has_room(self) -> bool:
        """Return True if nothing has needed processor time for a while, and the last change could be judged."""
        return self._now_s - max(self._trouble_s, self._settled_at) >= _CALM_S

    def _try_one(self, waiting: list[str]) -> None:
        """Let the most important stream have something back although no time is idle: others may give way to it.

        Of equal ones it is the one that has waited for the longest time.
        """
        states, streams = self._states, self._streams
        kinds: tuple[Giving, ...] = ("decoding", "clips")
        taken = {name: [one for one in kinds if states[name].gave_processors(one)] for name in waiting}
        reduced = [name for name in waiting if states[name].infers_less or taken[name]]
        if not reduced:
            return
        name = min(reduced, key=lambda one: (-streams[one].priority, states[one].came_back_s, one))
        self._trouble_s = self._now_s
        if states[name].infers_less and "decoding" not in taken[name]:
            if self._budgets.set_step(name, self._budgets.dearer(name), TRIAL):
                self._note_return(name)
        elif self._budgets.may_change(FOR_PROMISES_ROOM):
            self._give_back(name, taken[name][0], PROCESSORS, waiting, TRIAL)

    def _note_return(self, name: str) -> None:
        self._settled_at = self._returned_at = self._states[name].came_back_s = self._now_s

    def _raise(self, spare: float, left: set[str]) -> bool:
        """Let streams infer more: the most important first, equal ones by turns. Return False if none can.

        For some time after the supply was weak, a stream gets one step more at a time, first one with which that
        was not too much before.
        """
        now = {name: self._budgets.step(name) for name in self._streams if name in left}
        wanted = dict(now)

        def failed(name: str) -> float:
            return self._states[name].retry_s if self._power.is_careful else 0.0

        while left:
            name = min(left, key=lambda one: (failed(one), -self._streams[one].priority, wanted[one].cost, one))
            step = self._budgets.dearer(name, wanted[name])
            if step == wanted[name] or step.cost - wanted[name].cost > spare:
                left.discard(name)
                continue
            spare -= step.cost - wanted[name].cost
            wanted[name] = step
            if self._power.is_careful:
                break
        for name, step in wanted.items():
            if step != now[name] and self._budgets.set_step(name, step, ROOM):
                self._note_return(name)
        return wanted != now

    def _relax(self) -> None:
        """Give back levels that memory, the disk, the network or a promise took, each when that has recovered.

        The most important streams have them first; of each trouble one level of a stream comes back at a time.
        """
        over, streams = self._shortages.over(), self._streams
        served: dict[Domain, int] = {}
        for name in sorted(streams, key=lambda one: -streams[one].priority):
            for domain, giving in self._returns(name, over).items():
                if served.setdefault(domain, streams[name].priority) == streams[name].priority:
                    self._give_back(name, giving, domain, streams, ROOM)
        for domain in served.keys() - {PROCESSORS}:
            self._shortages.relaxed(domain)

    def _returns(self, name: str, over: Container[Domain]) -> dict[Domain, Giving]:
        """Return what a stream may have back, the last thing that it gave, by what was short."""
        state = self._states[name]
        found: dict[Domain, Giving] = {}
        for giving in reversed(self._config.order):
            for domain, _ in state.lowered.get(giving, ()):
                if domain in over or (domain == PROCESSORS and self._may_return(giving, state)):
                    found.setdefault(domain, giving)
        return found

    def _may_return(self, giving: Giving, state: StreamState) -> bool:
        """Return True if what was taken for a promise may come back: clips after inferences."""
        if self._now_s < state.retry_at or not self._has_room():
            return False
        comes_first = giving == "decoding" or not state.infers_less
        return comes_first and self._budgets.may_change(FOR_PROMISES_ROOM) and self._power.spare() > 0.0

    def _give_back(self, name: str, given: Giving, domain: Domain, among: Container[str], why: str) -> None:
        """Give a level back; all streams of a camera that are `among` these get its pictures together."""
        for one in sharers(name, self._streams) if given == "decoding" else (name,):
            if one not in among or not self._states[one].give_back(given, domain):
                continue
            if domain == PROCESSORS:
                self._note_return(one)
            self._budgets.record(one, described(self._states[one]), why)
