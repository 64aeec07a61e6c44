"""The scene of the proof: a broker, Home Assistant, and a device with streams of every kind."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ha_core import HomeAssistant, wait_for
from ha_streams import every_kind, fused_events
from msgspec import Struct

from tests.support.mosquitto import Mosquitto, free_port
from tests.support.operator import Operator
from tests.support.publishing import TOPICS
from tests.support.received import Messages
from tests.support.running import Vedette
from tests.system.gate_camera import GateCamera

DEVICE = f"{TOPICS.prefix}/{TOPICS.device}"
CONFIG_TOPIC = f"homeassistant/device/{TOPICS.device}/config"
_PATIENCE = 2.0
UNKNOWN = ("unknown", "unavailable")
_KEYS = Path(__file__).with_name("ha_keys.py")
_OUTAGE = (
    "connection was lost",
    "Disconnected from MQTT",
    "Failed to connect to MQTT",
    "Error returned from MQTT",
    "failed to receive on socket",
    "client is not currently connected",
    "No ACK from MQTT server",
)
"""Warnings that Home Assistant logs when its broker was stopped."""


class Row(Struct, frozen=True):
    """One thing that was to be proved.

    Attributes:
        scene: it belongs to. what: in words. found: in words. proved: whether it holds.
    """

    scene: str
    what: str
    found: str
    proved: bool


class Scene:
    """Everything that runs, and what it proved so far."""

    def __init__(self, environment: Path, folder: Path) -> None:
        self.rows: list[Row] = []
        self.title = ""
        self.broker = Mosquitto(folder, persistence=True)
        self.ha = HomeAssistant(environment, folder / "homeassistant", free_port())
        self.gate = GateCamera(fps=2.0)
        self.vedette = Vedette(folder, self.broker, **every_kind(folder, self.gate.uri))
        self.vedette.config["fusion"] = fused_events()
        self.vedette.config["health"]["every_s"] = 1.0
        self.vedette.config["selection"] = {"after_s": 1e6}  # no measurement of backends: it takes the processor
        self._stack = ExitStack()
        self._outage = False
        self._before_us: list[str] = []

    def __enter__(self) -> Self:
        self._stack.enter_context(self.gate)
        self._stack.enter_context(self.broker)
        self._stack.enter_context(self.ha)
        self.ha.add_broker(self.broker.port)
        self.messages: Messages = self.broker.subscribe("#", lasting=True)
        self.operator = Operator(self.broker)
        self._before_us = self.ha.complaints()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self) -> None:
        """Start the device; it is killed with the scene."""
        self._stack.enter_context(self.vedette)

    def proved(self, what: str, proved: object, found: object = "") -> None:
        """Note something."""
        self.rows.append(Row(self.title, what, str(found), bool(proved)))

    def comes(self, what: str, test: Callable[[], Any], timeout_s: float = 20.0) -> bool:
        """Note whether something comes true, and how long that took; a busy machine is given more time."""
        began = time.monotonic()
        try:
            wait_for(what, test, timeout_s * _PATIENCE)
        except TimeoutError:
            self.proved(what, proved=False, found=f"not within {timeout_s * _PATIENCE:.0f} s")
            return False
        self.proved(what, proved=True, found=f"after {time.monotonic() - began:.1f} s")
        return True

    def say(self, topic: str, body: bytes, *, retain: bool = False) -> None:
        """Publish something, as anybody at this broker can."""
        self.messages.client.publish(topic, body, qos=1, retain=retain).wait_for_publish(10.0)

    def entity(self, name: str) -> str:
        """Home Assistant's name of one of our entities; empty: it has none."""
        return self.ha.entities(DEVICE).get(name, "")

    def state(self, name: str) -> str:
        """State of one of our entities; empty: there is none."""
        return str(self.ha.states().get(self.entity(name), {}).get("state", ""))

    def attributes(self, name: str) -> dict[str, Any]:
        """Attributes of one of our entities."""
        return dict(self.ha.states().get(self.entity(name), {}).get("attributes", {}))

    def states(self) -> dict[str, str]:
        """State of each of our entities, by our id."""
        states = self.ha.states()
        return {name: states[one]["state"] for name, one in self.ha.entities(DEVICE).items() if one in states}

    def announced(self) -> dict[str, Any]:
        """Components of the newest discovery message that are more than a removal."""
        bodies = [body for body in self.messages.of(CONFIG_TOPIC) if body]
        parts = json.loads(bodies[-1])["cmps"] if bodies else {}
        return {name: one for name, one in parts.items() if len(one) > 1}

    def restart_broker(self, *, forgets: bool = False) -> None:
        """Stop it and start it again, with what it retains unless it `forgets`."""
        self._outage = True
        self.broker.stop()
        if forgets:
            (self.broker.folder / "mosquitto.db").unlink()
        time.sleep(2.0)
        self.broker.start()

    def complaints(self) -> list[str]:
        """Return the warnings of Home Assistant that this device has caused."""
        known = _OUTAGE if self._outage else ()
        caused = (text for text in self.ha.complaints() if text not in self._before_us)
        return [text for text in caused if not any(words in text for words in known)]

    def dropped_keys(self, identifier: str = DEVICE) -> dict[str, list[str]]:
        """Keys that Home Assistant leaves aside, by entity."""
        found = json.dumps(self.ha.discovered(identifier)).encode()
        done = subprocess.run([str(self.ha.python), str(_KEYS)], input=found, capture_output=True, check=True)
        return dict(json.loads(done.stdout))
