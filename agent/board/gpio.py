"""Inputs and outputs of the board, by number of the pin (BCM on a Raspberry Pi), through gpiozero.

gpiozero comes with the extra `[gpio]`, and drives the kernel's GPIO character device through lgpio. It is loaded
only here, when a pin is opened.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

from agent.errors import ConfigError, SourceError

INSTALL = "pip install 'vedette[gpio]'"


def pin_of(address: str) -> int:
    """Return the number of a pin such as `gpio:17`."""
    return int(address.removeprefix("gpio:"))


def check_installed(address: str) -> None:
    """Raise ConfigError if the library that pins need is not installed; nothing is opened."""
    if importlib.util.find_spec("gpiozero") is None:
        raise ConfigError(f"{address}: pins need gpiozero: {INSTALL}")


class InputPin:
    """Calls a function from a thread of the library each time a pin becomes active."""

    def __init__(self, address: str, on_active: Callable[[], None], *, active_low: bool) -> None:
        """Open a pin.

        Args:
            address: such as `gpio:17`.
            on_active: called when it becomes active.
            active_low: pull it up; it is active when it is low.

        Raises:
            ConfigError: gpiozero is not installed, or there is no such pin.
            SourceError: the board has no GPIO, or this user may not use it, or another program does.
        """
        self._device = _open(address, "DigitalInputDevice", pull_up=active_low)
        self._device.when_activated = on_active

    def close(self) -> None:
        """Release the pin."""
        self._device.close()


class OutputPin:
    """An output, inactive until it is pulsed."""

    def __init__(self, address: str, *, active_low: bool) -> None:
        """Open a pin; see `InputPin` for what is raised.

        Args:
            address: such as `gpio:22`.
            active_low: it is low while it is active.
        """
        self._device = _open(address, "DigitalOutputDevice", active_high=not active_low, initial_value=False)

    def set(self, *, active: bool) -> None:
        """Switch the output."""
        (self._device.on if active else self._device.off)()

    def close(self) -> None:
        """Release the pin, inactive."""
        self._device.off()
        self._device.close()


def _open(address: str, kind: str, **options: Any) -> Any:
    # lgpio makes a pipe in the working directory, which a service may not write.
    os.environ.setdefault("LG_WD", os.environ.get("RUNTIME_DIRECTORY") or tempfile.gettempdir())
    try:
        import gpiozero
    except ImportError as error:
        raise ConfigError(f"{address}: pins need gpiozero: {INSTALL}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of each library that it tries in turn
            return getattr(gpiozero, kind)(pin_of(address), **options)
    except gpiozero.PinInvalidPin as error:
        raise ConfigError(f"{address}: this board has no such pin: {error}") from error
    except (gpiozero.GPIOZeroError, gpiozero.GPIOZeroWarning, OSError, ValueError) as error:
        raise SourceError(f"{address}: cannot be opened: {_why(error)}") from error


def _why(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    if type(error).__name__ == "BadPinFactory":
        return "this machine has no GPIO that gpiozero can use (a board needs /dev/gpiochip0 and group gpio)"
    return text.splitlines()[0]
