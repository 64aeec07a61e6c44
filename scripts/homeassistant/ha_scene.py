"""The scene of the proof: a broker, Home Assistant, and a device with two cameras and a microphone."""

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
from msgspec import Struct

from tests.support.mosquitto import Mosquitto, free_port
from tests.support.publishing import TOPICS
from tests.support.received import Messages
from tests.support.running import ROOT, Table, Vedette

DEVICE = f"{TOPICS.prefix}/{TOPICS.device}"
CONFIG_TOPIC = f"homeassistant/device/{TOPICS.device}/config"
_ZOO = ROOT / "agent" / "models" / "zoo"
_KEYS = Path(__file__).with_name("ha_keys.py")
_BEFORE_US = ("Skipping pip installation", "zlib_ng and isal are not available")
"""Warnings that Home Assistant logs without any device."""
_OUTAGE = (
    "connection was lost",
    "Disconnected from MQTT",
    "Failed to connect to MQTT",
    "Error returned from MQTT",
    "failed to receive on socket",
    "client is not currently connected",
)
"""Warnings that Home Assistant logs when its broker was stopped."""


def cameras_and_microphone() -> dict[str, Table]:
    """The streams: one that knows what it looks for, with zones; one that tells what it sees; one of words."""
    walkers = f"file:{_ZOO / 'walkers.mp4'}?pace=realtime&loop=1"
    halves = {"left": ([0, 0], [0.5, 0], [0.5, 1], [0, 1]), "right": ([0.5, 0], [1, 0], [1, 1], [0.5, 1])}
    zones = [{"name": name, "polygon": list(polygon)} for name, polygon in halves.items()]
    camera = {"source": walkers, "model": "nanodet", "capture": {"max_fps": 3.0}}
    front = {**camera, "decode": {"labels": ["person"]}, "zones": zones, "publish": {"snapshot_every_s": 1.0}}
    sound = f"wav:{_ZOO / 'spoken.flac'}?pace=realtime&loop=1"
    return {
        "front": front,
        "back_yard": {**camera, "variant": "256"},
        "kitchen": {"source": sound, "model": "small-speech"},
    }


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
        self.vedette = Vedette(folder, self.broker, **cameras_and_microphone())
        self.vedette.config["health"]["every_s"] = 1.0
        self._stack = ExitStack()
        self._outage = False

    def __enter__(self) -> Self:
        self._stack.enter_context(self.broker)
        self._stack.enter_context(self.ha)
        self.ha.add_broker(self.broker.port)
        self.messages: Messages = self.broker.subscribe("#", lasting=True)
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
        """Note whether something comes true, and how long that took."""
        began = time.monotonic()
        try:
            wait_for(what, test, timeout_s)
        except TimeoutError:
            self.proved(what, proved=False, found=f"not within {timeout_s:.0f} s")
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

    def states(self) -> dict[str, str]:
        """State of each of our entities, by our id."""
        states = self.ha.states()
        return {name: states[one]["state"] for name, one in self.ha.entities(DEVICE).items() if one in states}

    def announced(self) -> dict[str, Any]:
        """Components of the newest discovery message that are more than a removal."""
        bodies = [body for body in self.messages.of(CONFIG_TOPIC) if body]
        parts = json.loads(bodies[-1])["cmps"] if bodies else {}
        return {name: one for name, one in parts.items() if len(one) > 1}

    def restart_broker(self) -> None:
        """Stop it and start it again, with what it retains."""
        self._outage = True
        self.broker.stop()
        time.sleep(2.0)
        self.broker.start()

    def complaints(self) -> list[str]:
        """Return the warnings of Home Assistant that this device has caused."""
        known = (*_BEFORE_US, *(_OUTAGE if self._outage else ()))
        return [text for text in self.ha.complaints() if not any(words in text for words in known)]

    def dropped_keys(self, identifier: str = DEVICE) -> dict[str, list[str]]:
        """Keys that Home Assistant leaves aside, by entity."""
        found = json.dumps(self.ha.discovered(identifier)).encode()
        done = subprocess.run([str(self.ha.python), str(_KEYS)], input=found, capture_output=True, check=True)
        return dict(json.loads(done.stdout))
