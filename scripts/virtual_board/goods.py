"""Bundles of this clone under two version numbers, and the keys that sign them."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from machine import ROOT, BoardError
from msgspec import Struct

from tests.support.colours import colour_model
from tests.support.tiny_bundles import Key, make_key

A, B = "1.0.1", "1.0.2"
"""Versions: the installed one, with counter 1, and the update, with counter 2."""
PRINCIPAL = "prover"
_SOURCES = ("agent", "firmware_configs", "pyproject.toml", "requirements.lock", "README.md", "LICENSE")
ONLY_B = "event_expiry_s"
"""Key of `[mqtt]` that the migration of B sets."""
SEEN_FROM = 0.05
"""Share of blue from which the model detects a person: in every test pattern."""


class Target(Struct, frozen=True):
    """Target of the bundles.

    Attributes:
        arch, python: of the board, for `vedette bundle build`.
        health: `KEY=NUMBER` of the health gate.
    """

    arch: str
    python: str
    health: tuple[str, ...] = ()


class Goods:
    """Makes bundles and keys in a folder, unless they are up to date."""

    def __init__(self, folder: Path, target: Target) -> None:
        """Make the keys and the model.

        Args:
            folder: for the keys and bundles; created.
            target: of every bundle.
        """
        self.folder, self._target = folder.resolve(), target
        (self.folder / "models").mkdir(parents=True, exist_ok=True)
        self.key, self.stranger = self._key("key"), self._key("stranger")
        self.signers = self.folder / "allowed_signers"
        self.signers.write_text(self.key.allowed(PRINCIPAL))
        self.model = colour_model(self.folder / "models", threshold=SEEN_FROM)

    def _key(self, name: str) -> Key:
        path = self.folder / name
        if not path.exists():
            return make_key(path)
        return Key(path, path.with_name(f"{name}.pub").read_text(encoding="ascii").strip())

    def bundle(self, version: str, counter: int) -> Path:
        """Build and sign a bundle of this clone under a version number.

        Raises:
            BoardError: it cannot be built.
        """
        path, noted = self.folder / f"{version}.vedette", self.folder / f"{version}.stamp"
        sources = self._sources(version)
        stamp = self._stamp(sources, counter)
        if not (path.exists() and noted.exists() and noted.read_text() == stamp):
            noted.unlink(missing_ok=True)
            self._build(sources, path, version, counter)
            noted.write_text(stamp)
        shutil.rmtree(sources)
        return path

    def _stamp(self, sources: Path, counter: int) -> str:
        """Identify the sources of a bundle."""
        digest = hashlib.sha256(f"{self._target} {counter} {self.key.public}".encode())
        for path in (self.model, self.model.with_suffix(".tflite"), *sorted(sources.rglob("*"))):
            if path.is_file():
                digest.update(path.read_bytes())
        return digest.hexdigest()

    def _migrations(self) -> Path:
        """Write a migration that sets a key: it tells for which version a configuration is."""
        path = self.folder / "migrations.toml"
        path.write_text(f'[[migrations]]\nop = "set"\nkey = "mqtt.{ONLY_B}"\nvalue = 15\n')
        return path

    def _sources(self, version: str) -> Path:
        """Copy the files that are under version control."""
        copy = self.folder / f"sources-{version}"
        shutil.rmtree(copy, ignore_errors=True)
        lists = ["git", "ls-files", "-z", *_SOURCES]
        listed = subprocess.run(lists, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, listed.split("\0")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
        about = copy / "agent/__init__.py"
        about.write_text(re.sub('__version__ = ".*"', f'__version__ = "{version}"', about.read_text()))
        return copy

    def _build(self, sources: Path, path: Path, version: str, counter: int) -> None:
        target = self._target
        words = ["--arch", target.arch, "--python", target.python, "--counter", str(counter)]
        words += [f"--health={one}" for one in target.health]
        words += ["--model", str(self.model), "--model", "small-speech"]
        if version == B:
            words += ["--migrations", str(self._migrations())]
        words += ["--sign", str(self.key.path), "--out", str(path)]
        done = subprocess.run(
            [sys.executable, "-m", "agent", "bundle", "build", *words],
            cwd=sources,
            capture_output=True,
            text=True,
            check=False,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        )
        if done.returncode:
            path.unlink(missing_ok=True)
            raise BoardError(f"{path.name} cannot be built: {done.stderr.strip()[-2000:]}")
