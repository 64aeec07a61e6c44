from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.cli.checks import Finding, Report, advice_of, board, models
from agent.cli.checks.models import Tried
from agent.cli.doctor import examine
from tests.support.boards import pi4
from tests.support.mosquitto import HOST, Mosquitto

GOOD = Tried("a 1", nodes=10, delegated=10, ms=1.0)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[Tried]:
    some = [GOOD]
    monkeypatch.setattr(models, "run_all", lambda: some)
    return some


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "vedette.toml"
    path.write_text(
        f'[storage]\nstate_dir = "{tmp_path}"\n[streams.front]\nsource = "test:"\nmodel = "nanodet"\n',
    )
    return path


@pytest.mark.usefixtures("tried")
def test_a_board_that_is_well(tmp_path: Path, config: Path) -> None:
    told: list[str] = []
    (tmp_path / "broker").mkdir()
    with Mosquitto(tmp_path / "broker") as broker, config.open("a") as file:
        file.write(f'[mqtt]\nhost = "{HOST}"\nport = {broker.port}\n')
        file.flush()
        report = examine(config, root=pi4(tmp_path / "root"), progress=told.append)
    assert [one for one in report.findings if one.state == "problem"] == []
    assert report.healthy
    assert told == list(dict.fromkeys(one.section for one in report.findings))
    assert not (tmp_path / "verdicts").exists()


@pytest.mark.usefixtures("tried")
def test_a_board_of_which_nothing_can_be_read_is_told_about_to_the_end(tmp_path: Path) -> None:
    report = examine(tmp_path / "no.toml", asked=False, root=tmp_path / "nothing")
    assert "configuration" in {one.section for one in report.findings}
    assert "XNNPACK" in {one.name for one in report.findings if one.state != "ok"}


@pytest.mark.usefixtures("tried")
def test_a_defect_in_one_section_does_not_hide_the_others(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(root: Path) -> Iterator[Finding]:
        yield Finding("temperature", "warm")
        raise ZeroDivisionError(str(root))

    monkeypatch.setattr(board, "check_sensors", broken)
    report = examine(config, root=pi4(tmp_path / "root"))
    (warm, wrong) = [one for one in report.findings if one.section == "heat and supply"]
    assert warm.value == "warm"
    assert (wrong.state, "ZeroDivisionError" in wrong.value) == ("warning", True)
    assert "configuration" in {one.section for one in report.findings}


def test_models_are_not_opened_where_they_crash(tmp_path: Path, config: Path, tried: list[Tried]) -> None:
    tried[:] = [Tried("a 1", "crashed: SIGILL")]
    report = examine(config, root=pi4(tmp_path / "root"))
    assert not report.healthy
    assert any("is not checked" in one.value for one in report.findings if one.section == "configuration")


def test_advice_is_given_once_and_first_about_problems() -> None:
    found = [
        Finding("1", "", "warning", "later"),
        Finding("2", "", "problem", "now"),
        Finding("3", "", "problem", "now"),
        Finding("4", "", "ok", "never"),
        Finding("5", "", "warning"),
    ]
    assert advice_of(found) == ["now", "later"]


@pytest.mark.usefixtures("tried")
def test_measuring_anew_is_kept_in_the_state_folder_and_told_the_next_time(tmp_path: Path) -> None:
    config, state = tmp_path / "vedette.toml", tmp_path / "new" / "state"
    config.write_text(
        f'[storage]\nstate_dir = "{state}"\n[selection]\ncandidates = []\nthreads_max = 1\n'
        '[streams.kitchen]\nsource = "wav:x.wav"\nmodel = "small-speech"\nvariant = "3"\n'
    )
    root = pi4(tmp_path / "root")
    (before,) = _models(examine(config, root=root))
    assert "vedette doctor --fresh measures it now" in before.value
    assert not state.exists()
    told: list[str] = []
    (fresh,) = _models(examine(config, fresh=True, root=root, progress=told.append))
    assert fresh.value.startswith("cpu, 1 thread, ")
    assert "small-speech, cpu, 1 thread" in told
    assert len(list((state / "verdicts").iterdir())) == 1
    assert _models(examine(config, root=root)) == [fresh]


def _models(report: Report) -> list[Finding]:
    return [one for one in report.findings if one.section == "models on this hardware"]
