"""The alarm for a model whose answer never moves: a broken conversion or a dead input looks just like silence."""

from __future__ import annotations

import numpy as np

from agent.compute.decode.quant import Floats

_LISTENED_S = 300.0
"""So long to sound that stood out. A wake word's score may well be 0 through minutes of other words."""
_STILL = 1e-6


class ConstantAlarm:
    """Watches the answers of one model. For one thread.

    Attributes:
        text: what is wrong; empty while nothing is.
    """

    def __init__(self, every_s: float) -> None:
        """Prepare.

        Args:
            every_s: from one answer to the next, s.
        """
        self.text = ""
        self._most = max(2, round(_LISTENED_S / every_s))
        self._first: Floats | None = None
        self._same = 0

    def saw(self, scores: Floats) -> bool:
        """Take note of an answer to sound that stood out; whether the alarm has just gone off."""
        before = self._first
        if before is None or before.shape != scores.shape or np.abs(scores - before).max(initial=0.0) > _STILL:
            self._first, self._same, self.text = scores.copy(), 0, ""
            return False
        self._same += 1
        if self._same < self._most or self.text:
            return False
        self.text = (
            f"the model's answer has not moved in {_LISTENED_S:.0f} s of sound: "
            "its file or its front end is broken"
        )
        return True
