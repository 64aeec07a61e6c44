"""Decides what each stream may use: a function of the newest readings and of what was decided before.

What a stream is promised (`[streams.NAME.service]`) is kept as long as streams of a lower, then of the same,
priority can give way. The load is reduced before the temperature reaches its limit, not when it has.
What gave way comes back as soon as the processors have the idle time for it. Every change has a reason.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping

from msgspec.structs import replace

from agent.compute.governor import pace
from agent.compute.governor.budgets import Budgets
from agent.compute.governor.decision import Decision
from agent.compute.governor.power import PowerLimits
from agent.compute.governor.readings import BoardReading, Readings, StreamReading
from agent.compute.governor.shortage import Shortages
from agent.compute.governor.state import (
    CLIPS,
    EVERYTHING,
    PROCESSORS,
    RETRY_MAX_S,
    RETRY_S,
    SYNC_S,
    Domain,
    StreamState,
    described,
    sharers,
    sync_text,
)
from agent.compute.governor.steps import (
    cheaper,
    dearer,
    leaves_too_little,
    longest_stride,
    smaller_variant,
    steps,
    strides_too_far,
)
from agent.compute.governor.trouble import (
    COLD_C,
    broken_promise,
    is_far_below,
    is_hopeless,
    who_has_it,
)
from agent.config.governor import Giving, GovernorConfig


class Governor:
    """Keeps what streams are promised, and the board below its limits. For one thread; no clock, no I/O."""

    def __init__(self, config: GovernorConfig) -> None:
        self._config = config
        self._budgets = Budgets()
        self._power = PowerLimits(self._budgets)
        self._shortages = Shortages(self._budgets)
        self._now_s = 0.0
        self._unmet: dict[str, str] = {}
        self._waiting: set[str] = set()
        self._settled_at = self._returned_at = self._trouble_s = float("-inf")

    def configure(self, config: GovernorConfig) -> None:
        """Use another configuration from the next decision on."""
        self._config = config

    def decide(self, readings: Readings) -> Decision:
        """Decide what holds from now on. Times of readings must not run backwards."""
        self._now_s = readings.now_s
        self._unmet, self._waiting = {}, set()
        self._budgets.begin(readings.now_s, self._config)
        streams = readings.streams
        for name in self._budgets.states.keys() - streams.keys() - readings.known:
            del self._budgets.states[name]
        for name, stream in streams.items():
            self._budgets.states.setdefault(name, StreamState())
            self._apply_configuration(name, stream)
        if not self._config.enabled:
            self._give_everything()
        else:
            troubled = [
                self._handle_heat(readings.board, streams),
                self._power.handle_battery(readings.board, streams, self._config),
                self._handle_service(readings.board, streams),
            ]
            self._trouble_s = self._now_s if any(troubled) else self._trouble_s
            self._shortages.handle(readings, self._config)
            self._raise_inferences(readings.board, streams)
            self._relax(readings.board, streams)
        return self._decision(streams)

    def _handle_heat(self, board: BoardReading, streams: Mapping[str, StreamReading]) -> bool:
        is_hot = self._power.handle_heat(
            board, streams, self._config, now_s=self._now_s, returned_s=self._returned_at
        )
        if board.slowed:
            for name in streams:
                self._note_relapse(name)
        if self._power.unmet:
            self._unmet[""] = self._power.unmet
        return is_hot

    def _decision(self, streams: Mapping[str, StreamReading]) -> Decision:
        states = {name: self._budgets.states[name] for name in streams}
        broken = {
            name: broken_promise(streams[name]) for name, state in states.items() if state.broken_s is not None
        }
        if self._config.enabled and self._power.trouble:
            broken[""] = self._power.trouble
        return Decision(
            {name: state.budget(streams[name]) for name, state in states.items()},
            SYNC_S[self._shortages.sync],
            self._budgets.changes,
            {name: state.why for name, state in states.items() if state.is_reduced},
            dict(self._unmet),
            broken,
            self._waiting,
        )

    def _apply_configuration(self, name: str, stream: StreamReading) -> None:
        """Give back what may no longer be reduced, at once."""
        state = self._budgets.states[name]
        before = described(state)
        state.forget_unknown(stream, self._config)
        if (now := described(state)) != before:
            self._budgets.tell(name, now, pace.CONFIGURED)

    def _give_everything(self) -> None:
        for name, state in self._budgets.states.items():
            state.keeps_promise()
            if state.is_reduced:
                self._budgets.states[name] = StreamState()
                self._budgets.tell(name, EVERYTHING, pace.OFF)
        if self._shortages.sync:
            self._shortages.sync = 0
            self._budgets.tell("", sync_text(0), pace.OFF)

    # What streams are promised

    def _handle_service(self, board: BoardReading, streams: Mapping[str, StreamReading]) -> bool:
        """Take from others what a stream lacks that is promised more than it gets. Return True if one does."""
        broken = self._confirmed(streams)
        helped = {name: what for name, what in broken.items() if self._may_be_helped(name, streams[name])}
        if self._keep_own_rates(broken, streams, board):
            self._settled_at = self._now_s
        elif helped and self._now_s - self._settled_at >= pace.SETTLE_S:
            name = max(helped, key=lambda one: streams[one].priority)
            if self._relieve(name, helped, streams, board):
                self._settled_at = self._now_s
        self._tell_unmet(board, streams, helped)
        return any(
            self._budgets.states[name].broken_s is not None and self._may_be_helped(name, stream)
            for name, stream in streams.items()
        )

    def _may_be_helped(self, name: str, stream: StreamReading) -> bool:
        return not is_hopeless(stream) and not self._budgets.states[name].is_futile

    def _tell_unmet(
        self, board: BoardReading, streams: Mapping[str, StreamReading], helped: Mapping[str, str]
    ) -> None:
        """Keep for the decision why nothing gives way for a broken promise: at all, or not yet."""
        for name, what in self._confirmed(streams).items():
            state, is_last = self._budgets.states[name], not self._can_be_helped(name, helped, streams)
            self._note_futile(state, is_in_vain=is_last and board.idle >= pace.IDLE)
            if name not in helped or is_last:
                self._unmet[name] = f"{what}: {self._who_has_it(name, board, streams, helped)}"
            elif not self._budgets.may_change():
                self._waiting.add(name)
                self._unmet[name] = (
                    f"{what}: others give way for it in {self._budgets.wait_s:.0f} s, since no more than "
                    f"{pace.CHANGES_PER_MINUTE} decisions of a minute change something"
                )

    def _note_futile(self, state: StreamState, *, is_in_vain: bool) -> None:
        """Let others have back what they gave for a promise that is not kept although processors are idle."""
        if not is_in_vain:
            state.idle_s = None
            return
        state.idle_s = self._now_s if state.idle_s is None else state.idle_s
        state.is_futile = state.is_futile or self._now_s - state.idle_s >= pace.FUTILE_S

    def _who_has_it(
        self,
        name: str,
        board: BoardReading,
        streams: Mapping[str, StreamReading],
        broken: Container[str],
    ) -> str:
        reduced = {one for one in streams if self._budgets.states[one].is_reduced}
        return who_has_it(name, board, streams, self._config.order, broken, reduced)

    def _confirmed(self, streams: Mapping[str, StreamReading]) -> dict[str, str]:
        """Return what is not kept, by stream, of promises that have not been kept for some time."""
        found = {}
        for name, stream in streams.items():
            state, what = self._budgets.states[name], broken_promise(stream)
            if not what:
                state.keeps_promise()
                continue
            state.broken_s = self._now_s if state.broken_s is None else state.broken_s
            if self._now_s - state.broken_s >= pace.CONFIRM_S:
                found[name] = what
        return found

    def _relieve(
        self, name: str, broken: Mapping[str, str], streams: Mapping[str, StreamReading], board: BoardReading
    ) -> bool:
        """Let another stream give way, or this one itself. Return True if something has changed."""
        state, stream, why = self._budgets.states[name], streams[name], f"{name} {broken[name]}"
        is_far = is_far_below(stream)
        takes_all = is_far or state.reliefs >= pace.RELIEFS
        if board.idle >= pace.IDLE and self._help_itself(name, stream, broken[name]):
            return True
        has_given = False
        for giving in self._donors(name, broken, streams):
            is_lower = streams[giving].priority < stream.priority
            given = self._give_way(giving, streams[giving], why, is_lower=is_lower, takes_all=takes_all)
            if not given and not has_given and is_lower:
                given = self._decode_less(giving, stream.priority, streams, why)
            if given:
                self._note_relapse(giving)
            has_given |= given
            if has_given and not takes_all:
                break
        if is_far or not has_given:
            has_given |= self._help_itself(name, stream, broken[name])
        state.reliefs += has_given
        return has_given

    def _keep_own_rates(
        self, broken: Container[str], streams: Mapping[str, StreamReading], board: BoardReading
    ) -> bool:
        """Shorten strides that leave less than is promised: a promise or a camera is another one now.

        While no processor is idle, a camera that is read too late only seems to give less. Return True if
        something has changed.
        """
        has_changed, is_starved = False, board.idle < pace.RESERVE
        for name, stream in streams.items():
            now, most = self._budgets.states[name].step(stream), longest_stride(stream, self._config.max_stride)
            if name in broken and leaves_too_little(stream, now.stride):
                most = min(most, now.stride - 1)
            if now.stride > most and (
                name in broken or (strides_too_far(stream, now.stride) and (stream.min_fps or not is_starved))
            ):
                why = f"it is promised {stream.min_fps:g} per second" if stream.min_fps else pace.SLOWER
                if self._budgets.set_step(name, replace(now, stride=most), stream, why):
                    has_changed = True
                    if self._budgets.states[name].broken_s is not None:  # until the change can be judged
                        self._budgets.states[name].broken_s = self._now_s + pace.SETTLE_S - pace.CONFIRM_S
        return has_changed

    def _donors(
        self, name: str, broken: Mapping[str, str], streams: Mapping[str, StreamReading]
    ) -> Iterator[str]:
        """Yield the streams that may give way for another: lower priorities first, then the dearest ones."""
        costs = {one: self._budgets.states[one].step(stream).cost for one, stream in streams.items()}
        for one in sorted(streams, key=lambda other: (streams[other].priority, -costs[other])):
            is_lower = streams[one].priority < streams[name].priority
            is_equal = streams[one].priority == streams[name].priority and one not in broken
            if one != name and (is_lower or is_equal) and (costs[one] > 0.0 or streams[one].has_clips):
                yield one

    def _give_way(self, name: str, stream: StreamReading, why: str, *, is_lower: bool, takes_all: bool) -> bool:
        """Let a stream give up the first thing of the configured order that takes processor time.

        Args:
            name: of the stream.
            stream: its newest reading.
            why: the reason.
            is_lower: it is less important than the one for which it gives way.
            takes_all: it gives up all such things; of inferences half of the cost, or what it can if it is lower.
        """
        kept = 0.0 if takes_all and is_lower else pace.HALF
        has_given = False
        for giving in self._config.order:
            if giving == "clips" and stream.has_clips:
                has_given |= self._budgets.lower(name, "clips", why, PROCESSORS)
                while takes_all and self._budgets.lower(name, "clips", why, PROCESSORS):
                    pass
            if giving == "inference":
                at_most = self._budgets.states[name].step(stream).cost * kept
                has_given |= self._budgets.set_step(
                    name, self._budgets.cheaper(name, stream, at_most), stream, why
                )
            if has_given and not takes_all:
                break
        return has_given

    def _decode_less(self, name: str, priority: int, streams: Mapping[str, StreamReading], why: str) -> bool:
        """Decode key frames alone, after everything else: what moves is hardly tracked then."""
        if not self._may_decode_less(name, priority, streams):
            return False
        lowered = [self._budgets.lower(one, "decoding", why, PROCESSORS) for one in sharers(name, streams)]
        return any(lowered)

    def _may_decode_less(self, name: str, priority: int, streams: Mapping[str, StreamReading]) -> bool:
        """Return True if all streams of a camera may have less decoded, for a stream of this priority."""
        allowed = "decoding" in self._config.order
        users = [streams[one] for one in sharers(name, streams)]
        return allowed and all(one.has_decoding and one.priority < priority for one in users)

    def _help_itself(self, name: str, stream: StreamReading, what: str) -> bool:
        """Use a smaller variant: fewer pictures would break the promise of a rate, and help no latency."""
        if "inference" not in self._config.order:
            return False
        smaller = smaller_variant(stream, self._budgets.states[name].step(stream))
        if not self._budgets.set_step(name, smaller, stream, what):
            return False
        self._note_relapse(name)
        return True

    def _can_be_helped(self, name: str, broken: Mapping[str, str], streams: Mapping[str, StreamReading]) -> bool:
        """Return True if something is left that can give way for a stream."""
        stream, infers = streams[name], "inference" in self._config.order
        if infers and smaller_variant(stream, (now := self._budgets.states[name].step(stream))) != now:
            return True
        for one in self._donors(name, broken, streams):
            state, donor = self._budgets.states[one], streams[one]
            at = state.step(donor)
            if infers and cheaper(steps(donor, self._config.max_stride), at, 0.0) != at:
                return True
            if donor.has_clips and "clips" in self._config.order and state.levels["clips"] < len(CLIPS) - 1:
                return True
            if not state.levels["decoding"] and self._may_decode_less(one, stream.priority, streams):
                return True
        return False

    def _note_relapse(self, name: str) -> None:
        """Let what has given way soon after it came back wait longer each time before it comes back again."""
        state = self._budgets.states[name]
        if self._now_s - state.came_back_s >= pace.RELAPSE_S:
            return
        if self._now_s - state.retry_at > pace.FORGIVEN_S:
            state.retry_s = RETRY_S
        state.retry_at, state.retry_s = self._now_s + state.retry_s, min(RETRY_MAX_S, 2.0 * state.retry_s)
        state.came_back_s = float("-inf")

    # Back to everything

    def _raise_inferences(self, board: BoardReading, streams: Mapping[str, StreamReading]) -> None:
        """Let streams infer more again as far as there is idle time for it."""
        if not self._has_room() or (free := self._power.spare(board)) < 0.0:
            return
        states = self._budgets.states
        waiting = {name: stream for name, stream in streams.items() if self._now_s >= states[name].retry_at}
        is_cold = board.celsius is None or board.celsius < board.limit_c - COLD_C
        raised = self._raise(
            free / pace.DEARER,
            {
                name: stream
                for name, stream in waiting.items()
                if states[name].infers_less and not states[name].levels["decoding"]
            },
        )
        if not raised and is_cold and self._now_s - self._trouble_s >= pace.TRIAL_S:
            self._try_one(waiting)

    def _has_room(self) -> bool:
        """Return True if nothing has needed processor time for a while, and the last change could be judged."""
        return self._now_s - max(self._trouble_s, self._settled_at) >= pace.CALM_S

    def _try_one(self, waiting: Mapping[str, StreamReading]) -> None:
        """Let the most important stream have something back although no time is idle: others may give way to it.

        Of equal ones it is the one that has waited for the longest time.
        """
        states = self._budgets.states
        kinds: tuple[Giving, ...] = ("decoding", "clips")
        taken = {name: [one for one in kinds if states[name].gave_processors(one)] for name in waiting}
        reduced = [name for name in waiting if states[name].infers_less or taken[name]]
        if not reduced:
            return
        name = min(reduced, key=lambda one: (-waiting[one].priority, states[one].came_back_s, one))
        self._trouble_s = self._now_s
        if states[name].infers_less and "decoding" not in taken[name]:
            stream = waiting[name]
            step = dearer(steps(stream, self._config.max_stride), states[name].step(stream))
            if self._budgets.set_step(name, step, stream, pace.TRIAL):
                self._note_return(name)
        elif self._budgets.may_change(pace.FOR_PROMISES_ROOM):
            self._give_back(name, taken[name][0], PROCESSORS, waiting, pace.TRIAL)

    def _note_return(self, name: str) -> None:
        self._settled_at = self._returned_at = self._budgets.states[name].came_back_s = self._now_s

    def _raise(self, spare: float, streams: Mapping[str, StreamReading]) -> bool:
        """Let streams infer more: the most important first, equal ones by turns. Return False if none can.

        For some time after the supply was weak, a stream gets one step more at a time, first one with which that
        was not too much before.
        """
        now = {name: self._budgets.states[name].step(stream) for name, stream in streams.items()}
        wanted, left = dict(now), set(streams)

        def failed(name: str) -> float:
            return self._budgets.states[name].retry_s if self._power.is_careful else 0.0

        while left:
            name = min(left, key=lambda one: (failed(one), -streams[one].priority, wanted[one].cost, one))
            step = dearer(steps(streams[name], self._config.max_stride), wanted[name])
            if step == wanted[name] or step.cost - wanted[name].cost > spare:
                left.discard(name)
                continue
            spare -= step.cost - wanted[name].cost
            wanted[name] = step
            if self._power.is_careful:
                break
        for name, step in wanted.items():
            if step != now[name] and self._budgets.set_step(name, step, streams[name], pace.ROOM):
                self._note_return(name)
        return wanted != now

    def _relax(self, board: BoardReading, streams: Mapping[str, StreamReading]) -> None:
        """Give back levels that memory, the disk, the network or a promise took, each when that has recovered.

        The most important streams have them first; of each trouble one level of a stream comes back at a time.
        """
        over = self._shortages.over()
        served: dict[Domain, int] = {}
        for name in sorted(streams, key=lambda one: -streams[one].priority):
            for domain, giving in self._returns(name, over, board).items():
                if served.setdefault(domain, streams[name].priority) == streams[name].priority:
                    self._give_back(name, giving, domain, streams, pace.ROOM)
        for domain in served.keys() - {PROCESSORS}:
            self._shortages.relaxed(domain)

    def _returns(self, name: str, over: Container[Domain], board: BoardReading) -> dict[Domain, Giving]:
        """Return what a stream may have back, the last thing that it gave, by what was short."""
        state = self._budgets.states[name]
        found: dict[Domain, Giving] = {}
        for giving in reversed(self._config.order):
            for domain, _ in state.lowered.get(giving, ()):
                if domain in over or (domain == PROCESSORS and self._may_return(giving, state, board)):
                    found.setdefault(domain, giving)
        return found

    def _may_return(self, giving: Giving, state: StreamState, board: BoardReading) -> bool:
        """Return True if what was taken for a promise may come back: clips after inferences."""
        if self._now_s < state.retry_at or not self._has_room():
            return False
        comes_first = giving == "decoding" or not state.infers_less
        may_change = self._budgets.may_change(pace.FOR_PROMISES_ROOM)
        return comes_first and may_change and self._power.spare(board) > 0.0

    def _give_back(
        self, name: str, given: Giving, domain: Domain, streams: Mapping[str, StreamReading], why: str
    ) -> None:
        """Give a level back; all streams of a camera get its pictures together."""
        for one in sharers(name, streams) if given == "decoding" else (name,):
            state = self._budgets.states[one]
            if not state.give_back(given, domain):
                continue
            if domain == PROCESSORS:
                self._note_return(one)
            self._budgets.record(one, described(state), why)
