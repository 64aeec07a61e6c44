"""An evaluation that is killed goes on where it was, with the figures of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.support.running import ROOT
from tests.support.sound import RATE, quiet, tone_model, word

pytestmark = pytest.mark.system

RECORDINGS = 4
_LONGEST_S = 100.0


def write(path: Path, *parts: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.concatenate(parts), RATE)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Words, and a street that is never quiet, so that the evaluation takes a while."""
    for name in ("low", "high"):
        for number in range(4):
            write(tmp_path / f"words/{name}/{number}.wav", quiet(0.2 + number / 50), word(name), quiet(0.2))
    for number in range(RECORDINGS):
        pause = quiet(0.3 + number / 100)
        parts = (pause, word("low"), pause, word("high")) * 12
        write(tmp_path / f"street/{number:02}.wav", *parts)
    return tone_model(tmp_path)


def command(model: Path, results: Path) -> list[str]:
    folder = model.parent
    words = ["optimise", "evaluate", str(model), str(folder / "words"), "--background", str(folder / "street")]
    return [sys.executable, "-m", "agent", *words, "--results", str(results), "--json"]


def finished(words: list[str]) -> Any:
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def killed_halfway(words: list[str], results: Path) -> int:
    """Kill an evaluation when it has kept something; return how many results that are."""
    running = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + _LONGEST_S
    try:
        while not (results.exists() and results.stat().st_size):
            assert running.poll() is None, "it ended before anything was kept"
            assert time.monotonic() < until
            time.sleep(0.01)
        os.killpg(running.pid, signal.SIGKILL)
    finally:
        running.kill()
        running.wait()
    return len(results.read_bytes().splitlines())


def test_an_evaluation_that_is_killed_goes_on_with_the_same_figures(model: Path, tmp_path: Path) -> None:
    whole = finished(command(model, tmp_path / "whole"))
    kept = killed_halfway(command(model, tmp_path / "results"), tmp_path / "results")
    assert 0 < kept < 2 * (RECORDINGS + 8)
    assert finished(command(model, tmp_path / "results")) == whole
    written = (tmp_path / "results").read_bytes().splitlines()  # one may have been cut off, which is left out
    lines = [json.loads(line)["key"] for line in written if line.startswith(b'{"key"') and line.endswith(b"}")]
    assert len(lines) == len(set(lines)) == 2 * (RECORDINGS + 8), "nothing was computed twice"
