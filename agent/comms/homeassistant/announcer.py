"""The announcer: keeps what Home Assistant knows of this device in step with what the device is.

It looks at the discovery message that the broker retains before it writes its own. That tells what runs before
have announced: what is gone is removed, what was once seen stays, and a device of another program is left alone.
"""

from __future__ import annotations

import logging
import queue
import random
import time
from collections.abc import Callable
from typing import Literal, Protocol

from agent.comms.homeassistant.device import Device
from agent.comms.homeassistant.discovery import Entities, RetainedEntities, entities, message, read, topic
from agent.comms.mqtt.inbox import Answer, Handler
from agent.comms.mqtt.subscriptions import IncomingMessage
from agent.config.device import HomeAssistantConfig
from agent.text import plural

log = logging.getLogger(__name__)

_JITTER_S = 10.0
"""When Home Assistant starts, every device announces itself: not all at once."""
_AGAIN_S = 60.0
"""Until it is looked again whether the message of somebody else has gone."""
_PAUSE_S = 5.0
"""From one message to the next: of one that comes while it is busy Home Assistant leaves out a part."""

_Step = Literal["told", "raise", "bury", "forget"]
"""After a start of Home Assistant, what is gone is announced once more, removed, and then left out."""
_NEXT: dict[_Step, _Step] = {"told": "told", "raise": "bury", "bury": "forget", "forget": "told"}


class Wire(Protocol):
    """The line to the broker."""

    def retain(self, topic: str, payload: bytes, *, patient: bool = False) -> None:
        """Set a retained topic; an empty payload deletes it."""
        ...

    def repeat(self, topic: str) -> None:
        """Send a retained topic again."""
        ...

    def listen(self, pattern: str, handler: Handler) -> None:
        """Hand what comes for a pattern to a handler."""
        ...

    def ignore(self, pattern: str) -> None:
        """Listen no more."""
        ...

    def ask(self, topic: str, answer: Answer) -> None:
        """Find out what is retained under a topic."""
        ...


class Announcer:
    """Speaks for one device at one broker. For one thread.

    Attributes:
        trouble: why Home Assistant does not find the device; empty: nothing speaks against it.
    """

    def __init__(
        self,
        wire: Wire,
        config: HomeAssistantConfig,
        device: Device,
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Ask what is there. Nothing is written before the answer.

        Args:
            wire: to the broker.
            config: where to, and how much.
            device: as it is now.
            clock: monotonic, s.
            jitter: a random number between two.
        """
        self._wire, self._config, self._clock, self._jitter = wire, config, clock, jitter
        self.topic = topic(config.prefix, device.topics.device)
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._births: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_settled = self._is_ours = False
        self._device: Device | None = None
        self._alive: dict[str, str] = {}
        self._gone: dict[str, str] = {}
        self._raised: dict[str, str] = {}
        self._removed: set[str] = set()
        self._step: _Step = "told"
        self._sent, self._due, self._born = b"", clock(), 0.0
        self._left_out: set[str] = set()
        self.trouble = ""
        wire.ask(self.topic, self._answers.put)
        self._status = f"{config.prefix}/status"

    def _hear(self, received: IncomingMessage) -> None:
        """Home Assistant says that it has started. What lies retained there was said before we came."""
        if received.payload == b"online" and not received.retained:
            self._births.put(None)

    def look(self, device: Device) -> None:
        """Announce what is due. To be called often: it is cheap when nothing is."""
        if not self._is_settled and not self._settle(device):
            return
        if not self._is_ours:
            self._look_again()
            return
        now = self._clock()
        self._be_born(now)
        if not self._config.enabled:
            self._take_back(device, now)
            return
        if now < self._due or (device == self._device and self._step == "told"):
            return
        self._announce(device)
        self._due = now + _PAUSE_S

    def _look_again(self) -> None:
        if self.trouble and self._clock() >= self._due:
            self._is_settled = False
            self._wire.ask(self.topic, self._answers.put)

    def leave(self) -> None:
        """Listen no more: another one takes over."""
        self._wire.ignore(self._status)

    def withdraw(self) -> None:
        """Take back what is announced: Home Assistant removes the device."""
        if self._is_settled and self._is_ours:
            self._is_ours = False
            self._bury()

    def _bury(self) -> None:
        self._wire.retain(self.topic, b"")
        log.info("%s: taken back, Home Assistant removes this device", self.topic)

    def _take_back(self, device: Device, now: float) -> None:
        """Take back at once, and once more when Home Assistant starts next, for it may have been away.

        It removes only what it has discovered since its start: so then it has to discover it again first.
        """
        if now < self._due or self._step == "told":
            return
        self._due = now + _PAUSE_S
        if self._step == "raise":
            self._step = "bury"
            self._wire.retain(self.topic, message(device, {}, self._gone, alive=True))
            return
        self._step = "told"
        self._bury()
        if self._raised:
            self._is_ours = False
            self.leave()

    def _settle(self, device: Device) -> bool:
        """Take the answer, if there is one."""
        if self._answers.empty():
            return False
        body = self._answers.get()
        found = read(body, device)
        self._is_settled = True
        self._is_ours = not found.owner and (self._config.enabled or bool(body))
        self._alive, self._gone, self._removed = found.alive, found.gone, set(found.gone)
        if self._config.enabled and found.owner:
            self._tell_owner(found)
        elif self._config.enabled:
            self.trouble = ""
            self._wire.listen(self._status, self._hear)
        elif self._is_ours:
            self._gone, self._step = {**found.gone, **found.alive}, "bury"
            self._wire.listen(self._status, self._hear)
        return True

    def _tell_owner(self, found: RetainedEntities) -> None:
        """It is left alone: another program's device must not vanish for ours."""
        self._due = self._clock() + _AGAIN_S
        trouble = (
            f"{self.topic} belongs to {found.owner}: left alone, and Home Assistant does not find this device; "
            "set another [device] name, or delete that message (vedette cleanup, if a former device left it)"
        )
        if trouble != self.trouble:
            self.trouble = trouble
            log.warning(trouble)

    def _be_born(self, now: float) -> None:
        while not self._births.empty():
            self._births.get()
            self._born = self._born or now + self._jitter(1.0, _JITTER_S)
        if self._born and now >= max(self._born, self._due):
            self._born = 0.0
            if self._gone:
                self._step, self._raised = "raise", self._gone
            else:
                self._wire.repeat(self.topic)
                self._due = now + _PAUSE_S

    def _announce(self, device: Device) -> None:
        told = entities(device, self._alive, self._config.max_labels)
        components = told.components
        hidden = tuple(f"{subject.name}." for subject in device.streams if subject.kind is None)
        lost = {name: kind for name, kind in self._alive.items() if name not in components}
        kept = {name: kind for name, kind in lost.items() if name.startswith(hidden)}
        if self._step == "forget":  # but what went since Home Assistant started, if it has stopped meanwhile
            self._gone = {name: kind for name, kind in self._gone.items() if name not in self._raised}
        gone = {**self._gone, **{name: kind for name, kind in lost.items() if name not in kept}}
        self._gone = {name: kind for name, kind in gone.items() if name not in components}
        self._alive = {**kept, **{name: one["platform"] for name, one in components.items()}}
        body = message(device, components, self._gone, alive=self._step == "raise")
        self._step, self._device = _NEXT[self._step], device
        if body != self._sent:
            self._sent = body
            self._wire.retain(self.topic, body)
            self._tell(len(components))
        self._tell_left_out(told)

    def _tell(self, count: int) -> None:
        """Log how many entities were announced, and those removed that no run before has removed already."""
        removed, self._removed = len(self._gone.keys() - self._removed), set(self._gone)
        also = f", {removed} removed" if removed else ""
        log.info("%s: %s for Home Assistant%s", self.topic, plural(count, "entity", "entities"), also)

    def _tell_left_out(self, told: Entities) -> None:
        for stream, labels in told.left_out.items():
            if stream not in self._left_out:
                self._left_out.add(stream)
                log.warning(
                    "stream %s: %s and what else is new becomes no entity: [homeassistant] max_labels is %d; "
                    "name what matters in decode.labels, or raise it",
                    stream,
                    ", ".join(labels),
                    self._config.max_labels,
                )
