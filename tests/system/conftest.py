"""Marks every test here as `system`, and gives it a broker."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mosquitto import Mosquitto
from tests.support.soundserver import SoundServer

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.system)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """A running mosquitto, open to anyone on the loopback."""
    with Mosquitto(tmp_path) as running:
        yield running


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SoundServer]:
    """A running sound server that this process and its children use."""
    prepared = SoundServer(tmp_path)
    for name, value in prepared.environment.items():
        monkeypatch.setenv(name, value)
    with prepared as running:
        yield running


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A package index that answers."""
    folder = tmp_path_factory.mktemp("network")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--retries=0",
        "--dest",
        str(folder),
        "click",
    ]
    if subprocess.run(command, capture_output=True, check=False, timeout=100).returncode:
        pytest.skip("no package index can be reached from here")
