"""An update from its bundle to its end, on a board in a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.errors import StorageError, UpdateError
from agent.update.bundle import Migration, ShadowGate
from agent.update.bundle.signing import signature_of
from agent.update.install.health_check import ServiceState
from agent.update.install.journal import Journal, Order, Update, status
from agent.update.install.slots import Link, ModelSets, Slot, Slots
from agent.update.install.switch import Rollback, VersionDeployment
from tests.support.pretend_board import CONFIG, GATE, Board, write_command
from tests.support.tiny_bundles import make_key, needs_ssh_keygen

pytestmark = needs_ssh_keygen
SHADOW = ShadowGate(agreement=0.9, compared=10, every=1, within_s=20)
RENAME = Migration("rename", "mqtt.host", to="mqtt.server")


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    return Board(tmp_path, monkeypatch)


def test_a_good_version_is_committed_and_minds_updates_from_then_on(board: Board) -> None:
    done = board.apply(board.bundle())
    assert (done.state, done.version, done.from_version, done.signer) == (
        "committed",
        "2.0",
        "1.0",
        "ops@example.org",
    )
    assert done.downtime_s is not None
    assert board.runs == "2.0"
    assert list(done.seconds) == ["received", "verified", "staged", "tested", "switching", "trial"]
    assert board.where.present.exists()
    assert not board.where.incoming.exists()
    assert board.config == CONFIG
    board.check_sound()


@pytest.mark.parametrize(
    ("version", "why"),
    [
        ("2.0+crash", "ended by itself"),
        ("2.0+slow", "stream front infers in 90.0 ms (p95), 30.0 are allowed: 20.0 before"),
        ("2.0+hang", "the daemon does not report its health"),
        ("2.0+lost", "stream front is lost"),
        ("2.0+large", "takes 500 MB of memory, 200 are allowed"),
    ],
)
def test_a_version_that_is_not_well_is_rolled_back_with_its_configuration(
    board: Board, version: str, why: str
) -> None:
    done = board.apply(board.bundle(version, migrations=[RENAME]))
    assert done.state == "rolled_back"
    assert why in done.reason
    assert board.runs == "1.0"
    assert board.config == CONFIG
    board.check_sound()
    assert board.updater().journal.history() == [done]


@pytest.mark.parametrize(
    ("version", "why"),
    [
        ("2.0+crashimport", "no module named cv2"),
        ("2.0+golden", "output 0 is 0.3 off"),
        ("2.0+config", "unknown key"),
    ],
)
def test_a_version_that_fails_its_rehearsal_is_never_switched_to(board: Board, version: str, why: str) -> None:
    done = board.apply(board.bundle(version))
    assert done.state == "refused"
    assert why in done.reason
    assert board.service.restarts == 0
    board.check_sound()


def test_what_the_old_version_finds_wrong_too_is_no_reason(board: Board) -> None:
    """Such as a camera that is unplugged; where it stands in the file may be another line."""
    (board.slots.path("a") / "venv/bin/vedette").unlink()
    write_command(board.slots.path("a") / "venv", problem="unknown key")
    assert board.apply(board.bundle("2.0+config")).state == "committed"


def test_a_migration_keeps_the_remarks_and_is_taken_back_with_the_version(board: Board) -> None:
    assert board.apply(board.bundle(migrations=[RENAME])).state == "committed"
    assert board.config == CONFIG.replace("host", "server")
    board.where.config.write_text(board.config + "# by hand\n", encoding="utf-8")
    done = board.go_back()
    assert (done.state, done.by) == ("rolled_back", "operator")
    assert board.runs == "1.0"
    assert board.config == CONFIG
    board.check_sound()
    assert board.go_back().version == "2.0"
    assert board.config.endswith("# by hand\n")
    board.check_sound()


@pytest.mark.parametrize("version", ["2.0", "2.0+slow"])
def test_a_configuration_with_passwords_stays_as_closed_as_it_was(board: Board, version: str) -> None:
    config = board.where.config
    config.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(config, 1, 2)
    before = config.stat()
    board.apply(board.bundle(version, migrations=[RENAME]))
    kept = board.where.kept_config.parent
    for path in (
        config,
        *config.parent.glob("*.undone"),
        *kept.glob("*.toml"),
        *board.where.home.rglob("vedette.toml"),
    ):
        after = path.stat()
        assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid), path
    assert not list(board.where.home.rglob("checked.toml"))
    if version == "2.0":
        board.go_back()
        assert config.stat().st_mode == before.st_mode


def test_an_order_that_came_too_late_is_not_for_the_next_trial(board: Board) -> None:
    Journal(board.where).order("rollback")
    done = board.apply(board.bundle())
    assert (done.state, done.by) == ("committed", "updater")


def test_models_are_taken_back_where_no_daemon_runs(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise UpdateError("systemctl reload vedette.service: it is not active")

    monkeypatch.setattr(board.service, "reload", refuse)
    done = board.apply(board.models())
    assert done.state == "rolled_back"
    assert "it is not active" in done.reason
    assert ModelSets(board.slots.path("a")).current == 0


def test_what_was_edited_during_a_trial_is_kept_beside(board: Board) -> None:
    board.apply(board.bundle("2.0+slow", migrations=[RENAME]))
    undone = board.where.config.with_name("vedette.toml.undone")
    assert "server" in undone.read_text(encoding="utf-8")


def test_a_configuration_that_does_not_migrate_is_refused(board: Board) -> None:
    clash = Migration("rename", "mqtt.host", to="mqtt.port")
    board.where.config.write_text(CONFIG + "port = 1883\n", encoding="utf-8")
    done = board.apply(board.bundle(migrations=[clash]))
    assert done.state == "refused"
    assert "`mqtt.port` is set already" in done.reason
    board.check_sound()


def test_an_older_counter_is_refused(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    assert board.apply(board.bundle(counter=5)).state == "committed"
    monkeypatch.undo()
    done = board.apply(board.bundle("1.5", counter=4))
    assert done.state == "refused"
    assert "counter 4 is not above 5" in done.reason
    assert board.runs == "2.0"


def test_an_unknown_signer_is_refused(board: Board, tmp_path: Path) -> None:
    done = board.apply(board.bundle(key=make_key(tmp_path / "other")))
    assert done.state == "refused"
    assert not board.where.incoming.exists()
    board.check_sound()


def test_a_bundle_that_was_changed_after_signing_is_refused(board: Board) -> None:
    bundle = board.bundle()
    content = bytearray(bundle.read_bytes())
    content[len(content) // 2] ^= 1
    bundle.write_bytes(content)
    assert board.apply(bundle).state == "refused"
    board.check_sound()


def test_without_a_signature_nothing_is_taken(board: Board) -> None:
    bundle = board.bundle()
    signature_of(bundle).unlink()
    with pytest.raises(UpdateError, match=r"2\.vedette\.sig: the signature is missing"):
        board.updater().receive(bundle)


def test_two_updates_at_once_are_refused(board: Board) -> None:
    board.updater().receive(board.bundle())
    with pytest.raises(UpdateError, match=r"is not over \(received\)"):
        board.updater().receive(board.bundle(counter=3))


def test_an_operator_may_confirm_or_roll_back_a_trial(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    cases: list[tuple[Order, str]] = [("rollback", "rolled_back"), ("confirm", "committed")]
    for order, state in cases:
        with monkeypatch.context() as patch:
            patch.setattr(board, "_sleep", _ordering(board, order))
            done = board.apply(board.bundle())
        assert (done.state, done.by) == (state, "operator")
        board.check_sound()


def _ordering(board: Board, order: Order) -> Callable[[float], None]:
    waits = board._sleep

    def sleep(seconds: float) -> None:
        Journal(board.where).order(order)
        waits(seconds)

    return sleep


@pytest.mark.parametrize("version", ["2.0+golden", "2.0+slow", "2.0+crash"])
def test_a_version_that_did_not_stay_is_none_to_go_back_to(board: Board, version: str) -> None:
    assert board.apply(board.bundle("1.5")).state == "committed"
    assert board.apply(board.bundle(version, counter=3)).state in ("refused", "rolled_back")
    assert status(board.where).previous == ""
    tried = version != "2.0+golden"  # what was refused before its switch is not even kept
    what = "which was never committed" if tried else "slots/a: holds no version"
    with pytest.raises(UpdateError, match=f"{what}: no version to roll back to"):
        board.go_back()
    assert board.runs == "1.5"
    board.check_sound()


def test_a_version_that_is_not_ready_after_a_rollback_is_left_again(board: Board) -> None:
    board.apply(board.bundle(migrations=[RENAME]))
    migrated = board.config
    board.slots.make_ready("a", "1.0+hang")
    done = board.go_back()
    assert (done.state, done.by) == ("rolled_back", "updater")
    assert done.reason.startswith("rollback to 1.0+hang failed: not healthy within 120 s")
    assert (board.runs, board.config) == ("2.0", migrated)
    board.check_sound()


def test_a_rollback_to_a_version_that_cannot_be_imported_is_refused(board: Board) -> None:
    board.apply(board.bundle())
    write_command(board.slots.path("a") / "venv", "echo 'ImportError: libc' >&2; exit 1")
    with pytest.raises(UpdateError, match="ImportError: libc"):
        board.go_back()
    assert board.runs == "2.0"
    assert board.service.restarts == 1
    board.check_sound()


def test_the_dead_man_brings_back_what_ran_when_nobody_follows_a_return(board: Board) -> None:
    board.apply(board.bundle(migrations=[RENAME]))
    Rollback(board.where, board.service, board.updater().journal, board.said.append).begin()
    assert board.runs == "1.0"
    trial = board.where.trial
    trial.write_text(re.sub("allowed_s=.*", "allowed_s=0", trial.read_text()))
    board.service.deadman()  # which counts from now on
    board.where.trial_usage.write_text(re.sub("elapsed_s=.*", "elapsed_s=9", board.where.trial_usage.read_text()))
    board.service.deadman()
    assert board.runs == "2.0"
    board.service.boot()
    done = board.updater().resume()
    assert done is not None
    assert (done.state, done.by) == ("rolled_back", "deadman")
    assert done.reason.startswith("rollback to 1.0 failed: ")
    board.check_sound()


def test_after_models_going_back_is_to_the_models_before(board: Board) -> None:
    board.apply(board.models())
    board.apply(board.models(counter=8))
    reloads, sets = board.service.reloads, ModelSets(board.slots.path("a"))
    done = board.go_back()
    assert (done.state, done.by, done.reason) == ("rolled_back", "operator", "rolled back to 7 by an operator")
    assert (sets.current, board.service.reloads, board.service.restarts) == (7, reloads + 1, 0)
    assert board.updater().journal.committed_counter() == 8
    board.go_back()
    assert sets.current == 0
    with pytest.raises(UpdateError, match="no version to roll back to"):
        board.go_back()


def test_models_that_failed_in_between_do_not_take_the_place_of_those_before(board: Board) -> None:
    board.apply(board.models())
    assert board.apply(board.models(counter=66)).state == "rolled_back"
    assert board.apply(board.models(counter=67)).state == "committed"
    sets = ModelSets(board.slots.path("a"))
    assert not sets.path(66).exists()
    assert board.go_back().reason == "rolled back to 7 by an operator"
    assert sets.current == 7


def test_models_whose_keeping_was_cut_off_stay(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """The power goes when their bundle is deleted, and before that is in the journal."""
    step = Journal.step

    def cut(self: Journal, update: Update, state: Any, **more: object) -> Update:
        if state == "committed":
            raise KeyboardInterrupt
        return step(self, update, state, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "step", cut)
        with pytest.raises(KeyboardInterrupt):
            board.apply(board.models())
    done = board.updater().resume()
    assert done is not None
    assert (done.state, ModelSets(board.slots.path("a")).current) == ("committed", 7)


def test_models_that_bring_the_daemon_down_can_be_rolled_back(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    board.apply(board.models())
    board.apply(board.models(counter=8))
    board.service.failures = 5

    def refuse() -> None:
        raise UpdateError("systemctl reload vedette.service: it is not active")

    monkeypatch.setattr(board.service, "reload", refuse)
    monkeypatch.setattr(board.service, "restart", board.service.boot)
    stands = board.service.state

    def standing_now() -> ServiceState:
        stands()
        return ServiceState("activating" if board.service.failures else "active")

    monkeypatch.setattr(board.service, "state", standing_now)
    assert board.go_back().reason == "rolled back to 7 by an operator"


def test_after_a_rollback_of_a_version_its_models_are_not_rolled_back(board: Board) -> None:
    board.apply(board.models(counter=5))
    board.apply(board.bundle(counter=6))
    assert board.go_back().reason == "rolled back to 1.0 by an operator"
    assert board.go_back().reason == "rolled back to 2.0 by an operator"


def test_an_operator_may_stop_going_back(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    board.apply(board.bundle())
    monkeypatch.setattr(board, "_sleep", _ordering_once(board, "rollback"))
    done = board.go_back()
    assert (done.by, done.reason) == ("updater", "rollback to 1.0 failed: an operator has asked for it")
    assert board.runs == "2.0"


def test_the_trial_is_compared_with_how_it_was_before_the_shadow(board: Board) -> None:
    write = board.service.write_health

    def slowed() -> None:
        """Two models take the CPU from each other."""
        write()
        if board.where.shadow_order.exists():
            text = board.where.health.read_text().replace('"infer_p95_ms": 20.0', '"infer_p95_ms": 80.0')
            board.where.health.write_text(text)

    board.service.write_health = slowed  # type: ignore[method-assign]  # for this one
    done = board.apply(board.models(shadow=SHADOW))
    assert (done.state, done.streams_before) == ("committed", {"front": 20.0})


def test_a_trial_that_no_journal_tells_of_is_left_to_the_dead_man(board: Board) -> None:
    board.where.trial.write_text("state=trial\nnew=b\nold=a\n", encoding="ascii")
    with pytest.raises(UpdateError, match="the rollback watchdog ends that"):
        board.updater().receive(board.bundle())
    with pytest.raises(UpdateError, match="the rollback watchdog ends that"):
        board.go_back()


def test_models_that_are_not_well_after_a_rollback_are_left_again(board: Board) -> None:
    board.apply(board.models())
    board.apply(board.models(counter=8))
    board.service.hidden = True
    done = board.go_back()
    assert done.reason.startswith("rollback to 7 failed: not healthy within 120 s: the daemon does not report")
    assert ModelSets(board.slots.path("a")).current == 8


def test_an_operator_may_end_an_update_before_its_switch(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    def install(*words: Any) -> None:
        board.install(*words)
        Journal(board.where).order("rollback")

    monkeypatch.setattr("agent.update.install.stage.install", install)
    done = board.apply(board.bundle())
    assert (done.state, done.by, done.reason) == ("refused", "operator", "an operator has asked for it")
    assert "tested" not in done.seconds
    board.check_sound()


def test_a_refusal_names_the_file_that_was_given(board: Board, tmp_path: Path) -> None:
    bundle = board.bundle(key=make_key(tmp_path / "other"))
    assert board.apply(bundle).reason.startswith(f"{bundle}: signed by a key that")


def test_a_damaged_journal_is_set_aside_and_told_of(board: Board) -> None:
    board.apply(board.bundle())
    board.where.journal.write_bytes(b'{"state": "tri')
    told = status(board.where)
    assert (told.version, told.at_hand) == ("2.0", None)
    assert "journal.json: is damaged" in told.trouble
    assert any("unknown" in line for line in told.lines())
    assert board.updater().resume() is None
    assert board.where.journal.with_name("journal.json.damaged").exists()
    assert board.apply(board.bundle("3.0", counter=3)).state == "committed"


def test_models_are_swapped_without_a_restart(board: Board) -> None:
    done = board.apply(board.models())
    assert (done.state, done.kind) == ("committed", "models"), done.reason
    assert (board.service.restarts, board.service.reloads) == (0, 1)
    home = board.slots.path("a")
    assert ModelSets(home).current == 7
    assert (home / "models/small-speech.tflite").exists()
    assert board.runs == "1.0"


def test_models_that_make_a_stream_slow_are_taken_back(board: Board) -> None:
    board.apply(board.models())
    done = board.apply(board.models(counter=66))
    assert done.state == "rolled_back"
    assert "infers in 90.0 ms" in done.reason
    assert ModelSets(board.slots.path("a")).current == 7
    assert board.service.reloads == 3


def test_models_that_agree_beside_those_in_use_take_their_place(board: Board) -> None:
    done = board.apply(board.models(shadow=SHADOW))
    assert (done.state, done.agreement, done.reason) == ("committed", {"front": 1.0}, "")
    assert list(done.seconds) == ["received", "verified", "staged", "tested", "shadow", "switching", "trial"]
    assert not board.where.shadow_order.exists()


@pytest.mark.parametrize(
    ("shadow", "why"),
    [
        ({"compared": 10, "agreement": 0.5}, "agrees by 0.50"),
        ({"compared": 9, "agreement": 1.0}, "undecided after 20 s"),
        ({"failed": "it hangs"}, "it hangs"),
    ],
)
def test_models_that_do_not_hold_beside_those_in_use_are_refused(
    board: Board, shadow: dict[str, object], why: str
) -> None:
    board.service.shadow = shadow
    done = board.apply(board.models(shadow=SHADOW))
    assert (done.state, done.by) == ("refused", "updater")
    assert why in done.reason
    assert board.service.reloads == 0
    assert ModelSets(board.slots.path("a")).current == 0
    assert not board.where.shadow_order.exists()


def test_an_operator_may_decide_while_models_run_beside_those_in_use(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    board.service.shadow = {"compared": 1, "agreement": 0.1}
    cases: list[tuple[Order, str, str]]
    cases = [("rollback", "refused", "operator"), ("confirm", "committed", "updater")]
    for order, state, by in cases:
        with monkeypatch.context() as patch:
            patch.setattr(board, "_sleep", _ordering_once(board, order))
            done = board.apply(board.models(shadow=SHADOW))
        assert (done.state, done.by) == (state, by), done.reason


def _ordering_once(board: Board, order: Order) -> Callable[[float], None]:
    waits, left = board._sleep, [order]

    def sleep(seconds: float) -> None:
        if left:
            Journal(board.where).order(left.pop())
        waits(seconds)

    return sleep


def test_what_was_cut_off_while_models_ran_beside_those_in_use_begins_again(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    board.service.shadow = {"compared": 1}
    with monkeypatch.context() as patch:
        patch.setattr(board, "_sleep", _killed)
        updater = board.updater()
        updater.receive(board.models(shadow=SHADOW))
        with pytest.raises(KeyboardInterrupt):
            updater.resume()
    left = board.updater().journal.read()
    assert left is not None
    assert left.state == "shadow"
    assert not board.where.shadow_order.exists()
    board.service.shadow = {"compared": 10, "agreement": 1.0}
    done = board.updater().resume()
    assert done is not None
    assert done.state == "committed"
    assert any("interrupted while it was shadow" in line for line in board.said)


def test_a_full_disk_while_staging_is_refused_and_what_runs_goes_on(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageError("slots/b: cannot be written: No space left on device")

    monkeypatch.setattr("agent.update.install.stage.unpack", full)
    done = board.apply(board.bundle())
    assert done.state == "refused"
    assert "No space left" in done.reason
    board.check_sound()


def test_the_dead_man_ends_a_trial_that_nobody_follows(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """The updater is killed in the trial and never comes back; the time is cut short."""
    monkeypatch.setattr(board, "_sleep", _killed)
    board.where.config.chmod(0o640)
    updater = board.updater()
    updater.receive(board.bundle(migrations=[RENAME]))
    with pytest.raises(KeyboardInterrupt):
        updater.resume()
    assert board.runs == "2.0"
    trial = board.where.trial
    assert "\nallowed_s=155\n" in trial.read_text()
    trial.write_text(trial.read_text().replace("allowed_s=155", "allowed_s=0"))
    count = board.where.trial_usage
    assert board.where.kept_config.stat().st_mode & 0o777 == 0o640
    board.service.deadman()
    assert board.runs == "2.0", "no time has passed"
    count.write_text(count.read_text().replace("elapsed_s=0", "elapsed_s=9"))
    board.service.deadman()
    assert board.runs == "1.0"
    assert board.config == CONFIG
    assert board.where.config.stat().st_mode & 0o777 == 0o640
    monkeypatch.undo()
    board.restart_service()
    done = board.updater().resume()
    assert done is not None
    assert (done.state, done.by) == ("rolled_back", "deadman")
    assert "longer than 0 s" in done.reason
    board.check_sound()


def test_models_that_the_daemon_refuses_to_take_up_are_not_committed(board: Board) -> None:
    board.service.refuses = "vedette.toml:7: unknown key"
    done = board.apply(board.models(7))
    assert done.state == "rolled_back"
    assert done.reason == "the daemon refuses to load them: vedette.toml:7: unknown key"
    assert ModelSets(board.slots.path("a")).current == board.service.models == 0


def test_models_that_the_daemon_does_not_take_up_are_not_committed(board: Board) -> None:
    board.service.reads = False
    done = board.apply(board.models(7))
    assert done.state == "rolled_back"
    assert "the daemon has not loaded the new models yet" in done.reason
    assert ModelSets(board.slots.path("a")).current == 0


def test_models_that_the_daemon_refuses_are_not_rolled_back_to(board: Board) -> None:
    assert board.apply(board.models(7)).state == "committed"
    assert board.apply(board.models(8)).state == "committed"
    board.service.refuses = "label `new` is none of the model's"
    done = board.go_back()
    assert done.reason.startswith("rollback to 7 failed: the daemon refuses")
    assert ModelSets(board.slots.path("a")).current == board.service.models == 8


def test_while_the_daemon_starts_nothing_is_taken_for_how_it_was(board: Board) -> None:
    """Else a stream that had not begun would be none to ask for."""
    board.service.ready = False
    board.service.write_health()
    updater = board.updater()
    updater.receive(board.bundle("2.0+lost"))
    update = updater.resume()
    assert update is not None
    assert update.streams_before is None


@pytest.mark.parametrize("kind", ["version", "models"])
def test_an_update_that_brings_the_board_down_before_its_switch_is_not_begun_for_ever(
    board: Board, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    board.updater().receive(board.bundle() if kind == "version" else board.models())
    monkeypatch.setattr("agent.update.install.updater.rehearse", lambda *_: _killed(0))
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            board.updater().resume()
    done = board.updater().resume()
    assert done is not None
    assert (done.state, done.reason) == ("refused", "it was begun 5 times, and was interrupted each time")
    board.check_sound()


def _boot(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("agent.update.install.updater.boot_id", lambda: name)


def test_models_that_bring_the_board_down_are_taken_back_after_three_boots(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "_sleep", _killed)
    board.updater().receive(board.models(7))
    for boot in range(4):
        _boot(monkeypatch, f"boot {boot}")
        with pytest.raises(KeyboardInterrupt):
            board.updater().resume()
        assert ModelSets(board.slots.path("a")).current == 7
    _boot(monkeypatch, "the last")
    done = board.updater().resume()
    assert done is not None
    assert (done.state, done.reason) == ("rolled_back", "the board was started 4 times during the trial")
    assert ModelSets(board.slots.path("a")).current == 0


@pytest.mark.parametrize("back", [False, True])
def test_a_daemon_that_is_slow_to_stop_is_none_of_the_new_version_though_it_is_called_the_same(
    board: Board, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    if back:
        board.updater().receive(board.bundle("1.0"))
        board.updater().resume()
    before, began_s, restart = board.service.pid, board.now, board.service.restart
    monkeypatch.setattr(board.service, "restart", lambda: None)

    def sleep(seconds: float) -> None:
        board.now += seconds
        if board.now - began_s >= 20 and board.service.pid == before:
            restart()

    monkeypatch.setattr(board, "_sleep", sleep)
    if back:
        Rollback(board.where, board.service, board.updater().journal, board.said.append).begin()
    else:
        board.updater().receive(board.bundle("1.0"))
    done = board.updater().resume()
    assert done is not None
    assert (done.state, done.version) == ("rolled_back" if back else "committed", "1.0")
    assert board.service.pid != before
    assert board.now - began_s >= 20 + (10 if back else GATE.steady_s)
    assert back or done.downtime_s == 20


def test_models_that_the_daemon_has_from_its_start_are_taken_up_whatever_its_number_is(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A board that boots the same way each time gives the daemon the same pid; and counts its failures from 0."""
    board.service.reloads, board.service.failures = 3, 2
    board.updater().receive(board.models(7))
    with monkeypatch.context() as cut:
        cut.setattr(board, "_sleep", _killed)
        with pytest.raises(KeyboardInterrupt):
            board.updater().resume()
    pid = board.service.pid
    board.restart_service()
    board.service.pid = pid
    _boot(monkeypatch, "the next")
    done = board.updater().resume()
    assert done is not None
    assert (done.state, done.starts) == ("committed", 1)


def test_models_that_bring_the_daemon_down_after_a_boot_are_taken_back(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    board.service.failures = 2  # of the boot before
    board.updater().receive(board.models(7))
    with monkeypatch.context() as cut:
        cut.setattr(board, "_sleep", _killed)
        with pytest.raises(KeyboardInterrupt):
            board.updater().resume()
    board.restart_service()
    board.service.failures = 1
    _boot(monkeypatch, "the next")
    done = board.updater().resume()
    assert done is not None
    assert done.state == "rolled_back"
    assert done.reason.startswith("the service ended by itself: exit-code;")


def test_models_are_checked_with_the_configuration_of_now(board: Board) -> None:
    """A version that came with a changed one has a copy of that, which nobody edits."""
    assert board.apply(board.bundle("2.0", migrations=[RENAME])).state == "committed"
    board.where.config.write_text(board.config.replace("broker.example", "other.example"), encoding="utf-8")
    seen = board.where.root / "seen"
    running = board.slots.path("b") / "venv/bin/vedette"
    running.write_text(
        f'#!/bin/sh\n[ $1 = update ] || {{ cat "$4" >> {seen}; printf \'{{"problems": []}}\'; }}\n',
        encoding="utf-8",
    )
    assert board.apply(board.models(7)).state == "committed"
    assert "other.example" in seen.read_text(encoding="utf-8")


def test_a_bundle_that_could_not_be_received_takes_no_room(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    incoming = board.where.incoming
    with monkeypatch.context() as full:
        full.setattr(Journal, "begin", _full)
        with pytest.raises(StorageError):
            board.updater().receive(board.bundle())
    assert not incoming.exists()
    assert not signature_of(incoming).exists()
    incoming.write_bytes(b"cut off")  # before it was noted
    copied = list[bool]()

    def copy(source: Path, target: Path, **_: object) -> None:
        copied.append(incoming.exists())
        _full()

    monkeypatch.setattr("agent.update.install.updater.take_copy", copy)
    with pytest.raises(StorageError):
        board.updater().receive(board.bundle())
    assert copied == [False]


def test_a_commit_that_was_cut_off_is_told_of_whoever_decided_it(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    board.updater().receive(board.bundle())
    with monkeypatch.context() as cut:
        cut.setattr(board, "_sleep", _ordering(board, "confirm"))
        cut.setattr("agent.update.install.updater.Updater._commit", _keep_and_die)
        with pytest.raises(KeyboardInterrupt):
            board.updater().resume()
    board.restart_service()
    done = board.updater().resume()
    assert done is not None
    assert (done.state, done.by) == ("committed", "operator")


def _keep_and_die(ending: object, update: Update, change: VersionDeployment, reason: str) -> Update:
    change.keep(update)
    raise KeyboardInterrupt


def test_a_cut_while_a_trial_is_taken_back_does_not_put_it_on_trial_again(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old configuration is there already; the new version would run on it, and might be well this time."""
    board.updater().receive(board.bundle("2.0+slow", migrations=[RENAME]))
    with monkeypatch.context() as cut:
        real, calls = board.slots.__class__.point, 0

        def point(slots: Slots, link: Link, slot: Slot) -> None:
            nonlocal calls
            calls += 1
            if calls == 3:  # two of them are the switch
                raise KeyboardInterrupt
            real(slots, link, slot)

        cut.setattr("agent.update.install.slots.Slots.point", point)
        with pytest.raises(KeyboardInterrupt):
            board.updater().resume()
    assert (board.runs, board.config) == ("2.0+slow", CONFIG)
    board.restart_service()
    assert (board.runs, board.config) == ("1.0", CONFIG)
    done = board.updater().resume()
    assert done is not None
    assert (done.state, done.by) == ("rolled_back", "updater")
    assert "stream front infers in 90.0 ms" in done.reason, "the cut is not why"
    board.check_sound()


def test_what_could_not_be_taken_back_is_taken_back_later_and_not_tried_again(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its configuration is the old one already."""
    board.updater().receive(board.bundle("2.0+slow", migrations=[RENAME]))
    with monkeypatch.context() as full:
        full.setattr("agent.update.install.switch.VersionDeployment._restore", _undo_half)
        with pytest.raises(StorageError):
            board.updater().resume()
    assert (board.runs, board.config) == ("2.0+slow", CONFIG)
    done = board.updater().resume()
    assert done is not None
    assert done.state == "rolled_back"
    assert "stream front infers in 90.0 ms" in done.reason
    assert len([line for line in board.said if line.startswith("on trial:")]) == 1
    board.check_sound()


def _undo_half(deployment: VersionDeployment, update: Update) -> None:
    with pytest.MonkeyPatch.context() as full:
        full.setattr("agent.update.install.slots.Slots.point", _full)
        _RESTORE(deployment, update)


def _full(*_: object) -> None:
    raise StorageError("No space left on device")


_RESTORE = VersionDeployment._restore


def test_an_order_that_was_read_outlives_a_cut(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    board.updater().receive(board.bundle())
    with monkeypatch.context() as cut:
        cut.setattr(board, "_sleep", _ordering(board, "rollback"))
        cut.setattr("agent.update.install.switch.VersionDeployment.undo", lambda *_: _killed(0))
        with pytest.raises(KeyboardInterrupt):
            board.updater().resume()
    board.restart_service()
    done = board.updater().resume()
    assert done is not None
    assert (done.state, done.by, done.reason) == ("rolled_back", "operator", "an operator has asked for it")
    assert Journal(board.where).read_order() is None


def test_a_trial_that_goes_on_is_taken_back_for_what_is_then(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    board.updater().receive(board.bundle("2.0+slow"))
    with monkeypatch.context() as cut:
        cut.setattr("agent.update.install.switch.VersionDeployment.undo", lambda *_: _killed(0))
        with pytest.raises(KeyboardInterrupt):
            board.updater().resume()
    board.restart_service()
    Journal(board.where).order("rollback")
    done = board.updater().resume()
    assert done is not None
    assert (done.state, done.by, done.reason) == ("rolled_back", "operator", "an operator has asked for it")


def test_a_configuration_that_no_daemon_starts_on_is_refused_though_the_old_version_says_so_too(
    board: Board,
) -> None:
    told = '{"problems": ["x:1: no TOML"], "loads": false}'
    running = board.slots.path("a") / "venv/bin/vedette"
    running.write_text(f"#!/bin/sh\nprintf '{told}'\n", encoding="utf-8")
    updater = board.updater()
    update = updater.receive(board.bundle())
    while update.state != "staged":
        update = updater._step(update)
    staged = board.slots.path("b") / "venv/bin/vedette"
    staged.write_text(f"#!/bin/sh\n[ $1 = update ] || printf '{told}'\n", encoding="utf-8")
    done = updater._step(update)
    assert done.state == "refused"
    assert "no daemon would start on the configuration: " in done.reason
    assert "no TOML" in done.reason


def test_what_has_become_of_the_configuration_since_is_kept_when_a_version_comes_back(board: Board) -> None:
    assert board.apply(board.bundle(migrations=[RENAME])).state == "committed"
    board.where.config.write_text(f"{board.config}# a new camera\n", encoding="utf-8")
    board.go_back()
    assert board.config == CONFIG
    beside = board.where.config.with_name("vedette.toml.undone")
    assert beside.read_text(encoding="utf-8").endswith("# a new camera\n")
    assert any(str(beside) in line for line in board.said)


def test_a_defect_in_a_step_is_an_end_and_no_loop(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    def defective(*_: object) -> None:
        raise AttributeError("no such thing")

    monkeypatch.setattr("agent.update.install.stage._place_files", defective)
    done = board.apply(board.bundle())
    assert done.state == "refused"
    assert done.reason == "internal error (please report): AttributeError: no such thing"


def _killed(_: float) -> None:
    raise KeyboardInterrupt
