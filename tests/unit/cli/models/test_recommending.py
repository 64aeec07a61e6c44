from __future__ import annotations

import json

from click.testing import CliRunner, Result

from agent.cli.main import vedette


def call(*args: object) -> Result:
    return CliRunner().invoke(vedette, ["models", "recommend", *map(str, args)])


def test_the_table_has_every_variant_with_the_command_of_its_accuracy() -> None:
    done = call("--task", "detect", "--board", "pi4b")
    assert done.exit_code == 0, done.exception
    assert "Raspberry Pi 4B" in done.output
    for variant in ("416", "320", "256"):
        assert f"nanodet {variant}" in done.output
    assert "scripts/bench/run accuracy" in done.output


def test_a_model_of_the_workshop_is_told_with_the_commands_that_make_it() -> None:
    done = call("--task", "classify")
    assert done.exit_code == 0, done.exception
    assert "tiny (tiny)" in done.output
    for verb in ("train tiny parts.tflite", "prune parts.tflite", "quantise parts-small.tflite"):
        assert f"vedette optimise {verb}" in done.output


def test_json_has_every_row() -> None:
    (model,) = json.loads(call("--task", "speech", "--json").stdout)
    assert [row["name"] for row in model["variants"]] == ["12", "6", "4", "3"]
    assert model["variants"][1]["family"] == "small"


def test_what_cannot_be_asked_for_is_told() -> None:
    assert call().exit_code == 2
    assert "no task 'chess'" in str(call("--task", "chess").exception)
    assert "no board 'pi44b'; did you mean 'pi4b'" in str(call("--task", "face", "--board", "pi44b").exception)
