"""Serve the page of the newest clips, and the clips themselves, for browsers.

    /                              the newest clips of all streams
    /clips/STREAM/                 those of a stream
    /clips/STREAM/NAME?bytes=N     a clip; only its first N bytes, of one that is being recorded

In the query of a page `before=NAME` asks for older ones, `kind=recordings` for pieces of continuous recordings.
"""

from __future__ import annotations

import os
import re
from datetime import datetime, timedelta
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from agent.comms.http import Answer, HttpEndpoint, HttpRequest, text_answer
from agent.config import Config
from agent.daemon.parts import DevicePart
from agent.errors import StorageError
from agent.storage.clips.file import ClipHeader
from agent.storage.clips.store import Entry, clip_folders, newest_clips, open_clip
from agent.text import local_time, plain

if TYPE_CHECKING:
    from agent.daemon.runtime import Runtime

ON_A_PAGE = 12
"""Clips of one page."""
_MOST_BYTES = 1 << 20
"""Most bytes of an answer to a request of a range: a browser that has enough for now holds no connection open."""
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_RECORDINGS = "recordings"
_PRIVATE = (
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
)
_OF_PAGE = (
    *_PRIVATE,
    (
        "Content-Security-Policy",
        "default-src 'none'; media-src 'self'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    ),
)
_STYLE = """
:root { color-scheme: light dark; font: 16px/1.4 system-ui, sans-serif; }
body { margin: 1rem auto; max-width: 80rem; padding: 0 1rem; }
nav a, footer a { margin-right: 1rem; }
main { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); margin: 1rem 0; }
video { width: 100%; aspect-ratio: 16 / 9; background: #222; }
h2 { font-size: 1rem; margin: 0.25rem 0 0; }
p { margin: 0; font-size: 0.875rem; }
"""


class ClipsPage:
    """Answers requests for the page and the clips of a device. Any thread may call it."""

    def __init__(self, folder: Path, device: str) -> None:
        """Serve the clips in a folder; `device` is its name, for the title."""
        self._folder, self._device = folder, device

    def respond(self, request: HttpRequest) -> Answer:
        """Answer one request; the path may be anything."""
        try:
            asked = urlsplit(request.path)
        except ValueError:
            return text_answer(400, "the path cannot be read")
        parts, query = unquote(asked.path).split("/"), _first_values(asked.query)
        try:
            if parts == ["", ""]:
                return self._page("", query)
            if len(parts) == 4 and parts[:2] == ["", "clips"]:
                _, _, stream, name = parts
                return self._clip(stream, name, query, request) if name else self._page(stream, query)
        except StorageError as error:
            return text_answer(503, f"clips cannot be read: {plain(str(error))}")
        return text_answer(404, "there is no such page")

    def _page(self, stream: str, query: dict[str, str]) -> Answer:
        streams = clip_folders(self._folder)
        if stream and stream not in streams:
            return text_answer(404, "there are no clips of such a stream")
        pieces, before = query.get("kind") == _RECORDINGS, query.get("before", "")
        found = newest_clips(self._folder, stream, before=before, pieces=pieces, most=ON_A_PAGE + 1)
        shown = found[:ON_A_PAGE]
        title = escape(f"{'Recordings' if pieces else 'Clips'} of {stream or self._device}")
        older = (
            _link(stream, "older", pieces=pieces, before=shown[-1][0].path.name) if len(found) > ON_A_PAGE else ""
        )
        places = [_link("", "all streams", pieces=pieces), *(_link(one, one, pieces=pieces) for one in streams)]
        other = "clips of events" if pieces else "continuous recordings"
        links = "".join([*places, _link(stream, other, pieces=not pieces)])
        body = "".join(_article(*clip) for clip in shown) or "<p>There are none.</p>"
        html = (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
            f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
            f"<body><h1>{title}</h1>\n<nav>{links}</nav>\n"
            f"<main>\n{body}</main>\n<footer>{older}</footer></body></html>\n"
        )
        return Answer(html.encode(), "text/html; charset=utf-8", headers=_OF_PAGE)

    def _clip(self, stream: str, name: str, query: dict[str, str], request: HttpRequest) -> Answer:
        file = open_clip(self._folder, stream, name)
        if file is None:
            return text_answer(404, "there is no such clip")
        size = os.fstat(file.fileno()).st_size
        if (limit := query.get("bytes", "")).isdecimal():
            size = min(size, int(limit[:18]))
        headers = (("Accept-Ranges", "bytes"), *_PRIVATE)
        given = request.headers.get("Range", "") if request.headers.get("If-Range") is None else ""
        part = wanted_range(given, size)
        if part is None:
            return Answer(b"", "video/mp4", 200, headers, file, size)
        begin, length = part
        if length == 0:
            file.close()
            return text_answer(416, "the clip has not so many bytes", ("Content-Range", f"bytes */{size}"))
        length = min(length, _MOST_BYTES)
        file.seek(begin)
        place = f"bytes {begin}-{begin + length - 1}/{size}"
        return Answer(b"", "video/mp4", 206, (("Content-Range", place), *headers), file, length)


def _first_values(query: str) -> dict[str, str]:
    try:
        return {name: values[0] for name, values in parse_qs(query, max_num_fields=8).items()}
    except ValueError:
        return {}


def wanted_range(header: str, size: int) -> tuple[int, int] | None:
    """Return begin and length of the range of a `Range` header (RFC 9110, section 14) of a file of `size` bytes.

    None: the whole file, also for several ranges. A length of 0: there is no such range.
    """
    asked = _RANGE.fullmatch(header.strip())
    if asked is None or asked[0] == "bytes=-":
        return None
    if not asked[1]:
        length = min(int(asked[2]), size)
        return size - length, length
    begin, end = int(asked[1]), int(asked[2]) + 1 if asked[2] else size
    if end <= begin and asked[2]:
        return None  # not valid, so it is ignored
    return begin, max(0, min(end, size) - begin)


def _link(stream: str, text: str, *, pieces: bool, before: str = "") -> str:
    place = f"/clips/{quote(stream)}/" if stream else "/"
    asked = {"kind": _RECORDINGS if pieces else "", "before": before}
    query = urlencode({key: value for key, value in asked.items() if value})
    return f'<a href="{escape(place)}{"?" if query else ""}{escape(query)}">{escape(text)}</a>'


def _article(clip: Entry, header: ClipHeader) -> str:
    occasion, folder, name = header.label.occasion, clip.path.parent.name, clip.path.name
    path = f"/clips/{quote(folder)}/{quote(name)}" + (f"?bytes={clip.bytes}" if clip.recording else "")
    length = "" if header.duration_s is None else f"{header.duration_s:.1f} s"
    told = (folder, "being recorded" if clip.recording else length, f"{clip.bytes / 1e6:.1f} MB")
    about = " · ".join(filter(None, told))
    video = f'<video controls preload="metadata" src="{escape(path)}#t={_moment_s(clip.at, header):.1f}"></video>'
    return (
        f"<article>{video}<h2>{escape(plain(occasion.label or occasion.reason))}</h2>"
        f"<p>{escape(local_time(clip.at))}</p>"
        f'<p>{escape(about)} · <a href="{escape(path)}" download="{escape(name)}">save</a></p></article>\n'
    )


def _moment_s(at: datetime, header: ClipHeader) -> float:
    """Return the time in a clip at which its event has just happened, s: the picture that is shown of it."""
    moment_s = (at + timedelta(seconds=1) - header.label.began_at).total_seconds()
    last_s = max(0.0, (header.duration_s or moment_s) - 0.5)
    return min(max(0.0, moment_s), last_s)


class PagePart(DevicePart):
    """Serves the page while it is configured."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime, page = runtime, ClipsPage(runtime.clips_folder, runtime.topics.device)
        self._endpoint = HttpEndpoint("page", page.respond)

    @property
    def trouble(self) -> str:
        return self._endpoint.trouble

    def start(self) -> None:
        self.configure(self._runtime.config)

    def configure(self, config: Config) -> None:
        self._endpoint.configure(config.page)

    def poll(self) -> None:
        self._endpoint.poll()

    def health(self) -> dict[str, Any]:
        return {"page": self.trouble}

    def close(self, seconds: float) -> None:
        self._endpoint.close()


def open_device_part(runtime: Runtime) -> PagePart:
    """Serve the page as the configuration says."""
    return PagePart(runtime)
