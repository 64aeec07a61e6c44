"""Vedette as a service on a board: installed, killed, hung, stopped, cut off, rolled back, taken away.

One board for all of these, in their order: each leaves it running, but for the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.board import CLONE, Board, watch_somebody
from tests.support.mosquitto import Mosquitto
from tests.support.publishing import TOPICS, wait_for
from tests.support.received import Messages
from tests.support.running import camera, events, hear

pytestmark = [pytest.mark.board, pytest.mark.timeout(300)]

_UPDATES = "/var/lib/vedette-update"
_UNITS = ("vedette", "vedette-update", "vedette-settle", "vedette-deadman")
_INSTALL_S = 240.0
_NO_ENSUREPIP = """
printf '#!/bin/sh\\ncase "$*" in *ensurepip*) exit 1 ;; esac\\nexec /usr/bin/python3 "$@"\\n' > bin/python3
chmod 755 bin/python3
"""
_AS_THE_UPDATER = """
from pathlib import Path
from agent.errors import UpdateError
from agent.storage.files import write_like
from agent.update.install import preflight
from agent.update.install.slots import Paths

config = Path("/etc/vedette/vedette.toml")
write_like(config, config.read_bytes() + b"# migrated", config)
preflight._TEST_S = 2.0
try:
    preflight.check_models(Paths(), Path("/opt/vedette/slots/b"), 0)
except UpdateError as error:
    print(error)
"""
_REPLACED = """
mkdir other && sed 's/armv7l/'$(uname -m)/ bundle.toml > other/bundle.toml
tar -cf over -C other bundle.toml
echo '#!/bin/sh
/usr/bin/ssh-keygen "$@" || exit
[ "$2" != verify ] || mv /tmp/forge/over /tmp/forge/new.vedette' > bin/ssh-keygen
chmod 755 bin/ssh-keygen
"""
"""Somebody who may write into the folder puts another bundle there when the signature has been checked."""


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """A board on which `scripts/install` has just run, as it stands there."""
    with Board(tmp_path_factory.mktemp("board")) as running:
        said = running.sh(f"{CLONE}/scripts/install", patience_s=_INSTALL_S)
        assert "is installed" in said
        assert "ActiveState=active" in said
        yield running


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    """For the whole file: the board knows its port."""
    with Mosquitto(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture(scope="module")
def config(board: Board, broker: Mosquitto, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One stream that always sees somebody, and the broker; in use."""
    return watch_somebody(board, broker.port, tmp_path_factory.mktemp("model"))


@pytest.fixture
def messages(config: dict[str, Any], broker: Mosquitto) -> Messages:
    return broker.subscribe("vedette/#")


def slot(board: Board, link: str = "current") -> str:
    return board.sh("readlink", f"/opt/vedette/{link}")


def restarts(board: Board) -> int:
    return int(board.show("NRestarts"))


def test_what_was_installed_runs_without_a_configuration_of_anybodys(board: Board) -> None:
    health = board.health()
    assert health is not None
    assert health.ready
    (stream,) = health.streams.values()
    assert (stream.state, stream.model, stream.inferred > 0) == ("running", "nanodet", True)
    assert board.show("StatusText") == "1 of 1 stream running; no broker"
    assert board.sh("stat", "-c", "%U", "/var/lib/vedette") == "vedette"
    assert board.sh("stat", "-c", "%U %G %a", "/etc/vedette/vedette.toml") == "root vedette 640"
    assert board.sh("stat", "-c", "%U %a", _UPDATES) == "root 700"
    assert board.sh("vedette", "--version").startswith("vedette")


def test_the_daemon_sees_the_processor_and_cannot_write_elsewhere(board: Board) -> None:
    assert "cannot be read, so XNNPACK is off" not in board.journal()
    into = ("nsenter", "--target", board.show("MainPID"), "--mount", "--wdns=/")
    user = (*into, "setpriv", "--reuid=vedette", "--clear-groups")
    assert "processor" in board.sh(*user, "cat", "/proc/cpuinfo")
    assert board.sh(*user, "cat", "/sys/devices/system/cpu/possible")
    for place in ("/etc/vedette/x", "/opt/vedette/x", "/var/lib/vedette-update/x", "/usr/x"):
        assert "Read-only" in board.sh(*into, "sh", "-c", f"touch {place} 2>&1 || true")  # for root, too


def test_any_program_on_the_board_may_read_how_it_is(board: Board) -> None:
    told = board.sh("setpriv", "--reuid=nobody", "--clear-groups", "cat", "/run/vedette/health.json")
    assert '"ready":true' in told


def test_the_units_are_clean_where_they_are(board: Board) -> None:
    units = [f"/etc/systemd/system/{name}.service" for name in _UNITS]
    said = board.sh(
        "sh", "-c", 'systemd-analyze verify "$@" 2>&1', "sh", *units, "/etc/systemd/system/vedette-deadman.timer"
    )
    assert said == ""


def test_it_publishes_what_it_sees(messages: Messages) -> None:
    hear(messages, 3)
    assert messages.of(TOPICS.status)[-1] == b"online"


def test_installing_again_changes_nothing(board: Board, config: dict[str, Any]) -> None:
    pid, before = board.wait_active(), (board.sh("cat", "/etc/vedette/vedette.toml"), slot(board))
    assert "installed already" in board.sh(f"{CLONE}/scripts/install", patience_s=_INSTALL_S)
    assert (board.sh("cat", "/etc/vedette/vedette.toml"), slot(board)) == before
    assert board.wait_active() == pid


@pytest.mark.parametrize(
    ("forged", "said"),
    [
        ("unsigned", "the signature is missing"),
        ("stranger", "not signed by a key in"),
        ("tampered", "is not valid for this file, or the key is revoked"),
        ("other namespace", "is not valid for this file, or the key is revoked"),
        ("revoked keys away", "/etc/vedette/revoked_keys cannot be read"),
        ("with a link", "contains more than plain files"),
        ("with a file above", "contains a path outside of its slot"),
        ("without a description", "it has no bundle.toml"),
        ("of models", "brings models only"),
        ("armv7l", "is for armv7l, and this board is "),
        ("3.99", "is for Python 3.99, and "),
        ("no environments", "cannot create environments: install python3-venv"),
        ("put in its place", "is for armv7l, and this board is "),
    ],
)
def test_a_bundle_that_nobody_vouches_for_is_refused_before_anything_is_done(
    board: Board, config: dict[str, Any], forged: str, said: str
) -> None:
    before, pid = slot(board), board.wait_active()
    namespace = "file" if forged == "other namespace" else "vedette-bundle"
    link, above = "link" * forged.endswith("link"), "../forge/maker" * forged.endswith("above")
    arch = "armv7l" if forged in ("armv7l", "put in its place") else "$(uname -m)"
    python = "3.99" if forged == "3.99" else "$(python3 -c 'import sys; print(\"%d.%d\" % sys.version_info[:2])')"
    script = f"""
    rm -rf /tmp/forge && mkdir -p /tmp/forge/bin && cd /tmp/forge
    ssh-keygen -q -t ed25519 -N '' -f maker && ssh-keygen -q -t ed25519 -N '' -f stranger
    echo "maker $(cut -d' ' -f1,2 maker.pub)" > signers
    mkdir config && echo 'x = 1' > config/x.toml && ln -s /etc link
    echo 'kind = "{"models" if forged == "of models" else "full"}"' > bundle.toml
    printf 'arch = "%s"\\npython = "%s"\\n' "{arch}" "{python}" >> bundle.toml
    {"rm bundle.toml" if forged == "without a description" else ""}
    tar -Pcf new.vedette $(ls bundle.toml) config/x.toml {link} {above}
    ssh-keygen -q -Y sign -n {namespace} -f {"stranger" if forged == "stranger" else "maker"} new.vedette
    {"rm new.vedette.sig" if forged == "unsigned" else ""}
    {"echo >> new.vedette" if forged == "tampered" else ""}
    {_NO_ENSUREPIP if forged == "no environments" else ""}
    {_REPLACED if forged == "put in its place" else ""}
    {"ln -s /away /etc/vedette/revoked_keys" if forged == "revoked keys away" else ""}
    mv /usr/local/lib/vedette/vedette-ssh kept # it is put there again by whoever begins to install
    PATH=/tmp/forge/bin:$PATH {CLONE}/scripts/install --bundle new.vedette --signers signers 2>&1 && echo taken
    test -e /usr/local/lib/vedette/vedette-ssh && echo begun
    mv kept /usr/local/lib/vedette/vedette-ssh
    rm -f /etc/vedette/revoked_keys
    """
    told = board.sh("sh", "-c", script, check=False)
    assert said in told
    assert not {"taken", "begun"} & set(told.splitlines())
    assert (slot(board), board.wait_active()) == (before, pid)
    assert not board.exists("/etc/vedette/allowed_signers")
    assert board.sh("ls", f"{_UPDATES}/bundles") == ""


@pytest.mark.parametrize("left", ["trial", "journal.json", "lock"])
def test_while_an_update_is_at_hand_nothing_is_installed_and_it_goes_on(
    board: Board, config: dict[str, Any], left: str
) -> None:
    """The slot that is not in use is what the rollback watchdog needs."""
    inside = {"trial": "new=b", "journal.json": '{\n  "state": "received",\n  "reason": ""\n}', "lock": "4711"}
    board.write(f"{_UPDATES}/bundles/incoming.vedette", "at hand")
    board.write(f"{_UPDATES}/{left}", f"{inside[left]}\n")
    holding = ("flock", f"{_UPDATES}/lock") if left == "lock" else ()
    board.sh("mv", "/usr/local/lib/vedette/vedette-ssh", "/tmp/kept")
    told = board.sh(*holding, "sh", "-c", f"{CLONE}/scripts/install 2>&1", check=False)
    begun = board.exists("/usr/local/lib/vedette/vedette-ssh")
    board.sh("mv", "/tmp/kept", "/usr/local/lib/vedette/vedette-ssh")
    bundle = board.exists(f"{_UPDATES}/bundles/incoming.vedette")
    board.sh(
        "rm", "-f", *(f"{_UPDATES}/{name}" for name in ("trial", "journal.json", "bundles/incoming.vedette"))
    )
    assert ("in use by another vedette, pid 4711" if left == "lock" else "an update is not over") in told
    assert "is installed" not in told
    assert (begun, bundle) == (False, True)


def test_a_credential_reaches_the_daemon_and_nobody_else(board: Board, config: dict[str, Any]) -> None:
    board.write("/etc/credstore/vedette.mqtt", "secret\n")
    who = {"username": "porch", "password_file": "$CREDENTIALS_DIRECTORY/mqtt"}
    board.configure({**config, "mqtt": {**config["mqtt"], **who}})
    board.sh("systemctl", "restart", "vedette")
    pid = board.show("MainPID")
    place = "/run/credentials/vedette.service/mqtt"
    into = ("nsenter", "--target", pid, "--mount", "--wdns=/", "setpriv", "--clear-groups")
    assert board.sh(*into, "--reuid=vedette", "cat", place) == "secret"
    assert board.sh(*into, "--reuid=nobody", "cat", place, check=False) == ""
    assert "fine" in board.sh("vedette", "config", "check")  # root sees it in the service's folder
    board.sh("systemctl", "stop", "vedette")
    assert "not checked, since this user may not see it" in board.sh("sh", "-c", "vedette config check 2>&1")
    board.sh("rm", "/etc/credstore/vedette.mqtt")
    board.configure(config)
    board.sh("systemctl", "restart", "vedette")


def test_what_is_killed_is_started_again(board: Board, messages: Messages) -> None:
    pid, before = board.wait_active(), restarts(board)
    board.sh("kill", "-KILL", str(pid))
    board.wait_active(but=pid)
    assert restarts(board) == before + 1
    hear(messages, 3)


def test_what_hangs_is_ended_by_the_watchdog_and_started_again(board: Board, messages: Messages) -> None:
    board.write("/run/systemd/system/vedette.service.d/short.conf", "[Service]\nWatchdogSec=2\nRestartSec=1\n")
    board.sh("systemctl", "daemon-reload")
    board.sh("systemctl", "restart", "vedette")
    pid = board.wait_active()
    board.sh("kill", "-STOP", str(pid))
    board.wait_active(but=pid)
    said = board.journal()
    assert "Watchdog timeout" in said
    assert "Fatal Python error: Aborted" in said  # and where each thread was, which is what there is to go by
    hear(messages, 3)


def test_a_reload_takes_up_a_stream_and_the_process_stays(board: Board, config: dict[str, Any]) -> None:
    pid = board.wait_active()
    more = {**config["streams"], "back": camera(Path("/etc/vedette/models/person.toml"))}
    board.configure({**config, "streams": more})
    board.sh("systemctl", "reload", "vedette")
    wait_for(lambda: (found := board.health()) is not None and found.streams.keys() == {"front", "back"})
    wait_for(lambda: board.show("StatusText") == "2 of 2 streams running")
    assert (board.wait_active(), board.show("ActiveState")) == (pid, "active")
    board.configure(config)
    board.sh("systemctl", "reload", "vedette")


def test_a_camera_that_is_dead_at_boot_does_not_end_the_others(board: Board, config: dict[str, Any]) -> None:
    away = camera(Path("/etc/vedette/models/person.toml"), "v4l2:/dev/video9")
    board.configure({**config, "streams": {**config["streams"], "away": away}})
    board.sh("systemctl", "restart", "vedette")
    status = board.show("StatusText")
    assert board.show("ActiveState") == "active"
    assert status.startswith("1 of 2 streams running; away lost: v4l2:/dev/video9")
    board.configure(config)
    board.sh("systemctl", "reload", "vedette")


def test_a_stop_is_told_and_a_start_is_too(board: Board, messages: Messages) -> None:
    board.sh("systemctl", "stop", "vedette")
    messages.wait(lambda m: m.of(TOPICS.status)[-1:] == [b"stopped"])
    assert board.show("Result") == "success"
    assert not board.exists("/run/vedette/health.json")
    board.sh("systemctl", "start", "vedette")
    messages.wait(lambda m: m.of(TOPICS.status)[-1:] == [b"online"])


def test_after_a_power_cut_it_publishes_again_and_every_track_has_its_end(
    board: Board, messages: Messages
) -> None:
    hear(messages, 3)
    open_ = {event.track.id for event in events(messages) if event.kind == "new"}
    board.cut()
    board.up()
    board.wait_active()
    hear(messages, 3)
    messages.wait(lambda m: open_ <= {event.track.id for event in events(m) if event.kind == "end"})


def break_b(board: Board, config: dict[str, Any], *, state: str, allowed_s: int) -> None:
    """Give slot b a version that cannot be started, and a trial as `vedette update` leaves it.

    The configuration belongs to an operator: root reads and replaces it only by its capabilities.
    """
    board.sh("rm", "-rf", "/opt/vedette/slots/b")
    board.write("/opt/vedette/slots/b/venv/bin/vedette", "#!/bin/sh\necho no module named agent >&2\nexit 1\n")
    board.sh("chmod", "755", "/opt/vedette/slots/b/venv/bin/vedette")
    board.sh("chown", "nobody:vedette", "/etc/vedette", "/etc/vedette/vedette.toml")
    board.sh("cp", "-p", "/etc/vedette/vedette.toml", f"{_UPDATES}/kept/vedette.toml")
    keys = {"new": "b", "old": "a", "config": "/etc/vedette/vedette.toml", "allowed_s": allowed_s, "boots": 3}
    lines = [f"{key}={value}" for key, value in {**keys, "state": state}.items()]
    board.write(f"{_UPDATES}/trial", "\n".join([*lines, ""]))
    board.configure({**config, "device": {"name": "changed"}})
    board.sh("ln", "-sfn", "slots/b", "/opt/vedette/current")


def verdict(board: Board) -> dict[str, str]:
    lines = board.sh("cat", f"{_UPDATES}/verdict").splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_the_dead_man_brings_the_old_version_back_when_the_new_one_cannot_be_started(
    board: Board, messages: Messages, config: dict[str, Any]
) -> None:
    often = "[Timer]\nOnBootSec=1\nOnUnitInactiveSec=1\nAccuracySec=1ms\n"
    board.write("/run/systemd/system/vedette-deadman.timer.d/often.conf", often)
    board.sh("systemctl", "daemon-reload")
    board.sh("systemctl", "restart", "vedette-deadman.timer")
    break_b(board, config, state="trial", allowed_s=2)
    board.sh("systemctl", "restart", "--no-block", "vedette")
    wait_for(lambda: slot(board) == "slots/a")
    board.wait_active()
    assert verdict(board) == {"by": "deadman", "reason": "the trial took longer than 2 s"}
    assert slot(board, "keeper") == "slots/a"
    assert not board.exists(f"{_UPDATES}/trial")
    assert 'name = "changed"' not in board.sh("cat", "/etc/vedette/vedette.toml")
    assert board.sh("stat", "-c", "%U %G %a", "/etc/vedette/vedette.toml") == "nobody vedette 640"
    assert 'name = "changed"' in board.sh("cat", "/etc/vedette/vedette.toml.undone")
    assert "no module named agent" in board.journal()
    hear(messages, 3)
    board.sh("rm", f"{_UPDATES}/verdict")


def test_a_switch_that_the_power_cut_off_is_undone_before_the_daemon_starts(
    board: Board, messages: Messages, config: dict[str, Any]
) -> None:
    break_b(board, config, state="switching", allowed_s=600)
    board.cut()
    board.up()
    board.wait_active()
    assert (slot(board), slot(board, "keeper")) == ("slots/a", "slots/a")
    assert board.sh("stat", "-c", "%U %G %a", "/etc/vedette/vedette.toml") == "nobody vedette 640"
    assert 'name = "changed"' not in board.sh("cat", "/etc/vedette/vedette.toml")
    assert verdict(board) == {"by": "settle", "reason": "a power cut interrupted the switch"}
    assert "no module named agent" not in board.journal()
    hear(messages, 3)


def test_the_update_unit_may_write_an_operators_configuration_and_end_a_version_that_hangs(board: Board) -> None:
    """That version runs as the daemon's user."""
    board.write("/opt/vedette/slots/b/venv/bin/vedette", "#!/bin/sh\nid -un; exec sleep 98765\n")
    board.write("/run/as_the_updater.py", _AS_THE_UPDATER)
    folder, python = "/run/systemd/system/vedette-update.service.d", "/opt/vedette/current/venv/bin/python"
    unit = f"Type=oneshot\nRestart=no\nExecStart=\nExecStart={python} /run/as_the_updater.py"
    board.write(f"{folder}/try.conf", f"[Unit]\nConditionPathExists=\n[Service]\n{unit}\n")
    board.sh("systemctl", "daemon-reload")
    board.sh("systemctl", "start", "vedette-update.service")
    board.sh("rm", "-r", folder)
    board.sh("systemctl", "daemon-reload")
    assert "did not end within" in board.journal("vedette-update.service")
    assert board.sh("pgrep", "-f", "sleep 98765", check=False) == ""
    assert board.sh("tail", "-n", "1", "/etc/vedette/vedette.toml") == "# migrated"
    assert board.sh("stat", "-c", "%U %G %a", "/etc/vedette/vedette.toml") == "nobody vedette 640"


def test_without_a_trial_the_dead_man_is_silent(board: Board) -> None:
    assert board.show("ActiveState", "vedette-deadman.timer") == "active"
    board.sh("systemctl", "start", "vedette-deadman.service")
    assert "Starting" not in board.journal("vedette-deadman.service")


def test_a_configuration_that_is_broken_is_told_by_who_installs(board: Board, config: dict[str, Any]) -> None:
    board.configure({**config, "strems": {}})
    board.sh("systemctl", "stop", "vedette")
    told = board.sh("sh", "-c", f"{CLONE}/scripts/install 2>&1", check=False, patience_s=_INSTALL_S)
    board.configure(config)
    board.sh("systemctl", "restart", "vedette")
    assert "strems" in told
    assert "vedette.service does not run: systemctl status vedette" in told


def begin_update(board: Board) -> None:
    """One that is on trial, by its files."""
    told = {
        "state": "trial",
        "version": "9.0",
        "counter": 9,
        "file": "9.vedette",
        "began_at": "2026-01-01T00:00:00Z",
    }
    board.write(f"{_UPDATES}/journal.json", msgspec.json.format(msgspec.json.encode(told)) + b"\n")
    for name in (
        "trial",
        "verdict",
        "deadman",
        "order",
        "bundles/incoming.vedette",
        "bundles/incoming.vedette.sig",
    ):
        board.write(f"{_UPDATES}/{name}", "new=b\nold=a\nstate=trial\nallowed_s=600\nboots=3\n")
    board.write(f"{_UPDATES}/kept/vedette.toml", "# before\n")


def at_hand(board: Board) -> str:
    """Return the files of an update in progress."""
    names = ("trial", "verdict", "deadman", "order", "journal.json", "incoming.vedette*")
    words = [word for name in names for word in ("-o", "-name", name)][1:]
    return board.sh("find", _UPDATES, *words)


def test_taking_it_away_leaves_what_is_the_users_and_ends_an_update(board: Board) -> None:
    board.write("/etc/systemd/system/vedette.service.d/mine.conf", "[Service]\nNice=1\n")
    line = '{"state":"committed","version":"0.0","counter":3,"began_at":"2025-01-01T00:00:00Z"}\n'
    board.write(f"{_UPDATES}/history.jsonl", line)
    begin_update(board)
    board.sh(f"{CLONE}/scripts/uninstall")
    assert board.sh("cat", "/etc/vedette/vedette.toml")
    assert board.sh("cat", "/etc/vedette/vedette.toml.before") == "# before"
    assert board.exists("/etc/systemd/system/vedette.service.d/mine.conf")
    assert not board.exists("/opt/vedette")
    assert board.sh("systemctl", "list-unit-files", "vedette*", "--no-legend", check=False) == ""
    assert at_hand(board) == ""
    assert board.sh("cat", f"{_UPDATES}/history.jsonl") == line.strip()


def test_an_update_of_an_installation_before_is_none_of_the_next(board: Board, messages: Messages) -> None:
    """As one that was taken away by hand leaves it."""
    begin_update(board)
    assert "is installed" in board.sh(f"{CLONE}/scripts/install", patience_s=_INSTALL_S)
    assert at_hand(board) == f"{_UPDATES}/journal.json"
    told = msgspec.json.decode(board.sh("vedette", "update", "status", "--json"))
    assert (told["counter"], told["at_hand"]["state"]) == (3, "rolled_back")
    assert told["at_hand"]["reason"] == "Vedette was installed anew"
    assert board.show("Nice") == "1"
    hear(messages, 3)


def test_purging_leaves_nothing_and_ends_who_is_logged_in_for_an_update(board: Board) -> None:
    board.sh("systemd-run", "--quiet", "--uid=vedette-update", "sleep", "300")
    board.sh(f"{CLONE}/scripts/uninstall", "--purge")
    left = board.sh("find", "/etc", "/opt", "/var/lib", "/usr/local", "/run", "-xdev", "-iname", "*vedette*")
    assert left == ""
    assert board.sh("getent", "passwd", "vedette", check=False) == ""
    assert board.sh("getent", "passwd", "vedette-update", check=False) == ""
