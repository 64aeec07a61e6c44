"""A running daemon counts who crosses a line, over a restart, until the counts are reset."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.cli.demo import CLIP
from tests.support.mosquitto import Mosquitto
from tests.support.operator import Operator
from tests.support.publishing import TOPICS
from tests.support.received import Messages
from tests.support.running import Vedette, camera, events

KERB = {"name": "kerb", "points": [[0.72, 0.3], [0.7, 0.8]], "labels": ["person"]}
LINE = TOPICS.line("front", "kerb")


@pytest.fixture
def vedette(tmp_path: Path, broker: Mosquitto) -> Iterator[Vedette]:
    """A street with people, without an end."""
    source = f"file:{CLIP}?pace=fast&loop=1"
    front = camera("nanodet", source, lines=[KERB], publish={"snapshot": False})
    with Vedette(tmp_path, broker, front=front) as running:
        yield running


@pytest.fixture
def operator(broker: Mosquitto) -> Operator:
    return Operator(broker)


def counted(messages: Messages) -> list[dict[str, Any]]:
    return [json.loads(body) for body in messages.of(LINE) if body]


def crossings(messages: Messages) -> int:
    newest = counted(messages)[-1:]
    return sum(one["in"] + one["out"] for one in newest)


def test_crossings_are_told_counted_kept_over_a_restart_and_reset(vedette: Vedette, operator: Operator) -> None:
    operator.messages.wait(lambda m: crossings(m) >= 2)
    first = next(one for one in events(operator.messages) if one.reason == "line")
    assert (first.kind, first.track.crossed[-1].line, first.track.label) == ("update", "kerb", "person")
    vedette.end()
    before, known = counted(operator.messages)[-1], len(counted(operator.messages))
    assert before["labels"] == {"person": {"in": before["in"], "out": before["out"]}}
    vedette.start()
    operator.messages.wait(lambda m: len(counted(m)) > known)
    after = counted(operator.messages)[known]
    assert after["since"] == before["since"]
    assert after["in"] + after["out"] >= before["in"] + before["out"]
    assert operator.ask("reset", stream="front", line="kerb")["ok"]
    operator.messages.wait(lambda m: counted(m)[-1]["since"] > before["since"])
    anew = next(one for one in counted(operator.messages) if one["since"] > before["since"])
    assert (anew["in"], anew["out"]) == (0, 0)
    vedette.wait_said("command: stream front: crossings of kerb count anew")
    refused = operator.ask("reset", stream="front", line="curb")
    assert refused["reason"] == "stream front has no line 'curb'; it has: kerb"


def test_a_line_is_switched_off_and_removed_by_a_reload(vedette: Vedette, operator: Operator) -> None:
    operator.wait_state("front", "line/kerb", "on")
    operator.wait_state("front", "only_moving", "off")
    operator.set("front", "line/kerb", "off")
    operator.wait_state("front", "line/kerb", "off")
    vedette.config["streams"]["front"]["lines"] = []
    vedette.reload()
    operator.messages.wait(lambda m: m.of(LINE)[-1:] == [b""])
    operator.messages.wait(lambda m: m.of(TOPICS.state("front", "line/kerb"))[-1:] == [b""])


def test_filters_and_motion_masks_are_switched_and_stay_so_after_a_restart(
    vedette: Vedette, operator: Operator
) -> None:
    operator.wait_state("front", "only_moving", "off")
    front = vedette.config["streams"]["front"]
    front["filters"] = [{"name": "people", "labels": ["person"], "max_area": 0.0}]
    front["gate"] = {"masks": [[[0.0, 0.0], [1.0, 0.0], [1.0, 0.1], [0.0, 0.1]]]}
    vedette.reload()
    operator.wait_state("front", "filter/people", "on")
    operator.wait_state("front", "motion_masks", "on")
    operator.set("front", "motion_masks", "off")
    operator.wait_state("front", "motion_masks", "off")
    seen = len(events(operator.messages))
    operator.set("front", "filter/people", "off")
    operator.wait_state("front", "filter/people", "off")
    operator.messages.wait(lambda m: ("new", "person") in {(e.kind, e.track.label) for e in events(m)[seen:]})
    vedette.end()
    told = len(operator.states("front", "filter/people"))
    vedette.start()
    operator.messages.wait(lambda _: len(operator.states("front", "filter/people")) > told)
    operator.wait_state("front", "filter/people", "off")
    operator.wait_state("front", "motion_masks", "off")
