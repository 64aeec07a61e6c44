"""The demo as a newcomer runs it, and as a part of this process."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from agent.cli import demo as demo_module
from agent.cli.demo import choose_streams, demo
from agent.daemon.daemon import Daemon
from agent.errors import BrokerError, ModelError, SourceError, VedetteError
from agent.models import wakeword
from agent.storage.spool.disk import SpoolDisk
from agent.storage.spool.pending import Commit
from tests.support.doubles import person_model
from tests.support.hostile import length_of, read_packet
from tests.support.running import ROOT

pytest.importorskip("amqtt", reason="the extra [demo] is not installed")


def call(*args: str) -> Result:
    return CliRunner().invoke(demo, args, catch_exceptions=False)


def begin(*args: str) -> None:
    """Run the demo in this process: `capsys` gets the output, and errors are raised as they are."""
    demo.main(list(args), standalone_mode=False)


def person(folder: Path, *args: str) -> tuple[str, ...]:
    """Options for a short pattern and the constant model."""
    source = "test:?size=160x120&fps=20&frames=60"
    return ("--source", source, "--model", str(person_model(folder)), "--picture", str(folder / "p.jpg"), *args)


def test_the_clip_through_the_bundled_model_as_json(tmp_path: Path) -> None:
    picture = tmp_path / "seen.jpg"
    command = [sys.executable, "-m", "agent", "demo", "--for", "6s", "--json", "--picture", str(picture)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    *events, last = [json.loads(line) for line in done.stdout.splitlines()]
    summary = last["summary"]
    assert summary["new"] == summary["end"] >= 1
    assert summary["lost"] == 0
    assert summary["labels"]["person"] >= 1
    assert summary["picture"] == str(picture)
    assert len(events) == summary["new"] + summary["update"] + summary["end"]
    first = events[0]["seq"]  # of a new folder for state: the clock
    assert [event["seq"] for event in events] == list(range(first, first + len(events)))
    assert picture.read_bytes().startswith(b"\xff\xd8")
    seen = cv2.imread(str(picture))
    assert seen is not None
    assert seen.shape == (576, 768, 3)


def test_the_spoken_digits_and_the_wake_words_among_them_are_heard() -> None:
    pytest.importorskip("pymicro_wakeword", reason="the extra [wakeword] is not installed")
    command = [sys.executable, "-m", "agent", "demo", "--hear", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    *events, last = [json.loads(line) for line in done.stdout.splitlines()]
    words = ["three", "one", "four", "one", "five", "nine", "Alexa", "Okay Nabu", "seven", "two"]
    assert [event["track"]["label"] for event in events] == words
    streams = ["digits"] * 6 + ["alexa", "okay_nabu"] + ["digits"] * 2
    assert [event["stream"] for event in events] == streams
    assert {event["kind"] for event in events} == {"keyword"}
    assert len({event["variant"] for event in events if event["stream"] == "digits"}) > 1, "the depth follows"
    assert (last["summary"]["keyword"], last["summary"]["lost"]) == (10, 0)


def test_without_the_wake_words_the_digits_are_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wakeword, "_PACKAGE", "no_such_package")
    shown = call("--hear", "--for", "4s").output
    assert shown.startswith("spoken → small-speech → MQTT")
    assert re.search(r"keyword \(word\) +three 1", shown)


def test_a_model_that_was_asked_for_hears_the_recording_alone() -> None:
    chosen = choose_streams(hear=True, source=None, model="small-speech", loop=False)
    assert list(chosen.streams) == ["demo"]


def test_the_table_ends_with_a_summary(tmp_path: Path) -> None:
    shown = call(*person(tmp_path)).output
    assert ": 1 new, " in shown
    assert " 1 end (1 person); median capture → publish " in shown
    assert "lost 0" in shown
    assert f"annotated picture: {tmp_path / 'p.jpg'}" in shown


def test_the_time_is_kept(tmp_path: Path) -> None:
    options = ("--source", "test:?size=160x120&fps=20", *person(tmp_path)[2:], "--for", "2s", "--json")
    summary = json.loads(call(*options).output.splitlines()[-1])["summary"]
    assert (summary["new"], summary["end"], summary["lost"]) == (1, 1, 0)
    assert 2.0 <= summary["seconds"] < 60.0


def test_a_slow_disk_costs_time_and_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = SpoolDisk.write

    def write_slowly(disk: SpoolDisk, commit: Commit) -> bool:
        time.sleep(0.5)  # longer than a daemon that systemd stops would wait
        return write(disk, commit)

    monkeypatch.setattr(SpoolDisk, "write", write_slowly)
    options = ("--source", "test:?size=160x120&fps=20", *person(tmp_path)[2:], "--for", "2s", "--json")
    summary = json.loads(call(*options).output.splitlines()[-1])["summary"]
    assert (summary["new"], summary["end"], summary["lost"]) == (1, 1, 0)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_early_end_still_has_its_summary(tmp_path: Path, how: signal.Signals) -> None:
    source = ("--source", "test:?size=160x120&fps=20")
    command = [sys.executable, "-m", "agent", "demo", *person(tmp_path), *source]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        while "new (appeared)" not in running.stdout.readline():
            pass
        running.send_signal(how)
        shown = running.stdout.read()
        assert running.wait(60) == 0
    assert "end (shutdown)" in shown
    assert ": 1 new, " in shown


def test_a_reader_that_leaves_ends_the_demo(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "agent", "demo", *person(tmp_path), "--json"]
    command += ["--source", "test:?size=160x120&fps=20"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.readline()
        running.stdout.close()
        assert running.wait(60) == 0
        said = running.stderr.read().splitlines()
    assert [line for line in said if b"is opened as root" not in line] == []


def test_nothing_seen_is_said_so(tmp_path: Path) -> None:
    blind = person(tmp_path)
    person_model(tmp_path, score=0.1)
    shown = call(*blind).output
    assert "0 new, 0 update, 0 end (nothing)" in shown
    assert "annotated picture" not in shown


@pytest.mark.parametrize("written", ["soon", "5w", "-1", "1e3"])
def test_a_duration_is_seconds_or_minutes(written: str) -> None:
    result = CliRunner().invoke(demo, ["--for", written])
    assert result.exit_code == 2
    assert "expected a duration such as 20s or 2m" in result.output


@pytest.mark.parametrize(
    ("source", "why"), [("file:gone.mp4", "gone.mp4"), ("tset:", "found tset:")], ids=["missing", "misspelt"]
)
def test_a_source_that_cannot_be_used_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, why: str
) -> None:
    with pytest.raises(SourceError, match=why):
        begin(*person(tmp_path), "--source", source)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("scheme", ["file", "wav"])
def test_a_file_of_another_kind_is_refused_before_the_demo_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scheme: str
) -> None:
    other = tmp_path / "notes.mp4"
    other.write_text("no video and no sound\n" * 100)
    model = ("--model", "small-speech", "--hear") if scheme == "wav" else ()
    with pytest.raises(SourceError, match=r"notes\.mp4"):
        begin(*person(tmp_path), *model, "--source", f"{scheme}:{other}")
    assert capsys.readouterr() == ("", "")


class NoCamera(BaseHTTPRequestHandler):
    """Has nothing but one picture, at /picture."""

    def do_GET(self) -> None:
        if self.path != "/picture":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.end_headers()
        self.wfile.write(cv2.imencode(".jpg", np.full((48, 64, 3), 90, np.uint8))[1].tobytes())

    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("path", "why"), [("none", "Server returned 404 Not Found"), ("picture", "not a stream")]
)
def test_a_camera_that_gives_no_stream_is_refused_before_the_demo_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str, why: str
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), NoCamera)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(SourceError, match=why):
            begin(*person(tmp_path), "--source", f"http://127.0.0.1:{server.server_address[1]}/{path}")
    finally:
        server.shutdown()
        server.server_close()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("model", "why"), [("nanodett", "did you mean 'nanodet'"), ("broken.tflite", "broken")])
def test_a_model_that_cannot_be_used_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, why: str
) -> None:
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"no model")
    with pytest.raises(ModelError, match=why):
        begin(*person(tmp_path), "--model", str(broken) if model == broken.name else model)
    assert capsys.readouterr() == ("", "")


def test_a_picture_that_has_no_folder_is_refused_before_the_demo_begins(tmp_path: Path) -> None:
    result = CliRunner().invoke(demo, ["--picture", str(tmp_path / "nowhere" / "p.jpg")])
    assert result.exit_code == 2
    assert "no such folder" in " ".join(result.output.split())


def test_a_defect_in_the_daemon_does_not_hang_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: object) -> None:
        raise VedetteError("nothing works today")

    monkeypatch.setattr(Daemon, "run", run)
    with pytest.raises(VedetteError, match="nothing works today"):
        call(*person(tmp_path))


def test_without_the_extra_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "amqtt.broker", None)
    with pytest.raises(BrokerError, match=re.escape("the demo's broker is not installed: pip install '.[demo]'")):
        begin(*person(tmp_path))
    assert capsys.readouterr() == ("", "")


def test_a_broker_that_does_not_start_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with demo_module.EmbeddedBroker() as running:
        monkeypatch.setattr(demo_module, "_free_port", lambda: running.port)
        with pytest.raises(BrokerError, match=f"did not start on 127.0.0.1:{running.port}: [^\\[]*$"):
            demo_module.EmbeddedBroker().__enter__()


def text(words: bytes) -> bytes:
    """A string of MQTT, with its length."""
    return len(words).to_bytes(2, "big") + words


def connect(port: int, name: bytes) -> socket.socket:
    """A client of MQTT 3.1.1 that reads nothing by itself."""
    client = socket.create_connection(("127.0.0.1", port), timeout=60)
    body = text(b"MQTT") + b"\x04\x02" + (0).to_bytes(2, "big") + text(name)
    client.sendall(b"\x10" + length_of(len(body)) + body)
    assert read_packet(client) == (0x20, b"\0\0")
    return client


def subscribe(client: socket.socket, topic: bytes) -> None:
    """Subscribe, and read on until the broker has answered."""
    body = b"\0\x01" + text(topic) + b"\0"
    client.sendall(b"\x82" + length_of(len(body)) + body)
    while read_packet(client).kind != 0x90:
        pass


def test_a_client_may_subscribe_while_another_still_connects() -> None:
    """A client that connects is sent what is retained, and the broker waits while it does not read."""
    with demo_module.EmbeddedBroker() as running:
        other = connect(running.port, b"other")
        subscribe(other, b"retained/#")
        subscribe(other, b"more")
        body = text(b"retained/much") + bytes(8 << 20)
        other.sendall(b"\x31" + length_of(len(body)) + body)
        while read_packet(other).kind != 0x30:
            pass
        slow = connect(running.port, b"slow")
        subscribe(other, b"new")
        subscribe(slow, b"own")
        for client in (other, slow):
            client.close()
