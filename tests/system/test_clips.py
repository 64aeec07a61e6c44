"""Clips of the daemon as users run it: real pictures, a real broker, kills and full disks."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest

from agent.comms.messages import ClipMessage
from agent.daemon.doctor import LONGEST_S
from agent.daemon.runtime import STOP_TIMES
from agent.health import ClipsHealth
from agent.types import Array
from tests.support.clip_pictures import frames_of, play
from tests.support.doubles import person_model
from tests.support.mosquitto import Mosquitto
from tests.support.operator import Operator
from tests.support.publishing import TOPICS, wait_for
from tests.support.received import Messages
from tests.support.running import ROOT, Vedette, camera, events, health, hear, kinds, stopped
from tests.system.test_full_disk import fill

WALKERS = ROOT / "agent" / "models" / "zoo" / "walkers.mp4"
SOON = {"before_s": 1.0, "after_s": 1.0, "max_s": 4.0}
STAYS = "test:?size=160x120&fps=20"
"""With `person_model` there is a person from the start, who stays."""


@pytest.fixture
def messages(broker: Mosquitto) -> Messages:
    return broker.subscribe("vedette/#")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 3 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "vedette-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is refused here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def clips(messages: Messages, stream: str = "front") -> list[ClipMessage]:
    """Return the clip messages of a stream."""
    return [msgspec.json.decode(body, type=ClipMessage) for body in messages.of(TOPICS.clips(stream))]


def one_clip(messages: Messages, count: int = 1) -> ClipMessage:
    """The so-many-th clip, when it is told of."""
    messages.wait(lambda m: len(clips(m)) >= count, timeout_s=60.0)
    return clips(messages)[count - 1]


def nearest(shown: Array, pictures: list[Array]) -> int:
    """Which of the pictures this one is, after another encoding."""
    small = cv2.resize(shown, (96, 72), interpolation=cv2.INTER_AREA).astype(np.int16)
    return int(np.argmin([np.abs(small - other).mean() for other in pictures]))


def source_pictures() -> list[Array]:
    return [
        cv2.resize(shown, (96, 72), interpolation=cv2.INTER_AREA).astype(np.int16) for shown in frames_of(WALKERS)
    ]


def test_a_person_makes_a_clip_of_the_seconds_around_him(
    tmp_path: Path, broker: Mosquitto, messages: Messages
) -> None:
    people = {"labels": ["person"]}  # cars are parked in sight
    front = {"source": f"file:{WALKERS}", "model": "nanodet", "clips": SOON, "decode": people}
    with Vedette(tmp_path, broker, front=front) as vedette:
        told = one_clip(messages, 2)
        assert vedette.wait_said(f"clip {told.path}")
    path = Path(told.path)
    new = next(event for event in events(messages) if event.track.id == told.track)
    assert (told.device, told.stream, told.label, told.reason) == ("porch", "front", "person", "appeared")
    assert path.parent == vedette.state.resolve() / "clips" / "front"
    assert path.name == f"{new.captured_at:%Y-%m-%dT%H-%M-%SZ}-person-{told.track}.mp4"
    assert told.bytes == path.stat().st_size
    assert told.tracks[0] == told.track
    # Its camera has a key frame every five seconds.
    assert 0.9 < (new.captured_at - told.began_at).total_seconds() < 6.5
    assert (told.ended_at - told.began_at).total_seconds() == pytest.approx(told.duration_s, abs=0.01)
    assert 2.0 < told.duration_s < 11.0

    played, shown = play(path), frames_of(path)
    assert len(shown) == told.frames
    assert told.frames == pytest.approx(told.duration_s * 10, abs=3)
    assert played.length_s == pytest.approx(told.duration_s, abs=0.3)
    assert shown[0].shape[1::-1] == (768, 576)
    # Each picture is that of its time in the source, which has ten in a second.
    all_pictures = source_pictures()
    numbers = [nearest(picture, all_pictures) for picture in shown]
    times = np.array(played.times_s)
    assert np.abs(np.array(numbers) - numbers[0] - (times - times[0]) * 10).max() <= 3
    assert len(set(numbers)) == len(numbers)


def test_what_is_told_is_in_one_row_with_the_events(
    tmp_path: Path, broker: Mosquitto, messages: Messages
) -> None:
    front = camera(person_model(tmp_path), f"{STAYS}&frames=60", clips=SOON)
    with Vedette(tmp_path, broker, front=front):
        told = one_clip(messages)
    numbers = [event.seq for event in events(messages)]
    assert told.seq not in numbers
    seen = sorted({*numbers, told.seq})
    assert seen == list(range(seen[0], seen[0] + len(seen)))


def test_a_killed_daemon_leaves_a_clip_that_the_next_start_completes(
    tmp_path: Path, broker: Mosquitto, messages: Messages
) -> None:
    front = camera(person_model(tmp_path), STAYS, clips={**SOON, "max_s": 60.0, "fps": 10.0})
    with Vedette(tmp_path, broker, front=front) as vedette:
        folder = vedette.state / "clips" / "front"
        wait_for(lambda: [part for part in folder.glob(".*.part") if part.stat().st_size > 5_000])
        time.sleep(3.0)
        vedette.end(signal.SIGKILL)
        (part,) = folder.glob(".*.part")
        assert len(frames_of(part)) > 10, "it plays even so"
        del vedette.config["streams"]["front"]["clips"]["max_s"]
        vedette.config["streams"]["front"]["clips"]["events"] = False
        vedette.start()
        told = one_clip(messages)
        wait_for(lambda: not list(folder.glob(".*.part")))
    assert told.repaired
    assert told.path == str(part.with_name(part.name.removeprefix(".").removesuffix(".part")).resolve())
    played = play(Path(told.path))
    assert len(played.numbers) == told.frames
    assert told.duration_s > 2.5
    assert len(clips(messages)) == 1


def test_a_stop_in_mid_clip_saves_it_and_tells_of_it_in_two_seconds(
    tmp_path: Path, broker: Mosquitto, messages: Messages
) -> None:
    front = camera(person_model(tmp_path), STAYS, clips={**SOON, "max_s": 60.0})
    with Vedette(tmp_path, broker, front=front) as vedette:
        hear(messages, 10)
        code, _ = vedette.end()
    assert (code, stopped(messages)) == (0, True)
    assert sum(STOP_TIMES) < 2.0
    (told,) = clips(messages)
    assert not told.repaired
    assert len(frames_of(Path(told.path))) == told.frames > 3


def test_an_operator_records_a_clip_when_he_wants_to(tmp_path: Path, broker: Mosquitto) -> None:
    operator = Operator(broker)
    clips_when_asked = {"events": False, "before_s": 1.0, "fps": 10.0}
    model = person_model(tmp_path)
    with Vedette(tmp_path, broker, front=camera(model, STAYS, clips=clips_when_asked), back=camera(model)):
        hear(operator.messages, 10)
        answer = operator.ask("record", stream="front", seconds=2)
        told = one_clip(operator.messages)
        too_long = operator.ask("record", stream="front", seconds=100)
        without = operator.ask("record", stream="back", seconds=2)
    assert answer["ok"]
    assert (told.path, told.reason, told.track) == (answer["path"], "asked", "")
    assert 2.0 < told.duration_s < 6.5  # from the key frame before, of which there is one a second
    assert len(frames_of(Path(told.path))) == told.frames > 10
    assert (too_long["ok"], without["ok"]) == (False, False)
    assert "at most clips.max_s, 60" in too_long["reason"]
    assert "clips are off" in without["reason"]


def test_a_full_disk_costs_the_clip_and_no_event(
    tmp_path: Path, broker: Mosquitto, messages: Messages, small: Path
) -> None:
    # A new person now and then: each look away of the source's loop ends the last.
    source = f"file:{WALKERS}?loop=1"
    front = camera(person_model(tmp_path), source, clips={**SOON, "max_s": 1.0, "after_s": 0.5})
    front["track"] = {"update_every_s": 0.1, "stationary_after_s": 0.0, "lost_after_s": 0.2, "min_hits": 1}
    front["gate"] = {"motion": False}
    vedette = Vedette(tmp_path, broker, front=front)
    vedette.config["storage"] |= {"clips_folder": str(small), "clips_keep_free_bytes": 0}
    filler = fill(small)
    with vedette:
        messages.wait(lambda m: {"new", "update"} <= kinds(m))
        said = vedette.wait_said("clips cannot be saved")
        assert "No space left" in said or "MB are free" in said
        hear(messages, 10)
        filler.unlink()
        vedette.config["streams"]["front"]["track"]["lost_after_s"] = 0.3
        vedette.reload()
        told = one_clip(messages)
        vedette.wait_said("clips are saved again")
        vedette.end()
    assert len(vedette.said("clips cannot be saved")) == 1
    assert Path(told.path).parent == small / "front"
    assert len(frames_of(Path(told.path))) == told.frames
    assert not list(small.rglob(".*.part"))


def test_a_clip_that_cannot_be_saved_is_refused_with_the_reason_and_counted(
    tmp_path: Path, broker: Mosquitto, messages: Messages
) -> None:
    place = tmp_path / "clips"
    place.write_bytes(b"")  # a file where the folder should be
    front = camera(person_model(tmp_path), STAYS, clips={**SOON, "events": False})
    vedette = Vedette(tmp_path, broker, front=front)
    vedette.config["storage"] |= {"clips_folder": str(place), "clips_keep_free_bytes": 0}
    operator = Operator(broker)

    def told() -> ClipsHealth:
        newest = health(messages)
        assert newest is not None
        assert newest.clips is not None
        return newest.clips

    with vedette:
        hear(messages, 3)
        refused = operator.ask("record", stream="front", seconds=1)
        assert (refused["ok"], "path" in refused) == (False, False)
        assert refused["reason"].startswith(f"{place}/front: clips cannot be saved there: ")
        found = operator.ask("doctor", timeout_s=LONGEST_S)["report"]["findings"]
        (finding,) = [one for one in found if one["name"] == "clips folder"]
        assert (finding["state"], finding["value"]) == (
            "problem",
            f"{place}: expected a folder for clips, found a file",
        )
        messages.wait(lambda _: told().trouble)
        place.unlink()
        done = operator.ask("record", stream="front", seconds=1)
        assert done["path"] == one_clip(messages).path
        messages.wait(lambda _: (told().saved, told().kept, told().trouble) == (1, 1, ""))
        assert told().bytes == Path(done["path"]).stat().st_size


def test_a_full_disk_refuses_to_record(
    tmp_path: Path, broker: Mosquitto, messages: Messages, small: Path
) -> None:
    front = camera(person_model(tmp_path), STAYS, clips={**SOON, "events": False})
    vedette = Vedette(tmp_path, broker, front=front)
    vedette.config["storage"] |= {"clips_folder": str(small), "clips_keep_free_bytes": 0}
    fill(small)
    with vedette:
        hear(messages, 3)
        refused = Operator(broker).ask("record", stream="front", seconds=1)
        assert not refused["ok"]
        assert "No space left" in refused["reason"] or "MB are free" in refused["reason"]


def test_the_oldest_clips_make_room_for_the_newest(tmp_path: Path, broker: Mosquitto, messages: Messages) -> None:
    vedette = Vedette(tmp_path, broker, front=camera(person_model(tmp_path), f"{STAYS}&frames=60", clips=SOON))
    vedette.config["storage"]["clips_max_bytes"] = 1 << 20
    folder = vedette.state / "clips" / "back"
    folder.mkdir(parents=True)
    began = [datetime.now(UTC) - timedelta(days=days) for days in (2, 1)]
    old = [folder / f"{at:%Y-%m-%dT%H-%M-%SZ}-person-back-1-1.mp4" for at in began]
    for path in old:
        path.write_bytes(bytes(522_000))
    with vedette:
        told = one_clip(messages)
    assert told.bytes + 2 * 522_000 > 1 << 20
    assert [path.exists() for path in old] == [False, True]


def test_without_clips_nothing_is_kept_and_a_reload_turns_them_on(
    tmp_path: Path, broker: Mosquitto, messages: Messages
) -> None:
    with Vedette(tmp_path, broker, front=camera(person_model(tmp_path), STAYS)) as vedette:
        hear(messages, 5)
        assert threads(vedette) & {"clips-front", "clips-writer"} == set()
        assert not (vedette.state / "clips").exists()
        vedette.config["streams"]["front"]["clips"] = SOON
        vedette.reload()
        assert one_clip(messages).frames > 3
        assert threads(vedette) >= {"clips-front", "clips-writer"}
        del vedette.config["streams"]["front"]["clips"]
        vedette.reload()
        wait_for(lambda: "clips-front" not in threads(vedette))


def threads(vedette: Vedette) -> set[str]:
    """Names of its threads, as the kernel knows them."""
    tasks = Path(f"/proc/{vedette.process.pid}/task")
    return {path.read_text().strip() for path in tasks.glob("*/comm")}
