"""Studies that several workers share: claims, takeovers, and what is refused."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason="a search needs the extra [optimise]")

from optuna.exceptions import UpdateFinishedTrialError

from agent.errors import ConfigError, ModelError, StorageError
from agent.optimise.recipe import SearchParameter
from agent.optimise.search.study import JOURNAL, PLACE, SearchStudy, SearchTimings, open_study
from tests.support.mosquitto import free_port
from tests.support.publishing import wait_for

WIDTH = {"width": SearchParameter(low=1, high=4)}
TIMINGS = SearchTimings()


SERVE = (
    "import optuna, sys; store = optuna.storages.RDBStorage(sys.argv[1]); "
    "optuna.storages.run_grpc_proxy_server(store, port=int(sys.argv[2]))"
)


@pytest.fixture(params=["folder", "sqlite", "grpc"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder, a database, or a real server of Optuna's."""
    database = f"sqlite:///{tmp_path / 'study.db'}"
    if request.param != "grpc":
        yield str(tmp_path) if request.param == "folder" else database
        return
    pytest.importorskip("grpc", reason="the server needs grpcio")
    port = free_port()
    command = [sys.executable, "-c", SERVE, database, str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, 60)
            yield f"grpc://127.0.0.1:{port}"
        finally:
            server.terminate()


def shared(place: Any, clock: Callable[[], float] = time.monotonic) -> SearchStudy:
    return SearchStudy(str(place), WIDTH, 0, TIMINGS, clock)


def test_each_candidate_is_claimed_once_until_all_are_tried(place: str) -> None:
    first, second = shared(place), shared(place)
    claimed = []
    for study in (first, second, first, second):
        trial = study.claim(None)
        assert trial is not None
        claimed.append(trial.parameters["width"])
    assert sorted(claimed) == [1, 2, 3, 4]
    assert first.claim(None) is None
    assert first.others_run()


def test_no_more_trials_than_asked_for_are_begun(place: str) -> None:
    first, second = shared(place), shared(place)
    begun = [study.claim(3) for study in (first, second, first, second)]
    assert [one is None for one in begun] == [False, False, False, True]
    for trial in begun[:3]:
        assert trial is not None
        trial.fail("broken")
    assert second.claim(3) is None, "candidates that failed count"
    assert not second.others_run()


def test_the_trial_of_a_worker_without_signs_of_life_is_taken_over(place: str) -> None:
    now = [0.0]
    dead, alive = shared(place), shared(place, clock=lambda: now[0])
    lost = dead.claim(1)
    assert lost is not None
    lost.note(latency_ms=2.0, rungs={"1": 0.5})
    for beat in range(5):
        lost.note(beat=beat)
        assert alive.claim(1) is None
        now[0] += 0.9 * TIMINGS.stale_s
    assert alive.claim(1) is None, "it has not been silent for so long"
    now[0] += 0.2 * TIMINGS.stale_s
    found = alive.claim(1)
    assert found is not None
    assert (found.parameters, found.noted("rungs")) == (lost.parameters, {"1": 0.5})
    assert found.noted("attempt") == 2
    assert len(alive.trials()) == 1, "the first attempt does not count"
    with pytest.raises(UpdateFinishedTrialError):
        lost.note(latency_ms=3.0)


def test_a_worker_that_lives_says_so(place: str) -> None:
    study = shared(place)
    trial = study.claim(1)
    assert trial is not None
    with trial.signs_of_life(0.01):
        wait_for(lambda: study.trials()[0].user_attrs.get("beat", 0) > 1)


def test_a_trial_whose_workers_have_died_three_times_fails(place: str) -> None:
    now = [0.0]
    study = shared(place, clock=lambda: now[0])
    for attempt in (1, 2, 3):
        trial = study.claim(1)
        assert trial is not None
        assert trial.noted("attempt", 1) == attempt
        assert study.claim(1) is None
        now[0] += 1.1 * TIMINGS.stale_s
    assert study.claim(1) is None
    (failed,) = study.trials()
    assert "3 times" in failed.user_attrs["reason"]


def test_interrupted_work_is_put_back_for_anyone(place: str) -> None:
    first, second = shared(place), shared(place)
    trial = first.claim(2)
    assert trial is not None
    first.repeat(trial)
    again = second.claim(2)
    assert again is not None
    assert (again.parameters, again.noted("attempt")) == (trial.parameters, 1)


def test_a_trial_that_another_worker_has_ended_cannot_be_ended_again(place: str) -> None:
    study = shared(place)
    trial = study.claim(1)
    assert trial is not None
    trial.complete([0.5, 1.0, 9.0])
    with pytest.raises(UpdateFinishedTrialError):
        trial.complete([0.5, 1.0, 9.0])
    trial.drop()
    assert [one.state.name for one in study.trials()] == ["COMPLETE"]


def test_another_recipe_is_refused_by_the_name_of_what_differs(place: str) -> None:
    begun = shared(place)
    begun.join({"[search] rungs": "[1, 3]"}, {"examples": "all"})
    assert begun.claim(None) is not None
    shared(place).join({"[search] rungs": "[1, 3]"}, {})
    with pytest.raises(ConfigError, match=r"\[search\] rungs was \[1, 3\], and is \[1, 9\] here"):
        shared(place).join({"[search] rungs": "[1, 9]"}, {})


def test_a_study_without_a_trial_can_be_begun_anew(tmp_path: Path) -> None:
    wrong, right = {PLACE: "board nowhere"}, {PLACE: "board porch"}
    shared(tmp_path).join(wrong, {"measured_on": "board nowhere"})
    study = shared(tmp_path)
    study.join(right, {"measured_on": "board porch"})
    assert open_study(str(tmp_path)).user_attrs["measured_on"] == "board porch"
    assert study.claim(None) is not None
    with pytest.raises(ConfigError):
        shared(tmp_path).join(wrong, {})


def test_another_board_is_told_as_such(tmp_path: Path) -> None:
    study = shared(tmp_path)
    study.join({PLACE: "board porch"}, {})
    assert study.claim(None) is not None
    with pytest.raises(ConfigError, match=r"measures latency on board porch, .* on board attic") as error:
        shared(tmp_path).join({PLACE: "board attic"}, {})
    assert "recipe" not in str(error.value)


def test_of_two_workers_that_begin_a_study_at_the_same_instant_one_has_no_trials_in_it(tmp_path: Path) -> None:
    first, second = shared(tmp_path), shared(tmp_path)
    first.join({"[search] rungs": "[1, 3]"}, {})
    trial = first.claim(None)
    assert trial is not None
    study: Any = second._study
    study.set_user_attr("identity", {"[search] rungs": "[1, 9]"})  # as if it had found none either
    with pytest.raises(ConfigError, match=r"rungs was \[1, 9\], and is \[1, 3\] here"):
        trial.complete([0.5, 1.0, 9.0])
    assert first.trials() == []


def test_a_line_that_a_full_disk_left_unfinished_is_cut_off(tmp_path: Path) -> None:
    assert shared(tmp_path).claim(None) is not None
    with (tmp_path / JOURNAL).open("ab") as journal:
        journal.write(b'{"op_code": 4, "wor')
    study = shared(tmp_path)
    assert len(study.trials()) == 1
    assert study.claim(None) is not None


def test_a_place_that_cannot_hold_a_study_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        shared(tmp_path / "file" / "study")
    with pytest.raises(ModelError, match="no study"):
        open_study(str(tmp_path))
    (tmp_path / JOURNAL).write_text("that is no journal\n")
    with pytest.raises(StorageError, match="no study that can be read"):
        open_study(str(tmp_path))
