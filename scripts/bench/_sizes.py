"""What the sizes of packets show of people: the policy alone, without a model. Part of the bench `decode`.

A visitor is taken to be seen in every picture in which she is in view, and to be announced with everything
decoded 0.2 s after she enters plus 4 % of the time that she stays, as by the model where this was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from _visits import Visit
from msgspec import Struct

from agent.capture.decode_policy import DecodePolicy, DecodeStep, PacketFacts
from agent.capture.source import DecodeChoice, DecodeMode, Demand

_BUSY_S = 2.0
"""Time for which the gate stays open after the last movement, s."""
_WARM_S = 20.0


class Packet(Struct, frozen=True):
    """A packet: bytes, whether it is a key frame, and its time, s from the first one."""

    size: int
    keyframe: bool
    at_s: float


class Noticed(Struct):
    """What a policy did.

    Attributes:
        delays_s: of each visitor against everything decoded, s; infinite: she was never in a decoded picture.
        still, still_decoded: pictures while nobody was there, and those of them that were decoded.
    """

    delays_s: list[float] = []
    still: int = 0
    still_decoded: int = 0

    def add(self, other: Noticed) -> None:
        """Add another scene."""
        self.delays_s += other.delays_s
        self.still, self.still_decoded = self.still + other.still, self.still_decoded + other.still_decoded

    def figures(self, name: str) -> dict[str, float]:
        """Return the share of visitors who are seen more than 0.3 s late, the 99th percentile, and the cost."""
        delays = np.array(self.delays_s)
        return {
            f"{name}_late": float((delays > 0.3).mean()),
            f"{name}_p99_s": float(np.percentile(delays, 99)),
            f"{name}_still_decoded": self.still_decoded / max(1, self.still),
        }


def read_packets(path: Path) -> list[Packet]:
    """Read the packets of a file."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        found = [
            (one.size, one.is_keyframe, float(one.pts * one.time_base))
            for one in container.demux(video)
            if one.size and one.pts is not None
        ]
    return [Packet(size, keyframe, at_s - found[0][2]) for size, keyframe, at_s in found]


def notice(packets: Sequence[Packet], visits: Sequence[Visit], choice: DecodeChoice) -> Noticed:
    """Take packets through the policy."""
    policy, found, moved_s = DecodePolicy[Packet](choice), Noticed(), -_BUSY_S
    seen: dict[int, float] = {}
    for packet in packets:
        busy = packet.at_s - moved_s < _BUSY_S
        demand = Demand(DecodeMode.FULL if busy else DecodeMode.PACKETS, packet.at_s - moved_s < 0.15)
        facts = PacketFacts(packet.size, packet.keyframe, False, round((packet.at_s + 1.0) * 1e9))
        steps = policy.add(packet, facts, demand)
        if any(_in_view(visit, step.packet.at_s) for visit in visits for step in steps):
            moved_s = packet.at_s
        _note(seen, visits, steps, packet.at_s)
        is_still = not any(visit.begins_s - 1.0 <= packet.at_s < visit.ends_s + 5.0 for visit in visits)
        if is_still and packet.at_s > _WARM_S:
            found.still, found.still_decoded = found.still + 1, found.still_decoded + len(steps)
    found.delays_s = [seen.get(number, float("inf")) for number in range(len(visits))]
    return found


def _in_view(visit: Visit, at_s: float) -> bool:
    return visit.begins_s + 0.15 <= at_s < visit.ends_s + 0.2


def _note(
    seen: dict[int, float], visits: Sequence[Visit], steps: Sequence[DecodeStep[Packet]], now_s: float
) -> None:
    """Note the delay of each visitor who is seen for the first time."""
    for number, visit in enumerate(visits):
        told_s = visit.begins_s + 0.2 + 0.04 * (visit.ends_s - visit.begins_s)
        if number not in seen and any(told_s <= step.packet.at_s < visit.ends_s for step in steps):
            seen[number] = max(0.0, now_s - told_s)
