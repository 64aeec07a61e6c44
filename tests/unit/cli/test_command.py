"""Arguments and answers of `vedette command`. `tests/system/test_command.py` has it with real devices."""

from __future__ import annotations

import json
import sys
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from agent.__main__ import main
from agent.cli import command as module
from agent.cli.command import command
from agent.comms import consumer
from agent.comms.commands import request_command
from agent.comms.consumer import BrokerOptions, CommandReply, NoAnswerError
from agent.comms.topics import Topics
from agent.errors import BrokerError


@pytest.mark.parametrize(
    ("words", "verb", "body"),
    [
        ("status", "status", {}),
        ("reload", "reload", {}),
        ("doctor", "doctor", {}),
        ("front enabled off", "set", {"stream": "front", "what": "enabled", "value": "off"}),
        ("front threshold 0.5", "set", {"stream": "front", "what": "threshold", "value": "0.5"}),
        ("front reset", "reset", {"stream": "front"}),
        ("front reset gate", "reset", {"stream": "front", "line": "gate"}),
        ("front zone/drive default", "set", {"stream": "front", "what": "zone/drive", "value": "default"}),
        ("status enabled off", "set", {"stream": "status", "what": "enabled", "value": "off"}),
        ("front snapshot", "snapshot", {"stream": "front"}),
        ("front record 2m", "record", {"stream": "front", "seconds": 120.0}),
    ],
)
def test_words_are_a_request_that_a_device_understands(words: str, verb: str, body: dict[str, Any]) -> None:
    import msgspec

    assert module._request(tuple(words.split())) == (verb, body)
    command, _ = request_command(verb, msgspec.json.encode(body))
    assert command.verb == verb


@pytest.mark.parametrize("words", ["front", "reboot", "front enabled", "front enabled off now", "front record x"])
def test_other_words_are_wrong_usage(words: str) -> None:
    with pytest.raises(click.UsageError):
        module._request(tuple(words.split()))


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("front record", "STREAM WHAT VALUE"),
        ("front enabled", "STREAM WHAT VALUE"),
        ("front zone/drive", "STREAM WHAT VALUE"),
        ("front snapshot 5", "snapshot takes no value"),
    ],
)
def test_a_missing_value_is_named_and_one_too_many_too(words: str, why: str) -> None:
    with pytest.raises(click.UsageError, match=why):
        module._request(tuple(words.split()))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Answers that are given in turn: an `CommandReply`, or an error."""
    answers: list[Any] = []

    def ask(
        access: BrokerOptions, topics: Topics, verb: str, body: dict[str, Any], timeout_s: float
    ) -> CommandReply:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, CommandReply)
        return answer

    monkeypatch.setattr(consumer, "send_command", ask)
    return answers


def call(*words: str) -> Result:
    return CliRunner().invoke(command, ["porch", *words], catch_exceptions=False)


def test_done_and_refused_have_each_their_exit_code(asked: list[Any]) -> None:
    asked += [
        CommandReply(True, "", {}),
        CommandReply(True, "", {"topic": "vedette/porch/front/snapshot"}),
        CommandReply(False, "no stream \x1b[2J", {}),
    ]
    done = [call("front", "enabled", "off"), call("front", "snapshot"), call("x", "variant", "1")]
    assert [one.exit_code for one in done] == [0, 0, 1]
    assert [one.output for one in done] == [
        "done\n",
        "done: vedette/porch/front/snapshot\n",
        "refused: no stream \\x1b[2J\n",
    ]


def test_what_is_decoded_is_part_of_the_status(asked: list[Any]) -> None:
    streams = {"front": {"state": "running", "detail": "", "decoding": "packets"}, "hall": {"state": "running"}}
    asked.append(CommandReply(True, "", {"device": "porch", "version": "1", "streams": streams}))
    lines = call("status").output.splitlines()
    assert lines[1:] == ["  front  running  decoding=packets", "  hall  running"]


def test_an_error_is_printed_as_json_too(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error, code in ((NoAnswerError("porch is offline"), 3), (BrokerError("no broker"), 1)):
        asked.append(error)
        monkeypatch.setattr(sys, "argv", ["vedette", "command", "porch", "status", "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        assert (ended.value.code, json.loads(shown.out)) == (code, {"error": str(error)})
        assert shown.err == f"vedette: {error}\n"


def test_the_status_is_a_line_for_each_stream(asked: list[Any]) -> None:
    one = {
        "state": "running",
        "threshold": 0.5,
        "variant": "416",
        "states": {"gate": {"value": "open"}, "door": {"value": None}},
        "zones": {"drive": False},
        "lines": {"gate": True},
        "filters": {"cats": False},
        "only_moving": True,
        "motion_masks": False,
        "set_by_command": ["variant"],
    }
    back = {"state": "lost", "detail": "rtsp://camera/: no picture for 10 s", "enabled": True}
    streams = {"front": one, "back": back, "x\n": {}}
    body = {"device": "porch", "version": "0.1.0", "streams": streams, "waits_for_restart": ["[device] name"]}
    asked += [CommandReply(True, "", body)] * 2
    assert call("status").output.splitlines() == [
        "porch, Vedette 0.1.0",
        "  front  running  threshold=0.5  variant=416  gate=open  door=unknown  zone/drive=off  "
        "line/gate=on  filter/cats=off  only_moving=on  motion_masks=off  (set by command: variant)",
        "  back  lost: rtsp://camera/: no picture for 10 s",
        "  x\\n  None",
        "waits for a restart: [device] name",
    ]
    assert call("--json", "status").output.startswith('{"device":"porch"')


def test_a_clip_that_is_recorded_is_not_there_yet(asked: list[Any]) -> None:
    asked += [CommandReply(True, "", {"path": "/clips/front/a.mp4"})]
    assert call("front", "record", "20s").output.endswith(" /clips/front/a.mp4\n")


@pytest.mark.parametrize("device", ["a/b", "+", "#", ""])
def test_a_device_is_one_and_has_a_name(device: str) -> None:
    done = CliRunner().invoke(command, [device, "status"])
    assert done.exit_code == 2
