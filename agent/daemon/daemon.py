"""The daemon: opens the house and keeps it running: watches, reloads, stops."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from agent.boardhealth import LocalHealth
from agent.bulletin import Bulletin
from agent.checkup import Checkup
from agent.config import Config
from agent.configfile import Where
from agent.control import Control
from agent.errors import ConfigError, StreamError, VedetteError
from agent.health.notify import Notifier
from agent.heap import trim_heap
from agent.homeassistant import HomeAssistant
from agent.house import House, stop_streams
from agent.orders import Orders
from agent.overrides import FILE as OVERRIDES
from agent.published import FILE as PUBLISHED
from agent.published import Published
from agent.service import Service
from agent.shadows import Shadows
from agent.stateguard import StateGuard
from agent.storage.durable import OwnedFolder, remove_temporaries, state_folder, tighten
from agent.storage.spool import Spool
from agent.storage.statefile import StateFile
from agent.storage.twinfile import TwinFile
from agent.threadnames import show_thread_names

log = logging.getLogger(__name__)

_LOOK_S = 0.5
"""Between two looks at the streams for a change of state that is worth a health message."""


class Daemon:
    """Everything that runs. `run` returns when it is over; the two requests may come from signal handlers.

    Attributes:
        house: what runs; only while `run` does.
    """

    house: House
    _homeassistant: HomeAssistant
    _bulletin: Bulletin
    _shadows: Shadows
    _local: LocalHealth

    def __init__(
        self,
        config: Config,
        *,
        reload: Callable[[], Config] | None = None,
        where: Where | None = None,
        board: str = "",
        file: Path | None = None,
        exit_when_done: bool = False,
    ) -> None:
        """Take a validated configuration.

        Args:
            config: what to run.
            reload: gives the configuration anew when asked to reload.
            where: tells where in its file a key stands, for errors.
            board: that this is, in a line for the log; empty: not told.
            file: that the configuration came from, for the doctor; None: it came from none.
            exit_when_done: end when every stream's source has.
        """
        self._config, self._reload, self._where, self._exit_when_done = config, reload, where, exit_when_done
        self._board = board
        self._checkup, self._service = Checkup(file), Service(Notifier())
        self._stop_asked = self._reload_asked = False
        # Not an Event: a signal handler that sets one waits for ever if it interrupts the same Event's `wait`.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()

    def _rouse(self) -> None:
        self._wake.put(None)

    def request_stop(self) -> None:
        """End tracks, drain, say `stopped`, return from `run`."""
        self._stop_asked = True
        self._wake.put(None)

    def request_reload(self) -> None:
        """Read the configuration again and swap what changed."""
        self._reload_asked = True
        self._wake.put(None)

    def run(self) -> None:
        """Run until asked to stop.

        Raises:
            StreamError: every stream is over, and one has failed.
            VedetteError: nothing could be started.
        """
        from agent.chooser import Chooser

        with closing(OwnedFolder(state_folder(self._config.storage))) as owned:
            folder = owned.path
            tighten(folder)
            remove_temporaries(folder)
            spool = Spool(folder, self._config.storage)
            try:
                chooser = Chooser(self._config.selection, folder)
                self._control = Control(self._config, TwinFile(folder / OVERRIDES))
                published = Published(StateFile(folder / PUBLISHED))
                self.house = House(self._control.config, spool, self._where, chooser, published)
                self._control.attach(self.house)
                self._orders = Orders(self._control, self.house, self._checkup, self._read_again, self._rouse)
                self._homeassistant = HomeAssistant(self.house)
                self._bulletin = Bulletin(self.house, self._control, self._homeassistant)
                self._shadows = Shadows(self.house)
                self._local = LocalHealth(self.house, self._bulletin, self._shadows)
                self._guard = StateGuard(owned, spool, self._write_anew)
                self.house.settle_left()
                self.house.prepare()
                if self._board:
                    log.info(self._board)
                self._live()
            except ConfigError as error:
                raise self._placed(error) from error
            finally:
                spool.close()

    def _live(self) -> None:
        try:
            self._orders.listen()  # first: who hears that we are online may command us
            self.house.start()
            self._watch()
        finally:
            self._service.stopping()
            self._orders.stop()
            self._shadows.close()
            stop_streams(self.house.streams.values())
            self._publish_health()
            self.house.stop()

    def _watch(self) -> None:
        """Publish health at its pace and at every change of state, until it is time to stop."""
        while not self._stop_asked:
            if self._reload_asked:
                self._reload_asked = False
                self._do_reload()
            told = self._guard.look()
            self._control.folder_trouble = self._guard.trouble
            self.house.published.look()
            if self._orders.work():
                self._rouse()
            self._control.look()
            self.house.state_trouble = "; ".join(filter(None, (told, self._control.unwritten)))
            is_due = self._bulletin.look()
            self._homeassistant.look(has_temperature=self._bulletin.has_temperature)
            if is_due:
                if self._bulletin.has_news:  # what has started or stopped leaves much behind that is free
                    trim_heap()
                show_thread_names()
                self._publish_health()
            self._shadows.look()
            self._tell_board(is_due)
            if self._done():
                self._tell_failure()
                return
            with suppress(queue.Empty):
                self._wake.get(timeout=_LOOK_S)

    def _write_anew(self) -> None:
        self._control.write_anew()
        self.house.write_anew()

    def _done(self) -> bool:
        """Whether every stream is over, and that is reason enough to end."""
        over = all(stream.over for stream in self.house.streams.values())
        states = {stream.state for stream in self.house.streams.values()}
        if self.house.kept_off:  # somebody may switch it on again
            return over and self._exit_when_done
        return over and (self._exit_when_done or ("failed" in states and states <= {"failed", "disabled"}))

    def _tell_failure(self) -> None:
        for stream in self.house.streams.values():
            if stream.state == "failed":
                raise StreamError(f"every stream is over; {stream.name}: {stream.detail}")

    def _tell_board(self, is_due: bool) -> None:
        """Tell programs on the board, and systemd: what it starts after us finds the file."""
        was_ready = self._service.ready
        self._local.look(ready=was_ready, is_due=is_due)
        self._service.look(self.house.streams, connected=self.house.line.publisher.state.connected)
        if self._service.ready is not was_ready:
            self._local.look(ready=True, is_due=True)

    def _publish_health(self) -> None:
        self._bulletin.publish()

    def _placed(self, error: VedetteError) -> VedetteError:
        """The same, with `file:line` where it tells of a key."""
        if self._where is None or not isinstance(error, ConfigError) or not error.keys:
            return error
        return ConfigError(str(error), self._where(*error.keys))

    def _do_reload(self) -> None:
        with suppress(VedetteError):
            self._read_again()

    def _read_again(self) -> str:
        """Swap what changed and say what; keep everything as it was when the new configuration cannot be used.

        Raises:
            VedetteError: it cannot be.
        """
        if self._reload is None:
            raise ConfigError("this daemon runs on no file: there is nothing to read again")
        self._service.reloading()
        try:
            told = self._control.reload(self._reload())
        except VedetteError as error:
            placed = self._placed(error)
            told = "; ".join(str(placed).splitlines())
            log.error("reload refused, running on as before: %s", told)
            self._local.reloaded(refused=told)
            raise placed from error
        except Exception as error:
            # A defect that a new configuration brings out must not end what runs on the old one.
            log.exception("reload refused, running on as before: a defect in Vedette")
            self._local.reloaded(refused=f"a defect in Vedette: {type(error).__name__}: {error}")
            raise VedetteError(f"a defect in Vedette: {type(error).__name__}: {error}") from error
        finally:
            self._service.reloaded()
        self._local.reloaded()
        self._orders.listen()
        return told
