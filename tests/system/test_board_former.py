"""A board of the version before the renames is updated: configuration, settings and undelivered events stay.

That version comes from the history of this clone, with its own program for bundles and its own installer.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.comms.messages import EventMessage
from tests.support.board import Board, watch_somebody
from tests.support.mosquitto import Mosquitto
from tests.support.operator import Operator
from tests.support.publishing import EVENTS
from tests.support.received import Messages
from tests.support.running import ROOT
from tests.support.tiny_bundles import Key, make_key, needs_ssh_keygen
from tests.support.versions import bundle, version

pytestmark = [pytest.mark.board, pytest.mark.timeout(900), needs_ssh_keygen]
FORMER = "59a4a7c8e6d52c46ed38fc347125c9be0e33756c"
"""The last commit before modules, keys and words were renamed."""
QUICK = ("--health", "steady_s=3", "--health", "within_s=60", "--health", "p95_factor=20")
PATIENCE_S = 240.0
OLD_KEYS: dict[str, dict[str, Any]] = {
    "mqtt": {"inflight": 10, "commands": True},
    "storage": {
        "folder": "/var/lib/vedette/mine",
        "spool_max_age_s": 86400.0,
        "durability": {"updates": "batch"},
    },
}
OLD_STREAM_KEYS: dict[str, Any] = {
    "rung": "full",
    "ladder": {"budget_ms": 80.0},
    "clips": {"events": False, "ring_max_bytes": 1_000_000},
}


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of that version."""
    folder = tmp_path_factory.mktemp("former")
    packed = subprocess.run(["git", "archive", FORMER], cwd=ROOT, capture_output=True, check=False)
    if packed.returncode:
        pytest.skip(f"this clone has no history: {packed.stderr.decode().strip()}")
    subprocess.run(["tar", "x", "-C", str(folder)], input=packed.stdout, check=True)
    return folder


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    with Board(tmp_path_factory.mktemp("board")) as running:
        yield running


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path_factory.mktemp("broker"), persistence=True) as running:
        yield running


def wheel_of(source: Path, folder: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, check=True, capture_output=True, cwd=source)
    (path,) = folder.glob("*.whl")
    return path


def install_former(board: Board, former: Path, folder: Path, key: Key, python: str) -> None:
    """Install that version by its own script, from its own bundle."""
    wheel = version(wheel_of(former, folder), "1.0")
    path = bundle(folder / "1.0.vedette", python, 1, key, "--wheel", str(wheel), *QUICK, source=former)
    for file in (path, path.with_name("1.0.vedette.sig")):
        board.write(f"/root/{file.name}", file.read_bytes())
    board.write("/root/signers", key.allowed("ops@example.org"))
    scripts = subprocess.run(["tar", "c", "-C", str(former), "."], capture_output=True, check=True).stdout
    board.write("/root/former.tar", scripts)
    board.sh("sh", "-c", "mkdir -p /root/former && tar x -C /root/former -f /root/former.tar")
    words = ("--bundle", "/root/1.0.vedette", "--signers", "/root/signers")
    board.sh("env", "PYTHON=/usr/bin/python3", "/root/former/scripts/install", *words, patience_s=PATIENCE_S)


def with_old_keys(config: dict[str, Any]) -> dict[str, Any]:
    for table, keys in OLD_KEYS.items():
        config.setdefault(table, {}).update(keys)
    front = config["streams"]["front"]
    config["streams"] = {"front": {**front, **OLD_STREAM_KEYS}, "back": dict(front)}
    return config


def numbers(messages: Messages) -> list[int]:
    """The `seq` of each event, once by its id, in the order of arrival."""
    told = [msgspec.json.decode(one.payload, type=EventMessage) for one in messages]
    return list({one.id: one.seq for one in told}.values())


def test_an_update_keeps_settings_and_undelivered_events_and_a_rollback_brings_the_old_keys_back(
    board: Board, broker: Mosquitto, former: Path, network: None, tmp_path: Path
) -> None:
    key = make_key(tmp_path / "key")
    python = board.sh("/usr/bin/python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    install_former(board, former, tmp_path / "old", key, python)
    config = with_old_keys(watch_somebody(board, broker.port, tmp_path))
    board.configure(config)
    board.sh("systemctl", "restart", "vedette")
    board.wait_active()

    operator = Operator(broker)
    messages = broker.subscribe("vedette/+/+/events", lasting=True)
    messages.wait(lambda m: len(m.of(EVENTS)) >= 3, timeout_s=60.0)
    operator.set("back", "enabled", "off")
    operator.wait_state("back", "enabled", "off")

    new = version(wheel_of(ROOT, tmp_path / "new"), "2.0")
    update = bundle(tmp_path / "2.0.vedette", python, 2, key, "--wheel", str(new), *QUICK)
    for file in (update, update.with_name("2.0.vedette.sig")):
        board.write(f"/root/{file.name}", file.read_bytes())
    broker.stop()
    before = len(messages.of(EVENTS))
    said = board.sh("vedette", "update", "apply", "/root/2.0.vedette", patience_s=PATIENCE_S)
    assert said.splitlines()[-1] == "committed"
    broker.start()
    messages.wait(lambda m: len(m.of(EVENTS)) >= before + 30, timeout_s=60.0)

    migrated = board.sh("cat", "/etc/vedette/vedette.toml")
    for word in ("inflight", "spool_max_age_s", "ring_max_bytes", "rung", "ladder"):
        assert word not in migrated
    assert 'state_dir = "/var/lib/vedette/mine"' in migrated
    assert 'variant = "full"' in migrated
    assert "[streams.front.cascade]" in migrated
    assert board.sh("vedette", "config", "check").endswith("fine")
    # A bundle's rules cannot tell its values from those that are left.
    assert "storage.durability" in board.journal()
    assert msgspec.json.decode(board.sh("vedette", "update", "status", "--json"))["version"] == "2.0"
    seen = numbers(messages)
    assert seen == list(range(seen[0], seen[0] + len(seen)))
    again = Operator(broker)
    again.wait_state("back", "enabled", "off")

    board.sh("vedette", "update", "rollback", patience_s=PATIENCE_S)
    after = len(messages.of(EVENTS))
    messages.wait(lambda m: len(m.of(EVENTS)) >= after + 3, timeout_s=60.0)
    assert "rung" in board.sh("cat", "/etc/vedette/vedette.toml")
    assert msgspec.json.decode(board.sh("vedette", "update", "status", "--json"))["version"] == "1.0"
