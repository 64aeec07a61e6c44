"""The learned head: what it learns, that its file gives the same, and what it does when nothing is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="models are written with ai-edge-litert")

from agent.compute.infer.backends import open_session
from agent.compute.track.fusion import FusionTimes
from agent.compute.track.fusion_odds import LearnedHead
from agent.compute.track.fusion_rule import EvidenceSource, Reading, Rule
from agent.daemon.fusion import open_head, predict_with
from agent.errors import ConfigError
from agent.optimise.late_fusion.head import calibrate_head, emit, learn
from agent.optimise.late_fusion.recording import read_recording, read_truth
from tests.unit.optimise.late_fusion.staged import write

SOURCES = {"front": EvidenceSource("pictures", ("person",)), "gate": EvidenceSource("text")}
RULE = Rule('person and "help"', SOURCES)
TIMES = FusionTimes.of_seconds(2.0, 0.5, 1.0, 5.0)
SEEN, ABSENT, UNKNOWN = Reading(True, True, 0.9), Reading(False, True, 0.0), Reading(False, False, 0.0)


def either_alone() -> tuple[np.ndarray, np.ndarray]:
    """One of two is the situation, both or none is not: what no sum can tell."""
    random = np.random.default_rng(3)
    is_there = random.random((400, 2)) < 0.5
    x = np.zeros((400, 6))
    x[:, [1, 4]], x[:, [0, 3]] = is_there, ~is_there
    return x, is_there[:, 0] != is_there[:, 1]


def test_it_learns_what_belongs_together() -> None:
    x, y = either_alone()
    assert ((learn(x, y).predict(x) > 0.5) == y).mean() > 0.99


def test_the_gradients_are_those_of_the_loss() -> None:
    x, y = either_alone()
    made = learn(x[:40], y[:40])
    slopes = made.gradients(x[:40], y[:40])

    def loss() -> float:
        odds = (made.hidden(x[:40]) @ made.layers[2] + made.layers[3])[:, 0]
        decay = 0.5e-3 * sum(float(np.square(made.layers[number]).sum()) for number in (0, 2))
        return float(np.mean(np.logaddexp(0.0, odds) - odds * y[:40])) + decay

    for number, place in ((0, (1, 3)), (1, (2,)), (2, (5, 0)), (3, (0,))):
        before = made.layers[number][place]
        made.layers[number][place] = before + 1e-5
        above = loss()
        made.layers[number][place] = before - 1e-5
        slope = (above - loss()) / 2e-5
        made.layers[number][place] = before
        assert slope == pytest.approx(slopes[number][place], abs=1e-6)


def test_its_file_gives_the_same_and_is_opened_like_any_model(tmp_path: Path) -> None:
    recording, truth = write(tmp_path, 90)
    given = read_recording(recording, RULE.terms), read_truth(truth), RULE.terms, TIMES
    calibration, content, _ = calibrate_head(*given, "head.tflite")
    assert calibration.log_loss < 0.1
    (tmp_path / "head.tflite").write_bytes(content)
    session = open_head(tmp_path / "head.json", calibration, open_session)
    head = LearnedHead(calibration, 0.5, SOURCES, lambda some: predict_with(session, some), session.close)
    assert head.judge([SEEN, SEEN]).truth is True
    assert [head.judge(some).truth for some in ([SEEN, ABSENT], [ABSENT, SEEN], [UNKNOWN, UNKNOWN])] == [
        False
    ] * 3
    with pytest.raises(ConfigError, match="higher threshold"):
        LearnedHead(calibration, 1e-9, SOURCES, lambda some: predict_with(session, some))
    head.close()


def test_the_file_computes_what_was_trained(tmp_path: Path) -> None:
    from agent.compute.infer.session import SessionOptions
    from agent.compute.manifest import Manifest, Model

    x, y = either_alone()
    made = learn(x, y)
    x[:, 2] = np.linspace(-6.0, 6.0, len(x)) * x[:, 1]
    session = open_session(Model(emit(made), "", Manifest(), "head"), "cpu", SessionOptions(threads=1))
    found = [predict_with(session, list(row)) for row in x[:50]]
    session.close()
    assert np.abs(np.array(found) - made.predict(x[:50])).max() < 1e-5


def test_a_head_of_other_terms_is_refused(tmp_path: Path) -> None:
    recording, truth = write(tmp_path, 90)
    given = read_recording(recording, RULE.terms), read_truth(truth), RULE.terms, TIMES
    calibration, content, _ = calibrate_head(*given, "head.tflite")
    (tmp_path / "head.tflite").write_bytes(content)
    import msgspec

    fewer = msgspec.structs.replace(calibration, terms=calibration.terms[:1])
    with pytest.raises(ConfigError, match="a network of 1 terms"):
        open_head(tmp_path / "head.json", fewer, open_session)


def test_an_answer_that_is_no_probability_counts_as_none() -> None:
    class Broken:
        def input(self, index: int) -> np.ndarray:
            return np.zeros((1, 3), np.float32)

        def invoke(self) -> None: ...

        def output(self, index: int) -> np.ndarray:
            return np.full((1, 1), np.nan, np.float32)

    assert predict_with(Broken(), [0.0, 0.0, 0.0]) == 0.0  # type: ignore[arg-type]
