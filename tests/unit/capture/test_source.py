"""User names and passwords of cameras that do not stand in their URIs."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.capture.source import with_login
from agent.config import CaptureConfig
from agent.config.source_uri import parse
from agent.errors import SourceError


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "cam").write_text("p@ss/w:rd#?%\nanother line")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    return "$CREDENTIALS_DIRECTORY/cam"


def test_the_password_is_in_the_target_and_nowhere_else(secret: str) -> None:
    address = with_login(parse("rtsp://cam:8554/live?x=1"), CaptureConfig(username="ann", password_file=secret))
    assert address.target == "rtsp://ann:p%40ss%2Fw%3Ard%23%3F%25@cam:8554/live?x=1"
    assert "p%40" not in repr(address)
    assert address.masked == "rtsp://cam:8554"


def test_the_uri_may_name_the_user(secret: str) -> None:
    target = with_login(parse("rtsp://ann@cam/"), CaptureConfig(password_file=secret)).target
    assert target.startswith("rtsp://ann:p%40")


def test_what_is_configured_counts_more_than_the_uri(secret: str) -> None:
    config = CaptureConfig(username="bea", password_file=secret)
    assert with_login(parse("rtsp://ann:Zx9@cam/"), config).target.startswith("rtsp://bea:p%40")
    assert with_login(parse("rtsp://ann:Zx9@cam/"), CaptureConfig(username="bea")).target == "rtsp://bea:Zx9@cam/"


@given(st.text(min_size=1), st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]), min_size=1))
def test_any_account_survives_the_uri(tmp_path_factory: pytest.TempPathFactory, user: str, password: str) -> None:
    file = tmp_path_factory.getbasetemp() / "any"
    file.write_text(password, encoding="utf-8")
    if file.read_bytes().startswith(b"\xef\xbb\xbf"):
        return  # the mark that editors of Windows write is none of the password
    user = user.encode("utf-8", "replace").decode()
    target = with_login(parse("http://cam/x"), CaptureConfig(username=user, password_file=str(file))).target
    parts = urlsplit(target)
    assert (unquote(parts.username or ""), unquote(parts.password or "")) == (user, password)
    assert parts.hostname == "cam"


@pytest.mark.parametrize(
    ("uri", "fields", "wants"),
    [
        ("v4l2:/dev/video0", {"username": "ann"}, "are for rtsp:"),
        ("rtsp://cam/", {"password_file": "/nothing"}, "username is not"),
        ("rtsp://ann@cam/", {"password_file": "/nothing"}, "password_file = /nothing: No such file"),
        ("rtsp://ann@cam/", {"password_file": "$CREDENTIALS_DIRECTORY/x"}, "CREDENTIALS_DIRECTORY is not set"),
    ],
)
def test_what_does_not_go_together_is_named(
    monkeypatch: pytest.MonkeyPatch, uri: str, fields: dict[str, str], wants: str
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(SourceError) as caught:
        with_login(parse(uri), CaptureConfig(**fields))  # type: ignore[arg-type]
    assert wants in str(caught.value)
    assert "Zx9" not in str(caught.value)
