"""Decides which packets of a camera are decoded. Rules only: packets and wishes come in, decoding steps go out.

The packets since the newest key frame are kept in memory. While nothing happens, a key frame is decoded every few
seconds; more rarely where the sizes of packets would show somebody in time. As soon as something may happen, all
kept packets are decoded, and then every further one, so that no picture between is missing. Something may happen
when

- packets are larger than expected: what moves cannot be predicted from the picture before;
- a consumer asks for all pictures: its gate is open, a track moves, a command needs a picture.

Sizes scatter: noise, rain and changing light enlarge packets, too. Where they scatter so much that somebody small
would not show in time, everything is decoded; unless the choice is `saving`. Between key frames, a picture cannot
be decoded without those before it, so that there is no cheaper way to see all.

A size that was suspicious without any motion raises the limit; motion that no size has shown lowers it, and has
every key frame decoded for a while.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Generic, TypeVar

from msgspec import Struct

from agent.capture.source import DecodeChoice, DecodeMode, Demand

P = TypeVar("P")
_S = 1_000_000_000


class PacketFacts(Struct, frozen=True, gc=False):
    """Size, kind and time of a packet of video that is not decoded.

    Attributes:
        size: bytes.
        keyframe: whether decoding can begin with it.
        disposable: whether no other picture is predicted from it.
        at_ns: CLOCK_MONOTONIC when it was read, ns.
    """

    size: int
    keyframe: bool
    disposable: bool
    at_ns: int


class DecodeLimits(Struct, frozen=True):
    """Times and sizes of a policy.

    Attributes:
        check_s: usual time between two key frames that are decoded while nothing happens, s.
        calm_s, calm_after_s: the same while sizes would show even somebody small in time, and how long after the
            beginning that holds: until then, who watches the camera learns its view, s.
        intra_s: the same where each picture is a key frame, as of MJPEG: their sizes show no motion, s.
        blind_s: longest time without a picture, however rare key frames are, s.
        hold_s: time for which everything is decoded after the newest reason, s.
        doubt_s: the same after sizes alone, until something moves in the pictures, s.
        start_s: time for which everything is decoded at the beginning, s.
        alert_s: time for which every key frame is decoded after motion that no packet has shown, s.
        failed_s: time for which everything is decoded after a key frame that gave no picture, s.
        bytes, packets: most that is kept. Beyond it all is decoded until the next key frame.
    """

    check_s: float = 4.0
    calm_s: float = 8.0
    calm_after_s: float = 45.0
    intra_s: float = 0.2
    blind_s: float = 12.0
    hold_s: float = 2.0
    doubt_s: float = 0.7
    start_s: float = 3.0
    alert_s: float = 300.0
    failed_s: float = 60.0
    bytes: int = 8 * 1024 * 1024
    packets: int = 1500


class DecodeStep(Struct, Generic[P], frozen=True, gc=False):
    """One packet to decode.

    Attributes:
        packet: as it was handed in.
        restart: whether the decoder must forget what it had before.
        alone: whether the decoder must give its picture at once, and nothing more.
    """

    packet: P
    restart: bool = False
    alone: bool = False


_SMALL = 0.006
"""Share by which somebody who walks far away, a seventh of the picture high, enlarges a packet: of the difference
between a key frame and another packet."""
_TELLS, _TELLS_NO_MORE = 3.0, 2.2
"""Deviations that such a person must add to a size, so that sizes show her in time; and so that they are still
relied on."""
_YOUNG = 20
"""Packets before sizes are judged."""
_SETTLED = 16
"""Packets after a key frame by which the sizes hardly change any more from packet to packet."""
_LONGEST = 600
"""Packets after a key frame whose sizes are learned one by one."""
_LEAST_DEVIATION = 0.02
"""Least deviation of the logarithm of sizes: encoders vary a little even where the picture does not."""
_LEVEL, _SHAPE, _SPREAD, _MEAN = 0.08, 0.1, 0.02, 0.1
"""Weights of the newest packet in the level, of the newest group in its shape, and of the newest packet in the
deviation and in the mean sizes."""
_SLACK = 0.5
"""Deviations by which a size may exceed the usual one without adding to the sum."""
_CLIPPED, _ADDED = 3.0, 6.0
"""A packet changes what is usual by at most so many deviations, and adds at most so many to the sum."""
_LIMIT, _LIMIT_MIN, _LIMIT_MAX = 8.0, 6.0, 30.0
_RAISED, _LOWERED = 1.3, 0.7
"""Factors on the limit after a false alarm, and after motion that was not noticed."""


class UsualSize:
    """Predicts the size of each packet: from its place in earlier groups, and from the packets just before it.

    After a key frame, encoders mend what it left blurred: sizes change for seconds, and alike in each group.

    Attributes:
        is_known: whether enough was learned to judge sizes.
    """

    def __init__(self) -> None:
        self._shape: dict[int, float] = {}
        self._level = self._spread = 0.0
        self._deviation, self.is_known = _LEAST_DEVIATION, False
        self._place = self._count = self._groups = 0
        self._size = 0.0

    def small_deviations(self, key_size: float) -> float:
        """Return by how many deviations somebody small would enlarge a packet, if key frames have this size."""
        return _SMALL * max(0.0, key_size - self._size) / (self._deviation * self._size)

    def begin_group(self) -> None:
        """Expect the packets after a key frame."""
        self._place = 0
        self._groups += 1

    def add(self, size: int, *, learns: bool) -> float:
        """Add another packet. Return by how many deviations it is larger than expected; 0: unknown."""
        self._place = min(_LONGEST, self._place + 1)
        value = math.log(max(1, size))
        base = self._shape.get(self._place)
        is_new = base is None
        if base is None:
            base = self._shape.get(self._place - 1, value)
        off = value - base - self._level
        deviations = off / self._deviation if self.is_known else 0.0
        if is_new and self._place <= _SETTLED:
            self._shape[self._place] = value - self._level
            return 0.0
        if learns:
            self._learn(size, off, base)
        return deviations

    def _learn(self, size: int, off: float, base: float) -> None:
        if self.is_known:
            most = _CLIPPED * self._deviation
            off = min(most, max(-most, off))
        self._count += 1
        self.is_known = self._count >= _YOUNG
        self._size += (max(1, size) - self._size) * max(1.0 / self._count, _MEAN)
        self._spread += (abs(off) - self._spread) * max(1.0 / self._count, _SPREAD)
        self._deviation = max(_LEAST_DEVIATION, 1.25 * self._spread)  # of a Gaussian, from its mean absolute one
        self._level += _LEVEL * off
        self._shape[self._place] = base + off * max(1.0 / (1.0 + self._groups), _SHAPE)


class SizeWatch:
    """Tells when packets are larger than usual, by a cumulative sum (Page 1954).

    Pictures from which no other is predicted are a kind of their own: they are smaller.

    Attributes:
        limit: of the sum; adapts to the camera.
        tells: whether sizes would show even somebody small in time; True while that is unknown.
        is_sure: whether that is known, and so.
    """

    def __init__(self) -> None:
        self._usual: dict[bool, UsualSize] = {}
        self._sum = self._key_size = 0.0
        self.limit, self.tells, self.is_sure = _LIMIT, True, False

    def update(self, facts: PacketFacts, *, learns: bool) -> bool:
        """Add a packet. Return True if there is reason for suspicion."""
        if facts.keyframe:
            self._key_size += (facts.size - self._key_size) * (_MEAN if self._key_size else 1.0)
            for one in self._usual.values():
                one.begin_group()
            return False
        if (usual := self._usual.get(facts.disposable)) is None:
            usual = self._usual[facts.disposable] = UsualSize()
        over = usual.add(facts.size, learns=learns)
        self._update_tells()
        self._sum = max(0.0, self._sum + min(_ADDED, over) - _SLACK)
        if self._sum <= self.limit:
            return False
        self._sum = 0.0
        return True

    def _update_tells(self) -> None:
        known = [one.small_deviations(self._key_size) for one in self._usual.values() if one.is_known]
        if known and self._key_size:
            self.tells = self.is_sure = max(known) >= (_TELLS_NO_MORE if self.tells else _TELLS)

    def mark_false_alarm(self) -> None:
        self.limit = min(_LIMIT_MAX, self.limit * _RAISED)

    def mark_missed(self) -> None:
        self.limit = max(_LIMIT_MIN, self.limit * _LOWERED)


class DecodePolicy(Generic[P]):
    """Decides for one opening of a camera which packets are decoded. For one thread.

    Attributes:
        mode: what is done now.
        kept_bytes: size of the packets in memory.
        group: number of packets from the key frame before the newest one up to that; 0: unknown.
    """

    def __init__(self, choice: DecodeChoice = "auto", limits: DecodeLimits | None = None) -> None:
        """Start with everything decoded.

        Args:
            choice: `capture.decode`.
            limits: None: the usual ones.
        """
        self._choice, self._limits = choice, limits or DecodeLimits()
        self.mode = DecodeMode.FULL
        self.kept_bytes = self.group = 0
        self._kept: deque[P] = deque()
        self._follows = True
        """True if the decoder has decoded the packets before the first kept one; else that is a key frame."""
        self._sizes = SizeWatch()
        self._until_ns = self._alert_ns = self._shown_ns = self._key_ns = -1
        self._suspects = self._has_started = self._overflows = self._after_key = False
        self._began_blind_ns = self._count = 0
        self._group_ns = -1
        """Until then key frames are of no use without the packets after them."""
        self._apart_s, self._calm_ns = 0.0, 0

    def add(self, packet: P, facts: PacketFacts, demand: Demand) -> list[DecodeStep[P]]:
        """Add the next packet. Return what is to be decoded now, in this order."""
        self._count_group(facts)
        if demand.mode is DecodeMode.NOTHING:
            self._forget()
            self.mode, self._follows, self._began_blind_ns = DecodeMode.NOTHING, False, facts.at_ns
            return []
        if self.mode is DecodeMode.NOTHING:
            blind_s = (facts.at_ns - self._began_blind_ns) / _S
            if not facts.keyframe and blind_s < self._limits.blind_s:
                return []
            self.mode, self._follows, self._has_started = DecodeMode.FULL, True, False
            return [DecodeStep(packet, restart=True, alone=self._choice == "keyframes")]
        if self._choice == "full":
            return [DecodeStep(packet)]
        if self._choice == "keyframes":
            self.mode = DecodeMode.KEYFRAMES
            return [DecodeStep(packet, restart=True, alone=True)] if facts.keyframe else []
        self._judge(facts, demand)
        if demand.most is DecodeMode.KEYFRAMES and not self._overflows and facts.at_ns >= self._group_ns:
            self._suspects = False  # nobody looks whether something moves
            return self._decode_little(packet, facts, Demand(DecodeMode.KEYFRAMES))
        if demand.mode is DecodeMode.FULL or self._needs_all(facts.at_ns):
            return self._decode_all(packet, facts)
        return self._decode_little(packet, facts, demand)

    def mark_check(self, at_ns: int, *, succeeded: bool) -> None:
        """Tell whether a key frame that was decoded alone gave a picture.

        If not, all is decoded for a time: some cameras refresh the picture bit by bit, and what FFmpeg takes for
        a key frame is the place where that begins.
        """
        if not succeeded:
            self._group_ns = at_ns + round(self._limits.failed_s * _S)

    def _count_group(self, facts: PacketFacts) -> None:
        if facts.keyframe:
            self._apart_s = (facts.at_ns - self._key_ns) / _S if self._key_ns >= 0 else 0.0
            self.group = self._count if self._key_ns >= 0 else 0
            self._key_ns, self._count = facts.at_ns, 0
        self._count += 1

    def _needs_all(self, now_ns: int) -> bool:
        is_sure = self._sizes.tells or self._choice == "saving"
        return now_ns < max(self._until_ns, self._group_ns) or self._overflows or not is_sure

    def _judge(self, facts: PacketFacts, demand: Demand) -> None:
        """Prolong the time of decoding everything if there is a reason; learn what sizes mean."""
        now_ns, is_full = facts.at_ns, self.mode is DecodeMode.FULL
        if demand.moved and not is_full:
            self._sizes.mark_missed()
            self._alert_ns = now_ns + round(self._limits.alert_s * _S)
        is_suspicious = self._sizes.update(facts, learns=not demand.moved)
        self._suspects = (self._suspects or (is_suspicious and not is_full)) and not demand.moved
        if not self._has_started:
            self._has_started, self._calm_ns = True, now_ns + round(self._limits.calm_after_s * _S)
            self._hold(now_ns, self._limits.start_s)
        if is_suspicious:
            self._hold(now_ns, self._limits.doubt_s)
        if demand.mode is DecodeMode.FULL:
            self._hold(now_ns, self._limits.hold_s)

    def _hold(self, now_ns: int, time_s: float) -> None:
        self._until_ns = max(self._until_ns, now_ns + round(time_s * _S))

    def _decode_all(self, packet: P, facts: PacketFacts) -> list[DecodeStep[P]]:
        """Decode what was kept, and this packet."""
        if facts.keyframe:
            self._overflows = False
        self.mode = DecodeMode.FULL
        self._shown_ns = facts.at_ns
        if self._follows and not self._kept:
            return [DecodeStep(packet)]
        return [*self._caught_up(), DecodeStep(packet)]

    def _caught_up(self) -> list[DecodeStep[P]]:
        steps = [
            DecodeStep(one, restart=not number and not self._follows) for number, one in enumerate(self._kept)
        ]
        self._forget()
        self._follows = True
        return steps

    def _decode_little(self, packet: P, facts: PacketFacts, demand: Demand) -> list[DecodeStep[P]]:
        """Keep a packet, and decode it if it is a key frame that is due."""
        if self._suspects:
            self._suspects = False
            self._sizes.mark_false_alarm()
        alert = demand.mode is DecodeMode.KEYFRAMES or facts.at_ns < self._alert_ns
        self.mode = DecodeMode.KEYFRAMES if alert else DecodeMode.PACKETS
        unseen_s = (facts.at_ns - self._shown_ns) / _S
        is_due = facts.keyframe and (alert or self._is_due(unseen_s, facts.at_ns))
        self._after_key = facts.keyframe
        if facts.keyframe:
            self._forget()
            self._follows = False
        self._kept.append(packet)
        self.kept_bytes += facts.size
        if is_due:
            self._shown_ns = facts.at_ns
            return [DecodeStep(packet, restart=True, alone=True)]
        if self.kept_bytes > self._limits.bytes or len(self._kept) >= self._limits.packets:
            self._overflows = True
        if self._overflows or unseen_s >= self._limits.blind_s:
            self._shown_ns = facts.at_ns
            return self._caught_up()
        return []

    def _is_due(self, unseen_s: float, now_ns: int) -> bool:
        """Return True if a key frame comes nearer to the usual time between two than the next one would."""
        if self._after_key:
            return unseen_s >= self._limits.intra_s
        is_calm = self._sizes.is_sure and now_ns >= self._calm_ns
        usual_s = self._limits.calm_s if is_calm else self._limits.check_s
        return unseen_s >= usual_s - 0.5 * min(usual_s, self._apart_s)

    def _forget(self) -> None:
        self._kept.clear()
        self.kept_bytes = 0


class BurstThinner:
    """Chooses which of the pictures that are decoded late are handed on: enough to see what happened."""

    def __init__(self, every_s: float = 0.2, most: int = 12) -> None:
        """Hand on a picture each `every_s`, s, and at most `most` of a burst."""
        self._least_ns, self._most = round(every_s * _S), most
        self._every_ns = self._due_ns = self._end_ns = 0

    def begin(self, first_ns: int, end_ns: int) -> None:
        """Begin a burst of pictures that were captured from `first_ns` on, and before `end_ns`."""
        self._every_ns = max(self._least_ns, (end_ns - first_ns) // self._most)
        self._due_ns, self._end_ns = first_ns, end_ns

    def passes(self, captured_ns: int) -> bool:
        """Return True if a picture is handed on; after the burst each is."""
        if captured_ns >= self._end_ns:
            return True
        if captured_ns < self._due_ns:
            return False
        self._due_ns = captured_ns + self._every_ns
        return True

    def is_late(self, captured_ns: int) -> bool:
        """Return True if a picture belongs to the burst."""
        return captured_ns < self._end_ns
