"""Pins through gpiozero, with its own pretended board."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

gpiozero = pytest.importorskip("gpiozero", reason="pins need gpiozero")

from agent.board import gpio
from agent.board.gpio import InputPin, OutputPin, check_installed
from agent.errors import ConfigError, SourceError
from tests.support.publishing import wait_for


@pytest.fixture
def board() -> Iterator[Any]:
    from gpiozero.pins.mock import MockFactory

    before, gpiozero.Device.pin_factory = gpiozero.Device.pin_factory, MockFactory()
    yield gpiozero.Device.pin_factory
    gpiozero.Device.pin_factory.reset()
    gpiozero.Device.pin_factory = before


def test_a_pin_calls_each_time_it_becomes_active(board: Any) -> None:
    called: list[int] = []
    pin = InputPin("gpio:17", lambda: called.append(1), active_low=False)
    for _ in range(3):
        board.pin(17).drive_high()
        time.sleep(0.01)
        board.pin(17).drive_low()
        time.sleep(0.01)
    wait_for(lambda: len(called) == 3)
    pin.close()
    board.pin(17).drive_high()
    assert len(called) == 3


def test_a_pin_that_is_active_low_is_pulled_up(board: Any) -> None:
    called: list[int] = []
    pin = InputPin("gpio:4", lambda: called.append(1), active_low=True)
    assert board.pin(4).pull == "up"
    board.pin(4).drive_low()
    wait_for(lambda: called)
    pin.close()


@pytest.mark.parametrize("active_low", [False, True])
def test_an_output_is_inactive_before_and_after(board: Any, active_low: bool) -> None:
    pin = OutputPin("gpio:22", active_low=active_low)
    assert board.pin(22).state is active_low
    pin.set(active=True)
    assert board.pin(22).state is not active_low
    pin.close()
    assert board.pin(22).state is not True or active_low


def test_a_pin_that_is_used_already_is_named(board: Any) -> None:
    first = OutputPin("gpio:22", active_low=False)
    with pytest.raises(SourceError, match=r"gpio:22.*already in use"):
        InputPin("gpio:22", lambda: None, active_low=False)
    first.close()


def test_a_pin_that_no_board_has_is_refused(board: Any) -> None:
    with pytest.raises(ConfigError, match="gpio:99"):
        OutputPin("gpio:99", active_low=False)


def test_a_machine_without_pins_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpiozero.Device, "pin_factory", None)
    monkeypatch.setenv("GPIOZERO_PIN_FACTORY", "native")
    with pytest.raises(SourceError, match="gpio:17: cannot be opened"):
        InputPin("gpio:17", lambda: None, active_low=False)


def test_without_gpiozero_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gpiozero", None)
    with pytest.raises(ConfigError, match=r"vedette\[gpio\]"):
        OutputPin("gpio:22", active_low=False)


def test_a_configuration_is_checked_without_opening_a_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed("gpio:17")
    monkeypatch.setattr(gpio.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"gpio:17: pins need gpiozero: pip install 'vedette\[gpio\]'"):
        check_installed("gpio:17")
