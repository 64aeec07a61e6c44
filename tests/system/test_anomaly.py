"""An inspection line: a model learned from sound parts, in a daemon, to a subscriber."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

pytest.importorskip("ai_edge_litert", reason="models are written with ai-edge-litert")

from tests.support.mosquitto import Mosquitto
from tests.support.parts import SCRATCH, learn, part, write_parts
from tests.support.running import Vedette, camera, events, states


def test_a_scratched_part_is_reported_where_the_scratch_is(tmp_path: Path, broker: Mosquitto) -> None:
    write_parts(tmp_path / "sound", 45)
    made = tmp_path / "line.tflite"
    learn(tmp_path / "sound", made)
    line = tmp_path / "line"
    line.mkdir()
    for number in range(12):
        assert cv2.imwrite(str(line / f"{number:02}.png"), part(50 + number, scratched=6 <= number < 9))
    messages = broker.subscribe("vedette/#")
    stream = camera(tmp_path / "line.toml", f"dir:{line}?pace=fast", gate={"motion": False})
    stream["track"] |= {"min_hits": 1}
    with Vedette(tmp_path, broker, front=stream) as running:
        messages.wait(lambda m: states(m).get("front") == "ended", timeout_s=60.0)
        running.end()
    found = max(events(messages), key=lambda event: event.track.score)
    assert (found.track.label, found.track.score > 0.99) == ("defect", True)
    assert found.track.box is not None
    centre = [(found.track.box[axis] + found.track.box[axis + 2]) / 2 for axis in (0, 1)]
    assert SCRATCH[0] < centre[0] < SCRATCH[2]
    assert SCRATCH[1] < centre[1] < SCRATCH[3]
