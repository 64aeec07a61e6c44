"""The bulletin: how a device is, published at its pace and at every change that somebody may wait for."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from msgspec.structs import asdict

from agent import __version__
from agent.comms import payload
from agent.control import Control
from agent.errors import reason_of
from agent.health.heat import Heat
from agent.health.machine import resident_mb
from agent.homeassistant import HomeAssistant
from agent.house import House
from agent.restart import names
from agent.vitals import link_health, spool_health

log = logging.getLogger(__name__)


class Bulletin:
    """Of one daemon, for its thread.

    Attributes:
        has_news: whether something was otherwise at the last look than at the one before.
        streams: their health as it was published last.
    """

    def __init__(self, house: House, control: Control, homeassistant: HomeAssistant) -> None:
        self._house, self._control, self._homeassistant = house, control, homeassistant
        self._began, self._heat = time.monotonic(), Heat()
        self._resident_mb = 0.0
        self._unread: set[str] = set()
        self._told, self._told_at = "", 0.0
        self.has_news = False
        self.streams: dict[str, payload.StreamHealth] = {}

    @property
    def has_temperature(self) -> bool:
        """Whether the board tells one."""
        return self._heat.celsius is not None

    def look(self) -> bool:
        """Look at the house; whether it is time to publish, which is taken as done."""
        house, overridden = self._house, self._control.overridden
        with self._reading("temperature"):
            self._heat.look(house.config.thermal.warn_c)
        link = house.line.publisher.state
        now = [
            *((name, s.standing[0], s.has_result, overridden(name)) for name, s in house.streams.items()),
            (self._heat.hot, link.connects, link.intrusions > 0, house.recorder.stats.trouble),
            self._homeassistant.trouble,
            house.waiting,
            house.commands_off,
            house.state_trouble,
        ]
        self.has_news = str(now) != self._told
        if not self.has_news and time.monotonic() - self._told_at < house.config.health.every_s:
            return False
        self._told, self._told_at = str(now), time.monotonic()
        return True

    def publish(self) -> None:
        """Publish how everything is now."""
        house, control = self._house, self._control
        with self._reading("memory"):
            self._resident_mb = resident_mb()
        self.streams = {name: control.health(name, one.health()) for name, one in house.streams.items()}
        celsius = self._heat.celsius
        message = payload.HealthMessage(
            version=__version__,
            at=datetime.now(UTC),
            uptime_s=round(time.monotonic() - self._began, 1),
            streams=self.streams,
            spool=spool_health(house.spool),
            rss_mb=round(self._resident_mb, 1),
            temperature_c=None if celsius is None else round(celsius, 1),
            hot=self._heat.hot,
            link=link_health(house.line.publisher.state),
            clips=_clips(house),
            homeassistant=self._homeassistant.trouble,
            commands_off=house.commands_off,
            waits_for_restart=names(house.waiting),
            state_folder=house.state_trouble,
        )
        house.line.retain(house.topics.health, payload.encode(message))

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """A reading inside may fail, as it does when files run out: the one before stays, and it is told once."""
        try:
            yield
        except OSError as error:
            if what not in self._unread:
                log.warning("%s: cannot be read: %s; health tells what was read last", what, reason_of(error))
            self._unread.add(what)
        else:
            if what in self._unread:
                log.info("%s: can be read again", what)
            self._unread.discard(what)


def _clips(house: House) -> payload.ClipsHealth | None:
    if all(stream.config.clips is None for stream in house.streams.values()):
        return None
    return payload.ClipsHealth(**asdict(house.recorder.stats))
