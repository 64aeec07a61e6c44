"""Services that all streams of a device share, and the states that a stream can be in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

from agent.comms.reporter import EventSink, EventTap, RetainedSink
from agent.comms.topics import Topics

if TYPE_CHECKING:
    from agent.capture.camera import Cameras
    from agent.compute.infer.session import Opener
    from agent.compute.infer.vetting import Vetting


State = Literal["starting", "running", "degraded", "lost", "ended", "failed", "disabled"]
AT_WORK = ("running", "degraded")
"""States in which pictures or sound are handled."""


class StreamServices(Struct, frozen=True):
    """Services that all streams of a device share.

    Attributes:
        topics: of the device.
        events: the spool.
        board: publishes retained topics and samples.
        opener: opens the models' sessions; None: `auto` is the CPU.
        device: returns an open part of the device by its name; None: it is not open.
        vetting: see `agent.compute.infer.backends.open_session`.
        state, clips: folders of the daemon's state, and of all clips.
        tap: of the events of all streams; None: nobody listens.
        cameras: that streams share; None: each opens its own.
        restart_first_s, restart_last_s: first and longest pause before a stream that failed is started again, s;
            after a run longer than the longest pause the first one comes again.
    """

    topics: Topics
    events: EventSink
    board: RetainedSink
    opener: Opener | None = None
    device: Callable[[str], Any] = lambda _: None
    vetting: Vetting | None = None
    restart_first_s: float = 1.0
    restart_last_s: float = 60.0
    state: Path = Path()
    clips: Path = Path()
    tap: EventTap | None = None
    cameras: Cameras | None = None
