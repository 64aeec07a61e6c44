from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.decode.classes import NO_WORD, Keyword
from agent.compute.decode.decoder import DecoderContext
from agent.compute.manifest import OutputManifest
from agent.compute.tflite.model import TensorSpec
from agent.compute.track.keywords import KeywordSpotter, StuckOutputDetector
from agent.config import DecodeConfig
from agent.errors import ModelError
from agent.types import Array

pytestmark = pytest.mark.numerics

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LABELS = ("yes", "no", "unknown", "silence")


def decoder(*labels: str, threshold: float = 0.6, wanted: tuple[str, ...] = (), **options: object) -> Keyword:
    output = OutputManifest("keyword", labels or LABELS, threshold, options=options)
    specs = (
        TensorSpec("hidden", (1, 9, 4), "int8", 0.1),
        TensorSpec("scores", (1, len(labels or LABELS)), "float32"),
    )
    return Keyword(DecoderContext(output, (), specs, DecodeConfig(labels=wanted)))


def tell(
    words: KeywordSpotter, answers: Sequence[tuple[float, ...]], every_s: float = 0.1
) -> list[tuple[int, str]]:
    """Index of the answer at which each word was told."""
    told = []
    for n, scores in enumerate(answers):
        at_ns = round(n * every_s * 1e9)
        at = NOW + timedelta(seconds=n * every_s)
        for event in words.update(np.array(scores, np.float32), at_ns, at, every_s):
            assert (event.kind, event.reason, event.track.last_seen) == ("keyword", "word", at)
            told.append((n, event.track.label))
    return told


def test_a_word_is_told_once_while_it_lasts() -> None:
    answers = [
        (0.0, 0.0, 0.1, 0.9),
        *[(0.9, 0.0, 0.1, 0.0)] * 8,
        *[(0.0, 0.0, 0.1, 0.9)] * 3,
        (0.9, 0.0, 0.1, 0.0),
    ]
    assert tell(KeywordSpotter(decoder(refractory_s=0.5), "s"), answers) == [(1, "yes"), (12, "yes")]


def test_the_refractory_time_is_kept() -> None:
    answers = [(0.9, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0)] * 6
    assert tell(KeywordSpotter(decoder(refractory_s=0.5), "s"), answers) == [(0, "yes"), (6, "yes")]


def test_a_word_that_sinks_a_little_is_not_told_again() -> None:
    answers = [(0.9, 0.0, 0.0, 0.0), (0.5, 0.0, 0.0, 0.0)] * 20
    assert len(tell(KeywordSpotter(decoder(refractory_s=0.0), "s"), answers)) == 1


def test_the_mean_decides_and_needs_all_its_answers() -> None:
    words = KeywordSpotter(decoder("alexa", threshold=0.9, mean_of=3), "s")
    assert tell(words, [(1.0,), (1.0,)]) == []
    words = KeywordSpotter(decoder("alexa", threshold=0.9, mean_of=3), "s")
    assert tell(words, [(0.0,), (1.0,), (1.0,), (0.8,), (1.0,)]) == [(3, "alexa")]


def test_what_is_no_word_is_never_told_and_only_the_best_is() -> None:
    assert tell(KeywordSpotter(decoder(), "s"), [(0.0, 0.0, 0.9, 0.1), (0.0, 0.0, 0.0, 1.0)]) == []
    assert tell(KeywordSpotter(decoder(threshold=0.3), "s"), [(0.4, 0.5, 0.0, 0.0)]) == [(0, "no")]
    assert tell(KeywordSpotter(decoder(threshold=0.3), "s"), [(0.4, 0.0, 0.5, 0.0)]) == []


def test_only_the_wanted_labels_are_told() -> None:
    answers = [(0.9, 0.0, 0.0, 0.0), (0.0, 0.9, 0.0, 0.0)]
    assert tell(KeywordSpotter(decoder(wanted=("no",)), "s"), answers) == [(1, "no")]
    with pytest.raises(ModelError, match="did you mean 'yes'"):
        decoder(wanted=("yess",))


def test_ids_are_unique_and_scores_are_the_mean() -> None:
    words = KeywordSpotter(decoder(refractory_s=0.0), "kitchen", run="r")
    (one,) = words.update(np.array([0.8, 0.0, 0.0, 0.2], np.float32), 0, NOW, 0.1)
    words.update(np.array([0.0, 0.0, 0.0, 1.0], np.float32), 10**8, NOW, 0.1)
    (two,) = words.update(np.array([0.7, 0.0, 0.0, 0.2], np.float32), 2 * 10**8, NOW, 0.1)
    assert (one.track.id, two.track.id) == ("kitchen-r-1", "kitchen-r-2")
    assert two.track.score == pytest.approx(0.7)


def test_runs_tell_their_ids_apart_by_32_random_bits() -> None:
    (one,) = KeywordSpotter(decoder(), "kitchen").update(np.array([0.8, 0.0, 0.0, 0.2], np.float32), 0, NOW, 0.1)
    assert re.fullmatch(r"kitchen-[0-9a-f]{8}-1", one.track.id)


def test_a_word_is_told_until_its_mean_has_fallen() -> None:
    words = KeywordSpotter(decoder(mean_of=2, refractory_s=0.0), "s")
    tell(words, [(0.9, 0.0, 0.0, 0.1)] * 2)
    assert words.continuing == {0}
    tell(words, [(0.1, 0.0, 0.0, 0.9)])
    assert words.continuing == {0}, "0.5 is not half of 0.6"
    tell(words, [(0.1, 0.0, 0.0, 0.9)])
    assert words.continuing == set()


def test_what_is_no_word_is_one_answer() -> None:
    def verdict(made: Keyword, *scores: float) -> tuple[int, float]:
        label, confidence = made.verdict(np.array(scores, np.float32))
        return label, round(confidence, 5)

    assert verdict(decoder(), 0.4, 0.05, 0.3, 0.25) == (NO_WORD, 0.55)
    assert verdict(decoder(), 0.1, 0.6, 0.3, 0.0) == (1, 0.6)
    assert verdict(decoder(wanted=("yes",)), 0.1, 0.6, 0.3, 0.0) == (NO_WORD, 0.9)
    assert verdict(decoder("unknown", "silence"), 0.3, 0.7) == (NO_WORD, 1.0)


@given(scores=st.lists(st.floats(0.001, 1.0), min_size=4, max_size=4))
def test_a_verdict_is_at_least_as_sure_as_the_best_label(scores: list[float]) -> None:
    shares = np.array(scores, np.float32) / np.float32(sum(scores))
    label, confidence = decoder().verdict(shares)
    assert confidence >= shares.max() - 1e-6
    assert label in (NO_WORD, 0, 1)


def test_logits_become_probabilities_at_a_temperature() -> None:
    made = decoder(logits=True)
    outputs: list[Array] = [np.zeros((1, 9, 4), np.int8), np.array([[2.0, 0.0, 0.0, np.nan]], np.float32)]
    sharp, soft = made.probabilities(outputs, 0.5), made.probabilities(outputs, 4.0)
    assert sharp[0] > soft[0] > 1 / 3
    assert sharp.sum() == pytest.approx(1.0)
    assert sharp[3] == 0.0


def test_the_alarm_goes_off_once_for_an_answer_that_never_moves() -> None:
    def heard(number: int) -> Array:
        return np.array([number % 7], np.int8)

    alarm, same = StuckOutputDetector(0.5, lambda: False), np.array([0.2, 0.8], np.float32)
    assert sum(alarm.update(same, heard(n)) for n in range(1000)) == 1
    assert "file is broken" in alarm.text
    assert not alarm.update(same + 0.1, heard(0))
    assert alarm.text == ""
    assert sum(alarm.update(np.array([n % 2, 0.0], np.float32), heard(n)) for n in range(1000)) == 0


def test_the_alarm_asks_once_whether_the_model_moves() -> None:
    asked: list[int] = []

    def moves() -> bool:
        asked.append(1)
        return True

    alarm, same = StuckOutputDetector(0.5, moves), np.zeros(1, np.float32)
    assert not any(alarm.update(same, np.array([n % 2])) for n in range(2000))
    assert (alarm.text, asked) == ("", [1])


def test_an_input_that_never_moves_is_the_front_ends_fault() -> None:
    alarm = StuckOutputDetector(0.5, lambda: True)
    assert sum(alarm.update(np.zeros(1, np.float32), np.zeros(3)) for _ in range(1000)) == 1
    assert "[audio]" in alarm.text
