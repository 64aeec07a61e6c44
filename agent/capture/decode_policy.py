"""Decides which packets of a camera are decoded. Rules only: packets and wishes come in, decoding steps go out.

The packets since the newest key frame are kept in memory. While nothing happens, a key frame is decoded every few
seconds. As soon as something may happen, all kept packets are decoded, and then every further one, so that no
picture between is missing. Something may happen when

- packets are larger than usual for their kind: what moves cannot be predicted from the picture before;
- a consumer asks for all pictures: its gate is open, a track moves, a command needs a picture.

A size that was suspicious without any motion raises the limit; motion that no size has shown lowers it, and has
every key frame decoded for a while.
"""

from __future__ import annotations

import math
from collections import deque
from enum import IntEnum
from typing import Generic, Literal, NamedTuple, TypeVar

from msgspec import Struct

P = TypeVar("P")
_S = 1_000_000_000


class DecodeMode(IntEnum):
    """How much of a stream is decoded."""

    NOTHING = 0
    """No picture at all: only the sound is of use."""
    PACKETS = 1
    """A key frame now and then; the sizes of packets tell when more is needed."""
    KEYFRAMES = 2
    """Every key frame."""
    FULL = 3
    """Every picture."""


DecodeChoice = Literal["auto", "full", "keyframes"]
"""Values of `capture.decode`."""


class Demand(Struct, frozen=True, gc=False):
    """Least that a consumer wants to be decoded.

    Attributes:
        mode: see `DecodeMode`.
        moved: whether it wants that because something moves in the newest picture.
        most: what is decoded at most, while that is left to the source: `KEYFRAMES` or `FULL`.
    """

    mode: DecodeMode = DecodeMode.FULL
    moved: bool = False
    most: DecodeMode = DecodeMode.FULL


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
    """DecodeLimits of a policy.

    Attributes:
        check_s: least time between two key frames that are decoded while nothing happens, s.
        intra_s: the same where each picture is a key frame, as of MJPEG: their sizes show no motion, s.
        blind_s: longest time without a picture, however rare key frames are, s.
        hold_s: time for which everything is decoded after the newest reason, s.
        start_s: time for which everything is decoded at the beginning, s.
        alert_s: time for which every key frame is decoded after motion that no packet has shown, s; it doubles
            up to `alert_max_s` each time that this happens again.
        bytes, packets: most that is kept. Beyond it all is decoded until the next key frame.
    """

    check_s: float = 4.0
    intra_s: float = 0.2
    blind_s: float = 12.0
    hold_s: float = 2.0
    start_s: float = 3.0
    alert_s: float = 300.0
    alert_max_s: float = 3600.0
    bytes: int = 8 * 1024 * 1024
    packets: int = 1500


class DecodeStep(NamedTuple, Generic[P]):
    """One packet to decode.

    Attributes:
        packet: as it was handed in.
        restart: whether the decoder must forget what it had before.
        alone: whether the decoder must give its picture at once, and nothing more.
    """

    packet: P
    restart: bool = False
    alone: bool = False


_SETTLE_S = 30.0
"""Time constant at which the usual size of packets is learned, s."""
_YOUNG = 20
"""Packets of a kind before its sizes are judged."""
_AFTER_KEY = 8
"""Packets after a key frame that are kinds of their own: they are smaller."""
_LEAST_DEVIATION = 0.01
"""Least deviation of the logarithm of sizes: encoders vary a little even where the picture does not."""
_SLACK = 0.5
"""Deviations by which a size may exceed the usual one without adding to the sum."""
_CLIPPED = 3.0
"""A packet changes what is usual by at most so many deviations."""
_LIMIT, _LIMIT_MIN, _LIMIT_MAX = 8.0, 6.0, 30.0
_RAISED, _LOWERED = 1.3, 0.7
"""Factors on the limit after a false alarm, and after motion that was not noticed."""


class UsualSize:
    """Running distribution of the logarithms of sizes of one kind of packet."""

    def __init__(self) -> None:
        self._mean = self._spread = 0.0
        self._count, self._before_ns = 0, 0

    def deviations(self, size: int) -> float:
        """Return by how many standard deviations a size exceeds the usual one; 0 while too few are known."""
        if self._count < _YOUNG:
            return 0.0
        return (math.log(max(1, size)) - self._mean) / self._deviation

    @property
    def _deviation(self) -> float:
        return max(_LEAST_DEVIATION, 1.25 * self._spread)  # of a Gaussian, from its mean absolute deviation

    def learn(self, size: int, at_ns: int) -> None:
        """Add a size."""
        passed_s, self._before_ns = max(0.0, (at_ns - self._before_ns) / _S), at_ns
        value = math.log(max(1, size))
        self._count += 1
        if self._count == 1:
            self._mean = value
            return
        weight = max(1.0 / self._count, 1.0 - math.exp(-min(1.0, passed_s) / _SETTLE_S))
        off = value - self._mean
        if self._count > _YOUNG:
            most = _CLIPPED * self._deviation
            off = min(most, max(-most, off))
        self._mean += weight * off
        self._spread += weight * (abs(off) - self._spread)


class SizeWatch:
    """Tells when packets are larger than usual, by a cumulative sum (Page 1954).

    Attributes:
        limit: of the sum; adapts to the camera.
    """

    def __init__(self) -> None:
        self._usual: dict[tuple[bool, int], UsualSize] = {}
        self._sum, self._after_key = 0.0, _AFTER_KEY
        self.limit = _LIMIT

    def update(self, facts: PacketFacts, *, learns: bool) -> bool:
        """Add a packet. Return True if there is reason for suspicion."""
        if facts.keyframe:
            self._after_key = 0
            return False
        self._after_key = min(_AFTER_KEY, self._after_key + 1)
        usual = self._usual.setdefault((facts.disposable, self._after_key), UsualSize())
        over = usual.deviations(facts.size)
        if learns:
            usual.learn(facts.size, facts.at_ns)
        self._sum = max(0.0, self._sum + over - _SLACK)
        if self._sum <= self.limit:
            return False
        self._sum = 0.0
        return True

    def mark_false_alarm(self) -> None:
        self.limit = min(_LIMIT_MAX, self.limit * _RAISED)

    def mark_missed(self) -> None:
        self.limit = max(_LIMIT_MIN, self.limit * _LOWERED)


class DecodePolicy(Generic[P]):
    """Decides for one opening of a camera which packets are decoded. For one thread.

    Attributes:
        mode: what is done now.
        kept_bytes: size of the packets in memory.
    """

    def __init__(self, choice: DecodeChoice = "auto", limits: DecodeLimits | None = None) -> None:
        """Start with everything decoded.

        Args:
            choice: `capture.decode`.
            limits: None: the usual ones.
        """
        self._choice, self._limits = choice, limits or DecodeLimits()
        self.mode = DecodeMode.FULL
        self.kept_bytes = 0
        self._kept: deque[P] = deque()
        self._follows = True
        """True if the decoder has decoded the packets before the first kept one; else that is a key frame."""
        self._sizes = SizeWatch()
        self._until_ns = self._alert_ns = self._shown_ns = -1
        self._alert_s = self._limits.alert_s
        self._suspects = self._has_started = self._overflows = self._after_key = False
        self._began_blind_ns = 0

    def add(self, packet: P, facts: PacketFacts, demand: Demand) -> list[DecodeStep[P]]:
        """Add the next packet. Return what is to be decoded now, in this order."""
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
        if demand.most is DecodeMode.KEYFRAMES and not self._overflows:
            self._suspects = False  # nobody looks whether something moves
            return self._decode_little(packet, facts, Demand(DecodeMode.KEYFRAMES))
        if facts.at_ns < self._until_ns or demand.mode is DecodeMode.FULL or self._overflows:
            return self._decode_all(packet, facts)
        return self._decode_little(packet, facts, demand)

    def _judge(self, facts: PacketFacts, demand: Demand) -> None:
        """Prolong the time of decoding everything if there is a reason; learn what sizes mean."""
        now_ns, limits = facts.at_ns, self._limits
        if not self._has_started:
            self._has_started, self._until_ns = True, now_ns + round(limits.start_s * _S)
        if demand.moved and self.mode is not DecodeMode.FULL:
            self._sizes.mark_missed()
            self._alert_ns = now_ns + round(self._alert_s * _S)
            self._alert_s = min(limits.alert_max_s, 2.0 * self._alert_s)
        suspicious = self._sizes.update(facts, learns=not demand.moved)
        if suspicious and self.mode is not DecodeMode.FULL:
            self._suspects = True
        if suspicious or demand.mode is DecodeMode.FULL:
            self._until_ns = max(self._until_ns, now_ns + round(limits.hold_s * _S))
        if demand.moved and self._suspects:
            self._suspects = False
            self._alert_s = max(limits.alert_s, 0.5 * self._alert_s)

    def _decode_all(self, packet: P, facts: PacketFacts) -> list[DecodeStep[P]]:
        """Decode what was kept, and this packet."""
        if facts.keyframe:
            self._overflows = False
        self.mode = DecodeMode.FULL
        steps = self._caught_up()
        steps.append(DecodeStep(packet))
        self._shown_ns = facts.at_ns
        return steps

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
        check_s = self._limits.intra_s if facts.keyframe and self._after_key else self._limits.check_s
        self._after_key = facts.keyframe
        if facts.keyframe:
            self._forget()
            self._follows = False
        self._kept.append(packet)
        self.kept_bytes += facts.size
        if facts.keyframe and (alert or unseen_s >= check_s):
            self._shown_ns = facts.at_ns
            return [DecodeStep(packet, restart=True, alone=True)]
        if self.kept_bytes > self._limits.bytes or len(self._kept) >= self._limits.packets:
            self._overflows = True
        if self._overflows or unseen_s >= self._limits.blind_s:
            self._shown_ns = facts.at_ns
            return self._caught_up()
        return []

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
