"""The page of clips: a real browser plays them, and a daemon serves them to whom it lets in."""

from __future__ import annotations

import base64
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agent.comms.topics import Topics
from agent.compute.av_encoding import PictureEncoder
from agent.config import Config
from agent.config.servers import PageConfig
from agent.features.page.part import PagePart
from agent.storage.clips.file import ClipFile
from agent.types import Frame
from tests.support.clip_pictures import BEGAN, SECOND
from tests.support.devtools import browsing
from tests.support.doubles import person_model
from tests.support.media import timed
from tests.support.mosquitto import HOST, Mosquitto, free_port
from tests.support.publishing import wait_for
from tests.support.running import Vedette, camera, health
from tests.support.stored_clips import begin_clip, store_clip

_VIDEOS = """Promise.all([...document.querySelectorAll("video")].map(video => new Promise(done => {
  const tell = why => done([why, video.readyState, video.currentTime, video.videoWidth]);
  const timer = setTimeout(() => tell("too slow"), 20000);
  video.onerror = () => tell(video.error.message);
  const poll = () => video.readyState >= 2 ? tell("") : setTimeout(poll, 50); poll(); })))"""
"""Of each video what went wrong, how much is loaded, the time that is shown, s, and its width, px."""
_TO_THE_END = """new Promise(done => {
  const video = document.querySelectorAll("video")[%d];
  setTimeout(() => done("too slow at " + video.currentTime), 40000);
  video.onerror = () => done(video.error.message); video.onended = () => done("ended");
  video.muted = true; video.playbackRate = 4; video.currentTime = 0; video.play(); })"""


@pytest.fixture
def page(tmp_path: Path) -> Iterator[str]:
    """A page of the clips in `tmp_path`, and its address."""
    port, secret = free_port(), tmp_path / "secret"
    secret.write_text("secret\n")
    table = PageConfig(listen=f"{HOST}:{port}", username="me", password_file=str(secret))
    device: Any = SimpleNamespace(
        config=Config(page=table), topics=Topics("vedette", "porch"), clips_folder=tmp_path
    )
    part = PagePart(device)
    part.start()
    yield f"http://me:secret@{HOST}:{port}/"
    part.close(1.0)


def large_clip(folder: Path) -> ClipFile:
    """Write a clip of noise, larger than what one answer holds."""
    random, encoder = np.random.default_rng(1), PictureEncoder(1280, 90, 2.0, ("libx264",))
    pictures = (random.integers(0, 255, (360, 640, 3), np.uint8) for _ in range(16))
    frames = [Frame(one, "front", n, n * SECOND // 4, BEGAN) for n, one in enumerate(pictures)]
    file = begin_clip(folder, "noise", at=BEGAN + timedelta(minutes=1), pictures=1, size=(640, 360))
    file.append(timed([packet for one in frames for packet in encoder.encode(one)])[1:])
    return file


def test_a_browser_shows_and_plays_every_clip_also_one_that_is_being_recorded(tmp_path: Path, page: str) -> None:
    store_clip(tmp_path)
    large = large_clip(tmp_path)
    large.finish(())
    begin_clip(tmp_path, "cat", at=BEGAN + timedelta(minutes=2), pictures=20)
    assert large.bytes > 2_000_000
    with browsing() as browser:
        shown = browser.open(page)
        assert shown.evaluate("document.title") == "Clips of porch"
        cat, noise, person = shown.evaluate(_VIDEOS)
        assert [cat[0], noise[0], person[0]] == ["", "", ""]
        assert [cat[3], noise[3], person[3]] == [64, 640, 64]
        assert person[2] == pytest.approx(3.0), "it shows the moment of its event"
        for number in range(3):
            assert shown.evaluate(_TO_THE_END % number) == "ended"


def get(url: str, login: str = "", **headers: str) -> tuple[int, bytes]:
    if login:
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""
    except OSError:
        return 0, b""


def test_a_daemon_serves_its_clips_to_whom_it_lets_in(tmp_path: Path, broker: Mosquitto) -> None:
    port, secret = free_port(), tmp_path / "secret"
    secret.write_text("xyz\n")
    table: dict[str, Any] = {"listen": f"{HOST}:{port}", "username": "me", "password_file": str(secret)}
    clips = {"before_s": 1.0, "after_s": 1.0, "max_s": 4.0, "record": "continuous"}
    vedette = Vedette(tmp_path, broker, front=camera(person_model(tmp_path), clips=clips))
    vedette.config["page"] = table
    messages = broker.subscribe("vedette/#")
    with vedette:
        url = f"http://{HOST}:{port}/"
        wait_for(lambda: b"being recorded" in get(f"{url}?kind=recordings", "me:xyz")[1])
        wait_for(lambda: b"<video" in get(f"{url}clips/front/", "me:xyz")[1])
        assert vedette.said(f"page: served at http://{HOST}:{port}/")
        assert get(url)[0] == 401
        table["username"] = "you"
        vedette.reload()
        wait_for(lambda: get(url, "me:xyz")[0] == 401)
        assert get(url, "you:xyz")[0] == 200
        assert get(f"{url}clips/front/..%2f..%2fspool.db", "you:xyz")[0] == 404
        with socket.create_server((HOST, 0)) as taken:
            table["listen"] = f"{HOST}:{taken.getsockname()[1]}"
            vedette.reload()
            messages.wait(lambda m: (found := health(m)) is not None and "cannot listen" in found.page)
        del vedette.config["page"]
        vedette.reload()
        wait_for(lambda: get(url)[0] == 0)
        messages.wait(lambda m: (found := health(m)) is not None and not found.page)
        assert not vedette.said("Traceback")
