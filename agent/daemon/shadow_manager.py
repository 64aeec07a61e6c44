"""The shadows of a house: new models beside those in use, while whoever updates the board asks for it."""

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
from agent.daemon.shadow import Shadow, ShadowReport
from agent.daemon.stream import Stream
from agent.errors import VedetteError
from agent.models.library import open_model
from agent.storage.state_file import FILE, ShadowOrder, read

_OPEN_S = 20.0
"""For the runtime to tell the tensors of a candidate, s: the daemon's thread waits, and its watchdog has 60 s."""


class _Case(Struct, frozen=True):
    """What a shadow is for; another case needs another shadow. Its plan is None where a backend is asked for."""

    stream: Stream
    config: StreamConfig
    plan: BackendSpec | None
    order: ShadowOrder


class ShadowManager:
    """Follows the order that lies on the board, for the daemon's thread."""

    def __init__(self, house: Runtime, environment: Mapping[str, str] = os.environ) -> None:
        """Nothing runs beside yet.

        Args:
            house: whose streams get shadows.
            environment: in which systemd names the folder for what runs; without one no order is looked for.
        """
        folder = environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]
        self._path = Path(folder).parent / FILE if folder else None
        self._house = house
        self._seen: tuple[int, int] | None = None
        self._order: ShadowOrder | None = None
        self._running: dict[str, tuple[_Case, Shadow | ShadowReport | None]] = {}

    @property
    def update(self) -> str:
        """The update whose order is followed; empty: there is none."""
        return self._order.update if self._order is not None else ""

    def findings(self, name: str) -> ShadowReport | None:
        """Of a stream; None: nothing runs beside it."""
        _, shadow = self._running.get(name, (None, None))
        return shadow.findings if isinstance(shadow, Shadow) else shadow

    def look(self) -> None:
        """Take what is ordered up, and let go of what is not any more."""
        self._read()
        streams = self._house.streams if self._order is not None else {}
        for name in [name for name in self._running if name not in streams]:
            self._drop(name)
        for name, stream in streams.items():
            self._see_to(name, stream)

    def close(self) -> None:
        """Let go of all."""
        for name in list(self._running):
            self._drop(name)

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

    def _see_to(self, name: str, stream: Stream) -> None:
        session, order = stream.session, self._order
        if session is None or order is None:
            self._drop(name)  # its stream does not run now
            return
        plan = session.plan if isinstance(session, SwappableSession) else None
        case, (known, _) = _Case(stream, stream.config, plan, order), self._running.get(name, (None, None))
        if known is not None and known.stream is stream and known == case:
            return
        self._drop(name)
        shadow = _shadow(name, case)
        self._running[name] = case, shadow
        if isinstance(shadow, Shadow):
            shadow.start()
            stream.shadow = shadow

    def _drop(self, name: str) -> None:
        case, shadow = self._running.pop(name, (None, None))
        if case is not None and isinstance(shadow, Shadow):
            case.stream.shadow = None
            shadow.close()


def _shadow(name: str, case: _Case) -> Shadow | ShadowReport | None:
    """With the new model of a stream, or why it cannot be had; None: there is none, or it is the one in use."""
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
