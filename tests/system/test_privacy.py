"""Masks of the daemon as users run it: a reload, clips and snapshots, at a real broker."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from agent.types import Image
from tests.support.clip_pictures import frames_of
from tests.support.doubles import person_model
from tests.support.mosquitto import Mosquitto
from tests.support.operator import Operator
from tests.support.publishing import TOPICS, wait_for
from tests.support.running import Vedette, camera, states
from tests.system.test_clips import one_clip

_SOURCE = "test:?size=320x240&fps=20&pace=realtime"
_UPPER = {"name": "upper", "polygon": [[0.0, 0.0], [1.0, 0.0], [1.0, 0.5], [0.0, 0.5]]}


def _corner(jpeg: bytes) -> int:
    """The brightest value of a corner that the person's box and its label leave free."""
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return _brightest(image.astype(np.uint8))


def _brightest(image: Image) -> int:
    return int(image[:30, :60].max())


@pytest.fixture
def operator(broker: Mosquitto) -> Operator:
    return Operator(broker)


def _snapshots(operator: Operator) -> list[bytes]:
    return operator.messages.of(TOPICS.snapshot("front"))


def test_a_mask_that_a_reload_brings_is_in_every_picture_from_then_on(
    tmp_path: Path, broker: Mosquitto, operator: Operator
) -> None:
    front = camera(person_model(tmp_path), _SOURCE, publish={"snapshot_every_s": 0.1})
    with Vedette(tmp_path, broker, front=front) as vedette:
        operator.messages.wait(lambda _: any(_snapshots(operator)))
        assert _corner(_snapshots(operator)[-1]) > 16
        vedette.config["streams"]["front"]["privacy"] = [_UPPER]
        vedette.reload()
        operator.messages.wait(lambda _: b"" in _snapshots(operator))
        wait_for(lambda: _ask(operator) and len(_masked(operator)) >= 3)
        assert vedette.wait_said("stream front: masks: upper")
    assert max(map(_corner, _masked(operator))) < 8


def _ask(operator: Operator) -> bool:
    """Ask for a snapshot, again and again: a stream that is starting refuses that."""
    operator.set("front", "snapshot", 1)
    time.sleep(0.1)
    return True


def _masked(operator: Operator) -> list[bytes]:
    """Snapshots after the deletion of those without a mask."""
    found = _snapshots(operator)
    return [one for one in found[found.index(b"") :] if one]


def test_a_wrong_mask_changes_nothing_and_is_told_by_its_name(
    tmp_path: Path, broker: Mosquitto, operator: Operator
) -> None:
    front = camera(person_model(tmp_path), _SOURCE, privacy=[_UPPER])
    with Vedette(tmp_path, broker, front=front) as vedette:
        operator.messages.wait(lambda m: states(m).get("front") == "running")
        vedette.config["streams"]["front"]["privacy"] = [{"name": "door", "polygon": [[0.0, 0.0], [1.0, 1.0]]}]
        vedette.reload()
        assert "2 corners" in vedette.wait_said("privacy mask 'door'")
        before = len(_snapshots(operator))
        wait_for(lambda: _ask(operator) and len(_snapshots(operator)) > before)
        assert _corner(_snapshots(operator)[-1]) < 8


def test_clips_are_of_masked_pictures_and_the_log_says_so(
    tmp_path: Path, broker: Mosquitto, operator: Operator
) -> None:
    clips = {"before_s": 0.5, "after_s": 0.5, "max_s": 2.0, "fps": 10.0}
    front = camera(person_model(tmp_path), _SOURCE, privacy=[_UPPER], mask_model=False, clips=clips)
    with Vedette(tmp_path, broker, front=front) as vedette:
        told = one_clip(operator.messages)
        assert vedette.wait_said("its models see the true picture; clips are encoded from masked pictures")
    shown = frames_of(Path(told.path))
    assert len(shown) > 5
    assert max(_brightest(picture) for picture in shown) < 8


def test_at_the_start_a_stream_with_a_mask_of_two_points_fails_and_the_others_run(
    tmp_path: Path, broker: Mosquitto, operator: Operator
) -> None:
    model = person_model(tmp_path)
    wrong = camera(model, _SOURCE, privacy=[{"name": "door", "polygon": [[0.0, 0.0], [1.0, 1.0]]}])
    with Vedette(tmp_path, broker, front=wrong, back=camera(model, _SOURCE)) as vedette:
        said = vedette.wait_said("privacy mask 'door'")
        assert f"{vedette.file}:" in said
        operator.messages.wait(lambda m: states(m) == {"front": "failed", "back": "running"})
    assert not any(_snapshots(operator))


def test_a_snapshot_from_before_the_masks_is_deleted_also_if_no_stream_can_run(
    tmp_path: Path, broker: Mosquitto, operator: Operator
) -> None:
    front = camera(person_model(tmp_path), _SOURCE, publish={"snapshot_every_s": 0.1})
    with Vedette(tmp_path, broker, front=front) as vedette:
        operator.messages.wait(lambda _: any(_snapshots(operator)))
        vedette.end(signal.SIGKILL)
        assert _snapshots(operator)[-1]
        vedette.config["streams"]["front"]["privacy"] = [{"name": "door", "polygon": [[0.0, 0.0], [1.0, 1.0]]}]
        vedette.start()
        assert vedette.exit_code() != 0
        operator.messages.wait(lambda _: _snapshots(operator)[-1] == b"")
