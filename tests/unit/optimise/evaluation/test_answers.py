"""Results that are kept: what is taken over, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import ModelError
from agent.models.library import open_model
from agent.optimise.evaluation.answers import KeptResults, model_key, result_key
from agent.optimise.evaluation.listening import HeardWord


def test_what_was_kept_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "results"
    with KeptResults(path) as kept:
        kept.add("one", "a.wav", HeardWord("yes", 1.5, 1 / 3))
    with KeptResults(path) as kept:
        assert kept.get("one", HeardWord) == HeardWord("yes", 1.5, 1 / 3)
        assert kept.get("two", HeardWord) is None
        assert kept.reused == 1


def test_results_are_kept_after_an_error(tmp_path: Path) -> None:
    def fails() -> None:
        with KeptResults(tmp_path / "results") as kept:
            kept.add("one", "a.wav", [1.0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert KeptResults(tmp_path / "results").get("one", list[float]) == [1.0]


def test_a_line_that_was_cut_off_is_left_out_and_ended(tmp_path: Path) -> None:
    path = tmp_path / "results"
    with KeptResults(path) as kept:
        kept.add("one", "a", [1.0])
        kept.add("two", "b", [2.0])
    path.write_bytes(path.read_bytes()[:-9])
    with KeptResults(path) as kept:
        assert kept.get("one", list[float]) == [1.0]
        assert kept.get("two", list[float]) is None
        kept.add("two", "b", [2.0])
    assert KeptResults(path).get("two", list[float]) == [2.0]


def test_a_result_of_another_kind_is_computed_anew(tmp_path: Path) -> None:
    with KeptResults(tmp_path / "results") as kept:
        kept.add("one", "a", [1.0])
    again = KeptResults(tmp_path / "results")
    assert again.get("one", HeardWord) is None
    assert again.reused == 0


def test_a_file_of_something_else_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("milk\nbread\n")
    with pytest.raises(ModelError, match="is no file of results"):
        KeptResults(path)
    assert path.read_text() == "milk\nbread\n"
    with pytest.raises(ModelError, match="a folder"):
        KeptResults(tmp_path)


def test_without_a_file_nothing_is_kept() -> None:
    with KeptResults() as kept:
        kept.add("one", "a", [1.0])
    assert kept.get("one", list[float]) is None


def test_a_key_depends_on_every_part() -> None:
    assert result_key("a", "b") != result_key("ab")
    model = open_model("small-speech")
    assert model_key(model, "") == model_key(model, "")
    assert model_key(model, "") != model_key(model, "3")
    assert model_key(model, "") != model_key(open_model("nanodet"), "")
