"""`vedette teach` without a device: its arguments, and what it prints."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from agent.cli import teach as module
from agent.cli.main import vedette
from agent.comms.consumer import CommandReply

GOOD = {"right": 5, "unsure": 0, "wrong": 0}
STATES = {
    "gate": {
        "value": "open",
        "score": 0.98,
        "region": [0, 0.25, 0.5, 1],
        "examples": {"open": 5, "closed": 6},
        "detail": "",
    }
}


class Device:
    """A device that keeps what it is asked, and answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.reply: dict[str, Any] = {"ok": True, "reason": ""}

    def __call__(
        self, access: object, topics: Any, verb: str, body: dict[str, Any], timeout_s: float
    ) -> CommandReply:
        self.asked.append((verb, body))
        return CommandReply(self.reply["ok"], self.reply["reason"], self.reply)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    found = Device()
    monkeypatch.setattr("agent.comms.consumer.send_command", found)
    return found


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(vedette, ["teach", "--device", "porch", *words])
    return done.exit_code, f"{done.output}{done.exception}"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("front", "gate"), "--states"),
        (("front", "--value", "open"), "name the STATE"),
        (("front", "gate", "--states", "open,closed", "--value", "open"), "leave --value"),
        (("front", "gate", "--states", "open,closed"), "terminal"),
        (("front", "gate", "--states", "open,open"), "different values"),
        (("front", "gate", "--value", "open", "--region", "0,1"), "LEFT,TOP,RIGHT,BOTTOM"),
        (("front", "gate", "--value", "open", "--region", "a,b,c,d"), "LEFT,TOP,RIGHT,BOTTOM"),
        (("front", "gate", "--value", "open", "--examples", "21"), "1<=x<=20"),
    ],
)
def test_wrong_usage_says_what_to_give(words: tuple[str, ...], why: str, device: Device) -> None:
    code, output = run(*words)
    assert (code, why in output) == (2, True), output
    assert device.asked == []


def test_a_value_is_taught_and_its_check_is_shown(device: Device) -> None:
    device.reply |= {
        "examples": {"open": 5, "closed": 5},
        "check": {"open": GOOD, "closed": {**GOOD, "unsure": 2}},
    }
    code, output = run("front", "gate", "--value", "open", "--region", "0,0.25,0.5,1", "--examples", "5")
    assert code == 0
    assert device.asked == [
        ("status", {}),
        (
            "teach",
            {"state": "gate", "value": "open", "examples": 5, "region": (0.0, 0.25, 0.5, 1.0), "stream": "front"},
        ),
    ]
    assert "closed" in output
    assert "in other light" in " ".join(output.split())
    device.reply.pop("check")
    assert "at least 5 examples" in run("front", "gate", "--value", "open")[1]


def test_each_value_is_asked_for_at_a_terminal(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_is_terminal", lambda: True)
    device.reply |= {"examples": {"open": 10, "closed": 10}, "check": {"open": GOOD, "closed": GOOD}}
    device.reply |= {"streams": {"front": {"state": "running"}}}
    done = CliRunner().invoke(
        vedette, ["teach", "--device", "porch", "front", "gate", "--states", "open, closed"], input="\n\n"
    )
    assert done.exit_code == 0, done.output
    assert [body["value"] for verb, body in device.asked if verb == "teach"] == ["open", "closed"]
    assert done.stderr.count("press Enter") == 2


def test_nothing_is_asked_for_before_the_names_and_the_stream_are_known(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_is_terminal", lambda: True)
    device.reply |= {"streams": {"front": {"state": "running"}}}
    for words, why in (
        (("back", "gate", "--states", "open,closed"), "it has: front"),
        (("front", "a/b", "--states", "open,closed"), "no name of a state"),
        (("front", "gate", "--states", "open,unsure"), "no value"),
        (("front", "gate", "--states", "open,closed", "--region", "0,0,2,1"), "fractions"),
    ):
        code, output = run(*words)
        assert (code, why in output, "press Enter" in output) == (1, True, False), output
    assert {verb for verb, _ in device.asked} == {"status"}


def test_a_refusal_is_an_error_with_the_reason_of_the_device(device: Device) -> None:
    device.reply |= {"ok": False, "reason": "no stream 'front'"}
    code, output = run("front", "gate", "--value", "open")
    assert (code, "porch: no stream 'front'" in output) == (1, True)


def test_states_are_listed_and_forgotten(device: Device) -> None:
    device.reply |= {"streams": {"front": {"states": STATES}}}
    output = run("front")[1]
    assert "open 5, closed 6" in output
    assert json.loads(run("front", "--json")[1].removesuffix("None")) == STATES
    device.reply |= {"streams": {"front": {"state": "disabled"}}}
    assert "is disabled" in run("front")[1]
    device.reply |= {"streams": {"front": {"state": "running"}}}
    assert "no states are taught" in run("front")[1]
    assert "it has: front" in run("back")[1]
    assert "forgotten: gate open" in run("front", "gate", "--forget", "--value", "open")[1]
    assert device.asked[-1] == ("forget", {"state": "gate", "value": "open", "stream": "front"})


def test_words_are_asked_for_as_words(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_is_terminal", lambda: True)
    device.reply |= {"streams": {"front": {"state": "running", "sound": True, "states": {}}}}
    device.reply |= {"examples": {"stop": 4}}
    done = CliRunner().invoke(
        vedette,
        ["teach", "--device", "porch", "front", "command", "--states", "stop", "--examples", "4"],
        input="\n",
    )
    assert done.exit_code == 0, done.output
    assert "'stop' 4 times" in done.stderr
    assert "4 utterances" in done.stderr
    assert "picture" not in done.output
    device.reply |= {"check": {"stop": {**GOOD, "unsure": 1}}}
    assert "sound less alike" in " ".join(run("front", "command", "--value", "stop")[1].split())
