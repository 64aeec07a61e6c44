"""A trial of delivery: a daemon with eight cameras, a broker and a link between them, all broken again and again.

What a subscriber must see all the same: every event, each once by its id, in order within its stream.

A broker that is killed takes with it what it has acknowledged and its subscriber does not have yet: mosquitto
keeps messages in memory and writes its file now and then, and no device can know what it has lost. So that only
the device's losses are counted, a broker is killed like this: it is stopped at a random instruction (SIGSTOP);
the subscriber reads what is in its socket; then the broker is killed, without having run again. Mosquitto
writes a message to a connected subscriber before it acknowledges it, as long as there is room in the
subscriber's window and socket. The window is opened wide, and that there is room in the socket is made sure of
by a message that goes round before the kill. The subscriber's session is on the broker's disk from the
beginning, so that the broker keeps for the subscriber what comes before the subscriber is back.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import msgspec

from agent.comms import messages
from agent.config import StorageConfig
from tests.support.colours import colour_model, walk
from tests.support.faults import Kind, Step, schedule
from tests.support.ledger import Verdict
from tests.support.link import Link, LinkMissing
from tests.support.listener import LAST, Listener
from tests.support.mosquitto import HOST, Mosquitto
from tests.support.publishing import TOPICS, device, event, wait_for
from tests.support.running import Table, Vedette, camera

STREAMS = 8
FPS, SEEN, UNSEEN = 32, 100, 12
"""100 of 112 pictures in 3.5 s give an event: 28 a second for each stream, 25 with the times that it is dead."""
_CATCH_UP_S = 60.0


class Outcome(NamedTuple):
    """Results of a trial.

    Attributes:
        verdict: see there.
        missing: the first numbers that never came.
        per_s: events per second, over all of the trial.
        faults: that were made, by kind.
        left_out: why the link was not cut; empty: it was.
        caught_up_s: from the end of the trial until everything had come, s.
    """

    verdict: Verdict
    missing: list[int]
    per_s: float
    faults: dict[str, int]
    left_out: str
    caught_up_s: float


class Trial:
    """One trial, in a folder of its own."""

    def __init__(self, folder: Path, link: Link | None) -> None:
        self._link, self._folder = link, folder
        self._broker = Mosquitto(
            folder, users={"trial": "trial"}, persistence=True, lines=("max_inflight_messages 65535",)
        )
        if link is not None:
            file = self._broker.folder / "mosquitto.conf"
            file.write_text(f"{file.read_text()}listener {self._broker.port} {link.here}\n")
        self._vedette = Vedette(folder, self._broker, **_streams(folder))
        self._vedette.prefix = link.command if link else ()
        self._vedette.config["mqtt"] = {
            "host": link.here if link else HOST,
            "port": self._broker.port,
            "username": "trial",
            "password_file": self._broker.config().password_file,
            "keepalive_s": 5,
            "reconnect_max_s": 1.0,
        }
        self._steps = {"agent": self._step_agent, "broker": self._step_broker, "link": self._step_link}

    def run(self, steps: Sequence[Step], seconds: float) -> tuple[Verdict, list[int], float]:
        """Go through the steps, then let everything come: the verdict, what is missing, how long that took, s."""
        with self._broker, closing(Listener(self._broker)) as self._listener:
            # What the broker's file keeps of the subscriber from here on is enough to know it again.
            self._listener.go_round()
            self._broker.stop()
            self._broker.start()
            self._listener.go_round()
            with self._vedette:
                wait_for(lambda: len(self._listener.ledger) > STREAMS, 60)
                began = time.monotonic()
                for step in steps:
                    time.sleep(max(0.0, began + step.at - time.monotonic()))
                    self._steps[step.kind](step.breaks)
                time.sleep(max(0.0, began + seconds - time.monotonic()))
                self._vedette.end()
            ended = time.monotonic()
            self._close_the_book()
            return self._listener.ledger.verdict(), self._listener.ledger.missing(), time.monotonic() - ended

    def _step_agent(self, breaks: bool) -> None:
        if breaks:
            self._vedette.end(signal.SIGKILL)
        else:
            self._vedette.start()

    def _step_link(self, breaks: bool) -> None:
        assert self._link is not None
        (self._link.cut if breaks else self._link.mend)()

    def _step_broker(self, breaks: bool) -> None:
        if not breaks:
            self._broker.start()
            return
        self._listener.go_round()
        self._broker.freeze()
        self._listener.drain()
        self._broker.kill()

    def _close_the_book(self) -> None:
        """Put one more event after the daemon's last, and wait for it: whatever is missing before it is lost."""
        self._listener.go_round()
        with device(self._folder / "state", self._broker.config(), StorageConfig()) as (spool, _):
            spool.put(TOPICS.events(LAST), _last_event())
            wait_for(lambda: spool.stats().waiting == 0, _CATCH_UP_S)
        assert self._listener.closed.wait(_CATCH_UP_S), "the last event did not come"
        self._listener.go_round()


def try_delivery(folder: Path, seed: int, seconds: float, kinds: Mapping[str, Kind]) -> Outcome:
    """A whole trial.

    Args:
        folder: for its files.
        seed: what breaks when.
        seconds: that it lasts, s, without starting and catching up.
        kinds: `broker`, `agent` and `link`; the link only where this can be done.
    """
    left_out, link = "", None
    with ExitStack() as stack:
        try:
            link = stack.enter_context(Link())
        except LinkMissing as error:
            left_out = str(error)
        made = {name: kind for name, kind in kinds.items() if name != "link" or link}
        steps = schedule(seed, seconds, made)
        verdict, missing, caught_up_s = Trial(folder, link).run(steps, seconds)
    faults = Counter(step.kind for step in steps if step.breaks)
    return Outcome(verdict, missing[:20], verdict.events / seconds, dict(faults), left_out, caught_up_s)


def _streams(folder: Path) -> dict[str, Table]:
    source = f"dir:{walk(folder, SEEN, UNSEEN)}?fps={FPS}&loop=1&pace=realtime"
    track = {"min_hits": 1, "lost_after_s": 0.3, "update_every_s": 0.03, "stationary_after_s": 0.0}
    stream = camera(colour_model(folder), source, track=track, gate={"motion": False}, backend="cpu")
    return {f"cam{number}": stream for number in range(1, STREAMS + 1)}


def _last_event() -> bytes:
    told = msgspec.json.decode(event(stream=LAST), type=messages.EventMessage)
    return messages.encode(msgspec.structs.replace(told, kind="keyword"))
