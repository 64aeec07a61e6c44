"""Text from outside commands no terminal, forges no line of the log, and can be sent as JSON."""

from __future__ import annotations

import logging
import os
from io import StringIO
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import VedetteError
from agent.text import PlainFormatter, plain

HOSTILE = "\x1b]0;owned\x07\x1b[31mRED\x9b2J\x7f\u202e\u2028\x85\rnew\nERROR forged"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/tmp/übung: no such file", "/tmp/übung: no such file"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("a\r\nb\tc", "a\\r\\nb\\tc"),
        ("\x9b\x7f\x85", "\\x9b\\x7f\\x85"),
        ("\u202eabc\u2028\U000e0001", "\\u202eabc\\u2028\\U000e0001"),
        (str(Path(os.fsdecode(b"/tmp/b\xffd \xc3\xbc"))), "/tmp/b\\xffd ü"),
        ("\ud800", "\\ud800"),
        ("a\u3164\u115f\u1160\uffa0\u2800b", "a\\u3164\\u115f\\u1160\\uffa0\\u2800b"),
        ("한국 \u2764\ufe0f", "한국 \u2764\ufe0f"),
    ],
)
def test_what_is_not_printable_is_an_escape(text: str, shown: str) -> None:
    assert plain(text) == shown


@given(st.text(st.characters()))
def test_any_text_becomes_printable_and_utf8(text: str) -> None:
    assert plain(text).isprintable()
    assert plain(text, keep="\n").replace("\n", "").isprintable()
    plain(text).encode()


def test_an_error_quotes_no_control_characters_and_can_be_sent() -> None:
    text = str(VedetteError(f"cam: {HOSTILE}\ud800\nsecond line"))
    assert text.splitlines() == [
        "cam: " + plain(HOSTILE.partition("\n")[0]),
        "ERROR forged\\ud800",
        "second line",
    ]
    assert msgspec.json.encode(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://u:p w@cam: no such file", "rtsp://***@cam: no such file"),
        ("rtsp:/u:p@ss@cam/x.tflite: no such file", "rtsp:/***@cam/x.tflite: no such file"),
        ("no backend 'rtsp://u@cam'; known: a@b", "no backend 'rtsp://***@cam'; known: a@b"),
        ("/a.toml:3: file:/home/a@b: missing", "/a.toml:3: file:/home/a@b: missing"),
        ("rtsp://***: write / # @ : as %23", "rtsp://***: write / # @ : as %23"),
        ("rtsp://a:b@c\nd@e", "rtsp://***@c\nd@e"),
    ],
)
def test_an_error_quotes_no_login(text: str, shown: str) -> None:
    assert str(VedetteError(text)) == shown


@pytest.fixture
def written() -> tuple[logging.Logger, StringIO]:
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PlainFormatter("%(levelname)s %(message)s"))
    log = logging.Logger("of this test")
    log.addHandler(handler)
    return log, stream


def test_a_record_is_one_printable_line(written: tuple[logging.Logger, StringIO]) -> None:
    log, stream = written
    log.warning("the broker says %s", HOSTILE)
    assert stream.getvalue() == f"WARNING the broker says {plain(HOSTILE)}\n"


def test_a_traceback_keeps_its_lines_and_forges_no_record(written: tuple[logging.Logger, StringIO]) -> None:
    log, stream = written
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        log.exception("a defect")
    first, *rest = stream.getvalue().splitlines()
    assert first == "ERROR a defect"
    assert rest[0] == "  Traceback (most recent call last):"
    assert rest[-1] == "  ERROR forged"
    assert all(line.startswith("  ") and line.isprintable() for line in rest)
