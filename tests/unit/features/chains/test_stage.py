from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.vision import VideoPerception
from agent.config import GateConfig, StreamConfig, TrackConfig
from agent.config.features import SecondaryConfig
from agent.daemon.streams.perception import models_changed, open_perception
from agent.features.chains.stage import KnownVectors
from agent.types import Event, Frame
from tests.support.chains import chained_model, dressed, tint_model
from tests.support.tflite_builder import constant_model

_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def _frame(number: int, picture: np.ndarray) -> Frame:
    at_s = number * 0.5
    return Frame(picture, "front", number, round(at_s * 1e9), _BEGAN + timedelta(seconds=at_s))


def _open(model: Path, *secondary: SecondaryConfig, min_hits: int = 2) -> VideoPerception:
    config = StreamConfig(
        "test:",
        str(model),
        gate=GateConfig(motion=False),
        track=TrackConfig(min_hits=min_hits, update_every_s=1000.0, stationary_after_s=0.0),
        secondary=secondary or None,
    )
    found = open_perception("front", config)
    assert isinstance(found, VideoPerception)
    return found


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[VideoPerception]:
    tint_model(tmp_path)
    opened = _open(chained_model(tmp_path))
    yield opened
    opened.close()


def _events(opened: VideoPerception, colours: list[str]) -> list[Event]:
    found = []
    for number, colour in enumerate(colours):
        found += opened.process(_frame(number, dressed(colour))).events
    return found


def test_a_new_track_has_its_attribute_at_once(chain: VideoPerception) -> None:
    (event,) = _events(chain, ["red", "red"])
    assert event.kind == "new"
    assert event.track.attributes["colour"].value == "red"
    assert event.track.attributes["colour"].score > 0.8


def test_only_what_the_object_covers_is_looked_at(chain: VideoPerception) -> None:
    (event,) = _events(chain, ["blue", "blue"])  # most of the picture is green
    assert event.track.attributes["colour"].value == "blue"


def test_another_value_is_an_update(chain: VideoPerception) -> None:
    events = _events(chain, ["red"] * 3 + ["blue"] * 30)
    assert [(one.kind, one.reason) for one in events] == [("new", "appeared"), ("update", "attribute")]
    assert events[-1].track.attributes["colour"].value == "blue"


def test_the_end_of_a_track_has_its_attribute(chain: VideoPerception) -> None:
    _events(chain, ["red", "red"])
    (end,) = chain.finish(10**9, _BEGAN, "shutdown")
    assert end.track.attributes["colour"].value == "red"


def test_its_time_is_told_apart(chain: VideoPerception) -> None:
    chain.process(_frame(0, dressed("red")))
    stages = chain.process(_frame(1, dressed("red"))).stages
    assert stages.secondary > 0
    assert stages.total >= stages.secondary + stages.infer


def test_a_closed_gate_runs_no_secondary_model(tmp_path: Path) -> None:
    tint_model(tmp_path)
    config = StreamConfig("test:", str(chained_model(tmp_path)), gate=GateConfig(max_idle_s=1000.0))
    opened = open_perception("front", config)
    assert isinstance(opened, VideoPerception)
    results = [opened.process(_frame(number, dressed("red"))) for number in range(60)]
    opened.close()
    assert any(one.detections is None for one in results)
    assert all(one.stages.secondary == 0 for one in results if one.detections is None)


def test_labels_choose_the_objects(tmp_path: Path) -> None:
    model = chained_model(tmp_path, "")
    tint = str(tint_model(tmp_path))
    opened = _open(model, SecondaryConfig("colour", tint, labels=("person",)))
    (event,) = _events(opened, ["red", "red"])
    opened.close()
    assert event.track.attributes["colour"].value == "red"


def test_a_small_object_is_left_out(tmp_path: Path) -> None:
    opened = _open(
        chained_model(tmp_path, ""), SecondaryConfig("colour", str(tint_model(tmp_path)), min_pixels=90)
    )
    (event,) = _events(opened, ["red", "red"])
    opened.close()
    assert event.track.attributes == {}


def test_a_model_after_a_secondary_one_is_run_on_what_that_found(tmp_path: Path) -> None:
    tint_model(tmp_path)
    face, body = chained_model(tmp_path), tmp_path / "body"
    body.mkdir()
    opened = _open(chained_model(body, ""), SecondaryConfig("face", str(face), margin=0.0))
    picture = dressed("red")
    picture[34:62, 34:62] = dressed("blue")[48, 48]  # the box within the box, with its margin
    events = opened.process(_frame(0, picture)).events + opened.process(_frame(1, picture)).events
    opened.close()
    attributes = events[0].track.attributes
    assert (attributes["face"].value, attributes["colour"].value) == ("person", "blue")
    assert attributes["face"].box == pytest.approx((0.375, 0.375, 0.625, 0.625), abs=0.01)


def test_only_the_asked_for_answers_count(tmp_path: Path) -> None:
    config = SecondaryConfig("colour", str(tint_model(tmp_path)), answers=("blue",))
    told = {}
    for colour in ("red", "blue"):
        opened = _open(chained_model(tmp_path, ""), config)
        (event,) = _events(opened, [colour, colour])
        opened.close()
        told[colour] = [one.value for one in event.track.attributes.values()]
    assert told == {"red": [], "blue": ["blue"]}


def _reader(folder: Path, text: str) -> str:
    """Write a model that always reads one text, of the characters A, B, 0 and 1."""
    steps = np.zeros((1, 2 * len(text), 5), np.float32)
    for place, character in enumerate(text):
        steps[0, 2 * place, "AB01".index(character)] = steps[0, 2 * place + 1, 4] = 1.0
    (folder / "reader.tflite").write_bytes(constant_model({"text": steps}, (1, 8, 32, 3)))
    path = folder / "reader.toml"
    path.write_text(
        '[output]\ndecoder = "ctc"\nlabels = ["A", "B", "0", "1"]\n[output.options]\nlogits = false\n'
    )
    return str(path)


@pytest.mark.parametrize(("pattern", "told"), [("", ["AB10"]), ("[AB]{2}[01]{2}", ["AB10"]), ("[01]+", [])])
def test_a_text_on_an_object_is_its_attribute(tmp_path: Path, pattern: str, told: list[str]) -> None:
    config = SecondaryConfig("plate", _reader(tmp_path, "AB10"), pattern=pattern)
    opened = _open(chained_model(tmp_path, ""), config)
    (event,) = _events(opened, ["red", "red"])
    opened.close()
    assert [one.value for one in event.track.attributes.values()] == told


def _gallery(folder: Path, **colours: str) -> Path:
    for name, colour in colours.items():
        (folder / "known" / name).mkdir(parents=True)
        cv2.imwrite(str(folder / "known" / name / "1.png"), dressed(colour, colour))
    return folder / "known"


def _embedding(folder: Path) -> str:
    return str(tint_model(folder, "vectors", '[output]\ndecoder = "raw"\nscore_threshold = 0.9\n'))


def test_a_gallery_names_what_looks_like_its_pictures(tmp_path: Path) -> None:
    gallery = str(_gallery(tmp_path, anna="red", bert="blue"))
    config = SecondaryConfig("who", _embedding(tmp_path), gallery=gallery)
    for colour, who in {"red": "anna", "blue": "bert", "green": None}.items():
        opened = _open(chained_model(tmp_path, ""), config)
        (event,) = _events(opened, [colour, colour])
        opened.close()
        told = event.track.attributes.get("who")
        assert (told.value if told else None) == who


def test_a_gallery_with_another_picture_is_read_again_with_the_next_reload(tmp_path: Path) -> None:
    gallery = _gallery(tmp_path, anna="red")
    opened = _open(
        chained_model(tmp_path, ""), SecondaryConfig("who", _embedding(tmp_path), gallery=str(gallery))
    )
    config = opened.config
    changed = [models_changed("front", config, opened.model, "", opened)]
    cv2.imwrite(str(gallery / "anna" / "2.png"), dressed("blue"))
    changed.append(models_changed("front", config, opened.model, "", opened))
    opened.close()
    assert changed == [False, True]


@given(st.lists(st.lists(st.floats(-5, 5, width=32), min_size=4, max_size=4), min_size=1, max_size=6))
def test_each_known_thing_is_most_like_itself(vectors: list[list[float]]) -> None:
    known = KnownVectors([(f"n{number}", one) for number, one in enumerate(vectors)], 0.0)
    for vector in vectors:
        if np.linalg.norm(vector) < 1e-3:
            continue
        (found,) = known.name(vector)
        assert found.score >= 0.999


def test_without_tracks_each_detection_gets_its_attributes(chain: VideoPerception) -> None:
    frame = _frame(0, dressed("blue"))
    detections = chain.infer_crop(frame, (0.0, 0.0, 1.0, 1.0)).detections
    assert chain.secondary is not None
    (told,) = chain.secondary.run_once(frame, detections)
    assert told["colour"].value == "blue"
