"""Lines of `watch` for messages. `tests/system/test_watch.py` has the verb with a broker."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from agent.cli.command import command
from agent.cli.output import EVENT_COLUMNS, format_event
from agent.cli.watch import follow, json_line, watch
from agent.comms.consumer import BrokerOptions, Kind, ReceivedMessage, Subscriber
from agent.comms.messages import EventMessage
from agent.errors import BrokerError
from tests.support.publishing import event


def message(
    kind: Kind, payload: bytes, topic: str = "", stream: str = "front", device: str = "porch"
) -> ReceivedMessage:
    return ReceivedMessage(topic or f"vedette/porch/front/{kind}", device, stream, kind, payload, 0, False)


def drawn(*messages: ReceivedMessage) -> str:
    with redirect_stdout(io.StringIO()) as printed:
        follow(messages, "what is seen")
    return printed.getvalue()


@pytest.mark.parametrize("verb", [[watch], [command, "porch", "stop"]])
def test_a_host_with_a_password_is_refused_without_it(verb: list[Any]) -> None:
    result = CliRunner().invoke(verb[0], [*verb[1:], "--host", "mqtt://u:S3cr3t@localhost"])
    assert result.exit_code == 2
    assert "write only the name or the IP address of the broker" in result.output
    assert "S3cr3t" not in result.output


@pytest.mark.parametrize(
    ("kind", "payload", "body"),
    [
        ("events", b'{"a": [1, 2.5]}', {"a": [1, 2.5]}),
        ("health", b'{"rss_mb": 57.0,\n "x": null}', {"rss_mb": 57.0, "x": None}),
        ("status", b"online", "online"),
        ("count", b"3", "3"),
        ("snapshot", b"\xff\xd8\xff", {"jpeg_bytes": 3}),
        ("events", b"no json\n", "no json\n"),
        ("health", b"", ""),
        ("status", b"\xff", "�"),
        ("events", b'{"id": "\xff"}', '{"id": "�"}'),
        ("health", b"[" * 100_000, "[" * 100_000),
    ],
)
def test_a_message_is_one_line_of_json(kind: Kind, payload: bytes, body: object) -> None:
    line = json_line(message(kind, payload))
    assert "\n" not in line
    assert json.loads(line) == {"topic": f"vedette/porch/front/{kind}", "retained": False, "payload": body}


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("--prefix", "#", "expected a topic"),
        ("--prefix", "", "is empty"),
        ("--device", "a/b", "name of a device"),
        ("--device", "#", "expected a topic"),
    ],
)
def test_what_is_no_topic_is_a_mistake_in_usage(option: str, value: str, why: str) -> None:
    result = CliRunner().invoke(watch, [option, value])
    assert result.exit_code == 2
    assert why in result.output


def test_a_password_file_that_is_no_text_is_a_mistake_in_usage(tmp_path: Path) -> None:
    (tmp_path / "password").write_bytes(b"gr\xfc\xdfe")
    result = CliRunner().invoke(watch, ["--password-file", str(tmp_path / "password")])
    assert result.exit_code == 2
    assert "not UTF-8 at byte 2" in " ".join(result.output.split())


def test_a_ca_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(
        BrokerError, match=r"--ca-file = .*ca\.pem: not usable as PEM: no certificate or crl found"
    ):
        Subscriber(BrokerOptions(ca_file=str(tmp_path / "ca.pem")))


def test_the_port_is_that_of_tls_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def connect(client: object, host: str, port: int, keepalive: int) -> None:
        asked.append((host, port))
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr("paho.mqtt.client.Client.connect", connect)
    for options in ([], ["--tls"], ["--tls", "-p", "7"]):
        assert isinstance(CliRunner().invoke(watch, options).exception, BrokerError)
    assert asked == [("localhost", 1883), ("localhost", 8883), ("localhost", 7)]


def test_an_event_is_a_row() -> None:
    shown = drawn(message("events", event()))
    for words in ("what is seen", "front", "new (appeared)", "person 1", "0.90", "10 10 50 90", "20 ms"):
        assert words in shown


def changed(**fields: object) -> bytes:
    """An event with other fields; those of its track and its latency as dictionaries."""
    found = msgspec.json.decode(event())
    for key, value in fields.items():
        found[key] = found[key] | value if isinstance(value, dict) else value
    return msgspec.json.encode(found)


def test_a_crossed_line_is_named_with_its_direction() -> None:
    crossed = [{"line": "road", "direction": "out"}, {"line": "gate", "direction": "in"}]
    told = cells_of(changed(kind="update", reason="line", track={"crossed": crossed}))
    assert told["event"] == "update (line gate in)"
    assert cells_of(changed(kind="end", reason="lost", track={"crossed": crossed}))["event"] == "end (lost)"


def test_what_an_event_without_a_frame_does_not_have_is_a_dash() -> None:
    none = dict.fromkeys(("queue", "gate", "prepare", "infer", "decode", "track"), 0.0)
    ended = changed(kind="end", reason="shutdown", latency_ms={**none, "publish": 6.0, "total": 6.0})
    gated = changed(kind="end", reason="lost", latency_ms={**none, "gate": 2.0, "total": 8.0})
    assert (cells_of(ended)["infer"], cells_of(ended)["total"]) == ("–", "–")
    assert (cells_of(gated)["infer"], cells_of(gated)["total"]) == ("–", "8 ms")


def cells_of(payload: bytes) -> dict[str, str]:
    return format_event(msgspec.json.decode(payload, type=EventMessage))


def test_without_a_terminal_every_event_is_a_line_as_it_comes(capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []

    def messages() -> Iterator[ReceivedMessage | None]:
        yield message("status", b"on\x1bline", stream="")
        for number in range(30):
            yield message("events", event(stream=f"s{number}"))
            lines.extend(capsys.readouterr().out.splitlines())
            yield None
        yield message("snapshot", b"\xff\xd8")

    follow(messages(), "what is seen")
    assert capsys.readouterr().out == ""
    title, header, status, *rows = lines
    assert title == "what is seen"
    assert header.split() == [word for name in EVENT_COLUMNS for word in name.split()]
    assert status.endswith("porch on\\x1bline")
    assert [row.split()[2] for row in rows] == [f"s{number}" for number in range(30)]
    assert all("new (appeared)" in row and row.index("person 1") == header.index("what") for row in rows)


def test_strangers_cannot_command_the_terminal() -> None:
    hostile = event().replace(b'"person"', b'"[/red]\\u001b[2J"').replace(b'"appeared"', b'"[bold]"')
    shown = drawn(message("events", hostile), message("status", b"\x1b[2J", device="a\x1bb"))
    assert "\x1b[2J" not in shown
    assert "[/red]\\x1b[2J" in shown
    assert "new ([bold])" in shown


def test_a_verdict_on_the_whole_picture_has_no_box() -> None:
    assert "everywhere" in drawn(message("events", changed(track={"box": None})))


def test_what_is_no_event_is_left_out() -> None:
    assert "new (" not in drawn(message("events", b"{}"), message("snapshot", b"\xff\xd8"))
    for body in (event().replace(b'"person"', b'"\xff"'), b'{"x":' + b"[" * 100_000):
        assert "new (" not in drawn(message("events", body), message("health", body, stream=""))
