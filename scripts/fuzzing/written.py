"""Parsers of what people write: configuration, profile, manifests, the URI of a source."""

from __future__ import annotations

import re
from contextlib import suppress

from msgspec.structs import replace
from target import FOLDER, ROOT, WITHOUT_BOARD

from agent.board.identity import read_board
from agent.config import load
from agent.config.source_uri import parse, parse_picture, parse_sound
from agent.errors import VedetteError
from agent.models.files import load_file

_ZOO = ROOT / "agent" / "models" / "zoo"


def config(data: bytes) -> None:
    path = FOLDER / "vedette.toml"
    path.write_bytes(data)
    found = load.load(path, WITHOUT_BOARD)
    load.dump(found.config, found.remarks())
    found.where("streams", "front")
    load.parse(load.dump(found.config), "dumped")


def config_seeds() -> list[bytes]:
    paths = sorted((ROOT / "firmware_configs" / "examples").glob("*.toml"))
    full = b"""[device]
name = "porch"
[mqtt]
host = "broker.example"
password_file = "$CREDENTIALS_DIRECTORY/mqtt"
[streams.front]
source = "v4l2:/dev/video0?size=1280x720&fps=30"
model = "nanodet"
track = { min_hits = 2, lost_after_s = 2.5 }
[[streams.front.zones]]
name = "door"
polygon = [[0.1, 0.1], [0.9, 0.1], [0.5, 0.9]]
"""
    return [full, *(path.read_bytes() for path in paths)]


def profile(data: bytes) -> None:
    """A board's profile, as `choose` ranks it and as it goes below a configuration."""
    path, config = FOLDER / "board.toml", FOLDER / "on-board.toml"
    path.write_bytes(data)
    config.write_text(_ON_BOARD.format(path))
    profile = load.choose(str(path), read_board(WITHOUT_BOARD))
    assert profile is not None
    load.rank(profile, _BOARD)
    found = load.load(config, WITHOUT_BOARD)
    load.dump(found.config, found.remarks())
    for keys in found.inherited:
        found.where(*keys)


_ON_BOARD = """[device]
profile = "{}"
[streams.front]
source = "v4l2:/dev/video0?fps=30"
model = "nanodet"
[streams.back]
source = "test:"
model = "nanodet"
"""
_BOARD = replace(read_board(WITHOUT_BOARD), compatible=("raspberrypi,4-model-b", "brcm,bcm2711"), soc_id="465")


def profile_seeds() -> list[bytes]:
    full = b"""[board]
title = "Mine"
compatible = ["raspberrypi,4-*"]
soc_id = ["465"]
arch = ["aarch64"]
[stream]
threads = 2
[stream.capture]
max_fps = 10
[stream.gate]
hold_s = 3
[thermal]
warn_c = 75
"""
    return [full, *(path.read_bytes() for path in load.shipped())]


def manifest(data: bytes) -> None:
    path = FOLDER / "model.toml"
    path.write_bytes(data)
    for name in ("model.tflite", *(model.name for model in _ZOO.glob("*.tflite"))):
        (FOLDER / name).write_bytes(b"x")
    (FOLDER / "coco80.txt").write_text("person\ncar\n")
    load_file(str(path))


def manifest_seeds() -> list[bytes]:
    paths = sorted(_ZOO.glob("*.toml"))
    # Without the hash: it would be all that is ever refused.
    return [re.sub(rb"(?m)^sha256 = .*$", b"", path.read_bytes()) for path in paths]


def wakeword(data: bytes) -> None:
    path = FOLDER / "word.json"
    path.write_bytes(data)
    (FOLDER / "word.tflite").write_bytes(b"x")
    load_file(str(path))


def wakeword_seeds() -> list[bytes]:
    micro = b'{"probability_cutoff": 0.9, "sliding_window_size": 5, "feature_step_size": 10}'
    return [
        b'{"type": "micro", "wake_word": "Alexa", "author": "x", "model": "word.tflite", "micro": ' + micro + b"}"
    ]


def uri(data: bytes) -> None:
    text = data.decode(errors="replace")
    for parser in (parse, parse_picture, parse_sound):
        with suppress(VedetteError):
            parser(text)


def uri_seeds() -> list[bytes]:
    return [
        b"v4l2:/dev/video0?size=1280x720&fps=30&format=MJPG",
        b"rtsp://user:secret@10.0.0.7:554/stream?transport=tcp",
        b"file:clip.mp4?pace=realtime&loop=1",
        b"dir:images/?fps=2",
        b"mic:default?rate=16000&channel=0",
        b"wav:speech.wav?pace=fast&channel=left",
        b"test:?size=160x120&fps=20&frames=9",
        b"libcamera:0",
        b"http://[::1]:80/x.mjpg",
    ]
