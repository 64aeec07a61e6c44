from __future__ import annotations

import json

import pytest

from agent.errors import ModelError
from agent.models.fetch import SAME_TASKS, catalogue, guide, known_for, known_tasks
from agent.models.files import ZOO
from tests.support.running import ROOT

TASKS = guide().tasks

RECORDED = ROOT / "scripts" / "bench" / "optimise" / "recorded.json"
BENCHES = ROOT / "scripts" / "bench"


@pytest.mark.parametrize("task", TASKS)
def test_each_task_has_models_with_a_latency_on_every_board(task: str) -> None:
    models = known_for(task, "pi5")
    assert models
    for model in models:
        for row in model.variants:
            assert set(row.ms) == set(guide().boards)
            assert all(one >= four and four < upper for one, four, upper in row.ms.values())


def test_sizes_are_those_of_the_file_and_a_smaller_picture_takes_less() -> None:
    nanodet = next(one for one in known_for("detect", "pi4b") if one.name == "nanodet")
    assert [row.name for row in nanodet.variants] == ["416", "320", "256"]
    assert {row.bytes for row in nanodet.variants} == {(ZOO / "nanodet.tflite").stat().st_size}
    large, middle, small = nanodet.variants
    assert large.memory > middle.memory > small.memory
    assert large.ms["pi4b"] > middle.ms["pi4b"] > small.ms["pi4b"]


def test_three_families_are_named() -> None:
    families = {row.family: model.name for model in guide().models for row in model.variants if row.family}
    assert families == {"small": "small-speech", "tiny": "tiny", "medium": "inspection"}


def test_every_model_of_the_catalogue_is_known_with_its_size() -> None:
    known = {one.name: one for one in guide().models}
    for listed in catalogue():
        assert known[listed.name].variants[0].bytes == listed.bytes
        assert known[listed.name].what == (listed.accuracy or "no accuracy is published")


def test_each_accuracy_has_a_command_that_exists_and_a_figure() -> None:
    kept = json.loads(RECORDED.read_text("utf-8"))
    for model in guide().models:
        for row in model.variants:
            assert (row.accuracy is None, row.noisy is None) == (not row.figure, not row.noisy_figure)
            if row.accuracy is not None:
                bench = model.command.removeprefix("scripts/bench/run ").split()[0]
                assert (BENCHES / f"{bench}.py").is_file()
            if model.recorded:
                figures = kept[model.recorded]["figures"]
                assert row.accuracy == round(figures[row.figure], 3)
                assert row.noisy is None or row.noisy == round(figures[row.noisy_figure], 3)


def test_an_unknown_task_or_board_is_told_with_those_that_are_known() -> None:
    with pytest.raises(ModelError) as raised:
        known_for("chess", "pi4b")
    assert all(task in str(raised.value) for task in TASKS)
    with pytest.raises(ModelError) as raised:
        known_for("speech", "laptop")
    assert all(name in str(raised.value) for name in guide().boards)


def test_the_guide_has_every_task_and_every_board() -> None:
    page = (ROOT / "agent" / "guide" / "choosing.md").read_text(encoding="utf-8")
    for name, title in guide().boards.items():
        assert f"| `{name}` | {title.partition(' at 2.')[0]}" in page
    assert all(f"`{task}`" in page for task in TASKS)


def test_words_for_tasks_of_the_catalogue_are_tasks() -> None:
    assert set(SAME_TASKS) <= set(TASKS)
    assert set(SAME_TASKS.values()) <= set(known_tasks())
