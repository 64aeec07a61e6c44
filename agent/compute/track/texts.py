"""The text that stands in a picture: readings over time in, one steady text out. No clock.

A reader errs now and then, and differs from picture to picture while a drum turns or a hand passes. A text counts
when it has been read so often in a row; until another has been, or as many pictures had none of it, the old one
stays.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.types import Detection


class SteadyText:
    """Filters the readings of one place. For one thread."""

    def __init__(self, hits: int) -> None:
        """Start without a text; `hits` readings in a row make one."""
        self._hits = hits
        self._current: Detection | None = None
        self._label, self._run, self._away = "", 0, 0

    @property
    def is_undecided(self) -> bool:
        """True while further pictures are needed: a text has been read that does not count yet."""
        return self._run > 0

    def update(self, found: Sequence[Detection]) -> Sequence[Detection]:
        """Add the readings of one picture, strongest first, of which one counts; return the text that stands."""
        read = found[0] if found else None
        if read is None:
            self._label, self._run = "", 0
            return self._without()
        if self._current is not None and read.label == self._current.label:
            self._stand(read)
            return (read,)
        self._run = self._run + 1 if read.label == self._label else 1
        self._label = read.label
        if self._run >= self._hits:
            self._stand(read)
            return (read,)
        return self._without()

    def reset(self) -> None:
        """Forget all readings, as after a stall."""
        self._current = None
        self._label, self._run, self._away = "", 0, 0

    def _stand(self, read: Detection) -> None:
        self._current = read
        self._label, self._run, self._away = "", 0, 0

    def _without(self) -> Sequence[Detection]:
        """Return the old text, unless it has been missing too often."""
        self._away += 1
        if self._current is None or self._away >= self._hits:
            self._current = None
            return ()
        return (self._current,)
