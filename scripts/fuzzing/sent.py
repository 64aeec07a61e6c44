"""Parsers of what strangers send over the broker, and of what lay in the spool."""

from __future__ import annotations

import io
from contextlib import redirect_stdout, suppress

from agent.capture.source import jpeg_size
from agent.cli.watch import follow, json_line
from agent.comms.commands import check_answer_topic, id_of, request_command, set_command
from agent.comms.consumer import Kind, ReceivedMessage
from agent.comms.messages import complete_spooled
from agent.comms.topics import Topics
from agent.errors import VedetteError
from agent.types import Stored

EVENT = (
    b'{"id":"6f1d","device":"porch","stream":"front","kind":"new","reason":"appeared","track":{"id":"front-1",'
    b'"label":"person","score":0.9,"best_score":0.9,"hits":3,"first_seen":"2026-01-02T03:04:05.678Z",'
    b'"last_seen":"2026-01-02T03:04:05.678Z","box":[0.1,0.1,0.5,0.9],"zones":["door"]},'
    b'"captured_at":"2026-01-02T03:04:05.678Z","latency_ms":{"queue":1.0,"gate":0.5,"prepare":1.0,"infer":20.0,'
    b'"decode":1.0,"track":0.1,"publish":0.0,"total":0.0},"model":{"name":"nanodet","sha256":"0123456789ab"},'
    b'"backend":"cpu","variant":"416","seq":7}'
)
_HEALTH = (
    b'{"version":"0.1.0","at":"2026-01-02T03:04:05Z","uptime_s":60.0,"streams":{"front":{"state":"running",'
    b'"fps":10.0,"inferences_per_s":8.0,"infer_ms":40.0,"frames":1000,"dropped":0,"reopened":0,"tracks":1}},'
    b'"spool":{"waiting":0,"bytes":0,"dropped":0,"on":"disk"},"rss_mb":90.0,"temperature_c":55.0,"hot":false}'
)
_KINDS: tuple[Kind, ...] = ("events", "health", "status", "count", "snapshot", "detections")


def watched(data: bytes) -> None:
    """Handle a message as `watch` does: the first byte is its kind, two lines are its sender."""
    kind = _KINDS[data[0] % len(_KINDS)] if data else "status"
    device, _, rest = data[1:].partition(b"\n")
    stream, _, payload = rest.partition(b"\n")
    names = tuple(name.decode(errors="replace") for name in (device, stream))
    message = ReceivedMessage(
        f"vedette/{names[0]}/{names[1]}/{kind}", names[0], names[1], kind, payload, 0, False
    )
    json_line(message)
    jpeg_size(payload)
    other = ReceivedMessage("vedette/b/status", "b", "", "status", b"online", 0, False)
    with redirect_stdout(io.StringIO()) as printed:
        follow((message, other), "all")
    shown = printed.getvalue()
    assert all(letter.isprintable() or letter == "\n" for letter in shown), (
        "a control character reaches the terminal"
    )


def watched_seeds() -> list[bytes]:
    bodies = [EVENT, _HEALTH, b"online", b"3", b"\xff\xd8\xff\xc0\x00\x11\x08\x00\x10\x00\x10", b"{}"]
    return [bytes([number]) + b"porch\nfront\n" + body for number, body in enumerate(bodies)]


def commanded(data: bytes) -> None:
    """Two lines and a payload: what is to be set or done, where the answer is wanted, and the rest."""
    what, _, rest = data.partition(b"\n")
    answer, _, payload = rest.partition(b"\n")
    words, topic, topics = (
        what.decode(errors="replace"),
        answer.decode(errors="replace"),
        Topics("vedette", "porch"),
    )
    id_of(payload)
    for parser in (
        lambda: set_command("front", words, payload),
        lambda: request_command(words, payload),
        lambda: check_answer_topic(topic, topics, words),
    ):
        with suppress(VedetteError):
            parser()


def commanded_seeds() -> list[bytes]:
    settings = (
        (b"enabled", b"on"),
        (b"threshold", b"0.25"),
        (b"variant", b"auto"),
        (b"zone/door", b"off"),
        (b"record", b"9"),
    )
    asked = b'{"id": "1", "stream": "front", "what": "threshold", "value": 0.5}'
    requests = (
        (b"set", asked),
        (b"record", b'{"stream": "front", "seconds": 9}'),
        (b"doctor", b""),
        (b"status", b"{}"),
    )
    return [what + b"\nhouse/answers/7\n" + payload for what, payload in (*settings, *requests)]


def finished(data: bytes) -> None:
    complete_spooled(Stored(1, "vedette/porch/front/events", data, 0.0))
