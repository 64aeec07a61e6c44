"""Files and links of updates on a board: their paths, the two slots, and the sets of models in a slot.

    slots/a  slots/b      a version each: venv/ models/ … and `ready`, which is written last and names the
                          version; `proved` if the version was committed: a rollback may return to it
    current -> slots/a    the version that runs
    keeper  -> slots/a    the updater slot, whose code manages updates: the old version's, until the new one is
                          committed; the link keeps the name that boards in the field have
    slots/a/sets/12/      a set of models, never changed: NAME.tflite NAME.toml NAME.npz …
    slots/a/models -> sets/12

The rollback watchdog, the script `systemd/deadman`, uses the same paths.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

from agent.errors import StorageError, reason_of
from agent.storage.files import read_regular, storage_errors, sync_folder, write_atomic
from agent.storage.state import SHADOW_FILE

ROOT_VARIABLE = "VEDETTE_ROOT"
"""Environment variable with a folder that replaces `/`, to try an update beside the board's own files."""
Slot = Literal["a", "b"]
Link = Literal["current", "keeper"]
_SLOTS: tuple[Slot, Slot] = ("a", "b")
READY, PROVED = "ready", "proved"
UNPACKED = "unpacked"
"""Folder in a slot with the files of a bundle while they are installed."""
CONFIG = "config/vedette.toml"
"""The board's configuration in a slot, migrated to the slot's version; only where a bundle changes it."""
_VERSION_MAX, _FILE_MAX = 256, 4 * 1024**2


class Paths:
    """Paths of a board's updates."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        self.home = root / "opt/vedette"
        self.config = root / "etc/vedette/vedette.toml"
        self.allowed_signers = root / "etc/vedette/allowed_signers"
        """Keys whose bundles are accepted, in the format `ALLOWED SIGNERS` of ssh-keygen(1)."""
        self.revoked_keys = root / "etc/vedette/revoked_keys"
        """Revoked keys, a public key in each line or a KRL; the file is optional."""
        self.state = root / "var/lib/vedette-update"
        """Folder of the updates' state; only root may read it."""
        self.journal = self.state / "journal.json"
        """The current update, see `agent.update.install.journal`."""
        self.history = self.state / "history.jsonl"
        self.counter = self.state / "counter"
        self.trial = self.state / "trial"
        """Limits of the trial for the rollback watchdog; the file exists until the new version is committed."""
        self.verdict = self.state / "verdict"
        """Rollback by the watchdog, until it is in the history."""
        self.trial_usage = self.state / "deadman"
        """Seconds and boots of the current trial; only the rollback watchdog writes it."""
        self.reserve = self.state / "reserve"
        """Disk space that is reserved to end a trial on a full disk."""
        self.kept_config = self.state / "kept/vedette.toml"
        """The configuration before the current update changed it."""
        self.incoming = self.state / "bundles/incoming.vedette"
        """The bundle of the current update; its signature lies beside it."""
        self.present = self.state / "bundles/present.vedette"
        """The bundle of the running version: rsync does not send the parts that the next one shares with it."""
        self.daemon_state = root / "var/lib/vedette"
        """Folder of the daemon; its owner is the user that the daemon runs as."""
        self.health = root / "run/vedette/health.json"
        self.shadow_order = root / "run" / SHADOW_FILE
        """Order to the daemon to run new models beside those in use; in memory."""

    def config_of(self, slot: Slot) -> Path:
        """Return the path of the configuration that the version in a slot had, if the next version changed it."""
        return self.kept_config.with_name(f"{slot}.toml")


def board_paths() -> Paths:
    """Return the paths of this board; the environment variable `ROOT_VARIABLE` may move the root."""
    return Paths(Path(os.environ.get(ROOT_VARIABLE) or "/"))


def parse_slot(name: str) -> Slot:
    """Return the slot of that name; raise StorageError if there is none."""
    for slot in _SLOTS:
        if name == slot:
            return slot
    raise StorageError(f"{name!r} is not the name of a slot: a or b")


def read_file(path: Path) -> bytes:
    """Read a file of an update or the configuration, which may be a link; raise StorageError if it fails."""
    try:
        return read_regular(path.resolve(), _FILE_MAX)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {reason_of(error)}") from error


def _replace_link(link: Path, target: str) -> None:
    """Make `link` lead to `target`. Atomic, also in a power cut; raise OSError if the disk refuses."""
    new = link.with_name(f".{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(link)
    sync_folder(link.parent)


class Slots:
    """The slots of a board. Links change atomically; a slot that a link leads to is never touched.

    Methods raise StorageError after a disk error.
    """

    def __init__(self, home: Path) -> None:
        self._home = home

    def path(self, slot: Slot) -> Path:
        """Return the path of a slot, which need not exist."""
        return self._home / "slots" / slot

    def target(self, link: Link) -> Slot | None:
        """Return the slot that a link leads to, None without a link; raise StorageError if it leads elsewhere."""
        path = self._home / link
        try:
            target = str(path.readlink())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{path}: is not a link to a slot: {reason_of(error)}") from error
        for slot in _SLOTS:
            if target in (f"slots/{slot}", str(self.path(slot))):
                return slot
        raise StorageError(f"{path}: expected a link to slots/a or slots/b, found {target}")

    def spare(self) -> Slot:
        """Return the slot that may be filled; raise StorageError if both are in use."""
        used = {self.target("current"), self.target("keeper")}
        free = next((slot for slot in _SLOTS if slot not in used), None)
        if free is None:
            raise StorageError(f"{self._home}: both slots are in use: an update is on trial")
        return free

    def empty(self, slot: Slot) -> Path:
        """Make a spare slot an empty folder, and return its path; raise StorageError if it is in use."""
        self._check_spare(slot)
        path = self.path(slot)
        try:
            if path.is_symlink():
                path.unlink()
            elif path.exists():
                # A half-deleted slot must not look like a version to roll back to.
                (path / READY).unlink(missing_ok=True)
                sync_folder(path)
                shutil.rmtree(path)
            path.mkdir(parents=True, mode=0o755)
            sync_folder(path.parent)
        except OSError as error:
            raise StorageError(f"{path}: cannot be emptied: {reason_of(error)}") from error
        return path

    def _check_spare(self, slot: Slot) -> None:
        if slot in (self.target("current"), self.target("keeper")):
            raise StorageError(f"{self.path(slot)}: is in use")

    def version(self, slot: Slot) -> str:
        """Return the version installed in a slot; empty if there is none, or the installation is incomplete."""
        try:
            return read_regular(self.path(slot) / READY, _VERSION_MAX).decode("utf-8", "replace").strip()
        except (OSError, StorageError):
            return ""

    def make_ready(self, slot: Slot, version: str) -> None:
        """Record that a version is complete in a slot, and on disk."""
        os.sync()  # thousands of files in one go
        write_atomic(self.path(slot) / READY, f"{version}\n".encode())

    def mark_proved(self, slot: Slot) -> None:
        """Mark the version in a slot as one that a rollback may return to. Idempotent."""
        write_atomic(self.path(slot) / PROVED, b"")

    def proved_version(self, slot: Slot) -> str:
        """Return the version in a slot if a rollback may return to it; empty if it was only tried."""
        return self.version(slot) if (self.path(slot) / PROVED).exists() else ""

    def point(self, link: Link, slot: Slot) -> None:
        """Point a link to a slot; raise StorageError if there is no such slot. Atomic, also in a power cut."""
        path = self._home / link
        with storage_errors(f"{path}: cannot be changed"):
            if not self.path(slot).is_dir():
                raise StorageError(f"{self.path(slot)}: there is no such slot")
            _replace_link(path, f"slots/{slot}")


class ModelSets:
    """The model sets of one slot. Methods raise StorageError after a disk error."""

    def __init__(self, slot: Path) -> None:
        self._slot, self._sets = slot, slot / "sets"

    def path(self, number: int) -> Path:
        """Return the path of a set, which need not exist."""
        return self._sets / str(number)

    @property
    def current(self) -> int:
        """Number of the set in use; 0: none. Raise StorageError if `models` is not a link to a set."""
        link = self._slot / "models"
        try:
            name = link.readlink().name
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise StorageError(f"{link}: is not a link to a set of models: {reason_of(error)}") from error
        if not name.isdigit():
            raise StorageError(f"{link}: leads to {name!r}, not to a set of models")
        return int(name)

    def create(self, number: int) -> Path:
        """Create a set with hard links to the files of the one in use, and return its folder."""
        if number == self.current:
            raise StorageError(f"{self.path(number)}: is in use")
        folder, old = self.path(number), self.path(self.current)
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for file in sorted(old.iterdir()) if old.is_dir() else ():
                (folder / file.name).hardlink_to(file)
        except OSError as error:
            raise StorageError(f"{folder}: cannot be created: {reason_of(error)}") from error
        return folder

    def add(self, file: Path, number: int) -> None:
        """Move a file into a set; it replaces one of the same name."""
        try:
            file.replace(self.path(number) / file.name)
        except OSError as error:
            raise StorageError(f"{file}: cannot be moved: {reason_of(error)}") from error

    def point(self, number: int) -> None:
        """Use a set; 0: none. Atomic, also in a power cut."""
        link, folder = self._slot / "models", self.path(number)
        with storage_errors(f"{link}: cannot be changed"):
            if not number:
                link.unlink(missing_ok=True)
                sync_folder(self._slot)
                return
            if not folder.is_dir():
                raise StorageError(f"{folder}: there is no such set of models")
            sync_folder(folder)
            _replace_link(link, f"sets/{number}")

    def delete_unused(self, before: int) -> None:
        """Delete all sets but the one in use and `before`, which it replaced. Ignore disk errors."""
        for path in self._sets.glob("[0-9]*"):
            if path.name.isdigit() and int(path.name) != before:
                self.delete(int(path.name))

    def delete(self, number: int) -> None:
        """Delete a set unless it is in use. Ignore disk errors."""
        if number != self.current:
            shutil.rmtree(self.path(number), ignore_errors=True)
