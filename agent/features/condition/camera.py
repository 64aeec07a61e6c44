"""Condition of one camera: dark, frozen, blurred, covered, moved or tilted, by the gate's small pictures.

A picture is examined every three seconds. Dark and frozen need no reference; the others compare with the view
that was learned in the first half minute, and since. What is dark, blurred or covered teaches nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from agent.config.condition import ConditionConfig, Problem
from agent.features.condition.looks import (
    CHECK_S,
    UNKNOWN,
    CameraMemory,
    ViewFollower,
    ViewSigns,
    pack_looks,
    unpack_looks,
)
from agent.features.condition.rules import Delays, ProblemTimers
from agent.features.condition.view import TILES, Displacement, describe, tiles
from agent.types import Array, Image

_DARK, _DARK_SHARE, _LIT_SHARE = 32, 0.01, 0.03
"""Grey level, share of brighter pixels of a picture that is dark, and of one that no longer is."""
_STILL_SHARE, _STILL_S, _STILL_CHECKS = 0.12, 40.0, 13
"""Most tiles that a frozen picture changes, such as a clock in it; for how long, s, and in how many checks: as
many as a usual camera has in that time. A slow one without noise may show few changes between two pictures."""
_TILTED = 2.5
"""Turn from which a camera is tilted, degrees."""
_ACCEPT_S = 3600.0
"""Time after which the view of a moved camera without zones is its new one, s."""
_DELAYS: dict[Problem, Delays] = {
    "dark": Delays(20.0, 10.0),
    "frozen": Delays(0.0, 4.0),
    "blurred": Delays(20.0, 10.0),
    "covered": Delays(12.0, 10.0),
    "moved": Delays(0.0, 10.0),
    "tilted": Delays(0.0, 10.0),
}
_REPLACED_S = 36.0
"""Time for which another view is there until the camera has moved, s."""

View = tuple[Image, Image]
"""A grey picture of some 120 to 240 columns, and one with more pixels, see `Background.view`."""


class CameraCondition:
    """Watches the pictures of one stream. For one thread, but for `accept`."""

    def __init__(
        self,
        config: ConditionConfig,
        zones: str = "",
        memory: CameraMemory | None = None,
        seen_share: float = 1.0,
    ) -> None:
        """Start with what an earlier run has learned, if anything.

        Args:
            config: of the stream.
            zones: describes its zones; empty: it has none. A moved camera is in place where these have changed.
            memory: see `remember`.
            seen_share: share of the pictures that no privacy mask makes black.
        """
        self._config, self._zones, self._seen_share = config, zones, seen_share
        self._timers = ProblemTimers(_DELAYS, config.ignore)
        self._still = StillPicture()
        self._accepts = False
        self._next_ns = self._before_ns = -(1 << 62)
        self._replaced_ns: int | None = None
        self._moved_ns: int | None = None
        self._where = ""
        self._follower = ViewFollower()
        if memory is not None:
            self._recall(memory)

    def update(self, now_ns: int, view: Callable[[], View]) -> None:
        """Examine a picture, if one is due; `view` returns it in its two sizes."""
        passed_s = min(10.0, max(0.0, (now_ns - self._before_ns) / 1e9))
        self._before_ns = now_ns
        if self._accepts:
            self._accept()
        self._follower.step(passed_s)
        if 0 < self._next_ns - now_ns <= CHECK_S * 1e9:
            return
        self._next_ns = now_ns + round(CHECK_S * 1e9)
        self._timers.begin_check(now_ns)
        self._check(*view(), now_ns)

    def pause(self) -> None:
        """Record that no pictures come: what was compared last is of no use."""
        self._still.restart()
        self._replaced_ns = None

    def accept(self) -> None:
        """Take the present view for the right one, from the next picture on. Any thread may call this."""
        self._accepts = True

    def set_zones(self, zones: str) -> None:
        """Take the present view for the right one if it has moved and the zones were drawn anew."""
        if zones != self._zones and self.has_moved:
            self._accepts = True
        self._zones = zones

    @property
    def has_moved(self) -> bool:
        """True while the view is not the one that zones were drawn on."""
        return self._timers["moved"].active or self._timers["tilted"].active

    @property
    def problems(self) -> dict[Problem, str]:
        """Problems that last, each with what is known about it."""
        return {name: self._where if name in ("moved", "tilted") else "" for name in self._timers.active()}

    def remember(self) -> CameraMemory | None:
        """Return what was learned, and nothing where a view was accepted just now; None: it has moved unseen."""
        looks = pack_looks(self._follower.looks)
        moved = next((name for name in ("moved", "tilted") if self._timers[name].active), "")
        return (
            None if moved and not looks else CameraMemory(looks, moved, self._where if moved else "", self._zones)
        )

    def _recall(self, memory: CameraMemory) -> None:
        self._follower.looks = unpack_looks(memory.looks)
        is_known = self._follower.looks and memory.moved in ("moved", "tilted") and memory.zones == self._zones
        if is_known and memory.moved not in self._config.ignore:
            self._set_moved("tilted" if memory.moved == "tilted" else "moved", memory.where)
        elif memory.moved:
            self._follower.forget()

    def _check(self, picture: Image, detail: Image, now_ns: int) -> None:
        is_dark = self._is_dark(picture)
        self._timers.update("dark", is_dark and self._seen_share > 0.0, now_ns)
        if is_dark:
            self._still.restart()
        self._timers.update("frozen", None if is_dark else self._still.update(picture, now_ns), now_ns)
        signs = UNKNOWN if is_dark else self._follower.check(describe(picture, detail))
        self._timers.update("blurred", signs.blurred, now_ns)
        self._timers.update("covered", signs.covered, now_ns)
        self._follow_place(signs, now_ns)

    def _is_dark(self, picture: Image) -> bool:
        bright = cv2.countNonZero(cv2.threshold(picture, _DARK, 255, cv2.THRESH_BINARY)[1]) / picture.size
        bright /= max(self._seen_share, 1e-9)  # masked pixels are black, whatever the light
        return bright < (_LIT_SHARE if self._timers["dark"].active else _DARK_SHARE)

    def _follow_place(self, signs: ViewSigns, now_ns: int) -> None:
        if self.has_moved:
            self._end_move(signs, now_ns)
            return
        if self._timers["covered"].active or self._timers["blurred"].active:
            self._replaced_ns = None
            return
        if signs.displaced and (found := self._follower.displacement) is not None:
            self._begin_move("tilted" if abs(found.degrees) >= _TILTED else "moved", describe_move(found), now_ns)
            return
        if signs.replaced is not None:
            if not signs.replaced or self._replaced_ns is None:
                self._replaced_ns = now_ns if signs.replaced else None
            elif now_ns - self._replaced_ns >= _REPLACED_S * 1e9:
                self._begin_move("moved", "another view", now_ns)

    def _begin_move(self, problem: Problem, where: str, now_ns: int) -> None:
        self._replaced_ns = None
        if problem in self._config.ignore:
            self._follower.forget()
            return
        self._moved_ns = now_ns
        self._set_moved(problem, where)

    def _set_moved(self, problem: Problem, where: str) -> None:
        self._timers[problem].set(True)
        self._follower.moved, self._where = True, where

    def _end_move(self, signs: ViewSigns, now_ns: int) -> None:
        for problem in ("moved", "tilted"):
            timer = self._timers[problem]
            if timer.active and signs.back is not None:
                timer.update(not signs.back, now_ns)
        if not self.has_moved:
            self._follower.moved = False
            return
        self._moved_ns = now_ns if self._moved_ns is None else self._moved_ns
        accept_s = self._config.accept_after_s
        if accept_s is None:
            accept_s = 0.0 if self._zones else _ACCEPT_S
        if 0.0 < accept_s <= (now_ns - self._moved_ns) / 1e9:
            self._accept()

    def _accept(self) -> None:
        self._accepts = False
        self._timers["moved"].set(False)
        self._timers["tilted"].set(False)
        self._replaced_ns = None
        self._follower.forget()


def describe_move(found: Displacement) -> str:
    """Return a displacement in words: how far the camera has moved, as shares of the picture."""
    shift = [
        f"{abs(value):.0%} {words[value < 0]}"
        for value, words in ((-found.right, ("right", "left")), (-found.down, ("down", "up")))
        if abs(value) >= 0.01
    ]
    if abs(found.degrees) >= _TILTED:
        shift.append(f"{abs(found.degrees):.0f}° {'anticlockwise' if found.degrees > 0 else 'clockwise'}")
    return ", ".join(shift)


class StillPicture:
    """Finds that the same picture comes again and again, perhaps with another time written into it.

    A sensor's noise changes pixels all over the picture, at least here and there within half a minute.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Compare with nothing that was seen before."""
        self._before: Image | None = None
        self._changed = np.zeros(TILES[::-1], bool)
        self._since_ns, self._checks = 0, 0

    def update(self, picture: Image, now_ns: int) -> bool:
        """Compare a picture with the one before; return True if they have been the same for long."""
        if self._before is None or self._before.shape != picture.shape:
            self.restart()
            self._before, self._since_ns = picture.copy(), now_ns
            return False
        self._changed |= _changed_tiles(picture, self._before)
        np.copyto(self._before, picture)
        self._checks += 1
        if float(self._changed.mean()) > _STILL_SHARE:
            self._changed[:] = False
            self._since_ns, self._checks = now_ns, 0
            return False
        return now_ns - self._since_ns >= _STILL_S * 1e9 and self._checks >= _STILL_CHECKS


def _changed_tiles(one: Image, other: Image) -> Array:
    _, different = cv2.threshold(cv2.absdiff(one, other), 0, 255, cv2.THRESH_BINARY)
    return tiles(different) > 0
