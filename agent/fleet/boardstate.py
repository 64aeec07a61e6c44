"""What a board tells of itself: as much as a fleet needs, so that other versions are understood, too."""

from __future__ import annotations

from datetime import datetime

import msgspec
from msgspec import Struct

from agent.errors import NO_JSON

OVER = frozenset(("committed", "rolled_back", "refused"))


class AtHand(Struct, frozen=True):
    """The update that is not over, or the newest.

    Attributes:
        state: as in `agent.update.states`. began_at: tells it from others.
        version, bundle: of its bundle, empty while that is not verified. file: that it came from.
        reason: in words. downtime_s: of the daemon.
    """

    state: str
    began_at: datetime
    version: str = ""
    bundle: str = ""
    file: str = ""
    reason: str = ""
    downtime_s: float | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in OVER


class Versions(Struct, frozen=True):
    """`vedette update status --json`.

    Attributes:
        version: that runs. slot: that it is in. previous: that can be gone back to.
        counter: the highest that was committed.
        at_hand: the newest update; None: there was none.
    """

    version: str = ""
    slot: str = ""
    previous: str = ""
    counter: int = 0
    at_hand: AtHand | None = None


class Stream(Struct, frozen=True):
    """`running`, `lost` …, and why."""

    state: str = ""
    detail: str = ""


class Health(Struct, frozen=True):
    """`health.json`: version, whether every stream is ready, memory, and the streams by name."""

    version: str = ""
    ready: bool = False
    rss_mb: float = 0.0
    streams: dict[str, Stream] = {}


class BoardState(Struct, frozen=True):
    """What `status` answers.

    Attributes:
        update: versions and the update at hand.
        health: of the daemon; None: it does not run.
    """

    update: Versions
    health: Health | None = None

    def told(self) -> str:
        """The daemon in a few words."""
        if self.health is None:
            return "daemon does not run"
        streams = self.health.streams
        wrong = [f"{name} {one.state}" for name, one in streams.items() if one.state not in ("running", "off")]
        return ", ".join(wrong) or f"{len(streams)} of {len(streams)} streams running"


def parse_state(text: str) -> BoardState | None:
    """What a board has answered; None: this is no such answer."""
    try:
        return msgspec.json.decode(text, type=BoardState)
    except NO_JSON:
        return None
