"""What is fuzzed: parsers of what others wrote, with inputs that are right. A new parser is a new row here."""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from agent import configfile, profiles
from agent.capture.recording import read_whole
from agent.capture.uri import parse, parse_picture, parse_sound
from agent.cli.album import file_name
from agent.cli.fleet import FleetTable
from agent.cli.jpeg import read_size
from agent.cli.roster import Roster
from agent.cli.row import cells
from agent.cli.table import EventTable
from agent.cli.watch import json_line
from agent.comms.commands import check_answer_topic, id_of, request_command, set_command
from agent.comms.payload import finish
from agent.comms.subscriber import Kind, Received
from agent.comms.topics import Topics
from agent.compute.decode.metadata import manifest_of
from agent.compute.infer.modelfile import Runtime, read_modelfile, refusals
from agent.errors import VedetteError
from agent.health.board import read_board
from agent.messages import Stored
from agent.storage.models import load_file

ROOT = Path(__file__).parent.parent.parent
SHORT_MODELS = 200_000
"""Bytes: longer models are left out, for they make everything slow and say no more."""


class Target(NamedTuple):
    """One parser.

    Attributes:
        about: what it reads, in some words.
        run: parses; raises what is allowed, or nothing.
        seeds: inputs that are right.
        allowed: errors that its callers expect, besides Vedette's own.
        guided: whether coverage tells anything: not where it is read in C.
        tokens: words of its language.
    """

    about: str
    run: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    allowed: tuple[type[Exception], ...] = ()
    tokens: tuple[bytes, ...] = ()
    guided: bool = True


_FOLDER = Path(tempfile.mkdtemp(prefix="vedette-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
_WITHOUT_BOARD = _FOLDER / "root"
_WITHOUT_BOARD.mkdir()
_JSON = (b'"', b"{", b"}", b"[", b"]", b":", b",", b"null", b"true", b"1e308", b"-0", b"\\u0000", b"\\ud800")
_TOML = (
    b"[",
    b"]",
    b"[[",
    b"]]",
    b" = ",
    b'"',
    b"'",
    b'"""',
    b"true",
    b"inf",
    b"nan",
    b"1979-05-27T07:32:00Z",
    b".",
)


def _config(data: bytes) -> None:
    path = _FOLDER / "vedette.toml"
    path.write_bytes(data)
    found = configfile.load(path, _WITHOUT_BOARD)
    configfile.dump(found.config, found.remarks())
    found.where("streams", "front")
    configfile.parse(configfile.dump(found.config), "dumped")


def _config_seeds() -> list[bytes]:
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


def _profile(data: bytes) -> None:
    """A board's profile, as `choose` ranks it and as it goes below a configuration."""
    path, config = _FOLDER / "board.toml", _FOLDER / "on-board.toml"
    path.write_bytes(data)
    config.write_text(_ON_BOARD.format(path))
    profile = profiles.choose(str(path), read_board(_WITHOUT_BOARD))
    assert profile is not None
    profiles.rank(profile, _BOARD)
    found = configfile.load(config, _WITHOUT_BOARD)
    configfile.dump(found.config, found.remarks())
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
_BOARD = replace(read_board(_WITHOUT_BOARD), compatible=("raspberrypi,4-model-b", "brcm,bcm2711"), soc_id="465")


def _profile_seeds() -> list[bytes]:
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
    return [full, *(path.read_bytes() for path in profiles.shipped())]


def _manifest(data: bytes) -> None:
    path = _FOLDER / "model.toml"
    path.write_bytes(data)
    for name in ("model.tflite", "nanodet.tflite", "small-speech.tflite"):
        (_FOLDER / name).write_bytes(b"x")
    (_FOLDER / "coco80.txt").write_text("person\ncar\n")
    load_file(str(path))


def _manifest_seeds() -> list[bytes]:
    paths = sorted((ROOT / "agent" / "zoo").glob("*.toml"))
    # Without the hash: it would be all that is ever refused.
    return [re.sub(rb"(?m)^sha256 = .*$", b"", path.read_bytes()) for path in paths]


def _wakeword(data: bytes) -> None:
    path = _FOLDER / "word.json"
    path.write_bytes(data)
    (_FOLDER / "word.tflite").write_bytes(b"x")
    load_file(str(path))


def _wakeword_seeds() -> list[bytes]:
    micro = b'{"probability_cutoff": 0.9, "sliding_window_size": 5, "feature_step_size": 10}'
    return [
        b'{"type": "micro", "wake_word": "Alexa", "author": "x", "model": "word.tflite", "micro": ' + micro + b"}"
    ]


_EVENT = (
    b'{"id":"6f1d","device":"porch","stream":"front","kind":"new","reason":"appeared","track":{"id":"front-1",'
    b'"label":"person","score":0.9,"best_score":0.9,"hits":3,"first_seen":"2026-01-02T03:04:05.678Z",'
    b'"last_seen":"2026-01-02T03:04:05.678Z","box":[0.1,0.1,0.5,0.9],"zones":["door"]},'
    b'"captured_at":"2026-01-02T03:04:05.678Z","latency_ms":{"queue":1.0,"gate":0.5,"prepare":1.0,"infer":20.0,'
    b'"decode":1.0,"track":0.1,"publish":0.0,"total":0.0},"model":{"name":"nanodet","sha256":"0123456789ab"},'
    b'"backend":"cpu","rung":"416","seq":7}'
)
_HEALTH = (
    b'{"version":"0.1.0","at":"2026-01-02T03:04:05Z","uptime_s":60.0,"streams":{"front":{"state":"running",'
    b'"fps":10.0,"inferences_per_s":8.0,"infer_ms":40.0,"frames":1000,"dropped":0,"reopened":0,"tracks":1}},'
    b'"spool":{"waiting":0,"bytes":0,"dropped":0,"on":"disk"},"rss_mb":90.0,"temperature_c":55.0,"hot":false}'
)
_KINDS: tuple[Kind, ...] = ("events", "health", "status", "count", "snapshot", "detections")


def _watched(data: bytes) -> None:
    """What `watch` does with a message: the first byte says of which kind it is, two lines who sent it."""
    kind = _KINDS[data[0] % len(_KINDS)] if data else "status"
    device, _, rest = data[1:].partition(b"\n")
    stream, _, payload = rest.partition(b"\n")
    names = tuple(name.decode(errors="replace") for name in (device, stream))
    message = Received(f"vedette/{names[0]}/{names[1]}/{kind}", names[0], names[1], kind, payload, 0, False)
    json_line(message)
    file_name(*names)
    read_size(payload)
    roster, table = Roster(), EventTable("all")
    for one in (message, Received("vedette/b/status", "b", "", "status", b"online", 0, False)):
        roster.take(one)
        table.add(one)
    if (event := message.event()) is not None:
        cells(event)
    from rich.console import Console

    console = Console(file=io.StringIO(), width=80, height=30, force_terminal=True, color_system=None)
    console.print(FleetTable(roster))
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert all(letter.isprintable() or letter == "\n" for letter in shown), (
        "a control character reaches the terminal"
    )


def _watched_seeds() -> list[bytes]:
    bodies = [_EVENT, _HEALTH, b"online", b"3", b"\xff\xd8\xff\xc0\x00\x11\x08\x00\x10\x00\x10", b"{}"]
    return [bytes([number]) + b"porch\nfront\n" + body for number, body in enumerate(bodies)]


def _commanded(data: bytes) -> None:
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


def _commanded_seeds() -> list[bytes]:
    settings = (
        (b"enabled", b"on"),
        (b"threshold", b"0.25"),
        (b"rung", b"auto"),
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


def _finished(data: bytes) -> None:
    finish(Stored(1, "vedette/porch/front/events", data, 0.0))


def _uri(data: bytes) -> None:
    text = data.decode(errors="replace")
    for parser in (parse, parse_picture, parse_sound):
        with suppress(VedetteError):
            parser(text)


def _uri_seeds() -> list[bytes]:
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


_RUNTIMES: tuple[Runtime, ...] = ("litert", "tflite-runtime")


def _modelfile(data: bytes) -> None:
    model = read_modelfile(data)
    for runtime in _RUNTIMES:
        refusals(model, runtime)
    with suppress(VedetteError):  # it need not be a kind of model that can be guessed
        manifest_of(data, *model.ends(), "model")


def _modelfile_seeds() -> list[bytes]:
    import numpy as np

    from tests.support import tflite_builder as build

    boxes = {"boxes": np.zeros((1, 2, 4), np.float32), "scores": np.zeros((1, 2), np.float32)}
    made = [
        build.add_model(signature="serve"),
        build.fully_connected_model(hybrid=True),
        build.constant_model(boxes, signature="serve"),
        build.custom_model("Odd"),
        build.write(
            [build.T("x", (1, 4)), build.T("y", (1, 4))],
            [build.Op("SOFTMAX", (0,), (1,))],
            (0,),
            (1,),
            metadata={"TFLITE_METADATA": b"\x10\0\0\0M001" + bytes(40), "min_runtime_version": b"1.5.0"},
        ),
    ]
    zoo = [path.read_bytes() for path in sorted((ROOT / "agent" / "zoo").glob("*.tflite"))]
    return [*made, *(content for content in zoo if len(content) <= SHORT_MODELS)]


def _sound(data: bytes) -> None:
    path = _FOLDER / "sound.wav"
    path.write_bytes(data)
    read_whole(path, 16_000)


def _sound_seeds() -> list[bytes]:
    import numpy as np
    import soundfile

    sound = (np.sin(np.arange(800) / 8) * 8000).astype(np.int16)
    made = []
    for kind, subtype in (("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("FLAC", "PCM_16")):
        with io.BytesIO() as file:
            soundfile.write(file, np.stack([sound, sound], 1), 8000, subtype, format=kind)
            made.append(file.getvalue())
    return made


_DAMAGED = (msgspec.MsgspecError, ValueError, RecursionError)
"""For one of these `agent.comms.events` drops a row of the spool."""

TARGETS: dict[str, Target] = {
    "config": Target("the configuration, TOML", _config, _config_seeds, tokens=_TOML),
    "profile": Target("a board's profile, TOML", _profile, _profile_seeds, tokens=_TOML),
    "manifest": Target("a model's manifest, TOML", _manifest, _manifest_seeds, tokens=_TOML),
    "wakeword": Target("a manifest of microWakeWord, JSON", _wakeword, _wakeword_seeds, tokens=_JSON),
    "watch": Target("messages of strangers, as `watch` shows them", _watched, _watched_seeds, tokens=_JSON),
    "commands": Target("commands of strangers", _commanded, _commanded_seeds, tokens=_JSON),
    "finish": Target("an event out of the spool", _finished, lambda: [_EVENT], _DAMAGED, _JSON, guided=False),
    "uri": Target("the URI of a source", _uri, _uri_seeds),
    "model": Target("a TFLite model and its metadata", _modelfile, _modelfile_seeds),
    "sound": Target("a sound file", _sound, _sound_seeds, tokens=(b"RIFF", b"data", b"fmt ", b"fLaC", b"OggS")),
}
