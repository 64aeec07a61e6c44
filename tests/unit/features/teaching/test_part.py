"""What was taught counts only while it can be used."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from msgspec.structs import replace

from agent.config import StreamConfig
from agent.config.places import PrivacyMask
from agent.features.teaching.part import known_values
from agent.features.teaching.taught import FOLDER, TaughtState
from agent.types import WHOLE

_UPPER = PrivacyMask("upper", ((0.0, 0.0), (1.0, 0.0), (1.0, 0.5), (0.0, 0.5)))


def test_states_of_a_stream_that_can_be_taught_nothing_are_kept_and_do_not_count(tmp_path: Path) -> None:
    rows = [np.ones((1, 4), np.float32)] * 5
    taught = TaughtState("gate", WHOLE, "m", "v", 4).with_examples("open", rows).with_examples("closed", rows)
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "front.gate.json").write_bytes(msgspec.json.encode(taught))
    config = StreamConfig("test:", "nanodet")
    masked = replace(config, privacy=(_UPPER,))
    assert known_values("front", config, tmp_path) == {"gate": ("open", "closed")}
    assert known_values("front", masked, tmp_path) == {"gate": ("open", "closed")}
    assert known_values("front", replace(masked, mask_model=False), tmp_path) == {}
    assert known_values("front", replace(config, crop=(0.0, 0.0, 0.5, 0.5)), tmp_path) == {}
