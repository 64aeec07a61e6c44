"""Files that are fetched over HTTP, from a real server that misbehaves."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errors import ModelError, StorageError
from agent.models import fetch as module
from agent.models.fetch import check_file, fetch, file_name_of
from tests.support.fileserver import FileServer, file_server

CONTENT = os.urandom(1_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(module, "_WAIT_S", 0.01)
    with file_server() as made:
        made.files["/a.tflite"] = CONTENT
        yield made


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "a.tflite"


def test_a_file_is_fetched_once_with_progress(server: FileServer, target: Path) -> None:
    told: list[tuple[int, int]] = []
    fetch(f"{server.url}/a.tflite", target, SHA256.upper(), progress=lambda *one: told.append(one))
    assert target.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert len(told) > 2
    assert not fetch(f"{server.url}/a.tflite", target, SHA256)
    assert server.asked == [""]


def test_a_connection_that_breaks_off_is_gone_on_from(server: FileServer, target: Path) -> None:
    server.cuts, server.cut_after = 7, 100_000
    fetch(f"{server.url}/a.tflite", target, SHA256)
    assert target.read_bytes() == CONTENT
    assert server.asked == ["", *(f"bytes={100_000 * number}-" for number in range(1, 8))]


def test_an_interrupted_call_is_gone_on_from(server: FileServer, target: Path) -> None:
    def interrupt(there: int, _total: int) -> None:
        if there > 300_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(f"{server.url}/a.tflite", target, SHA256, progress=interrupt)
    assert 300_000 < target.stat().st_size < len(CONTENT)
    fetch(f"{server.url}/a.tflite", target, SHA256)
    assert target.read_bytes() == CONTENT
    assert server.asked[1].startswith("bytes=")


@pytest.mark.parametrize("there", [CONTENT[:5000], b"another file", CONTENT + b"more", b"x" * len(CONTENT)])
@pytest.mark.parametrize("ranges", [True, False])
def test_what_was_there_before_does_not_spoil_the_file(
    server: FileServer, target: Path, there: bytes, ranges: bool
) -> None:
    server.ranges = ranges
    target.write_bytes(there)
    fetch(f"{server.url}/a.tflite", target, SHA256)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"<!doctype html><title>Sign in</title>", "sends an HTML page, not the file"),
        (b"\n  <html>", "sends an HTML page"),
        (b"another", "the server sends another file: its sha256 is"),
        (b"", "the server sends nothing"),
    ],
)
def test_another_file_is_refused_and_removed(server: FileServer, target: Path, content: bytes, why: str) -> None:
    server.files["/a.tflite"] = content
    with pytest.raises(ModelError, match=why) as error:
        fetch(f"{server.url}/a.tflite", target, SHA256)
    assert str(error.value).startswith(f"{server.url}/a.tflite: ")
    assert not target.exists()


def test_a_server_that_fails_for_a_while_is_asked_again(server: FileServer, target: Path) -> None:
    server.fails = 2
    fetch(f"{server.url}/a.tflite", target, SHA256)
    server.fails = 100
    with pytest.raises(ModelError, match=r"503.*try again"):
        fetch(f"{server.url}/b.tflite", target.with_name("b"), SHA256)


def test_a_server_that_has_no_such_file_or_does_not_answer_is_told(server: FileServer, target: Path) -> None:
    with pytest.raises(ModelError, match="the server answers 404"):
        fetch(f"{server.url}/none.tflite", target, SHA256)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/a.tflite"
        with pytest.raises(ModelError, match=r"cannot be fetched: .*refused.*; try again"):
            fetch(url, target, SHA256)
    assert not target.exists()


def test_a_server_that_sends_nothing_is_told(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STALL_S", 0.1)
    monkeypatch.setattr(module, "_WAIT_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a.tflite"
        with pytest.raises(ModelError, match="timed out; try again"):
            fetch(url, target, SHA256)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\n", "'abc'"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "SSH-2.0-OpenSSH_9.6"),
    ],
)
def test_a_server_that_talks_nonsense_is_told_in_words(target: Path, answer: bytes, why: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def reply() -> None:
            with listener.accept()[0] as peer:
                peer.recv(4096)
                peer.sendall(answer)

        thread = threading.Thread(target=reply, daemon=True)
        thread.start()
        with pytest.raises(ModelError) as error:
            fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/a.tflite", target, SHA256)
        thread.join()
    assert why in str(error.value)


def test_redirections_are_followed_to_http_alone(server: FileServer, target: Path) -> None:
    server.redirects = {"/moved.tflite": "/a.tflite", "/file.tflite": "file:///etc/passwd", "/round": "/round"}
    fetch(f"{server.url}/moved.tflite", target, SHA256)
    assert target.read_bytes() == CONTENT
    with pytest.raises(ModelError, match="not allowed"):
        fetch(f"{server.url}/file.tflite", target.with_name("b"), SHA256)
    with pytest.raises(ModelError, match="round"):
        fetch(f"{server.url}/round", target.with_name("b"), SHA256)


def test_a_file_that_is_too_large_is_refused(
    server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGEST", 500_000)
    with pytest.raises(ModelError, match="expected at most"):
        fetch(f"{server.url}/a.tflite", target, SHA256)


def test_a_folder_that_cannot_be_written_is_told(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        fetch(f"{server.url}/a.tflite", tmp_path / "none" / "a.tflite", SHA256)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="is a link"):
        fetch(f"{server.url}/a.tflite", tmp_path / "link", SHA256)
    assert not (tmp_path / "elsewhere").exists()


def test_https_is_not_left_for_http() -> None:
    handler, secure = module._NoOtherScheme(), urllib.request.Request("https://example.org/a")
    with pytest.raises(ModelError, match=r"leads to http://example\.org/b, which is not followed"):
        handler.redirect_request(secure, None, 302, "Found", {}, "http://example.org/b")
    assert handler.redirect_request(secure, None, 302, "Found", {}, "https://example.org/b") is not None


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a.tflite",
        "ftp://x/a",
        "file:///etc/passwd",
        "http:///a",
        "http://x/",
        "http://x:99999/a",
        "https://x/%0a",
        "http://x/.a",
        "http://[::1/a",
    ],
)
def test_what_is_no_url_of_a_file_is_refused(url: str) -> None:
    with pytest.raises(ModelError):
        file_name_of(url)


def test_names_are_taken_from_urls() -> None:
    assert file_name_of("https://example.org/a/b%20c.tgz?x=1#y") == "b c.tgz"
    assert file_name_of("https://example.org/a%2Fb.tflite") == "b.tflite"


def test_the_hash_of_a_file_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(CONTENT)
    check_file(path, SHA256)
    path.write_bytes(b"other")
    with pytest.raises(ModelError, match="is another file"):
        check_file(path, SHA256)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://bob:secret@example.org/a.tgz", r"https://\*\*\*@example.org: a login in a URL is not taken"),
        ("https://example.org/a b.tgz", "written as %"),
        ("https://example.org/ä.tgz", "written as %"),
    ],
)
def test_urls_that_no_server_takes_are_refused_at_once(url: str, why: str, target: Path) -> None:
    with pytest.raises(ModelError, match=why) as error:
        fetch(url, target, SHA256)
    assert "secret" not in str(error.value)


def test_a_query_is_in_no_message(server: FileServer, target: Path) -> None:
    with pytest.raises(ModelError, match="answers 404") as error:
        fetch(f"{server.url}/none.tflite?token=secret", target, SHA256)
    assert "secret" not in str(error.value)


def test_a_server_that_sends_without_end_leaves_nothing(
    server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGEST", 300_000)
    server.lengths = False
    with pytest.raises(ModelError, match="the server sends more than"):
        fetch(f"{server.url}/a.tflite", target, SHA256)
    assert not target.exists()


def test_a_server_that_starts_anew_and_breaks_off_is_given_up(
    server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TRIES", 6)
    server.ranges, server.cuts = False, 1000
    with pytest.raises(ModelError, match=r"; try again"):
        fetch(f"{server.url}/a.tflite", target, SHA256)
    assert len(server.asked) <= 6


def test_what_is_no_file_is_not_written_to(server: FileServer, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(StorageError, match="where a file is expected"):
            fetch(f"{server.url}/a.tflite", tmp_path / name, SHA256)
    assert server.asked == []
