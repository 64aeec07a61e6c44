"""What the streams of a device share: where they report, what opens their models, what records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from agent.comms.reporter import Board, EventSink
from agent.comms.topics import Topics

if TYPE_CHECKING:
    from agent.compute.infer.backend import Opener
    from agent.compute.infer.vetting import Vetting
    from agent.storage.recorder import Recorder


class Desk(Struct, frozen=True):
    """What a stream reports to: the same for all of a device.

    Attributes:
        topics: of the device.
        events: the spool.
        board: the broker.
        opener: of models' sessions; None: `auto` is the CPU.
        recorder: of clips; None: there are none.
        vetting: see `agent.compute.infer.backend.open_session`.
    """

    topics: Topics
    events: EventSink
    board: Board
    opener: Opener | None = None
    recorder: Recorder | None = None
    vetting: Vetting | None = None
