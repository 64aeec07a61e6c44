"""Attributes of tracked objects: the answers of other models about each, joined over several pictures.

One picture may deceive: a plate is blurred, a person turns away. The answers about an object are counted, the
newer ones more, and another value replaces the present one only when it is clearly ahead. Times are passed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from agent.config.features import SecondaryConfig
from agent.types import Attribute, Box, Detection

_KEEP = 0.8
"""Weight of an answer relative to the next one: ten answers earlier it counts a tenth."""
_AHEAD = 1.2
"""How many times the present value's weight another one needs to replace it."""
_LARGER = 1.5
"""An object is looked at before its time when its box has grown to so many times the largest area looked at …"""
_SOONEST = 0.25
"""… but not sooner than after this share of `every_s`."""
_DOUBLINGS = 32
"""Most doublings of the time between two runs: more would leave the range of a float one day."""
_SETTLED = 3
"""Answers in a row that confirm the value, after which the time between two runs begins to double."""


class AttributeVotes:
    """Joins the answers of one secondary model about one object.

    Attributes:
        attribute: present one; None: it has said nothing yet.
    """

    def __init__(self, config: SecondaryConfig) -> None:
        self.attribute: Attribute | None = None
        self._config = config
        self._weights: dict[str, float] = {}
        self._total = 0.0
        self._agreed = self._answers = 0
        self._looked_ns: int | None = None
        self._largest = 0.0

    def due_in(self, now_ns: int, area: float) -> float:
        """Return the time until it is to be run again, s; negative: since when it is due; -inf: it never ran.

        Args:
            now_ns: CLOCK_MONOTONIC, ns.
            area: of the object's box, as a share of the picture.
        """
        if self._looked_ns is None:
            return float("-inf")
        wait_s = self._config.every_s
        if area >= _LARGER * self._largest:
            wait_s *= _SOONEST
        elif self._agreed >= _SETTLED:
            doublings = min(self._agreed - _SETTLED + 1, _DOUBLINGS)
            wait_s = max(wait_s, min(self._config.settled_every_s, wait_s * 2.0**doublings))
        return wait_s - (now_ns - self._looked_ns) / 1e9

    def add(self, answers: Sequence[Detection], now_ns: int, area: float) -> bool:
        """Add what the model said about one picture. Return True if the attribute has another value now.

        Args:
            answers: strongest first; only the first counts. Empty: it said nothing, which changes nothing.
            now_ns: see `due_in`.
            area: see `due_in`.
        """
        self._looked_ns = now_ns
        self._largest = max(self._largest, area)
        if not answers:
            self._agreed += self._answers == 0  # an object of which nothing is said is not run on each time
            return False
        before, self._answers = self.attribute, self._answers + 1
        best = answers[0]
        now = self._measured(best) if _is_measured(best) else self._voted(best)
        self.attribute = now
        changed = before is None or before.value != now.value
        self._agreed = 0 if changed or (not now.values and best.label != now.value) else self._agreed + 1
        return changed

    def _voted(self, best: Detection) -> Attribute:
        for value in self._weights:
            self._weights[value] *= _KEEP
        self._total = self._total * _KEEP + 1.0
        self._weights[best.label] = self._weights.get(best.label, 0.0) + best.score
        first = max(self._weights, key=self._weights.__getitem__)
        present = self.attribute.value if self.attribute is not None else first
        if self._weights[first] > _AHEAD * self._weights.get(present, 0.0):
            present = first
        score = round(min(1.0, self._weights[present] / self._total), 4)
        if best.label == present:
            return Attribute(present, score, self._answers, box=best.box, keypoints=best.keypoints)
        assert self.attribute is not None
        return replace(self.attribute, score=score, answers=self._answers)

    def _measured(self, best: Detection) -> Attribute:
        """Join measurements to their weighted mean; of vectors, and other numbers, the same."""
        before = self.attribute.values if self.attribute is not None else ()
        is_first = len(before) != len(best.values)
        self._total = 1.0 if is_first else self._total * _KEEP + 1.0
        share = 1.0 / self._total
        pairs = zip(best.values if is_first else before, best.values, strict=True)
        values = tuple(old + share * (new - old) for old, new in pairs)
        return Attribute(best.label, round(best.score, 4), self._answers, values, best.box, best.keypoints)


def _is_measured(answer: Detection) -> bool:
    return bool(answer.values)


def crop_of(box: Box, config: SecondaryConfig, width: int, height: int) -> Box:
    """Return the part of a picture of that size, in pixels, that a model is shown of an object with that box."""
    across, down = config.margin * (box[2] - box[0]), config.margin * (box[3] - box[1])
    if config.square:
        side = max((box[2] - box[0] + 2 * across) * width, (box[3] - box[1] + 2 * down) * height)
        across = max(across, (side / width - (box[2] - box[0])) / 2)
        down = max(down, (side / height - (box[3] - box[1])) / 2)
    return (
        min(1.0, max(0.0, box[0] - across)),
        min(1.0, max(0.0, box[1] - down)),
        min(1.0, max(0.0, box[2] + across)),
        min(1.0, max(0.0, box[3] + down)),
    )


def shorter_side(box: Box, width: int, height: int) -> float:
    """Return the length of a box's shorter side in a picture of that size, pixels."""
    return min((box[2] - box[0]) * width, (box[3] - box[1]) * height)


def area_of(box: Box) -> float:
    """Return the area of a box, as a share of the picture."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def chosen(waiting: Iterable[tuple[float, str]], most: int) -> list[str]:
    """Return the ids of the objects to run a model on now, at most so many: the longest due first.

    Args:
        waiting: time until it is due (see `AttributeVotes.due_in`) and id of each object.
        most: of one picture.
    """
    due = sorted(pair for pair in waiting if pair[0] <= 0.0)
    return [name for _, name in due[:most]]
