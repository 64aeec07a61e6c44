"""The daemon: opens the house and keeps it running: watches, reloads, stops."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

from agent.board.process import show_thread_names, trim_heap
from agent.config import Config
from agent.config.toml import Where
from agent.daemon.command_handler import CommandHandler, DoctorProcess
from agent.daemon.control import ConfigManager
from agent.daemon.health import HealthFile, HealthPublisher
from agent.daemon.homeassistant import HomeAssistant
from agent.daemon.overrides import OverridesFile
from agent.daemon.runtime import Runtime, stop_streams
from agent.daemon.shadow_manager import ShadowManager
from agent.daemon.systemd import Notifier, SystemdStatus
from agent.errors import ConfigError, StorageError, StreamError, VedetteError
from agent.storage.files import OwnedFolder, remove_temporaries, state_folder, tighten
from agent.storage.spool.spool import Spool

log = logging.getLogger(__name__)

_RETRY_S, _RETRY_FACTOR_MAX = 2.0, 8
"""Pause after the first failed attempt to restore the state folder, s. It doubles up to this factor."""
_POLL_S = 0.5
"""Time between two checks of the streams for a change that is worth a health message, s."""


class StateGuard:
    """Restores the state folder when it is deleted or replaced under the daemon.

    Call `check` from the daemon's thread; it costs a few microseconds.

    Attributes:
        trouble: why the folder cannot be written now; empty: it can.
    """

    def __init__(self, folder: OwnedFolder, spool: Spool, write_anew: Callable[[], None]) -> None:
        """Prepare.

        Args:
            folder: the state folder.
            spool: of that folder.
            write_anew: writes all other files of the folder again.
        """
        self._folder, self._spool, self._write_anew = folder, spool, write_anew
        self._since: float | None = None
        self._retry_at, self._factor = 0.0, 1
        self._is_written = False
        self._report = self.trouble = ""

    def check(self) -> str:
        """Restore the folder if it is gone. Return what health reports about it; empty: nothing."""
        is_gone = self._folder.is_gone
        if is_gone or self._spool.is_gone:
            if self._since is None:
                self._begin()
            if time.monotonic() >= self._retry_at:
                self._retry_at = time.monotonic() + _RETRY_S * self._factor
                self._factor = min(2 * self._factor, _RETRY_FACTOR_MAX)
                self._restore(is_gone=is_gone)
        elif self._since is not None:
            self._end(time.monotonic() - self._since)
        return self._report

    def _begin(self) -> None:
        self._since, self._is_written = time.monotonic(), False
        self._report = f"{self._folder.path} was deleted or replaced at {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        log.error(
            "%s was deleted or replaced while Vedette runs; restoring it, without the clips in it. To delete the "
            "state, stop Vedette first",
            self._folder.path,
        )

    def _restore(self, *, is_gone: bool) -> None:
        try:
            if is_gone:
                self._folder.renew()
        except StorageError as error:
            self._spool.detach()
            self.trouble = str(error)
            self._log_once(self.trouble)
            return
        self.trouble = ""
        self._spool.attach()
        if is_gone or not self._is_written:  # the spool may need another attempt, the other files do not
            self._write_anew()
            self._is_written = True

    def _log_once(self, why: str) -> None:
        if why not in self._report:
            log.error("%s: events not yet delivered and values set by commands are lost at the next restart", why)
            self._report = f"{self._report.partition(';')[0]}; {why}"

    def _end(self, seconds: float) -> None:
        self._since, self._retry_at, self._factor = None, 0.0, 1
        self._report = f"{self._report.partition(';')[0]}; it was restored"
        log.warning("%s was restored after %.0f s", self._folder.path, seconds)


class Daemon:
    """Everything that runs. `run` returns when it is over; the two requests may come from signal handlers.

    Attributes:
        house: what runs; only while `run` does.
    """

    house: Runtime
    _homeassistant: HomeAssistant
    _bulletin: HealthPublisher
    _shadows: ShadowManager
    _local: HealthFile

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
        self._checkup, self._service = DoctorProcess(file), SystemdStatus(Notifier())
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
        from agent.daemon.autoselect import AutoBackend

        with closing(OwnedFolder(state_folder(self._config.storage))) as owned:
            folder = owned.path
            tighten(folder)
            remove_temporaries(folder)
            spool = Spool(folder, self._config.storage)
            try:
                chooser = AutoBackend(self._config.selection, folder)
                self._control = ConfigManager(self._config, OverridesFile(folder))
                self.house = Runtime(self._control.config, spool, self._where, chooser)
                self._control.attach(self.house)
                self._orders = CommandHandler(
                    self._control, self.house, self._checkup, self._read_again, self._rouse
                )
                self._homeassistant = HomeAssistant(self.house)
                self._bulletin = HealthPublisher(self.house, self._control, self._homeassistant)
                self._shadows = ShadowManager(self.house)
                self._local = HealthFile(self.house, self._bulletin, self._shadows)
                self._guard = StateGuard(owned, spool, self._write_anew)
                self.house.log_unclean_shutdown()
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
            told = self._guard.check()
            self._control.folder_trouble = self._guard.trouble
            if self._orders.process_pending():
                self._rouse()
            self._control.look()
            self.house.state_trouble = "; ".join(filter(None, (told, self._control.unwritten)))
            is_due = self._bulletin.due()
            self._homeassistant.look(has_temperature=self._bulletin.has_temperature)
            if is_due:
                if self._bulletin.changed:  # what has started or stopped leaves much behind that is free
                    trim_heap()
                show_thread_names()
                self._publish_health()
            self._shadows.look()
            self._tell_board(is_due)
            if self._done():
                self._tell_failure()
                return
            with suppress(queue.Empty):
                self._wake.get(timeout=_POLL_S)

    def _write_anew(self) -> None:
        self._control.write_anew()
        self.house.write_anew()

    def _done(self) -> bool:
        """Whether every stream is over, and that is reason enough to end."""
        over = all(stream.over for stream in self.house.streams.values())
        states = {stream.state for stream in self.house.streams.values()}
        if self.house.disabled_by_operator:  # somebody may switch it on again
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
        self._service.update(self.house.streams, connected=self.house.line.publisher.state.connected)
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
