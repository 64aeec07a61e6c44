"""Calibrated log-odds: they learn what each source is worth, hold on other recordings, and need enough."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from agent.errors import ConfigError
from agent.features.fusion.expression import (
    EvidenceSource,
    FusionCalibration,
    LogOdds,
    Reading,
    Rule,
    read_calibration,
)
from agent.features.fusion.rules import Fusion, FusionTimes
from agent.optimise.late_fusion import (
    calibrate,
    features,
    log_loss,
    read_recording,
    read_truth,
    replay,
    score_events,
    stretches,
    to_ns,
)
from tests.unit.optimise.staged_fusion import write

SOURCES = {"front": EvidenceSource("pictures", ("person",)), "gate": EvidenceSource("text")}
RULE = Rule('person and "help"', SOURCES)
TIMES = FusionTimes.of_seconds(2.0, 0.5, 1.0, 5.0)


def fitted(folder: Path, count: int = 120) -> FusionCalibration:
    recording, truth = write(folder, count)
    return calibrate(read_recording(recording, RULE.terms), read_truth(truth), RULE.terms, TIMES)


def test_presence_and_score_speak_for_a_situation_and_absence_against(tmp_path: Path) -> None:
    found = fitted(tmp_path)
    assert [one.term for one in found.terms] == ["person", '"help"']
    assert all(one.present > one.absent for one in found.terms)
    assert found.terms[0].score > 0.0, "a shadow has a lower score than somebody"
    assert found.situations == 40
    assert found.log_loss < 0.1
    assert found.calibration_error < 0.1


def test_the_probability_beats_the_rule_on_another_recording(tmp_path: Path) -> None:
    found = read_calibration(msgspec.json.encode(fitted(tmp_path)))
    (tmp_path / "other").mkdir()
    recording, truth = write(tmp_path / "other", 120, seed=2)
    scores = []
    for condition in (RULE, LogOdds(found, 0.5, SOURCES)):
        made = Fusion("call", condition, TIMES)
        told = [one for _, one in replay(read_recording(recording, condition.terms), made) if one is not None]
        spans = [(to_ns(e.track.first_seen), to_ns(e.track.last_seen)) for e in told if e.kind == "end"]
        scores.append(score_events(spans, read_truth(truth), TIMES.window).f1)
    rule, odds = scores
    assert odds > 0.95
    assert odds > rule + 0.05


def test_too_few_situations_and_too_little_that_resembles_them_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 20 situations; found 10"):
        fitted(tmp_path, 30)
    recording, truth = write(tmp_path, 120)
    every = read_recording(recording, RULE.terms)
    truths = read_truth(truth)
    only = [one for one in every if any(begin <= one.at_ns <= end for begin, end in truths)]
    with pytest.raises(ConfigError, match="no situation; found"):
        calibrate(only, truths, RULE.terms, TIMES)


def test_a_stretch_has_the_moment_with_the_most_evidence(tmp_path: Path) -> None:
    recording, truth = write(tmp_path, 30)
    x, y = stretches(read_recording(recording, RULE.terms), read_truth(truth), RULE.terms, TIMES)
    assert x.shape[1] == 6
    assert y.sum() == 10
    assert (x[y][:, [1, 4]] == 1.0).all(), "both are present in every situation"
    assert (x[:, 0] + x[:, 1] == 1.0).all()


def test_what_is_unknown_is_neither_present_nor_absent() -> None:
    assert features([Reading(False, False, 0.0)]) == [0.0, 0.0, 0.0]
    assert features([Reading(False, True, 0.0)]) == [1.0, 0.0, 0.0]
    assert features([Reading(True, True, 0.5)]) == [0.0, 1.0, 0.0]


def test_the_loss_of_probabilities_is_as_defined() -> None:
    y = np.array([True, False] * 50)
    assert log_loss(np.full(100, 0.5), y) == pytest.approx(np.log(2))
