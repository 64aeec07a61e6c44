"""Finds utterances: single words or short phrases with a pause before and after, in the rows of a front end.

The level of a row is the power of all its bands. An utterance begins where the level rises above the quietest of
the newest seconds, and ends where it stays below for a pause. Its edges are then moved to where the level is
within a fixed distance of its own peak, so that the edges of one word are the same in any noise. The rule is that
of Rabiner and Sambur, An algorithm for determining the endpoints of isolated utterances, Bell System Technical
Journal 54 (1975), with one level instead of two measures.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from msgspec import Struct

from agent.types import Array

SHORTEST_S, LONGEST_S = 0.15, 1.5
"""Length of an utterance, s: a click is shorter, a sentence longer."""
PAUSE_S = 0.3
"""Silence that ends an utterance, s: the closure of a plosive inside a word is shorter."""
_ABOVE_DB = 9.0
"""Level above the quietest of the newest seconds that counts as sound, dB."""
_PEAK_DB = 27.0
"""Edges lie where the level is less than this below the utterance's peak, dB."""
_SMOOTH = 3
"""Rows whose mean power is the level of the last of them."""
_STEP = 5
"""Rows after which the end is looked for: by so many a pause may be missed."""
_DB = 10.0


class Utterance(Struct, frozen=True):
    """Rows of a word with what is around it.

    Attributes:
        rows: float32 [n, columns].
        begin, end: of the word, as indices into `rows`.
    """

    rows: Array
    begin: int
    end: int

    def window(self, end: int, count: int, floor: float) -> Array:
        """Return the `count` rows before row `end`, float32 [count, columns]; missing ones hold `floor`."""
        found = np.full((count, self.rows.shape[1]), floor, np.float32)
        first, last = max(0, end - count), max(0, min(end, len(self.rows)))
        if last > first:
            found[count - end + first : count - end + last] = self.rows[first:last]
        return found


class UtteranceFinder:
    """Finds the utterances of one stream. For one thread."""

    def __init__(self, hop_s: float, before_s: float) -> None:
        """Begin without sound.

        Args:
            hop_s: from one row to the next, s.
            before_s: length of what is kept before an utterance, s.
        """
        self._pause = round(PAUSE_S / hop_s)
        self._shortest, self._longest = round(SHORTEST_S / hop_s), round(LONGEST_S / hop_s)
        self._before = round(before_s / hop_s)
        self._most = self._before + self._longest + 2 * self._pause
        self.reset()

    def reset(self) -> None:
        """Forget the sound: the next rows do not continue it."""
        self._rows: Array = np.zeros((0, 0), np.float32)
        self._power: Array = np.zeros(0, np.float32)
        self._begin: int | None = None

    @property
    def is_open(self) -> bool:
        """True while an utterance goes on."""
        return self._begin is not None

    def add(self, rows: Array) -> Iterator[tuple[Utterance, int]]:
        """Add rows, natural logarithms of energy, float32 [n, columns].

        Yields:
            Each utterance that has ended, with the number of rows that have come since its end.
        """
        for at in range(0, len(rows), _STEP):
            self._append(rows[at : at + _STEP])
            found = self._poll()
            if found is not None:
                left = len(rows) - min(len(rows), at + _STEP)
                yield found, left + len(found.rows) - found.end

    def flush(self) -> Utterance | None:
        """End what is open, because the sound ends here; return it if it is an utterance."""
        if self._begin is None:
            return None
        begin, self._begin = self._begin, None
        return self._cut(begin, len(self._power))

    def _append(self, rows: Array) -> None:
        power = np.exp(rows.astype(np.float64)).sum(axis=1)
        dropped = max(0, len(self._rows) + len(rows) - self._most)
        kept = self._rows if len(self._rows) else rows[:0]
        self._rows = np.concatenate((kept, rows))[dropped:]
        self._power = np.concatenate((self._power, power))[dropped:]
        if self._begin is not None:
            self._begin = max(0, self._begin - dropped)

    def _poll(self) -> Utterance | None:
        """Return the utterance that the newest rows end, if any."""
        levels = self._levels()
        loud = np.flatnonzero(levels > levels.min(initial=np.inf) + _ABOVE_DB)
        if self._begin is None:
            self._begin = self._rise(loud, len(levels))
            if self._begin is None:
                return None
        last = int(loud[-1]) if loud.size else -1
        if len(levels) - self._begin > self._longest + self._pause and last >= len(levels) - self._pause:
            return None  # too long: it is dropped when it ends
        if len(levels) - 1 - last < self._pause:
            return None
        begin, self._begin = self._begin, None
        return self._cut(begin, last + 1)

    def _rise(self, loud: Array, count: int) -> int | None:
        """Return where the newest of `count` rows begin to be loud after some silence, if they do."""
        gaps = np.diff(loud, prepend=-1) > self._pause // 2
        if not gaps.any():
            return None
        first = int(np.flatnonzero(gaps)[-1])
        is_going_on = loud.size - first >= _SMOOTH and int(loud[-1]) >= count - self._pause
        return int(loud[first]) if is_going_on else None

    def _levels(self) -> Array:
        """Return the smoothed level of each row, dB."""
        padded = np.concatenate((self._power[:1].repeat(_SMOOTH - 1), self._power))
        means = np.convolve(padded, np.full(_SMOOTH, 1.0 / _SMOOTH), "valid") if self._power.size else padded
        return np.asarray(_DB * np.log10(means + 1e-30))

    def _cut(self, begin: int, end: int) -> Utterance | None:
        """Return what lies between two rows with its own edges; None if it is too short or too long."""
        levels = self._levels()[begin:end]
        if not levels.size:
            return None
        near = np.flatnonzero(levels > levels.max() - _PEAK_DB)
        first, last = begin + int(near[0]), begin + int(near[-1]) + 1
        if not self._shortest <= last - first <= self._longest:
            return None
        return Utterance(self._rows, first, last)
