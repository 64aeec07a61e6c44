"""A classifier of pictures with early exits: from a folder of pictures to a subscriber."""

from __future__ import annotations

from pathlib import Path

import cv2
import msgspec
import numpy as np
from click.testing import CliRunner

from agent.cli.main import vedette
from agent.comms.messages import DetectionsMessage
from tests.support.mosquitto import Mosquitto
from tests.support.picture_cascade import SURE, UNSURE, colour_cascade
from tests.support.publishing import TOPICS
from tests.support.received import Messages
from tests.support.running import Table, Vedette, camera

COLOURS = [SURE, UNSURE, SURE, SURE, UNSURE]


def pictures(folder: Path) -> str:
    (folder / "pictures").mkdir()
    for number, colour in enumerate(COLOURS):
        picture = np.full((48, 64, 3), colour[::-1], np.uint8)
        assert cv2.imwrite(str(folder / "pictures" / f"{number}.png"), picture)
    return f"dir:{folder / 'pictures'}?pace=fast"


def stream(folder: Path, **keys: object) -> Table:
    gate, publish = {"motion": False}, {"detections": True}
    return camera(colour_cascade(folder), pictures(folder), gate=gate, publish=publish, **keys)


def answers(messages: Messages) -> list[tuple[str, str]]:
    """Label and variant for each picture."""
    bodies = messages.of(TOPICS.detections("front"))
    found = [msgspec.json.decode(body, type=DetectionsMessage) for body in bodies]
    return [(one.detections[0].label, one.variant) for one in found]


def test_each_picture_is_answered_by_the_first_exit_that_is_sure(tmp_path: Path, broker: Mosquitto) -> None:
    messages = broker.subscribe("vedette/#")
    with Vedette(tmp_path, broker, front=stream(tmp_path, cascade={"budget_ms": 1e5})).online_first() as running:
        messages.wait(lambda m: len(answers(m)) == len(COLOURS))
        running.end()
    exits = {SURE: "early", UNSURE: "deep"}
    assert answers(messages) == [("red", exits[colour]) for colour in COLOURS]


def test_the_budget_of_a_stream_bounds_all_exits_together(tmp_path: Path, broker: Mosquitto) -> None:
    messages = broker.subscribe("vedette/#")
    with Vedette(tmp_path, broker, front=stream(tmp_path, cascade={"budget_ms": 1e-6})).online_first() as running:
        messages.wait(lambda m: len(answers(m)) == len(COLOURS))
        running.end()
    assert {variant for _, variant in answers(messages)} == {"early"}


def test_a_configuration_with_a_cascade_of_pictures_is_checked(tmp_path: Path) -> None:
    model = colour_cascade(tmp_path)
    for variant, code in (("auto", 0), ("early", 0), ("deep", 0), ("other", 1)):
        (tmp_path / "vedette.toml").write_text(
            f'[mqtt]\nhost = "localhost"\n[streams.front]\nsource = "test:"\nmodel = "{model}"\n'
            f'variant = "{variant}"\ncascade.budget_ms = 20.0\n'
        )
        done = CliRunner().invoke(vedette, ["config", "check", str(tmp_path / "vedette.toml")])
        assert done.exit_code == code, f"{done.output}{done.exception}"
