from __future__ import annotations

import json

from click.testing import CliRunner, Result

from agent.cli.main import vedette


def call(*args: object) -> Result:
    return CliRunner().invoke(vedette, ["models", "recommend", *map(str, args)])


def test_the_table_has_the_command_of_each_figure_and_what_to_set() -> None:
    done = call("--task", "detect", "--board", "pi4b", "--fps", "15", "--memory", "100M")
    assert done.exit_code == 0, done.exception
    assert "scripts/bench/run accuracy" in done.output
    assert "vedette bench nanodet --board pi4b --variant 320 --fps 15" in done.output
    assert 'model = "nanodet"\nvariant = "320"\nthreads = 3\n' in done.output
    assert "left out: nanodet 416: takes " in done.output


def test_a_model_of_the_workshop_is_told_with_the_commands_that_make_it() -> None:
    done = call("--task", "classify")
    assert done.exit_code == 0, done.exception
    assert "tiny (tiny)" in done.output
    for verb in ("train tiny parts.tflite", "prune parts.tflite", "quantise parts-small.tflite"):
        assert f"\nvedette optimise {verb}" in done.output


def test_json_has_every_row() -> None:
    rows = json.loads(call("--task", "speech", "--json").stdout)
    assert [row["variant"] for row in rows] == ["12", "6", "4", "3"]
    assert rows[1]["family"] == "small"
    assert all(row["prediction"]["ms"] > 0 for row in rows)


def test_none_that_fits_is_an_exit_code() -> None:
    done = call("--task", "detect", "--board", "pi-zero2w", "--fps", "500")
    assert done.exit_code == 1
    assert "no model fits" in done.output
    assert call("--task", "detect", "--memory", "10k").exit_code == 1


def test_what_cannot_be_asked_for_is_told() -> None:
    for size in ("lots", "0M", "-1M", "1T"):
        done = call("--task", "detect", "--memory", size)
        assert done.exit_code == 2
        assert "expected a size such as 100M" in done.output
    assert call().exit_code == 2
    assert "there is no such task" in str(call("--task", "chess").exception)
