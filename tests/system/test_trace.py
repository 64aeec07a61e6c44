"""`vedette trace` of a running daemon: what its threads did, as a file that the format allows."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from agent.cli.main import vedette as program
from tests.support.doubles import person_model
from tests.support.mosquitto import HOST, Mosquitto
from tests.support.operator import Operator
from tests.support.running import Vedette, camera, hear
from tests.support.trace_events import read_trace


def test_every_thread_shows_its_work(tmp_path: Path, broker: Mosquitto) -> None:
    operator = Operator(broker)
    file = tmp_path / "trace.json"
    access = ("-H", HOST, "-p", str(broker.port), "--device", "porch")
    with Vedette(tmp_path, broker, front=camera(person_model(tmp_path), clips={})) as vedette:
        hear(operator.messages, 2)
        done = CliRunner().invoke(
            program, ["trace", *access, "--for", "2s", "-o", str(file)], catch_exceptions=False
        )
        assert done.exit_code == 0, done.output
        assert vedette.said("command: trace for 2 s")
    process, slices = read_trace(file.read_bytes())
    assert process == "vedette porch"
    seen: dict[str, set[str]] = {}
    for one in slices:
        seen.setdefault(one.thread, set()).add(one.name)
    assert seen["stream-front"] >= {"wait", "frame", "gate", "prepare", "infer", "decode", "track", "report"}
    assert "encode" in seen["clips-front"]
    assert "commit" in seen["spool-writer"]
    assert "send" in seen["mqtt"]
    numbers = [one.args["number"] for one in slices if one.name == "frame"]
    assert numbers == sorted(set(numbers))
    assert len(numbers) > 10
    assert max(one.end for one in slices) < 3_000_000


def test_a_length_that_is_not_allowed_and_a_second_trace_are_refused(tmp_path: Path, broker: Mosquitto) -> None:
    operator = Operator(broker)
    with Vedette(tmp_path, broker, front=camera(person_model(tmp_path))):
        hear(operator.messages, 1)
        for seconds in (-1, 121, "x", None, 1e300):
            assert operator.ask("trace", seconds=seconds)["ok"] is False
        operator.request("trace", b'{"seconds": 2}', operator.topics.answer("trace"), b"first")
        refused = operator.ask("trace", seconds=1)
        assert (refused["ok"], "already" in refused["reason"]) == (False, True)
        operator.messages.wait(lambda m: m.of(operator.topics.answer("trace")))
        assert operator.ask("trace", seconds=0.1)["ok"] is True
        assert operator.ask("trace", seconds=0)["reason"] == "no trace is being recorded"
        came = len(operator.messages.of(operator.topics.answer("trace")))
        operator.request("trace", b'{"seconds": 120}', operator.topics.answer("trace"), b"long")
        operator.request("trace", b'{"seconds": 0}', operator.topics.answer("trace"), b"end")
        operator.messages.wait(lambda m: len(m.of(operator.topics.answer("trace"))) == came + 2)
