"""Lines of `watch`: gaps, verdicts, crossings, and what strangers send."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from agent.cli.watch import follow
from agent.comms import messages as payload
from agent.comms.consumer import Kind, ReceivedMessage
from agent.comms.messages import LineMessage
from agent.types import Detection, Verdict
from tests.support.publishing import event


def message(device: str, kind: Kind, body: bytes, stream: str = "") -> ReceivedMessage:
    return ReceivedMessage(f"vedette/{device}/{kind}", device, stream, kind, body, 0, False)


def numbered(seq: int, first_seq: int) -> bytes:
    return msgspec.json.encode(msgspec.json.decode(event()) | {"seq": seq, "first_seq": first_seq})


def test_what_was_lost_is_counted_and_the_jump_of_a_device_that_was_cut_off_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    came = [message("porch", "events", numbered(*one), "front") for one in ((1, 1), (3, 1), (10_001, 10_001))]
    follow(came, "what is seen")
    shown = [line.split("  ", 1)[1] for line in capsys.readouterr().out.splitlines() if "porch" in line]
    assert shown == [
        "porch 2: not received here",
        "porch 4 to 10000: not received here, or never given out: the device restarted",
    ]


def test_clips_and_detections_that_have_a_number_count_among_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clip = b'{"seq": 2, "first_seq": 1}'
    spooled, others = b'{"seq": 77, "spool_seq": 3, "first_seq": 1}', b'{"seq": 78}'
    came = [
        message("porch", "events", numbered(1, 1), "front"),
        message("porch", "clips", clip, "front"),
        message("porch", "detections", spooled, "front"),
        message("porch", "detections", others, "front"),
        message("porch", "clips", b"[" * 9999, "front"),
        message("porch", "events", numbered(4, 1), "front"),
    ]
    follow(came, "title")
    assert "not received here" not in capsys.readouterr().out


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
    shown = capsys.readouterr().out
    lines = [line for line in shown.splitlines() if "ng (scratch)" in line]
    assert len(lines) == 3
    assert all(part in lines[0] for part in ("line", "part 7", "0.91", "10 20 30 40", "41 ms"))
    assert "not received here" not in shown
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


def test_what_strangers_say_is_short_and_commands_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    came = [
        message("a\x1b[2J", "status", b"\x1b]0;x\x07" + b"y" * 10_000),
        message("c", "health", b"[" * 200_000),
        message("d", "events", b'{"id":' * 100_000),
    ]
    follow(came, "title")
    text = capsys.readouterr().out
    assert "\x1b[2J" not in text
    assert "\x07" not in text
    assert max(map(len, text.splitlines())) < 300
