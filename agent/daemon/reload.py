"""Reloading: a new configuration is prepared beside what runs, and swapped in; or it is refused as a whole.

Keys that only a restart can change do not come here with another value: see `agent.config.diff`.
"""

from __future__ import annotations

import logging

from agent.config import Config
from agent.config.diff import MODEL_FILE, Key, changes, describe_pending
from agent.daemon.check import check_device
from agent.daemon.runtime import DRAIN_S, Runtime
from agent.daemon.stream import Stream
from agent.errors import VedetteError

log = logging.getLogger(__name__)


class ReloadPlan:
    """A new configuration, prepared while the old one runs on."""

    def __init__(self, house: Runtime, config: Config, *, only: str = "", waiting: tuple[Key, ...] = ()) -> None:
        """Prepare it. The house is as it was until `apply`.

        Args:
            house: that it is for.
            config: the new one.
            only: a stream that is swapped in any case, and nothing else is looked at: the rest is the same.
            waiting: keys that have another value in the file, and wait for a restart.

        Raises:
            VedetteError: it cannot be used.
        """
        check_device(config)
        self._house, self._config, self._only, self._waiting = house, config, only, waiting
        self._changes = changes(house.config, config)
        if not only:
            self._changes.changed.update({name: [MODEL_FILE] for name in self._other_models()})
        self._streams: dict[str, Stream] = {}
        try:
            self._prepare()
            self._publisher = house.publisher(config.mqtt) if "mqtt" in self._changes.tables else None
        except BaseException:
            self._discard()
            raise

    def _other_models(self) -> list[str]:
        """Streams whose configuration is the same and whose model is another one now."""
        known = {*self._changes.changed, *self._changes.removed}
        return [
            name
            for name, stream in self._house.streams.items()
            if name not in known and stream.state != "failed" and stream.model_changed
        ]

    def _prepare(self) -> None:
        """Prepare new and changed streams, and those that failed: they are tried again, and may fail again."""
        refused = []
        for name, config in self._config.streams.items():
            is_new = name in self._changes.added or name in self._changes.changed or name == self._only
            if not is_new and (self._only or self._house.streams[name].state != "failed"):
                continue
            self._streams[name], refusal = self._house.stream(name, config, self._config.streams)
            if refusal and is_new:
                refused.append(refusal)
            elif refusal:
                log.error(refusal)
        if refused:
            raise VedetteError("\n".join(refused))

    def _discard(self) -> None:
        """Close what was prepared for a reload that is refused: worker processes and their memory."""
        for stream in self._streams.values():
            stream.discard()

    def apply(self) -> None:
        """Swap what is different, and say so, unless it is a single stream."""
        self._swap_streams()
        if self._house.chooser is not None:
            self._house.chooser.configure(self._config.selection)
        if self._publisher is not None:
            self._house.line.exchange(self._publisher).stop(DRAIN_S)
            self._publisher.start()
        if "storage" in self._changes.tables:
            self._house.spool.configure(self._config.storage)
            self._house.recorder.configure(self._config.storage)
        self._house.config = self._config
        if not self._only:
            self._house.pending_restart = self._waiting
            log.log(logging.WARNING if self._waiting else logging.INFO, "reloaded: %s", self)

    def _swap_streams(self) -> None:
        house, gone = self._house, self._changes.removed
        # Before they stop: a clip that ends with its stream comes after the retained state that it is off.
        off = (name for name, stream in self._config.streams.items() if not stream.enabled)
        house.silent = frozenset((*gone, *off))
        house.stop_streams(name for name in (*self._streams, *gone) if name in house.streams)
        for name in gone:
            house.remove(name)
        house.streams.update(self._streams)
        if any(stream.config.clips is not None for stream in self._streams.values()):
            house.recorder.start()
        for name, stream in self._streams.items():
            stream.start(house.hanging(name))

    def __str__(self) -> str:
        known = {*self._changes.added, *self._changes.changed}
        again = [f"stream {name} is tried again" for name in self._streams if name not in known]
        changed = [] if self._waiting and self._changes.is_empty else [str(self._changes)]
        return "; ".join([*changed, *again, *describe_pending(self._waiting)])
