"""Outages: when a source is lost and when it is back, each said once. Rules only: the clock is handed in."""

from __future__ import annotations

from typing import Literal

CaptureState = Literal["starting", "running", "lost", "ended"]


class Outage:
    """The state of one source.

    Attributes:
        state: starting, until its first picture or first failure; running; lost; ended.
        detail: why it is lost, or what it gives, for people.
    """

    def __init__(self) -> None:
        self.state: CaptureState = "starting"
        self.detail = ""
        self._lost_s, self._explained = 0.0, False

    def lose(self, now_s: float, reason: str, *, explains: bool = True) -> bool:
        """Take note that the source gives nothing.

        Args:
            now_s: of any clock that goes on, s.
            reason: for people.
            explains: False: the reason only says that nothing comes, and a more exact one may follow.

        Returns:
            True where this is news: the outage begins, or this is its first reason that explains it.
        """
        self.detail = reason
        is_news = self.state != "lost" or (explains and not self._explained)
        if self.state != "lost":
            self.state, self._lost_s, self._explained = "lost", now_s, False
        self._explained = self._explained or explains
        return is_news

    def run(self, now_s: float, about: str) -> str | None:
        """It gives pictures: the news, if it had been lost."""
        news = f"back after {now_s - self._lost_s:.0f} s" if self.state == "lost" else None
        self.state, self.detail = "running", about
        return news

    def end(self) -> None:
        """A finite source is over."""
        self.state, self.detail = "ended", ""


class BackOff:
    """Pauses between attempts: each twice the last up to a limit, less a random part so boards do not meet."""

    def __init__(self, first_s: float, last_s: float) -> None:
        self._first_s, self._last_s = min(first_s, last_s), last_s
        self._pause_s = self._first_s

    def next(self, chance: float) -> float:
        """The pause before the next attempt, s.

        Args:
            chance: 0..1, 1 for the whole pause and 0 for half of it.
        """
        pause_s = self._pause_s
        self._pause_s = min(self._last_s, pause_s * 2)
        return pause_s * (0.5 + 0.5 * chance)

    def reset(self) -> None:
        """It went well: the next pause is the first again."""
        self._pause_s = self._first_s


class Thinning:
    """Lets through so many pictures a second, evenly on average."""

    def __init__(self, max_fps: float) -> None:
        self._period_s = 1.0 / max_fps if max_fps > 0 else 0.0
        self._due_s = float("-inf")

    def passes(self, now_s: float) -> bool:
        """Whether the picture of this moment is handed on.

        Args:
            now_s: of any clock that goes on, s.
        """
        if self._period_s == 0.0:
            return True
        if now_s < self._due_s - 1e-6:
            return False
        late = now_s - self._due_s
        self._due_s = now_s + self._period_s if late > self._period_s else self._due_s + self._period_s
        return True
