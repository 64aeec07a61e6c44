"""Whether a source's device has just been plugged in: then it is opened at once, and not when a pause is over."""

from __future__ import annotations

from pathlib import Path

from agent.capture.uri import Address

_SOUND = Path("/dev/snd")
_CAPTURES = "pcmC*D*c"
"""ALSA's nodes for capture."""


class Plug:
    """Of one source; a camera by its node, a microphone by any that is new, since its name says nothing of it."""

    def __init__(self, address: Address, sound: Path = _SOUND) -> None:
        """Note what is there now.

        Args:
            address: of the source; one that is no device is never plugged in.
            sound: folder of ALSA's nodes.
        """
        self._address, self._sound = address, sound
        self._nodes = self._found()

    def came(self) -> bool:
        """Whether there is a device that was not there at the last look."""
        before, self._nodes = self._nodes, self._found()
        return bool(self._nodes - before)

    def _found(self) -> set[Path]:
        try:
            if self._address.scheme == "mic":
                return set(self._sound.glob(_CAPTURES))
            device = Path(self._address.target)
            return {device} if self._address.scheme == "v4l2" and device.exists() else set()
        except OSError:  # it is unplugged at this moment
            return set()
