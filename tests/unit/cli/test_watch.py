"""What `watch` makes of a message. The verb itself meets a broker in `tests/system/test_watch.py`."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from agent.cli.table import EventTable
from agent.cli.watch import json_line, watch
from agent.comms.payload import EventMessage
from agent.comms.subscriber import Access, Kind, Received, Subscriber
from agent.errors import BrokerError
from tests.support.publishing import event


def message(
    kind: Kind, payload: bytes, topic: str = "", stream: str = "front", device: str = "porch"
) -> Received:
    return Received(topic or f"vedette/porch/front/{kind}", device, stream, kind, payload, 0, False)


def drawn(*messages: Received, width: int = 140) -> str:
    table = EventTable("what is seen")
    for one in messages:
        table.add(one)
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


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
    ],
)
def test_a_message_is_one_line_of_json(kind: Kind, payload: bytes, body: object) -> None:
    line = json_line(message(kind, payload))
    assert "\n" not in line
    assert json.loads(line) == {"topic": f"vedette/porch/front/{kind}", "retained": False, "payload": body}


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("--prefix", "#", "is no topic"),
        ("--prefix", "", "is no topic"),
        ("--device", "a/b", "is no device"),
        ("--device", "#", "is no topic"),
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
    with pytest.raises(BrokerError, match=r"ca\.pem: not usable as PEM: no certificate or crl found"):
        Subscriber(Access(ca_file=str(tmp_path / "ca.pem")))


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
    for words in ("what is seen", "front", "new (appeared)", "person 1", "0.90", "0.10 0.10 0.50 0.90"):
        assert words in shown


def test_a_narrow_terminal_shows_less_but_in_full() -> None:
    shown = drawn(message("events", event()), width=80)
    assert "new (appeared)" in shown
    assert "person 1" in shown
    assert "0.10 0.10" not in shown
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_the_newest_rows_stay() -> None:
    shown = drawn(*(message("events", event(stream=f"s{n}")) for n in range(30)))
    assert "s29" in shown
    assert "s13" not in shown


def test_devices_and_counts_stand_below() -> None:
    count = message("count", b"2", "vedette/porch/front/count/person")
    shown = drawn(message("status", b"online", stream=""), count)
    assert "porch online" in shown
    assert "porch/front person: 2" in shown
    assert "person" not in drawn(count, message("count", b"", "vedette/porch/front/count/person"))


def test_strangers_cannot_command_the_terminal() -> None:
    hostile = event().replace(b'"person"', b'"[/red]\\u001b[2J"').replace(b'"appeared"', b'"[bold]"')
    shown = drawn(message("events", hostile), message("status", b"\x1b[2J", device="a\x1bb"))
    assert "\x1b[2J" not in shown
    assert "[/red]?[2J" in shown
    assert "new ([bold])" in shown


def test_a_verdict_on_the_whole_picture_has_no_box() -> None:
    import msgspec
    from msgspec.structs import replace

    whole = msgspec.json.decode(event(), type=EventMessage)
    whole = replace(whole, track=replace(whole.track, box=None))
    assert "whole picture" in drawn(message("events", msgspec.json.encode(whole)))


def test_what_is_no_event_is_left_out() -> None:
    assert "new" not in drawn(message("events", b"{}"), message("snapshot", b"\xff\xd8"))
