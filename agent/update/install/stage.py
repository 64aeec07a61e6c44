"""Staging: a verified bundle is put where it can be tried, beside what runs."""

from __future__ import annotations

from pathlib import Path

from agent.errors import UpdateError
from agent.storage.durable import make_folder
from agent.storage.models import read
from agent.storage.modelsets import ModelSets
from agent.storage.slots import Slot, Slots
from agent.storage.updatefiles import delete_folder, rename, write_like
from agent.update.archive import unpack
from agent.update.description import NAME, Description
from agent.update.installing import install
from agent.update.migration import migrate
from agent.update.places import Places
from agent.update.preflight import find_python

UNPACKED = "unpacked"
CONFIG = "config/vedette.toml"
"""The migrated configuration of the board, in the slot, where a bundle changes it."""


def stage_version(where: Places, wanted: Description, slot: Slot) -> None:
    """Install a full bundle into a spare slot.

    Raises:
        BundleError: its files are not what it says.
        UpdateError: it cannot be installed, or the configuration cannot be migrated.
        StorageError: the disk refuses.
    """
    slots = Slots(where.home)
    home = slots.empty(slot)
    _take_out(where.incoming, wanted, home)
    unpacked = home / UNPACKED
    assert wanted.target is not None  # of every full bundle
    wheels = [unpacked / path for path in wanted.named("wheels", ".whl")]
    install(find_python(wanted.target.python), home / "venv", wheels)
    _place(where, wanted, home)
    slots.make_ready(slot, wanted.version)


def take_files(where: Places, wanted: Description, home: Path, bundle: Path) -> None:
    """Put what a full bundle has beside its wheels into a slot whose environment is made.

    Raises:
        BundleError: its files are not what it says.
        StorageError: the disk refuses.
    """
    _take_out(bundle, wanted, home)
    _place(where, wanted, home)


def _place(where: Places, wanted: Description, home: Path) -> None:
    unpacked = home / UNPACKED
    _take_models(home, wanted, unpacked)
    _take_config(where, wanted, home, unpacked)
    rename(unpacked / NAME, home / NAME)
    delete_folder(unpacked)


def stage_models(where: Places, wanted: Description, slot: Slot) -> None:
    """Put the models of a bundle beside those of the slot that runs.

    Raises:
        BundleError: its files are not what it says.
        StorageError: the disk refuses.
    """
    home = Slots(where.home).path(slot)
    _take_out(where.incoming, wanted, home)
    _take_models(home, wanted, home / UNPACKED, use=False)
    delete_folder(home / UNPACKED)


def _take_out(bundle: Path, wanted: Description, home: Path) -> None:
    delete_folder(home / UNPACKED)
    unpack(bundle, wanted, home / UNPACKED)


def _take_models(home: Path, wanted: Description, unpacked: Path, *, use: bool = True) -> None:
    sets = ModelSets(home)
    sets.begin(wanted.counter)
    for path in (*wanted.named("models", ""), *wanted.named("golden", "")):
        sets.take(unpacked / path, wanted.counter)
    if use:
        sets.point(wanted.counter)


def _take_config(where: Places, wanted: Description, home: Path, unpacked: Path) -> None:
    """What the bundle brings as examples, and the board's own configuration as the new version needs it."""
    make_folder(home / "config")
    for path in wanted.named("config", ""):
        example = home / "config" / f"{Path(path).name}.example"
        (unpacked / path).chmod(0o600)  # it may hold passwords of cameras
        rename(unpacked / path, example)
    if wanted.migrations and where.config.exists():
        before = read(where.config)
        try:
            after = migrate(before.decode(), wanted.migrations).encode()
        except UnicodeDecodeError as error:
            raise UpdateError(f"{where.config}: not UTF-8 at byte {error.start}") from error
        if after != before:
            write_like(home / CONFIG, after, where.config)
