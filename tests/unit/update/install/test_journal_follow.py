"""An update that another process does is shown as it goes."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.errors import UpdateError
from agent.update.install.journal import Journal, Update, follow
from agent.update.install.slots import ROOT_VARIABLE, Paths, board_paths


@pytest.fixture
def where(tmp_path: Path) -> Paths:
    found = Paths(tmp_path)
    found.state.mkdir(parents=True)
    return found


def test_states_are_told_until_the_end(where: Paths) -> None:
    journal = Journal(where)
    update = journal.begin(Update(state="received", began_at=datetime.now(UTC)))
    said: list[str] = []

    def work() -> None:
        verified = journal.step(update, "verified", version="2.0")
        journal.step(verified, "refused", reason="no room")

    worker = threading.Timer(0.7, work)
    worker.start()
    done = follow(where, said.append, sleep=lambda _: worker.join(0.05))
    worker.join()
    assert done.state == "refused"
    assert said[0] == "received"
    assert said[-1] == "refused: no room"


def test_one_that_does_not_move_is_given_up(where: Paths) -> None:
    Journal(where).begin(Update(state="received", began_at=datetime.now(UTC)))
    with pytest.raises(UpdateError, match="received for an hour"):
        follow(where, lambda _: None, sleep=lambda _: None)


def test_models_that_wait_for_something_before_a_camera_are_not_given_up(where: Paths) -> None:
    journal = Journal(where)
    update = journal.update_fields(
        journal.begin(Update(state="received", began_at=datetime.now(UTC))), state="shadow"
    )
    looks = 3 * 3600

    def sleep(_: float) -> None:
        nonlocal looks
        looks -= 1
        if not looks:
            journal.step(update, "refused", reason="nothing came by")

    assert follow(where, lambda _: None, sleep=sleep).reason == "nothing came by"


def test_where_nobody_goes_on_with_it_that_is_said(where: Paths) -> None:
    Journal(where).begin(Update(state="received", began_at=datetime.now(UTC)))
    looks = 0

    def idle() -> str:
        nonlocal looks
        looks += 1
        return "the unit is failed: exit-code" if looks != 5 else ""

    now_s = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += 2 * seconds  # a look takes its time

    with pytest.raises(UpdateError, match="which is received: the unit is failed: exit-code: see"):
        follow(where, lambda _: None, sleep=sleep, idle=idle, clock=lambda: now_s)
    assert looks == 5 + 21  # it is looked for twenty seconds on end


def test_without_an_update_there_is_nothing_to_follow(where: Paths) -> None:
    with pytest.raises(UpdateError, match="there is no update"):
        follow(where, lambda _: None)


def test_a_folder_may_stand_for_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert board_paths().root == Path("/")
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    assert board_paths().config == tmp_path / "etc/vedette/vedette.toml"
