"""How a box moves on: an alpha-beta filter at constant velocity. Boxes in, where the box should be by now out."""

from __future__ import annotations

from agent.messages import Box

_ALPHA = 0.7
"""Share of a surprise that is believed as position: detectors' boxes jitter little against people's steps."""

_BETA = _ALPHA**2 / (2.0 - _ALPHA)
"""Share of it that is believed as velocity. Source: Benedict and Bordner, Synthesis of an Optimal Set of Radar
Track-While-Scan Smoothing Equations, IRE Trans. AC-7 (1962), eq. for the least transient error."""

_FIRST_BETA = 0.8
"""The first velocity comes from two boxes alone: most of it."""

_MEMORY_S = 1.0
"""Who is not seen is expected to go on for so long, s, and then to stand."""


class Motion:
    """Position, size and velocity of one box. Units: fractions of the frame, s."""

    __slots__ = ("_h", "_hits", "_seen_ns", "_vx", "_vy", "_w", "_x", "_y")

    def __init__(self, box: Box, at_ns: int) -> None:
        """Begin at rest.

        Args:
            box: where.
            at_ns: when, ns on the clock of all later calls.
        """
        x0, y0, x1, y1 = box
        self._x, self._y, self._w, self._h = (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0
        self._vx = self._vy = 0.0
        self._seen_ns = at_ns
        self._hits = 1

    @property
    def settled(self) -> bool:
        """Whether its velocity rests on more than two boxes."""
        return self._hits > 2

    def predict(self, at_ns: int) -> Box:
        """Where the box should be; may lie outside the frame."""
        dt = min(_MEMORY_S, max(0.0, (at_ns - self._seen_ns) / 1e9))
        x, y = self._x + self._vx * dt, self._y + self._vy * dt
        w, h = self._w / 2, self._h / 2
        return (x - w, y - h, x + w, y + h)

    def correct(self, box: Box, at_ns: int) -> None:
        """It was seen here."""
        dt = max(0.0, (at_ns - self._seen_ns) / 1e9)
        ahead = min(_MEMORY_S, dt)
        x0, y0, x1, y1 = box
        x, y = self._x + self._vx * ahead, self._y + self._vy * ahead
        off_x, off_y = (x0 + x1) / 2 - x, (y0 + y1) / 2 - y
        self._x, self._y = x + _ALPHA * off_x, y + _ALPHA * off_y
        if dt > 0.0:
            beta = (_BETA if self._hits > 1 else _FIRST_BETA) / dt
            self._vx += beta * off_x
            self._vy += beta * off_y
        self._w += _ALPHA * (x1 - x0 - self._w)
        self._h += _ALPHA * (y1 - y0 - self._h)
        self._seen_ns = at_ns
        self._hits += 1
