"""Topic names. The only place where they are spelled."""

from __future__ import annotations

from msgspec import Struct


class Topics(Struct, frozen=True):
    """Topics of one device.

    Attributes:
        prefix: first level(s), `vedette` by default.
        device: name of the device.
    """

    prefix: str
    device: str

    @property
    def status(self) -> str:
        """Retained: `online`, `offline` (last will), `stopped`."""
        return f"{self.prefix}/{self.device}/status"

    @property
    def health(self) -> str:
        """Retained JSON."""
        return f"{self.prefix}/{self.device}/health"

    def events(self, stream: str) -> str:
        """QoS 1, never retained."""
        return f"{self.prefix}/{self.device}/{stream}/events"

    def detections(self, stream: str) -> str:
        """QoS 0, one message per processed frame."""
        return f"{self.prefix}/{self.device}/{stream}/detections"

    def snapshot(self, stream: str) -> str:
        """Retained JPEG."""
        return f"{self.prefix}/{self.device}/{stream}/snapshot"

    def count(self, stream: str, label: str) -> str:
        """Retained number of live tracks. Spaces in a label become `_`; `/`, `+` and `#` become `-`."""
        level = label.replace(" ", "_").translate(str.maketrans("/+#", "---"))
        return f"{self.prefix}/{self.device}/{stream}/count/{level}"
