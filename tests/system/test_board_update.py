"""A board is updated: a good version, failing ones, the rollback watchdog, power cuts, models, and rollbacks.

One board for all of these, in their order; each leaves it running.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.board import CLONE, Board, watch_somebody
from tests.support.doubles import person_model
from tests.support.mosquitto import Mosquitto
from tests.support.publishing import TOPICS, wait_for
from tests.support.received import Messages
from tests.support.running import hear
from tests.support.tiny_bundles import make_key, needs_ssh_keygen
from tests.support.versions import bundle, version

pytestmark = [pytest.mark.board, pytest.mark.timeout(400), needs_ssh_keygen]
QUICK = ("--health", "steady_s=3", "--health", "within_s=60", "--health", "p95_factor=20")
APPLY_S = 180.0


class Depot:
    """Where bundles are built.

    Attributes:
        folder: that they lie in. key: that signs them. python: of the board. wheel: of Vedette as it is here.
    """

    def __init__(self, folder: Path, python: str) -> None:
        self.folder, self.key, self.python = folder, make_key(folder / "key"), python
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
        subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parent.parent.parent)
        (self.wheel,) = folder.glob("*.whl")

    def full(self, number: str, counter: int, fault: str = "", *words: str) -> Path:
        """A version of Vedette."""
        wheel = version(self.wheel, number, fault)
        out = self.folder / f"{number}.vedette"
        return bundle(out, self.python, counter, self.key, "--wheel", str(wheel), *QUICK, *words)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    with Board(tmp_path_factory.mktemp("board")) as running:
        yield running


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture(scope="module")
def depot(board: Board, broker: Mosquitto, network: None, tmp_path_factory: pytest.TempPathFactory) -> Depot:
    """With the board installed from the first of its bundles, without a network, and configured."""
    asks = "import sys; print('%d.%d' % sys.version_info[:2])"
    made = Depot(tmp_path_factory.mktemp("depot"), board.sh("/usr/bin/python3", "-c", asks))
    first = made.full("1.0", 1)
    for path in (first, first.with_name("1.0.vedette.sig")):
        board.write(f"/root/{path.name}", path.read_bytes())
    board.write("/root/signers", made.key.allowed("ops@example.org"))
    words = ("--bundle", "/root/1.0.vedette", "--signers", "/root/signers")
    said = board.sh("env", "PYTHON=/usr/bin/python3", f"{CLONE}/scripts/install", *words, patience_s=APPLY_S)
    assert "signed by ops@example.org" in said
    watch_somebody(board, broker.port, tmp_path_factory.mktemp("model"))
    return made


@pytest.fixture
def messages(broker: Mosquitto) -> Messages:
    return broker.subscribe("vedette/#")


def put(board: Board, path: Path) -> str:
    """A bundle and its signature, where an upload would leave them."""
    for file in (path, path.with_name(f"{path.name}.sig")):
        board.write(f"/root/{file.name}", file.read_bytes())
    return f"/root/{path.name}"


def apply(board: Board, path: Path, *, check: bool = True) -> str:
    return board.sh("vedette", "update", "apply", put(board, path), check=check, patience_s=APPLY_S)


def newest(board: Board) -> dict[str, Any]:
    """Return the newest entry of the history."""
    line = board.sh("vedette", "update", "history", "--json").splitlines()[-1]
    told: dict[str, Any] = msgspec.json.decode(line)
    return told


def runs(board: Board) -> str:
    status = msgspec.json.decode(board.sh("vedette", "update", "status", "--json"))
    assert not board.exists("/var/lib/vedette-update/trial")
    return str(status["version"])


def wait_state(board: Board, state: str) -> None:
    def is_there() -> bool:
        told = board.sh("vedette", "update", "status", "--json", check=False)
        return bool(told) and (msgspec.json.decode(told)["at_hand"] or {}).get("state") == state

    wait_for(is_there, 120.0)


def test_a_board_is_installed_from_a_bundle(board: Board, depot: Depot, messages: Messages) -> None:
    assert runs(board) == "1.0"
    assert newest(board)["counter"] == 1
    hear(messages, 3)


def test_a_good_version_migrates_the_file_takes_over_and_publishes(
    board: Board, depot: Depot, messages: Messages
) -> None:
    path, rules = "/etc/vedette/vedette.toml", depot.folder / "rules.toml"
    board.write(path, f"# The porch.\n{board.sh('cat', path)}\n")
    rules.write_text('[[migrations]]\nop = "set"\nkey = "thermal.warn_c"\nvalue = 75.0\n')
    said = apply(board, depot.full("1.1", 2, "", "--model", "small-speech", "--migrations", str(rules)))
    assert said.splitlines()[-1] == "committed"
    told = newest(board)
    assert (told["state"], told["from_version"], told["signer"]) == ("committed", "1.0", "ops@example.org")
    assert told["downtime_s"] < 30
    assert runs(board) == "1.1"
    assert board.exists("/opt/vedette/current/models/small-speech.tflite")
    messages.wait(lambda m: m.of(TOPICS.status)[-2:] == [b"stopped", b"online"])
    hear(messages, 3)
    migrated = board.sh("cat", path)
    assert migrated.startswith("# The porch.\n")
    assert "warn_c = 75.0" in migrated
    assert board.sh("vedette", "config", "check").endswith("fine")


def test_an_older_one_is_refused_and_what_runs_goes_on(board: Board, depot: Depot) -> None:
    pid = board.wait_active()
    apply(board, depot.folder / "1.0.vedette", check=False)
    told = newest(board)
    assert told["state"] == "refused"
    assert "counter 1 is not above 2" in told["reason"]
    assert board.wait_active() == pid


def test_a_version_that_crashes_after_a_while_does_not_stay(
    board: Board, depot: Depot, messages: Messages
) -> None:
    apply(board, depot.full("1.2", 3, "crash later", "--health", "steady_s=20"), check=False)
    told = newest(board)
    assert told["state"] == "rolled_back", told["reason"]
    assert "the service ended by itself: exit-code" in told["reason"]
    assert runs(board) == "1.1"
    board.wait_active()
    hear(messages, 3)


def test_the_dead_man_goes_back_when_nobody_follows(board: Board, depot: Depot, messages: Messages) -> None:
    path = put(board, depot.full("1.3", 3, "hang"))
    board.sh("systemd-run", "--unit=operator", "vedette", "update", "apply", path)
    wait_state(board, "trial")
    board.sh("systemctl", "stop", "vedette-update.service")
    board.sh("systemctl", "start", "vedette-deadman.service")
    trial, count = "/var/lib/vedette-update/trial", "/var/lib/vedette-update/deadman"
    assert board.exists(trial)
    board.sh("sed", "-i", "s/^elapsed_s=.*/elapsed_s=9999/", count)
    board.sh("systemctl", "start", "vedette-deadman.service")
    assert not board.exists(trial)
    board.wait_active()
    hear(messages, 3)
    wait_state(board, "rolled_back")
    told = newest(board)
    assert (told["state"], told["by"]) == ("rolled_back", "deadman")
    assert runs(board) == "1.1"


def test_the_power_goes_in_a_trial_and_the_board_goes_on_with_it(
    board: Board, depot: Depot, messages: Messages
) -> None:
    path = put(board, depot.full("1.4", 4, "", "--health", "steady_s=8"))
    board.sh("systemd-run", "--unit=operator2", "vedette", "update", "apply", path)
    wait_state(board, "trial")
    board.cut()
    board.up()
    wait_state(board, "committed")
    assert runs(board) == "1.4"
    hear(messages, 3)


def test_models_are_swapped_while_the_daemon_goes_on(board: Board, depot: Depot, tmp_path: Path) -> None:
    pid = board.wait_active()
    words = ("--models-only", "--model", "small-speech", *QUICK)
    apply(board, bundle(depot.folder / "models.vedette", depot.python, 5, depot.key, *words))
    assert newest(board)["kind"] == "models"
    assert board.wait_active() == pid
    assert board.sh("readlink", "/opt/vedette/current/models") == "sets/5"


def test_new_models_run_beside_those_in_use_and_stay_only_if_they_agree(
    board: Board, depot: Depot, messages: Messages, tmp_path: Path
) -> None:
    config = board.sh("cat", "/etc/vedette/vedette.toml")
    words = ("--models-only", *QUICK, "--model")

    def models(counter: int, score: float, *more: str, **other: Any) -> dict[str, Any]:
        folder = tmp_path / str(counter)
        folder.mkdir()
        model = str(person_model(folder, score, **other))
        out = depot.folder / f"models-{counter}.vedette"
        apply(board, bundle(out, depot.python, counter, depot.key, *words, model, *more), check=False)
        return newest(board)

    try:
        assert models(6, 0.9)["state"] == "committed"
        in_use = config.replace("/etc/vedette/models/", "/opt/vedette/current/models/")
        board.write("/etc/vedette/vedette.toml", in_use)
        board.sh("systemctl", "reload", "vedette")
        pid, shadow = board.wait_active(), ("--shadow", "compared=20", "--shadow", "every=2")
        good = models(7, 0.8, *shadow)
        assert (good["state"], good["agreement"]) == ("committed", {"front": 1.0}), good["reason"]
        assert "shadow" in good["seconds"]
        bad = models(8, 0.8, *shadow, box=(0.6, 0.1, 0.9, 0.3))
        assert bad["state"] == "refused"
        assert "stream front: the new model agrees by 0.00 with the one in use" in bad["reason"]
        assert board.sh("readlink", "/opt/vedette/current/models") == "sets/7"
        assert not board.exists("/run/vedette-update/shadow.json")
        assert board.wait_active() == pid
        hear(messages, 3)
    finally:
        board.write("/etc/vedette/vedette.toml", config)
        board.sh("systemctl", "reload", "vedette")


def test_an_operator_goes_back_to_the_models_before_and_then_to_the_version_before(
    board: Board, depot: Depot, messages: Messages
) -> None:
    pid = board.wait_active()
    assert "rolled back to 6 by an operator" in board.sh("vedette", "update", "rollback")
    assert board.sh("readlink", "/opt/vedette/current/models") == "sets/6"
    assert (runs(board), board.wait_active()) == ("1.4", pid)
    assert "rolled back to 1.1 by an operator" in board.sh("vedette", "update", "rollback")
    assert runs(board) == "1.1"
    assert newest(board)["by"] == "operator"
    hear(messages, 3)


def test_an_operator_never_goes_back_to_a_version_that_did_not_stay(
    board: Board, depot: Depot, messages: Messages
) -> None:
    apply(board, depot.full("1.5", 9, "crash at import"), check=False)
    assert newest(board)["state"] == "refused"
    said = board.sh("sh", "-c", "vedette update rollback 2>&1", check=False)
    assert "no version to roll back to" in said or "which was never committed" in said
    assert runs(board) == "1.1"
    hear(messages, 3)


def test_root_may_install_an_older_one_and_the_counter_stays(
    board: Board, depot: Depot, messages: Messages
) -> None:
    had = board.sh("cat", "/var/lib/vedette-update/counter")
    script = f"PYTHON=/usr/bin/python3 {CLONE}/scripts/install --bundle /root/1.0.vedette 2>&1"
    board.sh("sh", "-c", script, patience_s=APPLY_S)
    assert runs(board) == "1.0"
    assert board.sh("cat", "/var/lib/vedette-update/counter") == had
    hear(messages, 3)
