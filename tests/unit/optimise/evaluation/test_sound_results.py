"""Results that are kept: what is taken over, and what is not."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import pytest

from agent.errors import ModelError
from agent.models.library import open_model
from agent.optimise.evaluation.listening import HeardWord
from agent.optimise.evaluation.sound import KeptResults, model_key, result_key

T = TypeVar("T")


def given(kept: KeptResults, key: str, kind: type[T], new: T) -> T:
    return kept.computed(key, f"{key}.wav", kind, lambda: new)


def test_what_was_kept_is_taken_over(tmp_path: Path) -> None:
    path, word = tmp_path / "results", HeardWord("yes", 1.5, 1 / 3)
    assert given(KeptResults(path), "one", HeardWord, word) == word
    kept = KeptResults(path)
    assert given(kept, "one", HeardWord, HeardWord("no", 0.0, 0.0)) == word
    assert given(kept, "two", HeardWord, HeardWord("no", 0.0, 0.0)).label == "no"
    assert kept.reused == 1


def test_a_line_that_was_cut_off_is_left_out_and_ended(tmp_path: Path) -> None:
    path = tmp_path / "results"
    for key in ("one", "two"):
        given(KeptResults(path), key, list[float], [1.0])
    path.write_bytes(path.read_bytes()[:-9])
    kept = KeptResults(path)
    assert [given(kept, key, list[float], [2.0]) for key in ("one", "two")] == [[1.0], [2.0]]
    assert given(KeptResults(path), "two", list[float], [3.0]) == [2.0]


def test_a_result_of_another_kind_is_computed_anew(tmp_path: Path) -> None:
    given(KeptResults(tmp_path / "results"), "one", list[float], [1.0])
    again = KeptResults(tmp_path / "results")
    assert given(again, "one", HeardWord, HeardWord("no", 0.0, 0.0)).label == "no"
    assert again.reused == 0


def test_a_file_of_something_else_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("milk\nbread\n")
    with pytest.raises(ModelError, match="is no file of results"):
        KeptResults(path)
    assert path.read_text() == "milk\nbread\n"
    with pytest.raises(ModelError, match="a folder"):
        KeptResults(tmp_path)


def test_a_key_depends_on_every_part() -> None:
    assert result_key("a", "b") != result_key("ab")
    model = open_model("small-speech")
    assert model_key(model, "") == model_key(model, "")
    assert model_key(model, "") != model_key(model, "3")
    assert model_key(model, "") != model_key(open_model("nanodet"), "")
