"""Vedette as a process of its own, on a configuration that the test writes.

with Vedette(tmp_path, broker, front=camera(person_model(tmp_path))) as vedette:
    messages.wait(lambda m: events(m))
    vedette.config["streams"]["back"] = ...
    vedette.reload()
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import tomli_w

from agent.comms.messages import EventMessage
from agent.health import HealthMessage
from tests.support.mosquitto import HOST, Mosquitto
from tests.support.publishing import TOPICS, events_of, from_one, in_order, wait_for
from tests.support.received import Messages

ROOT = Path(__file__).parent.parent.parent
WALK = "test:?size=160x120&fps=20"
"""A pattern that moves, without an end."""

Table = dict[str, Any]


def camera(model: Path | str, source: str = WALK, **keys: Any) -> Table:
    """A stream's table: with `person_model` it announces one person, and tells of it ten times a second."""
    return {
        "source": source,
        "model": str(model),
        "track": {"update_every_s": 0.1, "stationary_after_s": 0.0},
        **keys,
    }


class Vedette:
    """A process of `vedette run`, killed when the `with` ends."""

    def __init__(self, folder: Path, broker: Mosquitto, **streams: Table) -> None:
        """Prepare.

        Args:
            folder: for the configuration, the state and what is said.
            broker: to publish to; its accounts are used.
            streams: by name.
        """
        self.file, self.state = folder / "vedette.toml", folder / "state"
        self.options: tuple[str, ...] = ()
        self._is_online_first = False
        self.prefix: tuple[str, ...] = ()
        """Prefix of the command: another command that runs it somewhere else."""
        self._stderr = folder / "stderr"
        self.config: Table = {
            "device": {"name": TOPICS.device},
            "storage": {"state_dir": str(self.state)},
            "health": {"every_s": 0.5},
            "streams": streams,
        }
        self.use(broker)
        self._process: subprocess.Popen[bytes] | None = None

    def use(self, broker: Mosquitto) -> None:
        """Publish to this broker, from the next start or reload on."""
        self.config["mqtt"] = {"host": HOST, "port": broker.port, "reconnect_max_s": 0.5, "commands": True}

    def start(self) -> Self:
        """Start it, and return at once."""
        self.write()
        from_one(self.state)
        command = [*self.prefix, sys.executable, "-m", "agent", "run", "-c", str(self.file), *self.options]
        with self._stderr.open("ab") as stderr:
            self._process = subprocess.Popen(command, cwd=ROOT, stderr=stderr)
        return self

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "not started"
        return self._process

    def write(self) -> None:
        """Write the configuration as it is now."""
        self.file.write_text(tomli_w.dumps(self.config))

    def reload(self) -> None:
        """Write the configuration and ask for it to be read again."""
        self.write()
        self.process.send_signal(signal.SIGHUP)

    def end(self, how: signal.Signals = signal.SIGTERM) -> tuple[int, float]:
        """End it; gives its exit code, and how long that took, s."""
        began = time.monotonic()
        self.process.send_signal(how)
        return self.exit_code(), time.monotonic() - began

    def exit_code(self, timeout_s: float = 60.0) -> int:
        """Wait for its end."""
        return self.process.wait(timeout_s)

    def said(self, words: str = "") -> list[str]:
        """Lines on stderr that hold these words."""
        return [line for line in self._stderr.read_text().splitlines() if words in line]

    def wait_said(self, words: str) -> str:
        """The first line with these words, when it comes."""
        wait_for(lambda: self.said(words))
        return self.said(words)[0]

    def online_first(self) -> Self:
        """Return itself: streams will begin when the broker is connected, so that nothing live is lost."""
        self._is_online_first = True
        return self

    def __enter__(self) -> Self:
        if not self._is_online_first:
            return self.start()
        streams = self.config["streams"]
        self.config["streams"] = {name: {**one, "enabled": False} for name, one in streams.items()}
        self.start()
        self.wait_said("connected")
        self.config["streams"] = streams
        self.reload()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(60)
        if kind is not None:
            print(self._stderr.read_text())  # what it said is half of a failure's story


def events(messages: Messages, stream: str = "front") -> list[EventMessage]:
    """Events of one stream, each once, in the order of their first arrival."""
    return in_order(events_of(messages.of(TOPICS.events(stream))))


def hear(messages: Messages, count: int, stream: str = "front") -> None:
    """Wait for so many more events of a stream."""
    told = len(events(messages, stream))
    messages.wait(lambda m: len(events(m, stream)) >= told + count)


def kinds(messages: Messages, stream: str = "front") -> set[str]:
    """Which kinds of events one stream has published."""
    return {event.kind for event in events(messages, stream)}


def left_open(messages: Messages, stream: str = "front") -> set[str]:
    """Tracks that were announced and have not ended; fails when one ended twice or was never announced."""
    tracks: set[str] = set()
    for event in events(messages, stream):
        if event.kind == "new":
            assert event.track.id not in tracks
            tracks.add(event.track.id)
        elif event.kind == "end":
            tracks.remove(event.track.id)
    return tracks


def stopped(messages: Messages) -> bool:
    """Wait until all has come that a daemon says before it leaves in order: `stopped` is the last of it."""
    messages.wait(lambda m: m.of(TOPICS.status)[-1:] == [b"stopped"])
    return True


def health(messages: Messages) -> HealthMessage | None:
    """The newest health message."""
    bodies = messages.of(TOPICS.health)
    return msgspec.json.decode(bodies[-1], type=HealthMessage) if bodies else None


def has_rate(messages: Messages, stream: str) -> bool:
    """Whether the newest health message tells a rate of the stream: it is measured over some seconds."""
    newest = health(messages)
    return newest is not None and newest.streams[stream].fps > 0


def states(messages: Messages) -> dict[str, str]:
    """State by stream, as the newest health message tells."""
    newest = health(messages)
    return {name: stream.state for name, stream in newest.streams.items()} if newest else {}
