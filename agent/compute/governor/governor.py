"""Decides what each stream may use: a function of the newest readings and of what was decided before.

What a stream is promised (`[streams.NAME.service]`) is kept as long as streams of a lower, then of the same,
priority can give way. The load is reduced before the temperature reaches its limit, not when it has.
What gave way comes back as soon as the processors have the idle time for it. Every change has a reason.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterator, Mapping

from msgspec.structs import replace

from agent.compute.governor import pace
from agent.compute.governor.decision import Change, Decision
from agent.compute.governor.readings import BoardReading, Readings, StreamReading
from agent.compute.governor.state import (
    CLIPS,
    LEVELS,
    RETRY_MAX_S,
    RETRY_S,
    SYNC_S,
    StreamState,
    described,
    has,
    sharers,
    sync_text,
)
from agent.compute.governor.steps import (
    Step,
    cheaper,
    dearer,
    longest_stride,
    smaller_variant,
    steps,
    strides_too_far,
)
from agent.compute.governor.trouble import (
    COLD_C,
    NO_INFERENCE,
    broken_promise,
    disk_trouble,
    heat_trouble,
    is_far_below,
    is_hopeless,
    kept_share,
    link_trouble,
    memory_trouble,
    spare,
    who_has_it,
)
from agent.config.governor import Giving, GovernorConfig
from agent.types import DiskLoad, LinkLoad


class Governor:
    """Keeps what streams are promised, and the board below its limits. For one thread; no clock, no I/O."""

    def __init__(self, config: GovernorConfig) -> None:
        self._config = config
        self._states: dict[str, StreamState] = {}
        self._sync = 0
        self._now_s = 0.0
        self._changed_at: deque[float] = deque(maxlen=pace.CHANGES_PER_MINUTE)
        self._changes: list[Change] = []
        self._unmet: dict[str, str] = {}
        self._settled_at = self._heat_at = self._relax_at = self._trouble_s = float("-inf")
        self._warm_at, self._saves = float("-inf"), False
        self._slow_since: dict[str, float] = {}
        self._relax_s, self._was_too_soon = pace.RELAX_S, False

    def configure(self, config: GovernorConfig) -> None:
        """Use another configuration from the next decision on."""
        self._config = config

    def decide(self, readings: Readings) -> Decision:
        """Decide what holds from now on. Times of readings must not run backwards."""
        self._now_s = readings.now_s
        self._changes, self._unmet = [], {}
        streams = readings.streams
        for name in self._states.keys() - streams.keys() - readings.known:
            del self._states[name]
        for name, stream in streams.items():
            self._states.setdefault(name, StreamState())
            self._apply_configuration(name, stream)
        if not self._config.enabled:
            self._give_everything()
        else:
            troubled = [
                self._handle_battery(readings.board, streams),
                self._handle_heat(readings.board, streams),
                self._handle_service(readings.board, streams),
                self._handle_memory(readings.board, streams),
                self._handle_disk(readings.disk, streams),
                self._handle_link(readings.link, streams),
            ]
            if any(troubled):
                self._trouble_s = self._now_s
            if self._now_s - self._trouble_s >= pace.CALM_S:
                self._bring_back(readings.board, streams)
        return self._decision(readings.board, streams)

    def _decision(self, board: BoardReading, streams: Mapping[str, StreamReading]) -> Decision:
        states = {name: self._states[name] for name in streams}
        broken = {
            name: f"{broken_promise(streams[name])}: others give way for it"
            for name, state in states.items()
            if state.broken_s is not None
        }
        if self._config.enabled and (hot := heat_trouble(board)):
            broken[""] = hot
        return Decision(
            {name: state.budget(streams[name]) for name, state in states.items()},
            SYNC_S[self._sync],
            tuple(self._changes),
            {name: state.why for name, state in states.items() if state.is_reduced},
            dict(self._unmet),
            broken,
        )

    def _apply_configuration(self, name: str, stream: StreamReading) -> None:
        """Give back what may no longer be reduced, at once."""
        state = self._states[name]
        before = described(state)
        state.forget_unknown(stream, self._config)
        if (now := described(state)) != before:
            self._changes.append(Change(name, f"{now}: {pace.CONFIGURED}"))
            state.why = f"{now}: {state.cause}" if state.is_reduced else ""

    def _give_everything(self) -> None:
        for name, state in self._states.items():
            state.broken_s = None
            if state.is_reduced:
                self._states[name] = StreamState()
                self._changes.append(Change(name, "everything again: the governor is off"))
        if self._sync:
            self._sync = 0
            self._changes.append(Change("", f"{sync_text(0)}: the governor is off"))

    def _may_change(self) -> bool:
        """Return True if a decision of this moment may change something."""
        at = self._changed_at
        return len(at) < pace.CHANGES_PER_MINUTE or at[-1] == self._now_s or self._now_s - at[0] >= 60.0

    def _record(self, stream: str, text: str, why: str) -> None:
        """Keep a change for the decision, and why the stream is reduced: not why it gets more than before."""
        if not self._changed_at or self._changed_at[-1] != self._now_s:
            self._changed_at.append(self._now_s)
        self._changes.append(Change(stream, f"{text}: {why}"))
        if stream:
            state = self._states[stream]
            state.cause = state.cause if why in (pace.ROOM, pace.TRIAL) else why
            state.why = f"{text}: {state.cause}"

    def _set_step(self, name: str, step: Step, stream: StreamReading, why: str) -> bool:
        """Run a stream that way; return False if it does already, or not now."""
        state = self._states[name]
        variant = "" if step.variant == stream.variants[0].name else step.variant
        if (state.stride, state.variant) == (step.stride, variant) or not self._may_change():
            return False
        state.stride, state.variant = step.stride, variant
        self._record(name, described(state), why)
        if not state.is_reduced:
            state.why = ""
        return True

    # Battery and heat

    def _handle_battery(self, board: BoardReading, streams: Mapping[str, StreamReading]) -> bool:
        """Let every stream infer as little as it may while the battery is low. Return True while it is."""
        charge = board.battery_percent
        limit = self._config.save_below_percent
        self._saves = charge is not None and charge < limit + (
            pace.BATTERY_BACK if self._saves and limit else 0.0
        )
        if charge is None or not self._saves:
            return False
        if "inference" in self._config.order:
            for name, stream in streams.items():
                least = self._cheaper(name, stream, 0.0)
                self._set_step(name, least, stream, f"{charge:.0f} % of the battery are left")
        return True

    def _handle_heat(self, board: BoardReading, streams: Mapping[str, StreamReading]) -> bool:
        """Reduce the load that leads above the temperature's limit. Return True while it is too high."""
        if board.celsius is not None:
            is_warm = board.celsius >= board.limit_c - COLD_C
            self._warm_at = self._now_s if is_warm else float("-inf")
        why = heat_trouble(board)
        if not why:
            return False
        if "inference" not in self._config.order:
            self._unmet[""] = f"{why}: {NO_INFERENCE}"
            return True
        if self._now_s - self._heat_at >= pace.HEAT_SETTLE_S:
            self._heat_at = self._now_s
            self._shed(kept_share(board), why, streams)
        if all(self._cheaper(name, one, 0.0) == self._states[name].step(one) for name, one in streams.items()):
            self._unmet[""] = f"{why}, though every stream has given way"
        return True

    def _shed(self, kept: float, why: str, streams: Mapping[str, StreamReading]) -> None:
        """Reduce the load to a share of it: the least important streams first, equal ones by turns."""
        now = {name: self._states[name].step(stream) for name, stream in streams.items()}
        wanted = dict(now)
        excess = sum(step.cost for step in now.values()) * (1.0 - kept)
        for priority in sorted({stream.priority for stream in streams.values()}):
            left = {name for name, stream in streams.items() if stream.priority == priority}
            while left and excess > 0.0:
                name = max(left, key=lambda one: (wanted[one].cost, one))
                ladder = steps(streams[name], self._config.max_stride)
                step = cheaper(ladder, wanted[name], wanted[name].cost)
                left -= {name} if step == wanted[name] else set()
                excess -= wanted[name].cost - step.cost
                wanted[name] = step
        for name, step in wanted.items():
            self._set_step(name, step, streams[name], why)

    def _cheaper(self, name: str, stream: StreamReading, at_most: float) -> Step:
        now = self._states[name].step(stream)
        return cheaper(steps(stream, self._config.max_stride), now, at_most)

    # What streams are promised

    def _handle_service(self, board: BoardReading, streams: Mapping[str, StreamReading]) -> bool:
        """Take from others what a stream lacks that is promised more than it gets. Return True if one does."""
        broken = self._confirmed(streams)
        helped = {name: what for name, what in broken.items() if not is_hopeless(streams[name])}
        if self._keep_own_rates(broken, streams):
            self._settled_at = self._now_s
        elif helped and self._now_s - self._settled_at >= pace.SETTLE_S:
            name = max(helped, key=lambda one: streams[one].priority)
            if self._relieve(name, helped, streams):
                self._settled_at = self._now_s
        self._tell_unmet(board, streams, helped)
        return any(
            self._states[name].broken_s is not None and not is_hopeless(stream)
            for name, stream in streams.items()
        )

    def _tell_unmet(
        self, board: BoardReading, streams: Mapping[str, StreamReading], helped: Mapping[str, str]
    ) -> None:
        """Keep for the decision why nothing gives way for a broken promise: at all, or not yet."""
        for name, what in self._confirmed(streams).items():
            if name not in helped or not self._can_be_helped(name, helped, streams):
                self._unmet[name] = f"{what}: {who_has_it(name, board, streams, self._config.order, helped)}"
            elif not self._may_change():
                wait_s = 60.0 - (self._now_s - self._changed_at[0])
                self._unmet[name] = (
                    f"{what}: others give way for it in {wait_s:.0f} s, since no more than "
                    f"{pace.CHANGES_PER_MINUTE} decisions of a minute change something"
                )

    def _confirmed(self, streams: Mapping[str, StreamReading]) -> dict[str, str]:
        """Return what is not kept, by stream, of promises that have not been kept for some time."""
        found = {}
        for name, stream in streams.items():
            state, what = self._states[name], broken_promise(stream)
            if not what:
                state.broken_s = None
                continue
            state.broken_s = self._now_s if state.broken_s is None else state.broken_s
            if self._now_s - state.broken_s >= pace.CONFIRM_S:
                found[name] = what
        return found

    def _relieve(self, name: str, broken: Mapping[str, str], streams: Mapping[str, StreamReading]) -> bool:
        """Let another stream give way, or this one itself. Return True if something has changed."""
        why, far = f"{name} {broken[name]}", is_far_below(streams[name])
        has_given = False
        for giving in self._donors(name, broken, streams):
            if self._now_s - self._states[giving].came_back_s < RETRY_S:
                self._postpone(giving)
            all_of_it = far and streams[giving].priority < streams[name].priority
            has_given |= self._give_way(giving, streams[giving], why, kept=0.0 if all_of_it else pace.HALF)
            if not has_given and streams[giving].priority < streams[name].priority:
                has_given = self._decode_less(giving, streams[name].priority, streams, why)
            if has_given and not all_of_it:
                return True
        if has_given and not far:
            return True
        return self._help_itself(name, streams[name], broken[name]) or has_given

    def _keep_own_rates(self, broken: Container[str], streams: Mapping[str, StreamReading]) -> bool:
        """Shorten strides that leave less than is promised: a promise or a camera is another one now.

        Return True if something has changed.
        """
        has_changed = False
        for name, stream in streams.items():
            now, most = self._states[name].step(stream), longest_stride(stream, self._config.max_stride)
            if now.stride > most and (name in broken or strides_too_far(stream, now.stride)):
                why = f"it is promised {stream.min_fps:g} per second" if stream.min_fps else pace.SLOWER
                if self._set_step(name, replace(now, stride=most), stream, why):
                    has_changed = True
                    if self._states[name].broken_s is not None:  # until the change can be judged
                        self._states[name].broken_s = self._now_s + pace.SETTLE_S - pace.CONFIRM_S
        return has_changed

    def _donors(
        self, name: str, broken: Mapping[str, str], streams: Mapping[str, StreamReading]
    ) -> Iterator[str]:
        """Yield the streams that may give way for another: lower priorities first, then the dearest ones."""
        costs = {one: self._states[one].step(stream).cost for one, stream in streams.items()}
        for one in sorted(streams, key=lambda other: (streams[other].priority, -costs[other])):
            is_lower = streams[one].priority < streams[name].priority
            is_equal = streams[one].priority == streams[name].priority and one not in broken
            if one != name and (is_lower or is_equal) and (costs[one] > 0.0 or streams[one].has_clips):
                yield one

    def _give_way(self, name: str, stream: StreamReading, why: str, kept: float) -> bool:
        """Let a stream give up the first thing of the configured order that takes processor time.

        Of inferences it keeps at most this share of their cost, or as little as it can.
        """
        for giving in self._config.order:
            if giving == "clips" and stream.has_clips and self._lower(name, "clips", why):
                return True
            if giving == "inference":
                at_most = self._states[name].step(stream).cost * kept
                if self._set_step(name, self._cheaper(name, stream, at_most), stream, why):
                    return True
        return False

    def _decode_less(self, name: str, priority: int, streams: Mapping[str, StreamReading], why: str) -> bool:
        """Decode key frames alone, after everything else: what moves is hardly tracked then."""
        if not self._may_decode_less(name, priority, streams):
            return False
        lowered = [self._lower(one, "decoding", why) for one in sharers(name, streams)]
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
        if self._now_s - self._states[name].came_back_s < RETRY_S:
            self._postpone(name)
        return self._set_step(name, smaller_variant(stream, self._states[name].step(stream)), stream, what)

    def _can_be_helped(self, name: str, broken: Mapping[str, str], streams: Mapping[str, StreamReading]) -> bool:
        """Return True if something is left that can give way for a stream."""
        stream, infers = streams[name], "inference" in self._config.order
        if infers and smaller_variant(stream, (now := self._states[name].step(stream))) != now:
            return True
        for one in self._donors(name, broken, streams):
            state, donor = self._states[one], streams[one]
            at = state.step(donor)
            if infers and cheaper(steps(donor, self._config.max_stride), at, 0.0) != at:
                return True
            if donor.has_clips and "clips" in self._config.order and state.levels["clips"] < len(CLIPS) - 1:
                return True
            if not state.levels["decoding"] and self._may_decode_less(one, stream.priority, streams):
                return True
        return False

    def _postpone(self, name: str) -> None:
        """Let what came back too early wait longer before it comes back again."""
        state = self._states[name]
        if self._now_s - state.retry_at > pace.FORGIVEN_S:
            state.retry_s = RETRY_S
        state.retry_at, state.retry_s = self._now_s + state.retry_s, min(RETRY_MAX_S, 2.0 * state.retry_s)

    # Memory, disk and network

    def _handle_memory(self, board: BoardReading, streams: Mapping[str, StreamReading]) -> bool:
        """Keep fewer pictures for clips while memory is short. Return True while it is."""
        why = memory_trouble(board)
        if self._is_slow("memory", why) and "clips" in self._config.order:
            self._lower_one("clips", why, streams)
        return bool(why)

    def _handle_disk(self, disk: DiskLoad, streams: Mapping[str, StreamReading]) -> bool:
        why = disk_trouble(disk)
        if not self._is_slow("disk", why):
            return bool(why)
        done = "clips" in self._config.order and self._lower_one("clips", why, streams)
        if not done and self._sync < len(SYNC_S) - 1 and self._may_change():
            self._sync += 1
            self._record("", sync_text(self._sync), why)
        return True

    def _handle_link(self, link: LinkLoad, streams: Mapping[str, StreamReading]) -> bool:
        why = link_trouble(link)
        if not self._is_slow("link", why):
            return bool(why)
        for giving in self._config.order:
            if giving in ("samples", "snapshots") and self._lower_one(giving, why, streams):
                break
        return True

    def _is_slow(self, what: str, why: str) -> bool:
        """Return True if there has been trouble for some time, and the last change has had its effect."""
        if not why:
            self._slow_since.pop(what, None)
            return False
        if what not in self._slow_since and self._now_s - self._relax_at < pace.TOO_SOON_S:
            self._relax_s, self._was_too_soon = min(pace.RELAX_MAX_S, 2.0 * self._relax_s), True
        since = self._slow_since.setdefault(what, self._now_s)
        if self._now_s - since < pace.CONFIRM_S:
            return False
        self._slow_since[what] = self._now_s + pace.SETTLE_S - pace.CONFIRM_S
        return True

    def _lower_one(self, giving: Giving, why: str, streams: Mapping[str, StreamReading]) -> bool:
        """Lower something of the least important stream that can. Return True if one could."""
        for name in sorted(streams, key=lambda one: (streams[one].priority, self._states[one].levels[giving])):
            if has(streams[name], giving) and self._lower(name, giving, why):
                return True
        return False

    def _lower(self, name: str, giving: Giving, why: str) -> bool:
        state = self._states[name]
        if state.levels[giving] >= LEVELS[giving] - 1 or not self._may_change():
            return False
        state.levels[giving] += 1
        self._record(name, described(state), why)
        return True

    # Back to everything

    def _bring_back(self, board: BoardReading, streams: Mapping[str, StreamReading]) -> None:
        """Let streams have more again as far as there is idle time for it."""
        if self._now_s - self._settled_at >= pace.CALM_S and (spare := self._spare(board)) >= 0.0:
            waiting = {
                name: stream
                for name, stream in streams.items()
                if self._states[name].infers_less and self._now_s >= self._states[name].retry_at
            }
            is_cold = board.celsius is None or board.celsius < board.limit_c - COLD_C
            raised = self._raise(spare / pace.DEARER, waiting)
            if not raised and is_cold and self._now_s - self._trouble_s >= pace.TRIAL_S:
                self._try_one(waiting)
        if self._now_s - max(self._relax_at, self._trouble_s) >= self._relax_s and self._relax(board, streams):
            if not self._was_too_soon:
                self._relax_s = max(pace.RELAX_S, 0.5 * self._relax_s)
            self._relax_at, self._was_too_soon = self._now_s, False

    def _try_one(self, streams: Mapping[str, StreamReading]) -> None:
        """Let the most important stream have a step more although no time is idle: others may give way to it."""
        if streams:
            name = max(streams, key=lambda one: (streams[one].priority, one))
            stream = streams[name]
            step = dearer(steps(stream, self._config.max_stride), self._states[name].step(stream))
            self._trouble_s = self._now_s
            if self._set_step(name, step, stream, pace.TRIAL):
                self._settled_at = self._states[name].came_back_s = self._now_s

    def _raise(self, spare: float, streams: Mapping[str, StreamReading]) -> bool:
        """Let streams infer more: the most important first, equal ones by turns. Return False if none can."""
        now = {name: self._states[name].step(stream) for name, stream in streams.items()}
        wanted, left = dict(now), set(streams)
        while left:
            name = min(left, key=lambda one: (-streams[one].priority, wanted[one].cost, one))
            step = dearer(steps(streams[name], self._config.max_stride), wanted[name])
            if step == wanted[name] or step.cost - wanted[name].cost > spare:
                left.discard(name)
                continue
            spare -= step.cost - wanted[name].cost
            wanted[name] = step
        for name, step in wanted.items():
            if step != now[name] and self._set_step(name, step, streams[name], pace.ROOM):
                self._settled_at = self._states[name].came_back_s = self._now_s
        return wanted != now

    def _spare(self, board: BoardReading) -> float:
        return spare(board, now_s=self._now_s, warm_s=self._warm_at, heat_s=self._heat_at)

    def _relax(self, board: BoardReading, streams: Mapping[str, StreamReading]) -> bool:
        """Give back a level of what memory, disk or network took, of the most important stream first.

        What takes processor time comes back when there is some.

        Return False if there is nothing to give back, or not now.
        """
        if self._sync and self._may_change():
            self._sync -= 1
            self._record("", sync_text(self._sync), pace.ROOM)
            return True
        for name in sorted(streams, key=lambda one: -streams[one].priority):
            state = self._states[name]
            waits = self._now_s < state.retry_at or self._spare(board) <= 0.0
            left_out = ("decoding",) if waits else ()
            levels = (
                one for one in reversed(self._config.order) if state.levels.get(one) and one not in left_out
            )
            if (given := next(levels, None)) is not None and self._may_change():
                self._give_back(name, given, streams)
                return True
        return False

    def _give_back(self, name: str, given: Giving, streams: Mapping[str, StreamReading]) -> None:
        """Give a level back; all streams of a camera get its pictures together."""
        for one in sharers(name, streams) if given == "decoding" else (name,):
            state = self._states[one]
            if state.levels[given]:
                state.levels[given] -= 1
                state.came_back_s = self._now_s if given == "decoding" else state.came_back_s
                self._record(one, described(state), pace.ROOM)
