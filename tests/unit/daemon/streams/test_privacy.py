"""What a stream hides, in what it publishes and in what it says."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
from msgspec.structs import replace

from agent.compute.blur import BlurFinder
from agent.compute.vision import VideoPerception
from agent.config import GateConfig, StreamConfig
from agent.config.places import PrivacyMask
from agent.daemon.check import problems, warnings
from agent.daemon.streams.extra_models import BlurModels
from agent.daemon.streams.perception import models_changed, open_perception
from agent.errors import BackendError, BlurModelError, ConfigError
from agent.features.condition.camera import origin_of
from agent.models.library import open_model
from agent.types import Box, ChannelOrder, Frame, Image
from tests.support.doubles import Kept, person_model
from tests.support.publishing import wait_for
from tests.unit.daemon.streams.test_stream import running, stream

if TYPE_CHECKING:
    pass

_SNAPSHOT = "vedette/porch/front/snapshot"
_UPPER = PrivacyMask("upper", ((0.0, 0.0), (1.0, 0.0), (1.0, 0.5), (0.0, 0.5)))
_BRIGHT = "test:?size=320x240&fps=50"


def _picture(kept: Kept) -> Image:
    wait_for(lambda: kept.retained.get(_SNAPSHOT))
    image = cv2.imdecode(np.frombuffer(kept.retained[_SNAPSHOT], np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image.astype(np.uint8)


def _upper_left(image: Image) -> int:
    """The brightest value in a corner that no box of the model is drawn over."""
    return int(image[:40, :60].max())


@pytest.mark.parametrize("mask_model", [True, False])
def test_a_snapshot_is_black_where_a_mask_is(tmp_path: Path, mask_model: bool) -> None:
    kept = Kept()
    with running(stream(tmp_path, kept, _BRIGHT, privacy=(_UPPER,), mask_model=mask_model)):
        picture = _picture(kept)
    assert _upper_left(picture) < 8
    assert picture[200:].max() > 60


def test_a_stream_that_hides_nothing_keeps_its_snapshot(tmp_path: Path) -> None:
    kept = Kept()
    with running(stream(tmp_path, kept, _BRIGHT)):
        assert _upper_left(_picture(kept)) > 8
    assert all(payload for topic, payload in kept.history if topic == _SNAPSHOT)


@pytest.mark.parametrize("sees", [True, False])
def test_the_gate_and_the_model_see_the_true_picture_only_where_there_is_one(tmp_path: Path, sees: bool) -> None:
    config = StreamConfig("test:", str(person_model(tmp_path, score=0.1)), gate=GateConfig(hold_s=0.0))
    vision = VideoPerception("front", config, open_model(config.model))
    black, inferred = np.zeros((120, 160, 3), np.uint8), []
    for number in range(20):
        true = black.copy()
        true[40:80, 5 * number : 5 * number + 30] = 200
        now_ns = 10**9 + number * 10**8
        frame = Frame(black, "front", number, now_ns, datetime.now(UTC), unmasked=true if sees else None)
        inferred.append(vision.process(frame).detections is not None)
    vision.close()
    assert inferred[0], "the first picture is always inferred"
    assert sum(inferred[1:]) == (19 if sees else 0)


def test_what_is_learned_of_a_view_is_masked_also_where_the_gate_sees_the_true_picture(tmp_path: Path) -> None:
    config = StreamConfig("test:", str(person_model(tmp_path)))
    vision = VideoPerception("front", config, open_model(config.model))
    black = np.zeros((480, 640, 3), np.uint8)
    true = np.random.default_rng(1).integers(0, 256, black.shape).astype(np.uint8)
    frame = Frame(black, "front", 0, 10**9, datetime.now(UTC), unmasked=true)
    vision.process(frame)
    seen = vision.masked_view(frame)
    vision.close()
    assert len(seen) == 2
    assert not any(one.any() for one in seen)


def test_a_view_that_was_learned_without_masks_is_not_used_with_them() -> None:
    bare, masked = StreamConfig("rtsp://a/1", "m"), StreamConfig("rtsp://a/1", "m", privacy=(_UPPER,))
    assert origin_of(bare) != origin_of(masked)


def test_a_stream_that_cannot_be_blurred_any_more_shows_nothing_until_it_can_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def find(self: BlurFinder, image: Image, order: ChannelOrder, now_ns: int) -> list[Box]:
        calls.append(now_ns)
        if len(calls) == 6:
            raise BackendError("the runtime broke")
        return []

    monkeypatch.setattr(BlurFinder, "find", find)
    made = stream(tmp_path, Kept(), _BRIGHT, blur=("face",))
    with running(made):
        wait_for(lambda: made.state == "failed")
        assert "cannot be blurred, so it shows nothing: the runtime broke" in made.detail
        assert len(calls) == 6
        wait_for(lambda: made.status[0] == "running" and len(calls) > 8)


def test_a_model_that_blurs_and_cannot_be_opened_is_tried_again_and_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept, tries = Kept(), list[str]()

    class Missing(BlurModels):
        def __init__(self, config: StreamConfig, open_one: Any) -> None:
            tries.append(config.source)
            if len(tries) < 5:
                raise BlurModelError("blur: model face: no such file", keys=("blur",))
            super().__init__(config, open_one)

    monkeypatch.setattr("agent.daemon.streams.extra_models.BlurModels", Missing)
    made = stream(tmp_path, kept, _BRIGHT, (0.05, 0.1), blur=("face",))
    with pytest.raises(ConfigError, match="no such file"):
        made.prepare()
    assert (made.state, made.finished) == ("failed", False)
    made.start()
    try:
        wait_for(lambda: made.status[0] == "running" and made.metrics.frames > 2)
    finally:
        made.ask_to_stop()
        assert made.join(60.0)
    assert len(tries) >= 5
    assert not [one for one in caplog.messages if "no such file" in one], "who prepares it tells that"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"privacy": (PrivacyMask("door", ((0.0, 0.0), (1.0, 1.0))),)}, "'door'.*2 corners"),
        ({"mask_model": False}, "neither"),
        ({"blur": ("plate",)}, "no bundled model finds 'plate'"),
    ],
)
def test_privacy_that_would_hide_nothing_is_refused(tmp_path: Path, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        open_perception("front", StreamConfig("test:", str(person_model(tmp_path)), **settings))


@pytest.mark.parametrize(("key", "value"), [("privacy", (_UPPER,)), ("blur", ("face",))])
def test_sound_has_no_masks(key: str, value: object) -> None:
    config = StreamConfig("mic:default", "small-speech", **{key: value})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"{key} is for pictures"):
        open_perception("kitchen", config)


def _written(folder: Path, text: str) -> Path:
    path = folder / "vedette.toml"
    path.write_text(f'[storage]\nstate_dir = "{folder}"\n[device]\nprofile = "none"\n{text}')
    return path


def test_a_wrong_mask_is_told_with_its_line(tmp_path: Path) -> None:
    head = f'[streams.front]\nsource = "test:"\nmodel = "{person_model(tmp_path)}"\n'
    mask = '[[streams.front.privacy]]\nname = "door"\npolygon = [[0, 0], [1, 0]]\n'
    path = _written(tmp_path, head + mask)
    (problem,) = problems(path)
    assert problem.startswith(f"{path}:10: privacy mask 'door'")


def test_a_stream_that_shows_what_another_hides_is_a_warning(tmp_path: Path) -> None:
    head = f'source = "test:"\nmodel = "{person_model(tmp_path)}"\n'
    mask = '[[streams.front.privacy]]\nname = "door"\npolygon = [[0, 0], [1, 0], [1, 1]]\n'
    path = _written(tmp_path, f"[streams.front]\n{head}{mask}[streams.back]\n{head}")
    assert any("stream back shows the source of stream front, and hides less" in one for one in warnings(path))


def test_a_model_that_blurs_and_has_changed_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = StreamConfig("test:", str(person_model(tmp_path)), blur=("face",))
    vision = open_perception("front", config)
    try:
        assert not models_changed("front", config, vision.model, "", vision)
        (blurs,) = vision.extra_models
        (first, labels), *others = blurs._found
        blurs._found = [(replace(first, sha256="0" * 64), labels), *others]
        assert models_changed("front", config, vision.model, "", vision)
    finally:
        vision.close()
