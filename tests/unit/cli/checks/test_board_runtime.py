from __future__ import annotations

import sys

import pytest

from agent.cli.checks.board import check_runtime, installed

NEEDED = {"numpy": "1", "opencv": "4", "paho-mqtt": "2", "sounddevice": "0.5"}


@pytest.mark.parametrize(
    ("there", "name", "state", "said"),
    [
        ({"ai-edge-litert": "2.3.0"}, "ai-edge-litert", "ok", "2.3.0"),
        ({"tflite-runtime": "2.14.0"}, "tflite-runtime", "warning", "2.14.0"),
        ({}, "ai-edge-litert", "problem", "no TFLite runtime is installed"),
    ],
)
def test_what_runs_the_models(there: dict[str, str], name: str, state: str, said: str) -> None:
    found = {one.name: one for one in check_runtime(lambda package: {**NEEDED, **there}.get(package, ""))}
    assert found[name].state == state
    assert said in found[name].value
    assert found["packages"].value == "numpy 1, opencv 4, paho-mqtt 2, sounddevice 0.5"
    assert [one.name for one in found.values() if one.state != "ok"] == [name] * (state != "ok")


def test_what_is_missing_is_a_problem_and_how_to_get_it() -> None:
    found = {one.name: one for one in check_runtime(lambda package: "" if package == "paho-mqtt" else "1")}
    assert found["paho-mqtt"].state == "problem"
    assert found["paho-mqtt"].advice == f"{sys.executable} -m pip install paho-mqtt"


def test_versions_of_this_environment() -> None:
    assert installed("msgspec")
    assert not installed("no-such-distribution")
