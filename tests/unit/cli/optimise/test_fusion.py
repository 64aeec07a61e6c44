"""`vedette optimise fusion`: events of a recording, how good they are, and weights that a daemon can use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from agent.cli.main import vedette
from agent.features.fusion.expression import FusionCalibration
from tests.unit.optimise.staged_fusion import write

CONFIG = """
[streams.front]
source = "test:"
model = "nanodet"
[text.gate]
[fusion.call]
when = 'person and "help"'
window_s = 2.0
"""


def call(*args: object) -> Any:
    return CliRunner().invoke(vedette, ["optimise", "fusion", *map(str, args)])


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "vedette.toml"
    path.write_text(CONFIG)
    return path


def test_a_recording_gives_its_events_and_how_right_they_are(tmp_path: Path, config: Path) -> None:
    recording, truth = write(tmp_path, 60)
    shown = call("test", "call", recording, "--truth", truth, "-c", config)
    assert shown.exit_code == 0, shown.output
    assert "20 of 20 situations found" in shown.output
    assert "front:person" in shown.output
    found = json.loads(call("test", "call", recording, "--truth", truth, "-c", config, "--json").output)
    assert found["score"]["recall"] == 1.0
    assert len(found["events"]) == found["score"]["events"] >= 20
    assert all(one["evidence"] for one in found["events"])
    assert json.loads(call("test", "call", recording, "-c", config, "--json").output)["score"] is None


def test_calibrated_weights_are_written_and_used_in_place_of_the_rule(tmp_path: Path, config: Path) -> None:
    recording, truth = write(tmp_path, 90)
    odds = tmp_path / "odds.json"
    shown = call("calibrate", "call", recording, truth, odds, "-c", config)
    assert shown.exit_code == 0, shown.output
    assert "30 situations" in shown.output
    written = msgspec.json.decode(odds.read_bytes(), type=FusionCalibration)
    assert [one.term for one in written.terms] == ["person", '"help"']
    again = call("calibrate", "call", recording, truth, odds, "-c", config)
    assert again.exit_code == 1
    assert "--force" in str(again.exception)
    forced = call("calibrate", "call", recording, truth, odds, "-c", config, "--force", "--json")
    assert forced.exit_code == 0
    config.write_text(CONFIG.replace("when = 'person and \"help\"'", f'calibration = "{odds}"'))
    assert CliRunner().invoke(vedette, ["config", "check", str(config)]).exit_code == 0
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other", 90, seed=5)
    found = json.loads(call("test", "call", other[0], "--truth", other[1], "-c", config, "--json").output)
    assert found["score"]["f1"] > 0.95


def another_year(line: str) -> str:
    return line.replace("2026", "2027")


def test_situations_outside_the_recording_are_told_and_left_out(tmp_path: Path, config: Path) -> None:
    recording, truth = write(tmp_path, 90)
    lines = truth.read_text().splitlines()
    truth.write_text("\n".join([*lines[:-1], another_year(lines[-1])]))
    for verb in (
        ["calibrate", "call", recording, truth, tmp_path / "odds.json"],
        ["test", "call", recording, "--truth", truth],
    ):
        shown = call(*verb, "-c", config)
        assert shown.exit_code == 0, shown.output
        assert f"{truth}: 1 of 30 situations lie outside the recording" in shown.stderr
        assert "29 situations" in shown.stdout
    truth.write_text("\n".join(map(another_year, lines)))
    for verb in (
        ["calibrate", "call", recording, truth, tmp_path / "none.json"],
        ["test", "call", recording, "--truth", truth],
    ):
        shown = call(*verb, "-c", config)
        assert shown.exit_code == 1
        assert "30 of 30 situations lie outside the recording" in str(shown.exception)
    assert not (tmp_path / "none.json").exists()


@pytest.mark.parametrize("name", ["day.jsonl", "truth.csv", "vedette.toml"])
def test_a_calibration_never_replaces_what_it_is_made_of(tmp_path: Path, config: Path, name: str) -> None:
    recording, truth = write(tmp_path, 3)
    before = (tmp_path / name).read_bytes()
    shown = call("calibrate", "call", recording, truth, tmp_path / name, "--force", "-c", config)
    assert shown.exit_code == 1
    assert "which is read" in str(shown.exception)
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize(
    ("change", "line", "what"),
    [
        ("when = 'persn and \"help\"'", 7, "persn: nothing gives this"),
        ("when = 'side:person'", 7, "'side'"),
        ("when = 'person and'", 7, "expected labels"),
        ("threshold = 0.4", 6, "one of `when` and `calibration`"),
        ("when = 'person'\nlate_s = 3.0", 8, "more than window_s"),
        ("calibration = '/no/such.json'", 7, "/no/such.json: no such file"),
        ("calibration = '/dev/null'", 7, "not a file"),
    ],
)
def test_a_fused_event_that_cannot_run_is_refused_with_its_line(
    config: Path, change: str, line: int, what: str
) -> None:
    config.write_text(CONFIG.replace("when = 'person and \"help\"'", change))
    for words in (
        ["config", "check", str(config)],
        ["optimise", "fusion", "test", "call", "x.jsonl", "-c", str(config)],
    ):
        shown = CliRunner().invoke(vedette, words)
        text = shown.output + str(shown.exception)
        assert shown.exit_code == 1
        assert f"{config}:{line}: " in text
        assert what in text


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ("[fusion.front]\nwhen = 'person'", "'front' is taken"),
        ("[fusion.gate]\nwhen = 'person'", "'gate' is taken"),
        ("[text.front]\n", "'front' is taken"),
        ("[fusion.cmd]\nwhen = 'person'", "'cmd' is taken"),
        ("[streams.text]\nsource = 'test:'\nmodel = 'nanodet'", "called 'text'"),
    ],
)
def test_names_that_would_share_a_topic_are_refused(config: Path, more: str, what: str) -> None:
    config.write_text(f"{CONFIG}\n{more}\n")
    shown = CliRunner().invoke(vedette, ["config", "check", str(config)])
    assert shown.exit_code == 1
    assert what in shown.output + str(shown.exception)


def test_an_unknown_event_is_named_with_those_that_there_are(tmp_path: Path, config: Path) -> None:
    shown = call("test", "cal", write(tmp_path, 3)[0], "-c", config)
    assert shown.exit_code == 1
    assert "[fusion.cal]; there are: call" in str(shown.exception)


def test_a_text_without_a_fused_event_is_remarked(config: Path) -> None:
    config.write_text(CONFIG.partition("[fusion.call]")[0])
    shown = CliRunner().invoke(vedette, ["config", "check", str(config)])
    assert shown.exit_code == 0
    assert "text gate is not used" in shown.output
