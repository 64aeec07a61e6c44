from __future__ import annotations

import json

import pytest

from agent.config.load import parse
from agent.errors import ModelError
from agent.models.fetch import SAME_TASKS, catalogue, known_tasks
from agent.models.files import ZOO
from agent.models.predict import known_boards, predict_model
from agent.models.recommend import TASKS, bundled_for, known_models, memory_of, recommend
from tests.support.running import ROOT

RECORDED = ROOT / "scripts" / "bench" / "optimise" / "recorded.json"
BENCHES = ROOT / "scripts" / "bench"


@pytest.mark.parametrize("task", TASKS)
def test_each_task_has_models_whose_toml_the_daemon_takes(task: str) -> None:
    rows = recommend(task, "pi5", fps=1.0)
    assert rows
    for row in rows:
        if row.prediction is None:  # a wake word without its package
            assert "pip install" in row.left_out
            continue
        (stream,) = parse(row.toml, "the guide").config.streams.values()
        assert stream.threads == row.prediction.threads
        assert stream.variant == row.variant


def test_latency_and_size_are_those_of_the_file() -> None:
    rows = {row.variant: row for row in recommend("detect", "pi4b") if row.model == "nanodet"}
    for variant in predict_model("nanodet", "pi4b").variants:
        assert rows[variant.variant].prediction in variant.predictions
    assert rows["416"].left_out.startswith("takes ")
    assert rows["256"].memory < rows["320"].memory < 20e6
    assert rows["256"].bytes == (ZOO / "nanodet.tflite").stat().st_size


def test_what_fits_comes_first_and_is_most_accurate_first() -> None:
    rows = recommend("detect", "pi5")
    assert [row.variant for row in rows if row.model == "nanodet"] == ["416", "320", "256"]
    slow = recommend("detect", "pi-zero2w", fps=10)
    assert [bool(row.left_out) for row in slow] == sorted(bool(row.left_out) for row in slow)


def test_where_no_model_keeps_up_those_of_pictures_are_proposed_at_a_rate_that_they_reach() -> None:
    (row,) = recommend("inspect", "pi4b")
    assert row.prediction is not None
    assert (row.left_out, row.reaches) == ("", "yes")
    assert row.fps < 15.0
    assert f"max_fps = {row.fps:g}" in row.toml
    assert recommend("inspect", "pi4b", fps=15.0)[0].left_out.startswith("takes ")
    assert recommend("speech", "pi-zero2w", fps=100_000.0)[0].left_out.startswith("takes ")


def test_too_much_memory_is_a_reason() -> None:
    rows = recommend("inspect", "pi5", fps=1.0, memory=1_000_000)
    assert "of memory, more than 1 MB" in rows[0].left_out
    assert memory_of(100, 50, 20) == 200


def test_three_families_are_named() -> None:
    families = {family: one.name for one in known_models() for family in one.families.values()}
    assert families == {"small": "small-speech", "tiny": "tiny", "medium": "inspection"}


def test_every_model_of_the_catalogue_is_known_with_its_size() -> None:
    known = {one.name: one for one in known_models()}
    for listed in catalogue():
        assert known[listed.name].bytes == listed.bytes
        assert known[listed.name].what == (listed.accuracy or "no accuracy is published")


def test_each_accuracy_has_a_command_that_exists_and_a_figure() -> None:
    kept = json.loads(RECORDED.read_text("utf-8"))
    for one in known_models():
        assert set(one.figures) == set(one.accuracy)
        assert set(one.noisy_figures) == set(one.noisy)
        assert one.task in TASKS
        if one.accuracy:
            bench = one.command.removeprefix("scripts/bench/run ").split()[0]
            assert (BENCHES / f"{bench}.py").is_file()
        if one.recorded:
            figures = kept[one.recorded]["figures"]
            assert {variant: round(figures[key], 3) for variant, key in one.figures.items()} == one.accuracy
            assert {variant: round(figures[key], 3) for variant, key in one.noisy_figures.items()} == one.noisy


def test_words_have_the_accuracy_of_all_that_listens_in_quiet_and_in_noise() -> None:
    rows = recommend("speech", "pi4b")
    assert rows
    figures = json.loads(RECORDED.read_text("utf-8"))["speech_accuracy"]["figures"]
    for row in rows:
        assert row.accuracy == round(figures[f"clean_events{row.variant}"], 3)
        assert row.noisy == round(figures[f"10dB_events{row.variant}"], 3)


def test_an_unknown_task_or_board_is_told_with_those_that_are_known() -> None:
    with pytest.raises(ModelError, match="speech, wakeword, classify"):
        recommend("chess", "pi4b")
    with pytest.raises(ModelError) as raised:
        recommend("speech", "laptop")
    assert all(name in str(raised.value) for name in known_boards())


def test_the_guide_has_every_task_and_every_board() -> None:
    page = (ROOT / "agent" / "guide" / "choosing.md").read_text(encoding="utf-8")
    for name, board in known_boards().items():
        assert f"| `{name}` | {board.title.partition(' at 2.')[0]}" in page
    assert all(f"`{task}`" in page for task in TASKS)


def test_a_task_may_be_called_as_in_the_catalogue() -> None:
    assert recommend("detection", "pi5") == recommend("detect", "pi5")
    assert bundled_for("face detection") == bundled_for("face")
    assert set(SAME_TASKS) <= set(TASKS), "each is a word of the recommendations"
    assert set(SAME_TASKS.values()) <= set(known_tasks())
