"""`vedette events`: what has been published, as lines, JSON and CSV."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner, Result

from agent.cli.main import vedette
from agent.cli.options import duration, moment
from agent.comms import messages
from agent.comms.messages import ClipMessage
from agent.config import StorageConfig
from agent.errors import StorageError
from agent.storage.spool.recovery import History
from agent.storage.spool.spool import Spool
from agent.types import Detection, Track
from tests.support.publishing import EVENTS, TOPICS, event, from_one

ROOT = Path(__file__).parent.parent.parent.parent


def changed(stream: str = "front", kind: str = "new", label: str = "person", message_id: str = "") -> bytes:
    """An event, somewhat different."""
    message = msgspec.json.decode(event(message_id, stream), type=messages.EventMessage)
    now = datetime.now(UTC)
    track = Track("front-7", label, 0.5, 0.9, 3, now, now, (0.1, 0.2, 0.5, 0.9), zones=("yard", "door"))
    return messages.encode(msgspec.structs.replace(message, kind=kind, track=track))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With three messages that the broker has, and two that wait."""
    spool = Spool(from_one(tmp_path), StorageConfig())
    spool.put(EVENTS, changed(message_id="first"))
    spool.put(TOPICS.events("back"), changed("back", label="cat"))
    spool.put(EVENTS, changed(kind="end"))
    detections = messages.DetectionsMessage(
        "porch",
        "front",
        77,
        datetime.now(UTC),
        [Detection("dog", 0.5)],
        messages.Latency(1, 1, 1, 1, 1, 1, total=6.0),
        messages.ModelId("m", "0"),
        "cpu",
        "full",
    )
    fields = msgspec.json.decode(messages.encode(detections))
    older = {**fields, "id": "some-id", "spool_seq": 0}  # as an older version has put it
    spool.put(TOPICS.detections("front"), msgspec.json.encode(older))
    spool.put(EVENTS, b"{damaged")
    spool.settle([1, 2, 3])
    spool.close()
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(vedette, ["events", *arguments])


def lines(shown: Result) -> list[dict[str, object]]:
    assert shown.exit_code == 0, shown.output
    return [json.loads(text) for text in shown.output.splitlines()]


def test_the_newest_come_last_and_what_waits_says_so(folder: Path) -> None:
    shown = call("tail", "--folder", str(folder)).output.splitlines()
    assert len(shown) == 6
    assert shown[0].split()[:3] == ["time", "stream", "event"]
    assert "new (appeared)" in shown[1]
    assert "person 7" in shown[1]
    assert "yard, door" in shown[1]
    assert [("(waits)" in line) for line in shown] == [False] * 4 + [True] * 2
    assert "detections" in shown[4]
    assert "dog" in shown[4]
    assert call("tail", "--folder", str(folder), "-n", "2").output.splitlines() == [shown[0], *shown[4:]]


def test_json_has_what_the_subscriber_got(folder: Path) -> None:
    found = lines(call("tail", "--folder", str(folder), "--json"))
    assert [(line["acknowledged"], line.get("seq")) for line in found] == [
        (True, 1),
        (True, 2),
        (True, 3),
        (False, 77),
        (False, None),
    ]
    assert found[0]["id"] == "first"
    assert found[0]["topic"] == EVENTS
    assert found[3]["spool_seq"] == 4
    sent = {name: value for name, value in found[0].items() if name not in ("topic", "acknowledged")}
    assert msgspec.convert(sent, messages.EventMessage, strict=False).seq == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--stream", "back"), [2]),
        (("--kind", "end"), [3]),
        (("--kind", "detections"), [77]),
        (("--label", "cat"), [2]),
        (("--label", "dog"), [77]),
        (("--label", "person", "-n", "1"), [3]),
        (("--since", "1h", "--stream", "front"), [1, 3, 77]),
        (("--until", "1h"), []),
        (("--since", "2000-01-01", "--until", "2001-01-01T10:00"), []),
    ],
)
def test_only_what_is_wanted(folder: Path, options: tuple[str, ...], expected: list[int]) -> None:
    found = lines(call("tail", "--folder", str(folder), "--json", *options))
    assert [line["seq"] for line in found] == expected


def test_an_export_as_lines(folder: Path) -> None:
    found = lines(call("export", "--folder", str(folder)))
    assert [line.get("id") for line in found][::3] == ["first", "some-id"]
    assert lines(call("export", "--folder", str(folder), "--stream", "nobody")) == []


def test_a_database_that_cannot_be_read_leaves_an_old_export_as_it_is(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_text("old")
    (tmp_path / "spool.db").write_bytes(b"garbage " * 1000)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "agent",
            "events",
            "export",
            "--folder",
            str(tmp_path),
            "-o",
            str(target),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"vedette: {tmp_path}/spool.db: is damaged")
    assert target.read_text() == "old"


def test_the_folder_of_the_configuration(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "v.toml"
    config.write_text(f'[storage]\nstate_dir = "{folder}"\n[streams.a]\nsource = "test:"\nmodel = "nanodet"\n')
    assert len(lines(call("export", "-c", str(config)))) == 5


CLIP = ClipMessage(
    "clip-1",
    "porch",
    "front",
    "/var/lib/vedette/clips/front/2026-11-25T10-15-03Z-person-1.mp4",
    datetime(2026, 11, 25, 10, 15, 3, tzinfo=UTC),
    datetime(2026, 11, 25, 10, 15, 13, tzinfo=UTC),
    10.0,
    50,
    5_000_000,
    "label-1",
    "person",
    ("label-1",),
    "appeared",
)


def test_a_clip_is_told_with_where_it_lies(tmp_path: Path) -> None:
    spool = Spool(tmp_path, StorageConfig())
    spool.put(TOPICS.clips("front"), messages.encode(CLIP))
    spool.close()
    _, shown = call("tail", "--folder", str(tmp_path), "--label", "person").output.splitlines()
    assert shown.split()[2:] == ["front", "clips", "person", CLIP.path, "(waits)"]


def test_no_history_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    shown = call("tail", "--folder", str(tmp_path))
    assert shown.exit_code == 1
    assert "no such file" in str(shown.exception)


def test_new_ones_are_shown_as_they_come(folder: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "agent",
        "events",
        "tail",
        "--folder",
        str(folder),
        "--json",
        "-f",
        "-n",
        "1",
    ]
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    running = subprocess.Popen(
        [*command, "--stream", "front"], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=env
    )
    try:
        assert running.stdout is not None
        assert json.loads(running.stdout.readline())["seq"] == 77
        spool = Spool(folder, StorageConfig())
        spool.put(TOPICS.events("back"), event(stream="back"))
        spool.put(EVENTS, event("later"))
        assert spool.flush(60.0)
        assert json.loads(running.stdout.readline())["id"] == "later"
        spool.close()
    finally:
        running.terminate()
        running.wait()


def test_times_as_people_write_them() -> None:
    assert [duration(text) for text in ("20", "1.5m", "2h", "7d")] == [20.0, 90.0, 7200.0, 604800.0]
    with pytest.raises(click.BadParameter):
        duration("\N{FULLWIDTH DIGIT TWO}0s")
    assert moment("2h") == pytest.approx(time.time() - 7200, abs=5)
    assert moment("2026-11-25T08:30+00:00") == datetime(2026, 11, 25, 8, 30, tzinfo=UTC).timestamp()
    local = datetime.now().astimezone() - timedelta(days=3)
    assert moment(local.replace(tzinfo=None).isoformat()) == pytest.approx(local.timestamp())
    for text in ("", "2w", "yesterday", "99999-01-01", "-1h"):
        with pytest.raises(click.BadParameter):
            moment(text)


@contextmanager
def become(user: int, group: int) -> Iterator[None]:
    """Open files as another user and group."""
    os.setegid(group)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_member_of_the_group_may_look_and_nobody_else() -> None:
    with tempfile.TemporaryDirectory() as made:
        folder, group = Path(made), 54321
        spool = Spool(folder, StorageConfig())
        spool.put(EVENTS, event())
        spool.flush(5.0)
        for path in (folder, *folder.iterdir()):
            os.chown(path, -1, group)
        folder.chmod(0o755)  # the files protect themselves
        with become(65534, group):
            assert len(list(History(folder).backwards())) == 1
        with become(65534, 54322), pytest.raises(StorageError, match="Permission denied; run this as root"):
            next(History(folder).backwards())
        spool.close()
