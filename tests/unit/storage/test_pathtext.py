"""Names that are no UTF-8."""

from __future__ import annotations

import os
from pathlib import Path

from agent.storage.pathtext import path_text


def test_bytes_that_are_no_utf8_are_spelled_out() -> None:
    assert path_text(Path(os.fsdecode(b"/tmp/b\xffd \xc3\xbc.vedette"))) == "/tmp/b\\xffd ü.vedette"


def test_any_other_text_stays_as_it_is() -> None:
    assert path_text("/tmp/übung: no such file") == "/tmp/übung: no such file"
