"""Rows of `watch` for a fleet: one for each device, those in trouble first, within bounds."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from agent.cli.watch import DEVICE_COLUMNS, MOST, DeviceStatus, Roster, fleet_lines, follow, follow_fleet
from agent.comms import messages as payload
from agent.comms.consumer import Kind, ReceivedMessage
from agent.comms.messages import LineMessage
from agent.health import HealthMessage, SpoolHealth, StreamHealth
from agent.types import Detection, Verdict
from tests.support.publishing import event


def message(device: str, kind: Kind, body: bytes, stream: str = "") -> ReceivedMessage:
    return ReceivedMessage(f"vedette/{device}/{kind}", device, stream, kind, body, 0, False)


def health(*states: str, waiting: int = 0, version: str = "0.1.0", **more: object) -> bytes:
    streams = {f"s{n}": StreamHealth(state, fps=10.0) for n, state in enumerate(states)}
    spool = SpoolHealth(waiting, 0, 0, "disk")
    told = HealthMessage(version, datetime.now(UTC), 60.0, streams, spool, 90.0, 55.4)
    return msgspec.json.encode(msgspec.to_builtins(told) | more)


def roster(*messages: ReceivedMessage) -> Roster:
    made = Roster()
    for one in messages:
        made.add(one)
    return made


def only(*messages: ReceivedMessage) -> DeviceStatus:
    (device,) = roster(*messages)
    return device


def test_a_device_is_a_row() -> None:
    device = only(
        message("porch", "status", b"online"),
        message("porch", "health", health("running", "lost", waiting=7)),
        message("porch", "events", event(), "front"),
    )
    row = device.cells()
    assert list(row) == list(DEVICE_COLUMNS)
    assert row["device"] == "porch"
    assert (row["status"], row["streams"], row["fps"], row["temp"]) == ("online", "1/2", "20.0", "55 °C")
    assert (row["waiting"], row["version"]) == ("7", "0.1.0")
    assert row["last event"].startswith("front: person new, ")


def test_what_a_device_has_not_said_is_a_dash() -> None:
    assert set(list(only(message("porch", "status", b"online")).cells().values())[2:]) == {"–"}
    assert only(message("porch", "events", event())).cells()["status"] == "unknown"


def test_of_a_device_that_is_away_nothing_is_shown_as_if_it_were_so_now() -> None:
    row = only(message("porch", "health", health("running")), message("porch", "status", b"offline")).cells()
    assert (row["streams"], row["fps"], row["temp"], row["waiting"]) == ("0/1", "–", "–", "–")
    assert row["version"] == "0.1.0"


@pytest.mark.parametrize(
    ("status", "body", "trouble"),
    [
        (b"online", health("running", "ended", "disabled"), ""),
        (b"online", health("running", "degraded"), "degraded"),
        (b"online", health("failed", "lost"), "failed"),
        (b"online", health("running", hot=True), "hot"),
        (b"offline", health("running"), "offline"),
        (b"stopped", health("failed"), ""),
    ],
)
def test_trouble_is_what_somebody_should_look_at(status: bytes, body: bytes, trouble: str) -> None:
    assert only(message("porch", "status", status), message("porch", "health", body)).trouble == trouble


def fleet(count: int) -> list[ReceivedMessage]:
    return [message(f"d{number:03}", "status", b"online") for number in range(count)]


def test_those_in_trouble_come_first_then_those_that_have_stopped() -> None:
    made = roster(*fleet(4), message("d002", "status", b"stopped"), message("d003", "status", b"offline"))
    assert [device.name for device in made] == ["d003", "d002", "d000", "d001"]
    assert made.summary() == "4 devices, 2 online, 0 of 0 streams up, 1 in trouble"


def test_a_table_has_as_many_rows_as_there_is_room_for_and_says_how_many_are_left() -> None:
    header, *rows, left, summary = fleet_lines(roster(*fleet(100)), 20)
    assert header.startswith("device")
    assert [row.split()[0] for row in rows] == [f"d{number:03}" for number in range(20)]
    assert left == "and 80 more"
    assert summary == "100 devices, 100 online, 0 of 0 streams up, 0 in trouble"


def test_one_device_is_no_plural() -> None:
    assert roster(*fleet(1)).summary() == "1 device, 1 online, 0 of 0 streams up, 0 in trouble"


def test_an_empty_fleet_is_a_line() -> None:
    assert list(fleet_lines(Roster()))[-1] == "0 devices, 0 online, 0 of 0 streams up, 0 in trouble"


def test_a_device_that_was_removed_from_the_broker_is_gone() -> None:
    assert len(roster(message("porch", "status", b"online"), message("porch", "status", b""))) == 0


def test_made_up_devices_fill_no_memory() -> None:
    made = roster(*(message(f"d{number}", "status", b"online") for number in range(MOST + 5)))
    assert len(made) == MOST


def test_what_strangers_say_is_short_and_commands_nothing() -> None:
    made = roster(
        message("a\x1b[2J", "status", b"\x1b]0;x\x07" + b"y" * 10_000),
        message("b", "health", health("[bold]", version="v" * 10_000)),
        message("c", "health", b"[" * 200_000),
        message("d", "events", b'{"id":' * 100_000),
    )
    text = "\n".join(fleet_lines(made))
    assert "\x1b[2J" not in text
    assert "\x07" not in text
    assert max(map(len, text.splitlines())) < 200


def test_piped_it_is_printed_once_when_it_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    follow_fleet([None, *fleet(3), message("d001", "health", health("running"))])
    header, *rows, summary = capsys.readouterr().out.splitlines()
    assert header.split() == [word for name in DEVICE_COLUMNS for word in name.split()]
    assert [row.split()[:3] for row in rows] == [
        ["d000", "online", "–"],
        ["d001", "online", "1/1"],
        ["d002", "online", "–"],
    ]
    assert summary.startswith("3 devices, 3 online")


def numbered(seq: int, first_seq: int) -> bytes:
    return msgspec.json.encode(msgspec.json.decode(event()) | {"seq": seq, "first_seq": first_seq})


def test_what_was_lost_is_counted_and_the_jump_of_a_device_that_was_cut_off_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    came = [message("porch", "events", numbered(*one), "front") for one in ((1, 1), (3, 1), (10_001, 10_001))]
    assert roster(*came).summary().endswith(", 1 message not received here")
    assert not roster(*came[1:]).summary().endswith("received here")
    follow(came, "what is seen")
    shown = [line.split("  ", 1)[1] for line in capsys.readouterr().out.splitlines() if "porch" in line]
    assert shown == [
        "porch 2: not received here",
        "porch 4 to 10000: no loss: the device restarted and skipped numbers",
    ]


def test_clips_and_detections_that_have_a_number_count_among_the_others() -> None:
    clip = b'{"seq": 2, "first_seq": 1}'
    spooled, others = b'{"seq": 77, "spool_seq": 3, "first_seq": 1}', b'{"seq": 78}'
    device = only(
        message("porch", "events", numbered(1, 1), "front"),
        message("porch", "clips", clip, "front"),
        message("porch", "detections", spooled, "front"),
        message("porch", "detections", others, "front"),
        message("porch", "clips", b"[" * 9999, "front"),
        message("porch", "events", numbered(4, 1), "front"),
    )
    assert device.numbers.lost == 0


def verdict(seq: int, kind: Verdict = "ng", **more: object) -> bytes:
    detections = (Detection("scratch", 0.91, (0.1, 0.2, 0.3, 0.4)),)
    told = payload.VerdictMessage(
        payload.new_id(),
        *("porch", "line", "line-539ca273-7", kind, "scratch", 0.91, 1, detections, datetime.now(UTC), 41.2),
        *(True, "", payload.ModelId("castings", "0123456789ab"), "cpu", "full", seq, 1),
    )
    return msgspec.json.encode(msgspec.to_builtins(told) | more)


def test_a_verdict_is_a_line_and_a_row_and_has_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    came = [message("porch", "verdicts", verdict(seq), "line") for seq in (1, 2, 3)]
    follow(came, "title")
    lines = [line for line in capsys.readouterr().out.splitlines() if "ng (scratch)" in line]
    assert len(lines) == 3
    assert all(part in lines[0] for part in ("line", "part 7", "0.91", "10 20 30 40", "41 ms"))
    assert only(*came).numbers.lost == 0
    follow([message("porch", "verdicts", verdict(4, part="LOT-7-0033"), "line")], "title")
    assert "part LOT-7-0033" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["verdicts", "inspection"])
def test_what_another_client_sends_in_their_place_is_left_out(
    kind: Kind, capsys: pytest.CaptureFixture[str]
) -> None:
    bodies = [b"{", b"[]", b"\xff", verdict(1, verdict="maybe"), verdict(1, part="\x1b[2J" * 3, views="many")]
    follow([message("porch", kind, body, "line") for body in bodies], "title")
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_the_crossings_of_a_line_are_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    told = LineMessage("porch", "front", "gate", 3, 2, datetime(2026, 1, 1, tzinfo=UTC))
    follow(
        [message("porch", "line", msgspec.json.encode(told), "front"), message("porch", "line", b"{")], "title"
    )
    *_, shown = capsys.readouterr().out.splitlines()
    assert shown.endswith("porch/front gate: 3 in, 2 out")
