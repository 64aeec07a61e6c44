from __future__ import annotations

import errno
import os

import pytest

from agent.errors import reason_of


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/x"), "Permission denied"),
        (OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), "x" * 300), "File name too long"),
        (ValueError("embedded null byte"), "embedded null byte"),
        (EOFError(), "EOFError"),
    ],
)
def test_a_reason_has_words_and_no_number(error: Exception, words: str) -> None:
    assert reason_of(error) == words
