"""Topic names. The only place where they are spelled."""

from __future__ import annotations

from msgspec import Struct

COMMANDS = "cmd"
"""Second level of what concerns the whole device: no stream may be called so."""
ONLINE, OFFLINE, STOPPED = b"online", b"offline", b"stopped"
"""Payloads of the status topic."""


class Addressed(Struct, frozen=True):
    """Whom a command is for.

    Attributes:
        stream: its name as sent; None: the device.
        what: is to be set, or the verb.
    """

    stream: str | None
    what: str


class Topics(Struct, frozen=True):
    """Topics of one device.

    Attributes:
        prefix: first level(s), `vedette` by default.
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
        return f"{self.prefix}/{self.device}/{stream}/clips"

    def snapshot(self, stream: str) -> str:
        """Retained JPEG."""
        return f"{self._own}/{stream}/snapshot"

    def count(self, stream: str, label: str) -> str:
        """Retained number of live tracks. Spaces in a label become `_`; `/`, `+`, `#` and NUL become `-`."""
        return f"{self._own}/{stream}/count/{_level(label)}"

    def zone_count(self, stream: str, zone: str, label: str) -> str:
        """Retained number of live tracks that stand in a zone."""
        return f"{self._own}/{stream}/zone/{zone}/count/{_level(label)}"

    def set(self, stream: str, what: str) -> str:
        """A command to one stream, never retained; `what` may have two levels, such as `zone/drive`."""
        return f"{self._own}/{stream}/set/{what}"

    def state(self, stream: str, what: str) -> str:
        """Retained: how it is set now."""
        return f"{self._own}/{stream}/state/{what}"

    def command(self, verb: str) -> str:
        """A request to the device, never retained."""
        return f"{self._own}/{COMMANDS}/{verb}"

    def answer(self, verb: str) -> str:
        """The answer to one that names no other topic; those who ask may have one of their own beneath it."""
        return f"{self._own}/{COMMANDS}/{verb}/answer"

    @property
    def commands(self) -> tuple[str, ...]:
        """Patterns of every command to the device and to its streams; a topic is of one of them at most.

        `+/set/#` would be `cmd/set`, too, for `#` stands also for nothing.
        """
        return self.set("+", "+"), self.set("+", "zone/+"), self.command("+")

    def addressed(self, topic: str) -> Addressed | None:
        """Whom a topic commands; None: nobody of ours."""
        own = f"{self._own}/"
        first, _, rest = topic.removeprefix(own).partition("/")
        if not topic.startswith(own):
            return None
        if first == COMMANDS:  # what lies beneath a verb are answers
            return None if "/" in rest else Addressed(None, rest)
        word, _, what = rest.partition("/")
        return Addressed(first, what) if word == "set" else None

    @property
    def counts(self) -> tuple[str, ...]:
        """Patterns of every count of every stream."""
        return self.count("+", "") + "#", self.zone_count("+", "+", "") + "#"

    def stream_of(self, topic: str) -> str:
        """The stream whose topic it is; empty: it is none of this device."""
        own = f"{self._own}/"
        return topic.removeprefix(own).partition("/")[0] if topic.startswith(own) else ""

    def retained_of(self, stream: str) -> tuple[str, ...]:
        """Return the beginnings of the topics that a stream leaves retained."""
        own = f"{self._own}/{stream}"
        return self.snapshot(stream), f"{own}/count/", f"{own}/zone/"


def _level(label: str) -> str:
    return label.replace(" ", "_").translate(str.maketrans("/+#\0", "----"))
