"""Checkpoints, and what a run of another kind is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs the extra [optimise]")
from torch import nn

from agent.errors import CheckpointError
from agent.optimise.checkpoint import read_checkpoint, run_key, write_checkpoint
from agent.optimise.train import TrainingSettings


def key(count: int) -> dict[str, str]:
    pictures, labels = np.zeros((count, 2, 2, 3), np.uint8), np.zeros(count, np.int64)
    return run_key(nn.Linear(2, 2), pictures, labels, TrainingSettings(batch=count))


def test_of_other_examples_these_are_told_and_not_the_batch_that_follows_their_number(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run", key(65), {})
    with pytest.raises(CheckpointError, match=r"pictures was \[65, .* is now \[43, "):
        read_checkpoint(tmp_path / "run", key(43))
