"""A live source that does what a test tells it: gives, breaks, hangs."""

from __future__ import annotations

import threading
import time

import numpy as np

from agent.capture.source import Source
from agent.config.source_uri import SourceUri
from agent.errors import SourceError
from agent.types import Image


class Script:
    """Behaviour of every scripted source.

    Attributes:
        mood: `give` a picture every 5 ms; `refuse` to open; `break` when read; `hang` until released;
            `crash` with an error that is not ours.
        opened, closed: how often.
        hangs: set when a source begins to hang.
    """

    def __init__(self) -> None:
        self.mood, self.opened, self.closed = "give", 0, 0
        self.allocated = 0
        self.released, self.hangs = threading.Event(), threading.Event()


script = Script()


class Scripted(Source):
    """Source that behaves as its `Script` says."""

    order = "bgr"
    live, pace_s, period_s, description = True, 0.0, 0.0, "16x16"

    def grab(self) -> bool:
        mood = script.mood
        if mood == "break":
            raise SourceError("the plug was pulled")
        if mood == "crash":
            raise RuntimeError("in rtsp://user:secret@host/")
        if mood == "hang":
            script.hangs.set()
            script.released.wait()
        time.sleep(0.005)
        return True

    def picture(self, into: Image | None) -> Image:
        if into is None:
            script.allocated += 1
            return np.zeros((16, 16, 3), np.uint8)
        return into

    def close(self) -> None:
        script.closed += 1


def open_scripted(address: SourceUri, stall_s: float) -> Scripted:
    script.opened += 1
    if script.mood == "refuse":
        raise SourceError("nothing there")
    return Scripted()
