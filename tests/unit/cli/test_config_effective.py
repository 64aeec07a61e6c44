from __future__ import annotations

from pathlib import Path

from agent.cli.config import resolved_config
from agent.config import Config, DecodeConfig, StreamConfig, TrackConfig
from tests.support.doubles import person_model
from tests.support.sound import tone_model

ORIGIN = "from the model's manifest"
TWO = TrackConfig(min_hits=2)


def test_what_is_left_open_comes_from_the_manifest(tmp_path: Path) -> None:
    stream = StreamConfig("test:", str(person_model(tmp_path)), decode=DecodeConfig(score_threshold=0.0))
    found = resolved_config(Config({"front": stream}))
    used = found.config.streams["front"]
    assert (used.variant, used.decode.score_threshold, used.decode.iou_threshold) == ("full", 0.0, 0.6)
    assert used.track.min_hits == 3
    assert found.remarks.pop(("storage", "clips_max_bytes")).startswith("the default share")
    assert found.remarks == {
        ("streams", "front", "variant"): ORIGIN,
        ("streams", "front", "decode", "iou_threshold"): ORIGIN,
    }


def test_one_detection_announces_a_sound_unless_the_stream_says_otherwise(tmp_path: Path) -> None:
    path = str(tone_model(tmp_path))
    streams = {"open": StreamConfig("mic:default", path), "set": StreamConfig("mic:default", path, track=TWO)}
    used = resolved_config(Config(streams)).config.streams
    assert (used["open"].track.min_hits, used["set"].track.min_hits) == (1, 2)


def test_the_others_are_told_when_one_model_cannot_be_opened(tmp_path: Path) -> None:
    gone, there = StreamConfig("test:", "nobody"), StreamConfig("test:", str(person_model(tmp_path)))
    found = resolved_config(Config({"gone": gone, "there": there}))
    assert found.config.streams["gone"] == gone
    assert found.config.streams["there"].decode.score_threshold == 0.4
    assert "no bundled model is called 'nobody'" in found.remarks["streams", "gone", "model"]
