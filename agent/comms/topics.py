"""Names of all topics."""

from __future__ import annotations

from collections.abc import Collection

from msgspec import Struct

COMMANDS = "cmd"
"""Level of commands to the whole device: no stream may have this name."""
TEXT = "text"
"""Level of texts to the device: no stream may have this name beside a text."""
ONLINE, OFFLINE, STOPPED = b"online", b"offline", b"stopped"
"""Payloads of the status topic."""
ZONE, LINE, FILTER = "zone/", "line/", "filter/"
ONLY_MOVING, MOTION_MASKS = "only_moving", "motion_masks"
"""Settings of a stream in `set/` and `state/`; the first three end in a name."""


class Addressed(Struct, frozen=True):
    """The target of a command.

    Attributes:
        stream: name as received; None: the device.
        what: the setting, or the verb.
    """

    stream: str | None
    what: str


class Topics(Struct, frozen=True):
    """Topics of one device.

    Attributes:
        prefix: first level or levels, `vedette` by default.
        device: name of the device.
    """

    prefix: str
    device: str

    @property
    def _own(self) -> str:
        return f"{self.prefix}/{self.device}"

    @property
    def status(self) -> str:
        """Retained: `online`, `offline` (last will), `stopped`."""
        return f"{self._own}/status"

    @property
    def health(self) -> str:
        """Retained JSON."""
        return f"{self._own}/health"

    def events(self, stream: str) -> str:
        """QoS 1, never retained."""
        return f"{self._own}/{stream}/events"

    def detections(self, stream: str) -> str:
        """QoS 0, one message per processed frame."""
        return f"{self._own}/{stream}/detections"

    def clips(self, stream: str) -> str:
        """QoS 1, never retained."""
        return f"{self._own}/{stream}/clips"

    def verdicts(self, stream: str) -> str:
        """QoS 1, never retained."""
        return f"{self._own}/{stream}/verdicts"

    def retained(self, stream: str, level: str, name: str = "") -> str:
        """Retained JSON: see `RetainedMessage`."""
        return f"{self._own}/{stream}/{level}/{name}".removesuffix("/")

    def inspection(self, stream: str) -> str:
        """Retained JSON: counters of inspected parts."""
        return f"{self._own}/{stream}/inspection"

    def condition(self, stream: str) -> str:
        """Retained JSON: problems of a camera, a microphone or a model."""
        return f"{self._own}/{stream}/condition"

    def sensor(self, stream: str, state: str) -> str:
        """Retained JSON: the value of a state that was taught."""
        return f"{self._own}/{stream}/sensor/{state}"

    def value(self, stream: str, label: str) -> str:
        """Retained number of a measurement; characters of a label are replaced as in `count`."""
        return f"{self._own}/{stream}/value/{_level(label)}"

    def snapshot(self, stream: str) -> str:
        """Retained JPEG."""
        return f"{self._own}/{stream}/snapshot"

    def count(self, stream: str, label: str) -> str:
        """Retained number of live tracks. Spaces in a label become `_`; `/`, `+`, `#` and NUL become `-`."""
        return f"{self._own}/{stream}/count/{_level(label)}"

    def zone_count(self, stream: str, zone: str, label: str) -> str:
        """Retained number of live tracks in a zone."""
        return f"{self._own}/{stream}/zone/{zone}/count/{_level(label)}"

    def is_of_other_zone(self, stream: str, zones: Collection[str], topic: str) -> bool:
        """Return True if a topic is about a zone of the stream that is not among `zones`."""
        own = f"{self._own}/{stream}/zone/"
        return topic.startswith(own) and topic.removeprefix(own).partition("/")[0] not in zones

    def line(self, stream: str, line: str) -> str:
        """Retained JSON: crossings of a line."""
        return f"{self._own}/{stream}/line/{line}"

    def set(self, stream: str, what: str) -> str:
        """Command to one stream, never retained; `what` may have two levels, such as `zone/drive`."""
        return f"{self._own}/{stream}/set/{what}"

    def state(self, stream: str, what: str) -> str:
        """Retained value of a setting."""
        return f"{self._own}/{stream}/state/{what}"

    def command(self, verb: str) -> str:
        """Request to the device, never retained."""
        return f"{self._own}/{COMMANDS}/{verb}"

    def answer(self, verb: str) -> str:
        """Answer to a request that names no response topic; a client may use one beneath it as its own."""
        return f"{self._own}/{COMMANDS}/{verb}/answer"

    def text(self, name: str) -> str:
        """Text as evidence for a fused event, never retained."""
        return f"{self._own}/{TEXT}/{name}"

    @property
    def commands(self) -> tuple[str, ...]:
        """Patterns of every command to the device and to its streams. They do not overlap.

        `+/set/#` would match `cmd/set`, too: `#` matches the parent level.
        """
        settings = (self.set("+", what) for what in ("+", "zone/+", "line/+", "filter/+"))
        return *settings, self.command("+")

    def addressed(self, topic: str) -> Addressed | None:
        """Return the target of a command topic; None: it is not one of this device."""
        own = f"{self._own}/"
        first, _, rest = topic.removeprefix(own).partition("/")
        if not topic.startswith(own):
            return None
        if first == COMMANDS:  # topics beneath a verb are of answers
            return None if "/" in rest else Addressed(None, rest)
        word, _, what = rest.partition("/")
        return Addressed(first, what) if word == "set" else None

    @property
    def counts(self) -> tuple[str, ...]:
        """Patterns of every count of every stream."""
        return self.count("+", "") + "#", self.zone_count("+", "+", "") + "#"

    def stream_of(self, topic: str) -> str:
        """Return the second level of a topic of this device; empty: it is of another."""
        own = f"{self._own}/"
        return topic.removeprefix(own).partition("/")[0] if topic.startswith(own) else ""

    def retained_of(self, stream: str) -> tuple[str, ...]:
        """Return the prefixes of the topics that a stream leaves retained."""
        own = f"{self._own}/{stream}"
        levels = (f"{own}/{level}/" for level in ("value", "sensor", "count", "zone", "line"))
        return self.snapshot(stream), self.inspection(stream), self.condition(stream), *levels


def _level(label: str) -> str:
    """Return a label as a level of a topic: brokers cut a client off for control characters and wildcards."""
    named = "".join(one if one.isprintable() else "-" for one in label.replace(" ", "_"))
    return named.translate(str.maketrans("/+#", "---"))
