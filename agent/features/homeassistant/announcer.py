"""Announces the device to Home Assistant, and removes entities that no longer exist.

The discovery message that the broker retains is read first. It tells what earlier runs have announced, so that
entities that no longer exist are removed, others stay, and another program's device is left alone.
"""

from __future__ import annotations

import logging
import queue
import random
import time
from collections.abc import Callable

from agent.comms.mqtt.inbox import IncomingMessage
from agent.comms.mqtt.publisher import Publisher
from agent.config import HomeAssistantConfig
from agent.features.homeassistant.device import DeviceEntitySource
from agent.features.homeassistant.discovery import Entities, entities
from agent.features.homeassistant.message import RetainedEntities, message, read, topic
from agent.text import plural

log = logging.getLogger(__name__)

_JITTER_S = 10.0
"""When Home Assistant starts, every device announces itself: spread over this time."""
_RETRY_S = 60.0
"""Interval at which another program's message is read again: it may be gone."""
_PAUSE_S = 5.0
"""Minimum time between two messages: Home Assistant ignores parts of one that arrives while it is busy."""


class Announcer:
    """Announces one device at one broker. For one thread.

    Attributes:
        topic: of the discovery message.
        trouble: why Home Assistant does not find the device; empty if nothing is known against it.
    """

    def __init__(
        self,
        publisher: Publisher,
        config: HomeAssistantConfig,
        device: DeviceEntitySource,
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Ask what is retained. Nothing is published before the answer."""
        self._publisher, self._config, self._clock, self._jitter = publisher, config, clock, jitter
        self.topic, self._status = topic(config.prefix, device.topics.device), f"{config.prefix}/status"
        self.trouble = ""
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._starts: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_answered = self._is_ours = False
        self._device: DeviceEntitySource | None = None
        self._alive: dict[str, str] = {}
        self._gone: dict[str, str] = {}
        self._removed: set[str] = set()
        self._is_told = False
        self._sent, self._due, self._announce_at = b"", clock(), 0.0
        self._left_out: set[str] = set()
        publisher.ask(self.topic, self._answers.put)

    def update(self, device: DeviceEntitySource) -> None:
        """Publish what is due. Call often: it is cheap when nothing is."""
        if not self._is_answered and not self._read_answer(device):
            return
        if not self._is_ours:
            self._ask_again()
            return
        now = self._clock()
        self._answer_start(now)
        if now >= self._due and device != self._device:
            self._announce(device)
            self._due = now + _PAUSE_S

    def unsubscribe(self) -> None:
        self._publisher.ignore(self._status)

    def withdraw(self) -> None:
        """Delete the discovery message: Home Assistant removes the device."""
        if self._is_answered and self._is_ours:
            self._is_ours = False
            self._publisher.retain(self.topic, b"")
            log.info("%s: deleted, Home Assistant removes this device", self.topic)

    def _ask_again(self) -> None:
        if self.trouble and self._clock() >= self._due:
            self._is_answered = False
            self._publisher.ask(self.topic, self._answers.put)

    def _read_answer(self, device: DeviceEntitySource) -> bool:
        if self._answers.empty():
            return False
        body = self._answers.get()
        found = read(body, device)
        self._is_answered = True
        self._is_ours = not found.owner and (self._config.enabled or bool(body))
        self._alive, self._gone, self._removed = found.alive, found.gone, set(found.gone)
        if not self._config.enabled:
            self.withdraw()
        elif found.owner:
            self._report_owner(found)
        else:
            self.trouble = ""
            self._publisher.listen(self._status, self._on_status)
        return True

    def _on_status(self, received: IncomingMessage) -> None:
        if received.payload == b"online" and not received.retained:
            self._starts.put(None)

    def _report_owner(self, found: RetainedEntities) -> None:
        self._due = self._clock() + _RETRY_S
        trouble = (
            f"{self.topic} belongs to {found.owner}: left alone, and Home Assistant does not find this device; "
            "set another [device] name, or delete that message: mosquitto_pub -r -n -t TOPIC"
        )
        if trouble != self.trouble:
            self.trouble = trouble
            log.warning(trouble)

    def _answer_start(self, now: float) -> None:
        """Announce everything again after a start of Home Assistant, without what it has removed."""
        while not self._starts.empty():
            self._starts.get()
            self._announce_at = self._announce_at or now + self._jitter(1.0, _JITTER_S)
        if self._announce_at and now >= max(self._announce_at, self._due):
            self._announce_at = 0.0
            if self._gone:
                self._gone, self._device = {}, None
            else:
                self._publisher.repeat(self.topic)
                self._due = now + _PAUSE_S

    def _announce(self, device: DeviceEntitySource) -> None:
        made = entities(device, self._alive, self._config.max_labels)
        components = made.components
        # What a stream finds is not known while its model cannot be opened: its entities are not removed.
        unknown = tuple(f"{stream.name}." for stream in device.streams if stream.kind is None)
        lost = {name: kind for name, kind in self._alive.items() if name not in components}
        kept = {name: kind for name, kind in lost.items() if name.startswith(unknown)}
        gone = {**self._gone, **{name: kind for name, kind in lost.items() if name not in kept}}
        self._gone = {name: kind for name, kind in gone.items() if name not in components}
        self._alive = {**kept, **{name: one["platform"] for name, one in components.items()}}
        self._device = device
        body = message(device, components, self._gone)
        if body != self._sent:
            self._sent = body
            self._publisher.retain(self.topic, body)
            self._log_announced(len(components))
        self._log_left_out(made)

    def _log_announced(self, count: int) -> None:
        removed, self._removed = len(self._gone.keys() - self._removed), set(self._gone)
        also = f", {removed} removed" if removed else ""
        # More come one by one, with each label that is first seen.
        level, self._is_told = logging.DEBUG if self._is_told and not removed else logging.INFO, True
        text = "%s: announced %s to Home Assistant%s"
        log.log(level, text, self.topic, plural(count, "entity", "entities"), also)

    def _log_left_out(self, made: Entities) -> None:
        for stream, labels in made.left_out.items():
            if stream not in self._left_out:
                self._left_out.add(stream)
                log.warning(
                    "stream %s: no entity for %s and further new labels: [homeassistant] max_labels is %d; "
                    "list the labels that matter in decode.labels, or raise it",
                    stream,
                    ", ".join(labels),
                    self._config.max_labels,
                )
