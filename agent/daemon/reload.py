"""Reload: prepare a new configuration while the old one runs, then replace what differs, or refuse it as a whole.

Keys that need a restart keep their old values, see `agent.config.diff.keep_until_restart`.
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
    """A new configuration, prepared while the old one runs."""

    def __init__(
        self, runtime: Runtime, config: Config, *, only: str = "", waiting: tuple[Key, ...] = ()
    ) -> None:
        """Prepare the new streams. The runtime does not change before `apply`.

        Args:
            runtime: to change.
            config: the new configuration.
            only: a stream that is replaced in any case, the only one that differs; empty: compare all.
            waiting: keys with another value in the file, which need a restart.

        Raises:
            VedetteError: the configuration cannot be used.
        """
        check_device(config)
        self._runtime, self._config, self._only, self._waiting = runtime, config, only, waiting
        self._changes = changes(runtime.config, config)
        if not only:
            self._changes.changed.update({name: [MODEL_FILE] for name in self._changed_models()})
        self._streams: dict[str, Stream] = {}
        try:
            self._prepare()
            self._publisher = runtime.make_publisher(config.mqtt) if "mqtt" in self._changes.tables else None
        except BaseException:
            self._discard()
            raise

    def _changed_models(self) -> list[str]:
        """Return the streams with the same configuration whose model files have changed."""
        known = {*self._changes.changed, *self._changes.removed}
        return [
            name
            for name, stream in self._runtime.streams.items()
            if name not in known and stream.state != "failed" and stream.model_changed
        ]

    def _prepare(self) -> None:
        """Prepare new and changed streams, and failed ones, which are tried again and may fail again."""
        refused = []
        for name, config in self._config.streams.items():
            is_new = name in self._changes.added or name in self._changes.changed or name == self._only
            if not is_new and (self._only or self._runtime.streams[name].state != "failed"):
                continue
            self._streams[name], refusal = self._runtime.make_stream(name, config, self._config.streams)
            if refusal and is_new:
                refused.append(refusal)
            elif refusal:
                log.error(refusal)
        if refused:
            raise VedetteError("\n".join(refused))

    def _discard(self) -> None:
        """Close what was prepared: worker processes and their memory."""
        for stream in self._streams.values():
            stream.discard()

    def apply(self) -> None:
        """Replace what differs, and log it, unless it is a single stream."""
        self._replace_streams()
        if self._runtime.auto_backend is not None:
            self._runtime.auto_backend.configure(self._config.selection)
        if self._publisher is not None:
            self._runtime.mqtt.exchange(self._publisher).stop(DRAIN_S)
            self._publisher.start()
        if "storage" in self._changes.tables:
            self._runtime.spool.configure(self._config.storage)
            self._runtime.recorder.configure(self._config.storage)
        self._runtime.config = self._config
        if not self._only:
            self._runtime.pending_restart = self._waiting
            log.log(logging.WARNING if self._waiting else logging.INFO, "reloaded: %s", self)

    def _replace_streams(self) -> None:
        runtime, removed = self._runtime, self._changes.removed
        # Before they stop: the clip that a stop ends must not be announced after the state `off`.
        off = (name for name, stream in self._config.streams.items() if not stream.enabled)
        runtime.silent = frozenset((*removed, *off))
        runtime.stop_streams(name for name in (*self._streams, *removed) if name in runtime.streams)
        for name in removed:
            runtime.remove(name)
        runtime.streams.update(self._streams)
        if any(stream.config.clips is not None for stream in self._streams.values()):
            runtime.recorder.start()
        for name, stream in self._streams.items():
            stream.start(runtime.hanging(name))

    def __str__(self) -> str:
        known = {*self._changes.added, *self._changes.changed}
        again = [f"stream {name} is tried again" for name in self._streams if name not in known]
        changed = [] if self._waiting and self._changes.is_empty else [str(self._changes)]
        return "; ".join([*changed, *again, *describe_pending(self._waiting)])
