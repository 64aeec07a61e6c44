"""A fleet of three boards: what a key for updates may do there and what not, and rollouts of models over SSH.

One fleet for all of these, in their order; each leaves it as good as it found it.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.update.fleet.board import Kind
from agent.update.fleet.rollout import Ledger, RolloutProgress, replay
from tests.support.fleet import Fleet
from tests.support.publishing import wait_for
from tests.support.running import ROOT
from tests.support.tiny_bundles import make_key, needs_ssh_keygen

pytestmark = [pytest.mark.board, pytest.mark.timeout(400), needs_ssh_keygen]

SHARED = ("-o", "ControlMaster=auto", "-o", "ControlPath=/tmp/vedette-%C", "-o", "ControlPersist=20")
"""One connection for many commands: a table of attacks is tried in no time."""
_UPLOAD = "/var/lib/vedette-upload"
_COUNTER = itertools.count(1)
_PLAN = 'vedette_canary = ["board2"]\nvedette_batches = [1, 2]\nvedette_stop_share = 0.0\n'
_RELAY = """#!/usr/bin/env python3
# Passes on so many bytes of what goes out, and then breaks off.
import os, socket, sys, threading
line, left = socket.create_connection((sys.argv[1], int(sys.argv[2]))), int(sys.argv[3])
def back():
    while data := line.recv(65536):
        os.write(1, data)
    os._exit(0)
threading.Thread(target=back, daemon=True).start()
while left > 0 and (data := os.read(0, min(65536, left))):
    line.sendall(data)
    left -= len(data)
"""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("fleet"), 3, plan=_PLAN) as running:
        yield running


def bundle(fleet: Fleet, *words: str, name: str = "") -> Path:
    """A bundle of models that is above all before, signed; 4 MB."""
    counter = next(_COUNTER)
    path = fleet.folder / (name or f"models-{counter}.vedette")
    command = [sys.executable, "-m", "agent", "bundle", "build", "--models-only", "--model", "nanodet"]
    command += ["--counter", str(counter), "--health", "steady_s=1", "--health", "within_s=30"]
    command += ["--sign", str(fleet.signer.path), "--out", str(path), *words]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return path


def ledger(fleet: Fleet, path: Path) -> RolloutProgress:
    found = replay(Ledger(fleet.folder / f"{path.name}.ledger").read())
    assert found is not None
    return found


def kinds(standing: RolloutProgress) -> dict[str, Kind]:
    return {name: one.kind for name, one in standing.outcomes.items()}


def counters(fleet: Fleet) -> set[int]:
    done = fleet.vedette("status", "--json")
    rows = [msgspec.json.decode(line) for line in done.stdout.splitlines()]
    assert len(rows) == 3
    return {row["state"]["update"]["counter"] for row in rows}


def refused(done: subprocess.CompletedProcess[bytes]) -> str:
    """Return the board's message to a refused command."""
    assert done.returncode == 126, (done.stdout, done.stderr)
    assert done.stdout == b""
    return done.stderr.decode()


def test_a_board_tells_its_versions_and_its_health(fleet: Fleet) -> None:
    done = fleet.vedette("status", "--json", "--board", "board1")
    told: dict[str, Any] = msgspec.json.decode(done.stdout)
    assert done.returncode == 0, done.stderr
    assert told["state"]["update"]["slot"] == "a"
    wait_for(
        lambda: "1 of 1 stream running" in fleet.vedette("status", "--board", "board1").stdout, timeout_s=30.0
    )


def test_sshd_holds_the_user_to_the_one_command(fleet: Fleet) -> None:
    told = fleet.boards["board1"].sh("sshd", "-T", "-C", "user=vedette-update,host=x,addr=127.0.0.1").splitlines()
    assert {
        "forcecommand /usr/local/lib/vedette/vedette-ssh",
        "authorizedkeysfile /etc/vedette/update_keys",
        "disableforwarding yes",
        "permittty no",
        "permituserrc no",
        "authenticationmethods publickey",
    } <= set(told)
    others = fleet.boards["board1"].sh("sshd", "-T", "-C", "user=root,host=x,addr=127.0.0.1")
    assert "forcecommand none" in others


def test_a_shell_is_not_to_be_had(fleet: Fleet) -> None:
    assert "there is no shell here" in refused(fleet.ssh("board1"))
    terminal = fleet.ssh("board1", "-tt")
    assert (terminal.returncode, terminal.stdout) == (255, b"")
    assert b"PTY allocation request failed" in terminal.stderr
    assert fleet.boards["board1"].sh("su", "-", "vedette-update", "-c", "id", check=False) == ""


@pytest.mark.parametrize(
    "command",
    [
        "sh",
        "status; id",
        "status && id",
        "status\nid",
        "status | tee /tmp/taken",
        "status $(id)",
        "status `id`",
        "status > /tmp/taken",
        "update status --json; id",
        "update apply /etc/shadow",
        "update apply ../../root/x",
        "update resume",
        "update selftest /etc",
        "update rollback --help",
        "update rollback --once --help",
        "update rollback  --once",
        "doctor -c /etc/shadow",
        "doctor --fresh",
        "run -c /etc/shadow",
        "bundle build",
        "sudo -l",
        "cat /var/lib/vedette-update/bundles/present.vedette",
        "/usr/lib/openssh/sftp-server",
        "scp -t /tmp",
        "scp -f /etc/passwd",
        "",
        " status",
        "STATUS",
    ],
)
def test_injection_of_a_command_is_refused(fleet: Fleet, command: str) -> None:
    refused(fleet.ssh("board1", *SHARED, "--", command))


@pytest.mark.parametrize(
    "command",
    [
        "rsync --server --sender -ce.LsfxCIvu . /etc/passwd",
        "rsync --server --sender -ce.LsfxCIvu . .",
        "rsync --server -sce.LsfxCIvu . .",
        "rsync --server -ce.LsfxCIvu . /tmp",
        "rsync --server -ce.LsfxCIvu . ../../tmp",
        "rsync --server -ce.LsfxCIvu --log-file=/tmp/taken . .",
        "rsync --server -ce.LsfxCIvu --copy-dest=/etc . .",
        "rsync --server -ce.LsfxCIvu --files-from=/etc/passwd . .",
        "rsync --server -ce.LsfxCIvu --rsh=id . .",
        "rsync --server -ce.LsfxCIvu --partial-dir=/tmp . .",
        "rsync --server -rlce.LsfxCIvu . .",
        "rsync --server -ce.LsfxCIvu;id . .",
        "rsync --server -ce.LsfxCIvu . . .",
        "rsync --server -ce.LsfxCIvu . *",
        "rsync --server -ce.LsfxCIvu . ${HOME}",
        "rsync --server --daemon . .",
        "rsync --daemon",
        "rsync --server",
    ],
)
def test_another_use_of_rsync_than_the_upload_is_refused(fleet: Fleet, command: str) -> None:
    assert "not allowed: rsync" in refused(fleet.ssh("board1", *SHARED, "--", command))


def test_none_of_these_has_left_anything_behind(fleet: Fleet) -> None:
    board = fleet.boards["board1"]
    assert not board.exists("/tmp/taken")
    assert board.sh("find", _UPLOAD, "-mindepth", "1") == ""


def test_files_are_not_to_be_had_by_sftp_or_scp(fleet: Fleet) -> None:
    for program, words in (
        ("sftp", ("HOST",)),
        ("scp", ("HOST:/etc/passwd", ".")),
        ("scp", ("-O", "HOST:/x", ".")),
    ):
        target = f"vedette-update@{fleet.links['board1'].there}"
        options = ["-i", str(fleet.operator.path), "-o", f"UserKnownHostsFile={fleet.folder}/known_hosts"]
        options += ["-o", "HostKeyAlias=board1", "-o", "BatchMode=yes"]
        command = [program, *options, *(word.replace("HOST", target) for word in words)]
        done = subprocess.run(
            command, input=b"ls\n", capture_output=True, cwd=fleet.folder, timeout=60, check=False
        )
        assert done.returncode != 0
        assert b"root:" not in done.stdout
    assert not (fleet.folder / "passwd").exists()


@pytest.mark.parametrize("way", ["-L", "-R", "-D"])
def test_ports_and_sockets_are_not_forwarded(fleet: Fleet, way: str) -> None:
    what = "127.0.0.1:18999" if way == "-D" else "127.0.0.1:18999:127.0.0.1:22"
    if way == "-R":
        done = fleet.ssh("board1", "-o", "ExitOnForwardFailure=yes", way, what, "--", "status")
        assert done.returncode == 255
        assert b"forwarding failed" in done.stderr
        return
    probe = fleet.ssh("board1", "-W", "127.0.0.1:22")
    assert probe.returncode == 255
    assert b"administratively prohibited" in probe.stderr


def test_the_environment_of_the_client_does_not_arrive(fleet: Fleet) -> None:
    variables = ("LC_ALL=../../tmp/x", "LC_VEDETTE_SSH=clean", "LD_PRELOAD=/tmp/x.so", "ENV=/tmp/x", "ASKED=id")
    done = fleet.ssh("board1", *(word for one in variables for word in ("-o", f"SetEnv={one}")), "--", "status")
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_password_and_a_strange_key_are_refused(fleet: Fleet, tmp_path: Path) -> None:
    stranger = make_key(tmp_path / "stranger")
    done = fleet.ssh(
        "board1", "-o", "IdentitiesOnly=yes", "-i", str(stranger.path), "-F", "/dev/null", "--", "status"
    )
    assert done.returncode == 0  # the operator's own is offered, too
    words = [
        "ssh",
        "-F",
        "/dev/null",
        "-o",
        "IdentitiesOnly=yes",
        "-i",
        str(stranger.path),
        "-o",
        "BatchMode=yes",
    ]
    words += ["-o", f"UserKnownHostsFile={fleet.folder}/known_hosts", "-o", "HostKeyAlias=board1"]
    words += [f"vedette-update@{fleet.links['board1'].there}", "status"]
    told = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert "Permission denied (publickey)" in told.stderr
    assert fleet.boards["board1"].sh("getent", "shadow", "vedette-update").split(":")[1].startswith("!")


def test_the_user_gets_root_for_nothing_but_what_is_listed(fleet: Fleet) -> None:
    board = fleet.boards["board1"]
    into = ("setpriv", "--reuid=vedette-update", "--regid=vedette-update", "--clear-groups")
    vedette = "/opt/vedette/keeper/venv/bin/vedette"
    for words in (
        ("id",),
        ("/bin/sh",),
        (vedette,),
        (vedette, "update", "apply", "/root/x"),
        (vedette, "update", "apply", f"{_UPLOAD}/bundle.vedette", "--here"),
        (vedette, "update", "status", "--json", "--help"),
        ("/usr/bin/cat", "/etc/shadow"),
        ("/usr/bin/cat", "/var/lib/vedette-update/bundles/present.vedette", "/etc/shadow"),
        ("PYTHONPATH=/tmp", vedette, "update", "status"),
    ):
        said = board.sh(*into, "sh", "-c", '"$@" 2>&1 || true', "sh", "sudo", "-n", *words)
        assert "password is required" in said or "not allowed" in said, words
    assert board.sh(*into, "sudo", "-n", vedette, "update", "history").endswith("operator: installed")


def test_a_link_in_the_place_of_a_bundle_is_not_sent_by_rsync(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "bundle.vedette").symlink_to("/etc/shadow")
    shell = (
        f"ssh -i {fleet.operator.path} -o UserKnownHostsFile={fleet.folder}/known_hosts -o HostKeyAlias=board1"
    )
    rsync = ["rsync", "-e", shell, "-l", "--checksum", "--partial", "bundle.vedette"]
    target = f"vedette-update@{fleet.links['board1'].there}:."
    done = subprocess.run([*rsync, target], cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert b"not allowed: rsync --server -lce" in done.stderr
    assert fleet.boards["board1"].sh("find", _UPLOAD, "-type", "l") == ""


def test_what_is_not_a_bundle_does_not_stay_there(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "strange").write_bytes(b"x")
    (tmp_path / "bundle.vedette").write_bytes(b"y")
    shell = (
        f"ssh -i {fleet.operator.path} -o UserKnownHostsFile={fleet.folder}/known_hosts -o HostKeyAlias=board1"
    )
    target = f"vedette-update@{fleet.links['board1'].there}:."
    for file, code in (("strange", 126), ("bundle.vedette", 0)):
        command = ["rsync", "-e", shell, "--checksum", "--partial", file, target]
        assert subprocess.run(command, cwd=tmp_path, check=False, timeout=60).returncode == code
    assert fleet.boards["board1"].sh("find", _UPLOAD, "-type", "f", "-name", "strange") == ""


def test_health_that_is_junk_keeps_no_board_from_its_updates(fleet: Fleet) -> None:
    """The daemon owns the folder of its health file, and may put anything there."""
    board, file = fleet.boards["board1"], "/run/vedette/health.json"
    board.sh("systemctl", "stop", "vedette")
    for words in (
        """printf '{}, "update": {"version": "9.9"}' >$1""",
        "mkfifo $1",
        "ln -s /etc/passwd $1",
        "head -c 3000000 /dev/zero | tr '\\0' x >$1",
        "mkdir $1",
    ):
        board.sh("sh", "-c", f"mkdir -p /run/vedette; rm -rf $1; {words}; chown -h vedette: $1", "sh", file)
        done = fleet.vedette("status", "--json", "--board", "board1")
        told: dict[str, Any] = msgspec.json.decode(done.stdout)
        assert done.returncode == 0, (words, done.stderr, told)
        assert told["state"]["update"]["slot"] == "a", words
        assert told["state"]["health"] is None
        assert len(fleet.ssh("board1", "--", "status").stdout) < 400_000
    path = bundle(fleet)
    assert fleet.vedette("rollout", path.name, "--board", "board1", "--dry-run").returncode == 0
    board.sh("rm", "-rf", file)
    board.sh("systemctl", "start", "vedette")


def upload(fleet: Fleet, folder: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    """By a plain rsync, from a folder."""
    shell = (
        f"ssh -i {fleet.operator.path} -o UserKnownHostsFile={fleet.folder}/known_hosts -o HostKeyAlias=board1"
    )
    target = f"vedette-update@{fleet.links['board1'].there}:."
    command = ["rsync", "-e", shell, "--checksum", "--partial", *words, target]
    return subprocess.run(command, cwd=folder, capture_output=True, timeout=120, check=False)


def test_many_files_do_not_fill_the_disk(fleet: Fleet, tmp_path: Path) -> None:
    for number in range(200):
        with (tmp_path / f"f{number}").open("wb") as file:
            file.truncate(20_000_000)
    done = upload(fleet, tmp_path, *(f"f{number}" for number in range(200)))
    assert done.returncode != 0
    assert b"takes bundle.vedette and its signature, up to 2 GiB, and nothing else" in done.stderr
    assert (
        fleet.boards["board1"].sh("find", _UPLOAD, "-type", "f", "!", "-name", "bundle.vedette", "-size", "+8k")
        == ""
    )


@pytest.mark.parametrize("name", ["strange", "bundle.vedette.sig", ".known", ".bundle.vedette.abcdef"])
def test_a_file_that_has_no_business_there_is_refused_and_deleted(
    fleet: Fleet, tmp_path: Path, name: str
) -> None:
    board = fleet.boards["board1"]
    board.sh("sh", "-c", f"rm -f {_UPLOAD}/* {_UPLOAD}/.known")
    (tmp_path / name).write_bytes(b"x" * 200_000)
    done = upload(fleet, tmp_path, name)
    if name != ".bundle.vedette.abcdef":  # it is taken for a part of a bundle, which proves nothing
        assert done.returncode != 0
        assert b"and nothing else" in done.stderr
    assert set(board.sh("ls", "-A", _UPLOAD).split()) <= {"bundle.vedette", ".known"}
    assert int(board.sh("sh", "-c", f"cat {_UPLOAD}/.known 2>/dev/null | wc -c")) < 40


def test_half_a_bundle_is_not_applied(fleet: Fleet) -> None:
    fleet.boards["board1"].sh("sh", "-c", f"rm -f {_UPLOAD}/*; rm -f {_UPLOAD}/.known")
    assert "no bundle has been sent" in refused(fleet.ssh("board1", "--", "update apply"))


def test_a_host_key_that_is_not_pinned_stops_everything_before_it_begins(fleet: Fleet, tmp_path: Path) -> None:
    inventory = tmp_path / "fleet.toml"
    inventory.write_text((fleet.folder / "fleet.toml").read_text())
    done = fleet.vedette("status", "-i", str(inventory))
    assert done.returncode == 1
    assert "no host key of board1, board2, board3: `vedette fleet pin board1`" in done.stderr


def test_another_host_key_than_the_pinned_one_is_never_talked_to(fleet: Fleet, tmp_path: Path) -> None:
    inventory = tmp_path / "fleet.toml"
    inventory.write_text((fleet.folder / "fleet.toml").read_text())
    public = make_key(tmp_path / "other").public
    (tmp_path / "known_hosts").write_text("".join(f"board{n} {public}\n" for n in (1, 2, 3)))
    done = fleet.vedette("status", "-i", str(inventory), "--json")
    rows = [msgspec.json.decode(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    assert {row["fault"] for row in rows} == {"failed"}
    assert all("another host key than the pinned one" in row["reason"] for row in rows)


def test_a_canary_that_does_not_take_it_stops_the_rollout(fleet: Fleet, tmp_path: Path) -> None:
    path = bundle(fleet)
    board = fleet.boards["board2"]
    kept = board.sh("cat", "/etc/vedette/allowed_signers")
    board.write("/etc/vedette/allowed_signers", make_key(tmp_path / "other").allowed("somebody@example.org"))
    done = fleet.vedette("rollout", path.name)
    assert done.returncode == 1
    assert "the canary board2 did not take the version" in done.stdout
    assert kinds(ledger(fleet, path)) == {"board2": "refused"}
    assert counters(fleet) == {0}
    board.write("/etc/vedette/allowed_signers", f"{kept}\n")


def test_unreachable_is_not_failed_and_a_rollout_is_gone_on_with(fleet: Fleet, tmp_path: Path) -> None:
    path = bundle(fleet)
    fleet.boards["board3"].sh("systemctl", "stop", "ssh")
    away = fleet.vedette("rollout", path.name, "--json")
    assert away.returncode == 1, away.stderr  # nobody of the last batch was there
    assert kinds(ledger(fleet, path)) == {"board2": "updated", "board1": "updated", "board3": "unreachable"}
    assert "no board of the batch can be reached" in away.stderr
    fleet.boards["board3"].sh("systemctl", "start", "ssh")
    done = fleet.vedette("rollout", path.name, "--json")
    assert done.returncode == 0, done.stderr
    assert set(kinds(ledger(fleet, path)).values()) == {"updated"}
    whole = ledger(fleet, path).outcomes["board3"]  # it had nothing of it
    assert whole.sent > whole.size * 0.99
    assert len(counters(fleet)) == 1
    assert "all 3 boards have it" in done.stderr


def test_only_what_is_new_is_sent(fleet: Fleet) -> None:
    board, path = fleet.boards["board1"], bundle(fleet)
    before = next(fleet.folder.glob("*.vedette"))
    present = "/var/lib/vedette-update/bundles/present.vedette"
    board.write(present, before.read_bytes())
    board.sh("chmod", "600", present)
    assert fleet.vedette("rollout", path.name, "--board", "board1").returncode == 0
    outcome = ledger(fleet, path).outcomes["board1"]
    assert outcome.sent < outcome.size * 0.05
    assert board.sh("find", _UPLOAD, "-type", "f") == ""


def test_an_upload_that_breaks_off_is_gone_on_with(fleet: Fleet, tmp_path: Path) -> None:
    fleet.boards["board3"].sh("rm", "-f", "/var/lib/vedette-update/bundles/present.vedette")
    path = bundle(fleet)
    limit, underway = 5_000_000, 2 << 20  # what ssh has taken and not handed on is lost, too
    (tmp_path / "relay").write_text(_RELAY)
    shim = tmp_path / "ssh"
    once = tmp_path / "once"
    shim.write_text(
        f'#!/bin/sh\ncase "$*" in *rsync*) if mkdir {once} 2>/dev/null; then\n'
        f'  exec /usr/bin/ssh -o ProxyCommand="{sys.executable} {tmp_path}/relay %h %p {limit}" "$@"\n'
        'fi ;; esac\nexec /usr/bin/ssh "$@"\n'
    )
    shim.chmod(0o755)
    done = fleet.vedette("rollout", path.name, "--board", "board3", path=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert once.exists()
    outcome = ledger(fleet, path).outcomes["board3"]
    # Of the part that broke off rsync tells no number: this is what was sent after it.
    assert outcome.sent < outcome.size - limit + underway


def test_a_rollout_that_was_killed_goes_on_with_what_the_boards_are_at(fleet: Fleet) -> None:
    path = bundle(fleet, "--health", "steady_s=4")
    command = [sys.executable, "-m", "agent", "fleet", "rollout", path.name, "--board", "board1"]
    running = subprocess.Popen(command, cwd=fleet.folder, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    next(line for line in running.stdout if "on trial" in line or "trial" in line)
    running.kill()
    running.communicate()
    done = fleet.vedette("rollout", path.name, "--board", "board1")
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = ledger(fleet, path).outcomes["board1"]
    assert (outcome.kind, outcome.sent) == ("updated", 0)


def test_two_rollouts_by_one_ledger_are_not_made_at_once(fleet: Fleet) -> None:
    import fcntl

    path = next(fleet.folder.glob("*.vedette"))
    with (fleet.folder / f"{path.name}.ledger").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = fleet.vedette("rollout", path.name)
    assert done.returncode == 1
    assert "in use by another vedette" in done.stderr
    assert "Traceback" not in done.stderr


def test_exec_asks_all_and_says_what_each_answers(fleet: Fleet) -> None:
    done = fleet.vedette("exec", "update", "history")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("committed") >= 3
    assert "not allowed: reboot" in fleet.vedette("exec", "reboot").stdout
    for board in fleet.boards:
        assert "not allowed: reboot" in refused(fleet.ssh(board, "--", "reboot"))


def test_boards_go_back_to_the_models_before_until_there_is_nothing_before(fleet: Fleet) -> None:
    """Each has had several bundles of models and one version only."""
    done = fleet.vedette("rollback", "--yes")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("by an operator") == 3
    done = fleet.vedette("rollback", "--yes")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("already rolled back to") == 3
    path = fleet.folder / f"models-{max(counters(fleet))}.vedette"
    again = fleet.vedette("rollout", path.name, "--board", "board1", "--ledger", "again.ledger")
    assert again.returncode == 1
    assert "is not above" in again.stdout + again.stderr
    for _ in range(3):
        done = fleet.vedette("exec", "update", "rollback")
        if done.stdout.count("no version to roll back to") == 3:
            break
    assert done.stdout.count("no version to roll back to") == 3
    assert done.returncode == 1


needs_ansible = pytest.mark.skipif(
    not (Path(sys.executable).parent / "ansible-playbook").exists(),
    reason="no ansible-playbook: pip install '.[fleet]'",
)


@needs_ansible
def test_ansible_tells_what_runs_and_what_cannot_go_back(fleet: Fleet) -> None:
    told = fleet.play("status.yml")
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.count('"previous": ') == 3
    back = fleet.play("rollback.yml", "--limit", "board1")
    assert back.returncode == 0, back.stdout + back.stderr
    assert "already rolled back to" in fleet.play("rollback.yml", "--limit", "board1", "-v").stdout


@needs_ansible
def test_ansible_rolls_out_by_the_same_commands(fleet: Fleet) -> None:
    path = bundle(fleet)
    words = ("-e", f"bundle={path}", "-e", "vedette_look_s=1", "-e", '{"batches": ["100%"]}')
    done = fleet.play("rollout.yml", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(counters(fleet)) == 1
    again = fleet.play("rollout.yml", *words)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("skipping: [board") > done.stdout.count("skipping: [board")
    assert fleet.play("rollback.yml").returncode == 0
    back = fleet.play("rollout.yml", *words)
    assert back.returncode != 0
    assert "is not above" in back.stdout


@needs_ansible
def test_ansible_stops_at_the_canary(fleet: Fleet, tmp_path: Path) -> None:
    before = counters(fleet)
    board = fleet.boards["board2"]
    kept = board.sh("cat", "/etc/vedette/allowed_signers")
    board.write("/etc/vedette/allowed_signers", make_key(tmp_path / "other").allowed("somebody@example.org"))
    done = fleet.play("rollout.yml", "-e", f"bundle={bundle(fleet)}", "-e", "vedette_look_s=1")
    assert done.returncode != 0
    assert "refused" in done.stdout
    assert counters(fleet) == before
    board.write("/etc/vedette/allowed_signers", f"{kept}\n")
