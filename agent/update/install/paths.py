"""Paths of updates on a board. The rollback watchdog, the script `systemd/deadman`, uses the same ones."""

from __future__ import annotations

import os
from pathlib import Path

from msgspec import Struct

from agent.storage.state_file import SHADOW_FILE

ROOT_VARIABLE = "VEDETTE_ROOT"
"""Names a folder that stands for `/`: so that a test, or a person, can try an update beside the board's own."""


class Paths(Struct, frozen=True):
    """Where things are.

    Attributes:
        root: that all the others lie in.
    """

    root: Path = Path("/")

    @property
    def home(self) -> Path:
        """Folder of the two slots and the links to them."""
        return self.root / "opt/vedette"

    @property
    def config(self) -> Path:
        """The board's configuration."""
        return self.root / "etc/vedette/vedette.toml"

    @property
    def allowed_signers(self) -> Path:
        """Whose bundles are taken; `ALLOWED SIGNERS` of ssh-keygen(1)."""
        return self.root / "etc/vedette/allowed_signers"

    @property
    def revoked_keys(self) -> Path:
        """Keys that are no longer good, a public key in each line or a KRL; it need not be there."""
        return self.root / "etc/vedette/revoked_keys"

    @property
    def state(self) -> Path:
        """Folder of the updates' state; only root may read it."""
        return self.root / "var/lib/vedette-update"

    @property
    def journal(self) -> Path:
        """How far the update at hand has come."""
        return self.state / "journal.json"

    @property
    def history(self) -> Path:
        """File of earlier updates and their outcomes, one JSON object per line."""
        return self.state / "history.jsonl"

    @property
    def counter(self) -> Path:
        """The highest counter that was ever committed."""
        return self.state / "counter"

    @property
    def trial(self) -> Path:
        """Limits of the trial for the rollback watchdog; the file exists until the new version is committed."""
        return self.state / "trial"

    @property
    def verdict(self) -> Path:
        """Rollback by the watchdog, until it is in the history."""
        return self.state / "verdict"

    @property
    def counted(self) -> Path:
        """Seconds and boots of the current trial; only the rollback watchdog writes it."""
        return self.state / "deadman"

    @property
    def reserve(self) -> Path:
        """Room that is kept for ending a trial, whoever fills the disk meanwhile."""
        return self.state / "reserve"

    @property
    def kept_config(self) -> Path:
        """The configuration as it was before the update at hand changed it."""
        return self.state / "kept/vedette.toml"

    @property
    def incoming(self) -> Path:
        """The bundle at hand; its signature lies beside it."""
        return self.state / "bundles/incoming.vedette"

    @property
    def present(self) -> Path:
        """The bundle of what runs: rsync takes from it what the next one has in common with it."""
        return self.state / "bundles/present.vedette"

    @property
    def daemon_state(self) -> Path:
        """The daemon's own folder; its owner is the user that the daemon runs as."""
        return self.root / "var/lib/vedette"

    @property
    def health(self) -> Path:
        """How the daemon is, as it writes it itself."""
        return self.root / "run/vedette/health.json"

    @property
    def shadow_order(self) -> Path:
        """Which new models the daemon is to run beside those in use; in memory."""
        return self.root / "run" / SHADOW_FILE


def places() -> Paths:
    """Return the paths of this board; an environment variable may move the root."""
    return Paths(Path(os.environ.get(ROOT_VARIABLE) or "/"))
