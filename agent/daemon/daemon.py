"""The daemon: starts everything that runs on a configuration, watches it, reloads it and stops it."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from agent.backoff import Backoff
from agent.board.process import show_thread_names, trim_heap
from agent.config import Config
from agent.config.toml import Where
from agent.daemon.control import ConfigManager
from agent.daemon.health import HealthFile, HealthPublisher
from agent.daemon.overrides import OverridesFile
from agent.daemon.runtime import STOP_TIMES, Runtime, StopTimes, stop_streams
from agent.daemon.systemd import Notifier, SystemdStatus
from agent.errors import ConfigError, StorageError, StreamError, VedetteError
from agent.storage.spool.spool import Spool
from agent.storage.state import OwnedFolder, state_folder

if TYPE_CHECKING:
    from agent.daemon.command_handler import CommandHandler

log = logging.getLogger(__name__)
_RETRY_MAX_S = 16.0
"""Longest pause between two attempts to restore the state folder, s."""
_POLL_S = 0.5
"""Time between two checks of the state folder, and of the streams for a change that is worth a health message."""
_TRIM_S = 30.0
"""Longest time until free memory is returned, s."""


class StateGuard:
    """Restores the state folder when it is deleted or replaced under the daemon.

    `trouble` is why the folder cannot be written now, empty if it can. `write_anew` writes again what commands
    have set. `retry_s` is the first pause between two attempts to restore it, s; the following pauses grow.
    """

    def __init__(
        self, folder: OwnedFolder, spool: Spool, write_anew: Callable[[], None], retry_s: float = 2.0
    ) -> None:
        self._folder, self._spool, self._write_anew = folder, spool, write_anew
        self._since: float | None = None
        self._retry_at, self._backoff = 0.0, Backoff(retry_s, _RETRY_MAX_S, jitter=0.0)
        self._is_written = False
        self._report = self.trouble = ""

    def check(self) -> str:
        """Restore the folder if it is gone. Return what health reports about it; empty: nothing."""
        is_gone = self._folder.is_gone
        if is_gone or self._spool.is_gone:
            if self._since is None:
                self._begin()
            if time.monotonic() >= self._retry_at:
                self._retry_at = time.monotonic() + self._backoff.next_s()
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
            self.trouble = str(error)
            self._log_once(self.trouble)
            return
        self.trouble = ""
        self._spool.move()
        if is_gone or not self._is_written:  # the spool may need another attempt, the other files do not
            self._write_anew()
            self._is_written = True

    def _log_once(self, why: str) -> None:
        if why not in self._report:
            log.error("%s: events not yet delivered and values set by commands are lost at the next restart", why)
            self._report = f"{self._report.partition(';')[0]}; {why}"

    def _end(self, seconds: float) -> None:
        self._since, self._retry_at = None, 0.0
        self._backoff.reset()
        self._report = f"{self._report.partition(';')[0]}; it was restored"
        log.warning("%s was restored after %.0f s", self._folder.path, seconds)


class Daemon:
    """Run streams until told to stop. Signal handlers may call `request_stop` and `request_reload`.

    `runtime` is what runs on the configuration; `run` sets it.
    """

    runtime: Runtime

    def __init__(
        self,
        config: Config,
        *,
        reload: Callable[[], Config] | None = None,
        where: Where | None = None,
        board: str = "",
        file: Path | None = None,
        exit_when_done: bool = False,
        stop_times: StopTimes = STOP_TIMES,
    ) -> None:
        """Take a validated configuration.

        Args:
            config: what to run.
            reload: returns the configuration read again.
            where: returns file and line of a key, for errors.
            board: describes the board, for the log; empty: it is not logged.
            file: of the configuration, for `doctor`; None: there is none.
            exit_when_done: return when the source of every stream has ended.
            stop_times: how long a stop may take.
        """
        self._config, self._reload, self._where, self._exit_when_done = config, reload, where, exit_when_done
        self._board, self._stop_times = board, stop_times
        self._file, self._systemd = file, SystemdStatus(Notifier())
        self._stop_asked = self._reload_asked = False
        self._commands: CommandHandler | None = None
        self._has_told = False  # that no commands are taken
        self._trimmed_s = self._poll_at_s = 0.0
        # Not an Event: a signal handler that sets one deadlocks if it interrupts the same Event's `wait`.
        self._wakeups: queue.SimpleQueue[None] = queue.SimpleQueue()

    def _wake(self) -> None:
        self._wakeups.put(None)

    def request_stop(self) -> None:
        """End tracks, drain the queue, publish `stopped`, and return from `run`."""
        self._stop_asked = True
        self._wake()

    def request_reload(self) -> None:
        """Read the configuration again and replace what changed."""
        self._reload_asked = True
        self._wake()

    def run(self) -> None:
        """Run until asked to stop.

        Raises:
            StreamError: every stream has ended, and one has failed.
            VedetteError: nothing could be started.
        """
        with OwnedFolder(state_folder(self._config.storage)) as owned:
            folder = owned.path
            spool = Spool(folder, self._config.storage)
            try:
                self._open(folder, spool)
                self._guard = StateGuard(owned, spool, self._control.write_anew)
                self.runtime.log_unclean_shutdown()
                self.runtime.prepare()
                if self._board:
                    log.info(self._board)
                self._run()
            except ConfigError as error:
                raise self._with_place(error) from error
            finally:
                spool.close()

    def _open(self, folder: Path, spool: Spool) -> None:
        from agent.daemon.autoselect import AutoBackend

        auto_backend = AutoBackend(self._config.selection, folder)
        self._control = ConfigManager(self._config, OverridesFile(folder))
        self.runtime = Runtime(self._control.config, spool, self._where, auto_backend)
        self._control.attach(self.runtime)
        self._health = HealthPublisher(self.runtime, self._control)
        self._health_file = HealthFile(self.runtime, self._health)

    def _run(self) -> None:
        try:
            self._listen()  # before `online` is published: its receivers may send commands at once
            self.runtime.board.sensors.start()
            self.runtime.start()
            self._watch()
        finally:
            self._systemd.stopping()
            self.runtime.parts.stop()
            self.runtime.board.sensors.stop()
            if self._commands is not None:
                self._commands.stop()
            began = time.monotonic()
            stop_streams(self.runtime.streams.values(), self._stop_times.streams)
            self._health.publish()
            self.runtime.stop(self._stop_times, began)

    def _watch(self) -> None:
        while not self._stop_asked:
            if self._reload_asked:
                self._reload_asked = False
                with suppress(VedetteError):  # it is logged, and reported in health.json
                    self._read_again()
            if self._commands is not None and self._commands.process_pending():
                self._wake()
            if time.monotonic() >= self._poll_at_s:
                self._poll_at_s = time.monotonic() + _POLL_S
                self._poll()
                if self._is_done():
                    self._raise_failure()
                    return
            with suppress(queue.Empty):
                self._wakeups.get(timeout=max(0.0, self._poll_at_s - time.monotonic()))

    def _poll(self) -> None:
        """Do what the clock says; a command does not wait for it."""
        self._check_state()
        self._control.poll()
        self._report_health()

    def _check_state(self) -> None:
        restored = self._guard.check()
        self._control.folder_trouble = self._guard.trouble
        self.runtime.state_trouble = "; ".join(filter(None, (restored, self._control.unwritten)))

    def _report_health(self) -> None:
        is_due = self._health.due()
        if is_due:
            self._trim_if_due()
            show_thread_names()
            self._health.publish()
        self.runtime.parts.poll(self.runtime.config)
        self._report_to_board(is_due)

    def _trim_if_due(self) -> None:
        """Return free memory: a stream that has started, stopped or been busy leaves holes of 20 MB and more."""
        now_s = time.monotonic()
        if self._health.changed or now_s - self._trimmed_s >= _TRIM_S:
            self._trimmed_s = now_s
            trim_heap()

    def _is_done(self) -> bool:
        """True if every stream has ended, and the daemon should end with them."""
        over = all(stream.finished for stream in self.runtime.streams.values())
        states = {stream.state for stream in self.runtime.streams.values()}
        if self.runtime.disabled_by_operator:  # an operator may switch it on again
            return over and self._exit_when_done
        return over and (self._exit_when_done or ("failed" in states and states <= {"failed", "disabled"}))

    def _raise_failure(self) -> None:
        self.runtime.wait_to_delete_hidden_pictures()
        for stream in self.runtime.streams.values():
            if stream.state == "failed":
                log.error("every stream has ended, and %s has failed: the daemon exits", stream.name)
                raise StreamError(f"every stream has ended; {stream.name}: {stream.detail}")

    def _report_to_board(self, is_due: bool) -> None:
        """Write health.json, then notify systemd: units that it starts after this one find the file."""
        was_ready = self._systemd.ready
        self._health_file.write_if_due(ready=was_ready, is_due=is_due)
        self._systemd.update(self.runtime.streams, connected=self.runtime.mqtt.state.connected)
        if self._systemd.ready is not was_ready:
            self._health_file.write_if_due(ready=True, is_due=True)

    def _with_place(self, error: VedetteError) -> VedetteError:
        if self._where is None or not isinstance(error, ConfigError) or not error.keys:
            return error
        return ConfigError(str(error), self._where(*error.keys))

    def _read_again(self) -> str:
        """Replace what changed in the configuration and describe it; if it is refused, change nothing."""
        if self._reload is None:
            raise ConfigError("this daemon was started without a configuration file: there is none to reload")
        self._systemd.reloading()
        try:
            changes = self._control.reload(self._reload())
        except VedetteError as error:
            placed = self._with_place(error)
            reason = "; ".join(str(placed).splitlines())
            log.error("reload refused, keeping the old configuration: %s", reason)
            self._health_file.count_reload(refused=reason)
            raise placed from error
        except Exception as error:
            # An internal error that a new configuration brings out must not end what runs on the old one.
            log.exception("reload refused, keeping the old configuration: internal error (please report)")
            reason = f"internal error: {type(error).__name__}: {error}"
            self._health_file.count_reload(refused=reason)
            raise VedetteError(reason) from error
        finally:
            self._systemd.reloaded()
        self._health_file.count_reload()
        self._listen()
        return changes

    def _listen(self) -> None:
        """Take commands from the broker, or no more, as the configuration in use says."""
        runtime = self.runtime
        if self._commands is None and runtime.commands:
            from agent.daemon.command_handler import CommandHandler  # many devices take none

            self._commands = CommandHandler(self._control, runtime, self._file, self._read_again, self._wake)
        if self._commands is not None:
            self._commands.listen()
        elif runtime.config.mqtt.commands is None and not self._has_told:
            self._has_told = True
            log.info("commands are disabled: %s", runtime.commands_off)
