"""Commands of features, as the core hands them on."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.comms.commands import Command
from agent.comms.topics import Topics
from agent.config import ClipsConfig, DecodeConfig, PublishConfig, StorageConfig, StreamConfig
from agent.config.places import PrivacyMask
from agent.daemon.parts import Asked, execute
from agent.daemon.streams.services import StreamServices
from agent.daemon.streams.stream import Stream
from agent.errors import CommandError
from agent.storage.clips.recorder import Recorder
from agent.types import Clip
from tests.support.clip_pictures import frames_of
from tests.support.doubles import Kept, person_model
from tests.support.publishing import wait_for
from tests.support.sound import tone_model
from tests.unit.daemon.streams.test_stream import running, stream

_WALK = "test:?size=64x48&fps=50"
_UPPER = PrivacyMask("upper", ((0.0, 0.0), (1.0, 0.0), (1.0, 0.5), (0.0, 0.5)))


def ask(made: Stream, verb: Any, **fields: Any) -> dict[str, Any]:
    """Execute a command; return the fields of its answer."""
    command = Command(verb, made.name, **fields)
    reply = execute(Asked(command, made, Topics("vedette", "porch"), lambda result, why: None))
    assert reply is not None
    return reply[1]


def test_without_clips_there_is_nothing_to_record(tmp_path: Path) -> None:
    with (
        running(stream(tmp_path, Kept())) as made,
        pytest.raises(CommandError, match=r"clips are off; \[streams.front.clips\]"),
    ):
        ask(made, "record", seconds=1.0)


def test_a_stream_that_does_not_run_records_nothing(tmp_path: Path) -> None:
    made = stream(tmp_path, Kept(), clips=ClipsConfig(), enabled=False)
    with pytest.raises(CommandError, match="is disabled, so there is nothing to record"):
        ask(made, "record", seconds=1.0)


def test_a_stream_records_when_asked(tmp_path: Path) -> None:
    clips: list[Clip] = []
    recorder = Recorder(tmp_path / "clips", StorageConfig(clips_keep_free_bytes=0), clips.append)
    config = StreamConfig(
        source=_WALK, model=str(person_model(tmp_path)), clips=ClipsConfig(events=False, before_s=1.0, fps=10)
    )
    kept = Kept()
    services = StreamServices(
        Topics("vedette", "porch"), kept, kept, device=lambda _: SimpleNamespace(recorder=recorder)
    )
    made = Stream("front", config, services)
    with running(made):
        wait_for(lambda: kept.kinds() == ["new"])
        path = ask(made, "record", seconds=0.5)["path"]
        with pytest.raises(CommandError, match="at most"):
            ask(made, "record", seconds=1000.0)
        wait_for(lambda: clips)
    recorder.close(5.0)
    assert [clip.path for clip in clips] == [path]
    assert 5 <= len(frames_of(Path(path))) == clips[0].frames


def test_a_snapshot_is_published_when_it_is_asked_for_whatever_there_is_to_see(tmp_path: Path) -> None:
    kept = Kept()
    nothing = DecodeConfig(score_threshold=0.95)
    with running(stream(tmp_path, kept, decode=nothing, publish=PublishConfig(snapshot=False))) as made:
        wait_for(lambda: made.metrics.frames > 2)
        assert "vedette/porch/front/snapshot" not in kept.retained
        ask(made, "snapshot")
        wait_for(lambda: "vedette/porch/front/snapshot" in kept.retained)
        assert kept.retained["vedette/porch/front/snapshot"].startswith(b"\xff\xd8")
        time.sleep(0.2)
        assert len([topic for topic, _ in kept.history if topic.endswith("/snapshot")]) == 1


def test_without_a_picture_there_is_no_snapshot_and_the_reason_is_told(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="stream front is disabled, so there is no picture"):
        ask(stream(tmp_path, Kept(), enabled=False), "snapshot")
    listening = stream(tmp_path, Kept(), "mic:default", model=str(tone_model(tmp_path)))
    listening.prepare()
    with pytest.raises(CommandError, match="stream front has sound only"):
        ask(listening, "snapshot")


def test_nothing_is_forgotten_by_a_stream_that_does_not_run(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="stream front is disabled, so nothing is forgotten"):
        ask(stream(tmp_path, Kept(), enabled=False), "forget", state="gate", name="open")


def test_nothing_is_taught_of_what_is_hidden(tmp_path: Path) -> None:
    made = stream(tmp_path, Kept(), "test:?size=320x240&fps=50", privacy=(_UPPER,), mask_model=False)
    with running(made):
        wait_for(lambda: made.status[0] == "running")
        with pytest.raises(CommandError, match="mask_model is false"):
            ask(made, "forget", state="gate", name="open")
