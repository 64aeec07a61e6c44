"""The page of clips: what it shows, whom it lets in, and which bytes of a clip it gives."""

from __future__ import annotations

from datetime import timedelta
from email.message import Message
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.comms.http import Answer, HttpRequest
from agent.features.page.part import ON_A_PAGE, ClipsPage, wanted_range
from agent.storage.clips.store import CONTINUOUS
from tests.support.clip_pictures import BEGAN
from tests.support.stored_clips import begin_clip, store_clip


def ask(folder: Path, path: str, **headers: str) -> Answer:
    given = Message()
    for name, value in headers.items():
        given[name.replace("_", "-")] = value
    return ClipsPage(folder, "porch").respond(HttpRequest(path, given))


class Page(HTMLParser):
    """Sources of the videos, targets of the links, and the text of a page."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.videos, self.links, self.text = list[str](), list[str](), ""
        assert answer.code == 200
        self.feed(answer.body.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "video":
            self.videos.append(found["src"] or "")
        if tag == "a":
            self.links.append(found["href"] or "")
        assert tag != "script"

    def handle_data(self, data: str) -> None:
        self.text += data


def content(answer: Answer) -> bytes:
    assert answer.file is not None
    with answer.file as file:
        return file.read(answer.length)


def test_the_newest_clips_are_shown_at_the_moment_of_their_event(tmp_path: Path) -> None:
    path = store_clip(tmp_path, "person")
    store_clip(tmp_path, "cat", stream="back", at=BEGAN + timedelta(seconds=9))
    page = Page(ask(tmp_path, "/"))
    assert [video.partition("#")[2] for video in page.videos] == ["t=3.0", "t=3.0"]
    assert page.videos[1].startswith(f"/clips/front/{path.name}#")
    for word in ("Clips of porch", "person", "cat", "front · 5.0 s"):
        assert word in page.text
    assert Page(ask(tmp_path, "/clips/front/")).videos == page.videos[1:]
    assert {"/clips/back/", "/clips/front/"} <= set(page.links)


def test_older_clips_are_on_further_pages_until_there_are_none(tmp_path: Path) -> None:
    made = [store_clip(tmp_path, at=BEGAN + timedelta(minutes=one)).name for one in range(ON_A_PAGE + 2)]
    first = Page(ask(tmp_path, "/clips/front/"))
    second = Page(ask(tmp_path, first.links[-1]))
    assert len(first.videos) == ON_A_PAGE
    assert [video.partition("#")[0].rpartition("/")[2] for video in second.videos] == [made[1], made[0]]
    assert "before" not in second.links[-1]


def test_pieces_of_recordings_have_pages_of_their_own(tmp_path: Path) -> None:
    piece = store_clip(tmp_path)
    piece.rename(piece.with_name(f"2026-11-25T10-15-03Z-{CONTINUOUS}-0123ab.mp4"))
    store_clip(tmp_path, "cat")
    assert len(Page(ask(tmp_path, "/")).videos) == 1
    (video,) = Page(ask(tmp_path, "/?kind=recordings")).videos
    assert CONTINUOUS in video


def test_one_that_is_being_recorded_plays_as_far_as_it_is_and_keeps_its_length(tmp_path: Path) -> None:
    file = begin_clip(tmp_path)
    page = Page(ask(tmp_path, "/"))
    assert "being recorded" in page.text
    link = page.videos[0].partition("#")[0]
    whole = content(ask(tmp_path, link))
    file.finish(())
    assert content(ask(tmp_path, link)) == whole, "the answers to a browser fit together"
    assert len(content(ask(tmp_path, link.partition("?")[0]))) > len(whole)


def test_a_range_is_given_and_a_wrong_one_refused(tmp_path: Path) -> None:
    path = store_clip(tmp_path)
    data, link = path.read_bytes(), f"/clips/front/{path.name}"
    whole = ask(tmp_path, link)
    assert (whole.code, content(whole), whole.content_type) == (200, data, "video/mp4")
    part = ask(tmp_path, link, Range="bytes=10-19")
    assert (part.code, content(part)) == (206, data[10:20])
    assert dict(part.headers)["Content-Range"] == f"bytes 10-19/{len(data)}"
    assert content(ask(tmp_path, link, Range="bytes=-7")) == data[-7:]
    beyond = ask(tmp_path, link, Range=f"bytes={len(data)}-")
    assert (beyond.code, dict(beyond.headers)["Content-Range"]) == (416, f"bytes */{len(data)}")
    assert ask(tmp_path, link, Range="bytes=0-1", If_Range='"x"').code == 200


@given(size=st.integers(0, 50), begin=st.integers(0, 60), end=st.integers(0, 60))
def test_a_range_is_what_python_would_cut(size: int, begin: int, end: int) -> None:
    data = bytes(range(size))
    for header, expected in (
        (f"bytes={begin}-{end}", data[begin : end + 1]),
        (f"bytes={begin}-", data[begin:]),
        (f"bytes=-{end}", data[max(0, size - end) :]),
    ):
        part = wanted_range(header, size)
        if part is None:
            assert begin > end, header
        else:
            assert data[part[0] : part[0] + part[1]] == expected, header


@pytest.mark.parametrize("header", ["", "bytes=-", "bytes=1-2,4-5", "items=1-2", "bytes=x-", "bytes=5-2"])
def test_what_is_no_range_gets_the_whole(header: str) -> None:
    assert wanted_range(header, 10) is None


@pytest.mark.parametrize(
    "path",
    [
        "/clips",
        "/clips/nowhere/",
        "/clips/front/nothing.mp4",
        "/clips/../",
        "/clips/front/%2e%2e%2fsecret",
        "/clips/front/..%2f..%2fsecret.mp4",
        "/clips/front/x/y",
        "/etc/passwd",
        "//127.0.0.1/etc/passwd",
        "/metrics",
        "/%00",
    ],
)
def test_there_is_nothing_else(tmp_path: Path, path: str) -> None:
    store_clip(tmp_path)
    (tmp_path / "secret").write_bytes(b"secret")
    assert ask(tmp_path, path).code == 404


def test_what_a_model_calls_things_is_text_and_not_markup(tmp_path: Path) -> None:
    store_clip(tmp_path, "<script>alert('x')</script>\x1b")
    answer = ask(tmp_path, "/")
    assert "alert" in Page(answer).text
    assert "script-src" not in dict(answer.headers)["Content-Security-Policy"]
    assert "default-src 'none'" in dict(answer.headers)["Content-Security-Policy"]
    assert dict(answer.headers)["Cache-Control"] == "no-store"


def test_a_page_without_clips_says_so(tmp_path: Path) -> None:
    assert "There are none" in Page(ask(tmp_path / "none", "/")).text
