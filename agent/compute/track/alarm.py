"""The alarm for a model whose answer never moves: a broken conversion or a dead input looks just like silence."""

from __future__ import annotations

from agent.compute.decode.quant import Floats

_LISTENED_S = 300.0
"""So long to sound that stood out. A wake word's score may well be 0 through minutes of other words."""


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
        self._before = b""
        self._same = 0

    def saw(self, scores: Floats) -> bool:
        """Take note of an answer to sound that stood out; whether the alarm has just gone off."""
        now = scores.tobytes()
        if now != self._before:
            self._before, self._same, self.text = now, 0, ""
            return False
        self._same += 1
        if self._same < self._most or self.text:
            return False
        self.text = (
            f"the model's answer has not moved in {_LISTENED_S:.0f} s of sound: "
            "its file or its front end is broken"
        )
        return True
