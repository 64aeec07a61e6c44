"""Runs new models beside those in use while an update asks for it, through an order file on the board."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from agent.compute.infer.backends import resolve_backend
from agent.compute.infer.session import BackendSpec
from agent.compute.infer.swappable import SwappableSession
from agent.config.stream import StreamConfig
from agent.daemon.runtime import Runtime
from agent.daemon.shadow import Shadow
from agent.daemon.stream import Stream
from agent.errors import VedetteError
from agent.models.library import open_model
from agent.storage.state_file import FILE, ShadowOrder, ShadowReport, read

_OPEN_S = 20.0
"""Longest time to read a candidate's tensors, s: the daemon's thread waits, and its watchdog expires after 60
s."""


class _Case(Struct, frozen=True):
    """Settings of a shadow; when they change, it is replaced. `plan` is None for an explicit backend."""

    stream: Stream
    config: StreamConfig
    plan: BackendSpec | None
    order: ShadowOrder


class ShadowManager:
    """Starts and stops shadows as the order file says. For the daemon's thread."""

    def __init__(self, runtime: Runtime, environment: Mapping[str, str] = os.environ) -> None:
        """Prepare; no shadow runs before `poll`.

        Args:
            runtime: whose streams get shadows.
            environment: holds RUNTIME_DIRECTORY, set by systemd; without it no order is read.
        """
        folder = environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]
        self._path = Path(folder).parent / FILE if folder else None
        self._runtime = runtime
        self._seen: tuple[int, int] | None = None
        self._order: ShadowOrder | None = None
        self._running: dict[str, tuple[_Case, Shadow | ShadowReport | None]] = {}

    @property
    def update(self) -> str:
        """Id of the update that asks for shadows; empty: none does."""
        return self._order.update if self._order is not None else ""

    def report(self, name: str) -> ShadowReport | None:
        """Return the report of a stream's shadow; None: it has none."""
        _, shadow = self._running.get(name, (None, None))
        return shadow.report if isinstance(shadow, Shadow) else shadow

    def poll(self) -> None:
        """Read the order, start the shadows that it asks for and stop all others."""
        self._read()
        streams = self._runtime.streams if self._order is not None else {}
        for name in [name for name in self._running if name not in streams]:
            self._stop_shadow(name)
        for name, stream in streams.items():
            self._update_stream(name, stream)

    def close(self) -> None:
        """Stop every shadow."""
        for name in list(self._running):
            self._stop_shadow(name)

    def _read(self) -> None:
        if self._path is None:
            return
        try:
            found = self._path.stat()
        except OSError:
            self._seen = self._order = None
            return
        if (seen := (found.st_ino, found.st_mtime_ns)) != self._seen:
            self._seen, self._order = seen, read(self._path)

    def _update_stream(self, name: str, stream: Stream) -> None:
        session, order = stream.session, self._order
        if session is None or order is None:
            self._stop_shadow(name)  # its stream does not run now
            return
        plan = session.plan if isinstance(session, SwappableSession) else None
        case, (known, _) = _Case(stream, stream.config, plan, order), self._running.get(name, (None, None))
        if known is not None and known.stream is stream and known == case:
            return
        self._stop_shadow(name)
        shadow = _make_shadow(name, case)
        self._running[name] = case, shadow
        if isinstance(shadow, Shadow):
            shadow.start()
            stream.shadow = shadow

    def _stop_shadow(self, name: str) -> None:
        case, shadow = self._running.pop(name, (None, None))
        if case is not None and isinstance(shadow, Shadow):
            case.stream.shadow = None
            shadow.close()


def _make_shadow(name: str, case: _Case) -> Shadow | ShadowReport | None:
    """Return a shadow with a stream's new model, or why it cannot run; None: it has no new model."""
    present, config, order = case.stream.model, case.config, case.order
    path = Path(config.model)
    candidate = Path(order.candidates) / path.name
    if present is None or str(path.parent) != order.models:
        return None
    try:
        if not candidate.exists():
            return None
        model = open_model(str(candidate), config.variant, _OPEN_S)
        plan = case.plan or resolve_backend(config.backend)
    except (VedetteError, OSError) as error:
        return ShadowReport(failed=str(error))
    if (model.sha256, model.manifest) == (present.sha256, present.manifest):
        return None
    return Shadow(name, config, model, plan, order.every)
