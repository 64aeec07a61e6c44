"""`vedette trace` without a device: its arguments, and the file that it writes."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from agent.cli import command as module
from agent.cli.main import vedette
from agent.comms.consumer import CommandReply
from agent.errors import BrokerError, StorageError
from agent.features.metrics.part import pack
from agent.spans import SpanRecorder
from tests.support.trace_events import read_trace


def answer(spans: int = 3) -> dict[str, Any]:
    recorder = SpanRecorder()
    for number in range(spans):
        recorder.add("commit", recorder.began_ns + number * 10_000, recorder.began_ns + number * 10_000 + 5000)
    return {"ok": True, "reason": "", **pack(recorder, {}, "porch", 10**6)}


class Device:
    """A device that keeps what it is asked, and answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, Any], float]] = []
        self.reply = answer()

    def __call__(
        self, access: object, topics: Any, verb: str, body: dict[str, Any], timeout_s: float
    ) -> CommandReply:
        self.asked.append((topics.device, verb, body, timeout_s))
        return CommandReply(self.reply["ok"], self.reply["reason"], self.reply)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Device:
    found = Device()
    monkeypatch.setattr("agent.comms.consumer.send_command", found)
    monkeypatch.chdir(tmp_path)
    return found


def run(*words: str) -> Any:
    return CliRunner().invoke(vedette, ["trace", "--device", "porch", *words])


def test_the_file_is_a_trace(device: Device) -> None:
    done = run("--for", "2s", "--output", "slow.json")
    assert done.exit_code == 0
    assert "slow.json: 3 spans of 1 thread" in done.output
    ((name, verb, body, timeout_s),) = device.asked
    assert (name, verb, body) == ("porch", "trace", {"seconds": 2.0})
    assert timeout_s > 2.0
    assert len(read_trace(Path("slow.json").read_bytes())[1]) == 3


def test_a_file_that_ends_with_gz_stays_compressed_and_json_says_what_was_written(device: Device) -> None:
    done = run("-o", "t.json.gz", "--json")
    assert json.loads(done.stdout)["spans"] == 3
    assert len(read_trace(gzip.decompress(Path("t.json.gz").read_bytes()))[1]) == 3


def test_what_did_not_fit_is_said(device: Device) -> None:
    device.reply |= {"dropped": 77, "covered_s": 1.5}
    done = run()
    assert "77 spans" in done.output
    assert "1.5 s" in done.output


@pytest.mark.parametrize("length", ["0s", "0.0001s", "121s", "3m", "-1s", "x", "1h"])
def test_a_length_that_is_not_allowed_is_refused_at_once(device: Device, length: str) -> None:
    assert run("--for", length).exit_code == 2
    assert device.asked == []


def test_a_folder_that_is_not_there_is_told_before_anything_is_recorded(device: Device) -> None:
    assert run("--output", "nowhere/t.json").exit_code == 2
    assert device.asked == []


def test_a_refusal_is_the_devices_words(device: Device) -> None:
    device.reply = {"ok": False, "reason": "a trace is being recorded already"}
    done = run()
    assert done.exit_code == 1
    assert "porch: a trace is being recorded already" in str(done.exception)
    assert not Path("trace.json").exists()


def zipped(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 1)).decode()


UNREADABLE: dict[str, Callable[[], object]] = {
    "none": lambda: None,
    "number": lambda: 5,
    "empty": lambda: "",
    "no base64": lambda: "!!!",
    "no gzip": lambda: base64.b64encode(b"no gzip").decode(),
    "no events": lambda: zipped(b"{}"),
    "no list": lambda: zipped(b'{"traceEvents": 5}'),
    "no events in it": lambda: zipped(b'{"traceEvents": [5]}'),
    "nested": lambda: zipped(b"[" * 100_000),
    "cut off": lambda: str(answer()["trace"])[:100],
    "far too large": lambda: zipped(b"[" * 80_000_000),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_answer_that_holds_no_trace_writes_nothing(tmp_path: Path, kind: str) -> None:
    with pytest.raises(BrokerError):
        module.write_trace(tmp_path / "t.json", UNREADABLE[kind]())
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        module.write_trace(tmp_path, answer()["trace"])
