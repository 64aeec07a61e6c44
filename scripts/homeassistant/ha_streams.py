"""The streams of the proof: together they have an entity of every kind that Vedette announces.

Bundled models look at people, hear words and learn a gate; small models of the tests stand for the other kinds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from agent.models.files import ZOO
from tests.support.chains import tint_model
from tests.support.doubles import person_model
from tests.support.running import Table
from tests.support.soundscape import ALARM, story, waveform_model
from tests.support.tflite_builder import constant_model
from tests.unit.compute.spoken_words import RATE, quiet, said

WORD = "alexa"
"""Word that is said in the study again and again."""
PLATE = "A17"
"""Text that the camera at the ramp always reads."""
MEASURED, READING = "oil level", 42.5
"""What the gauge measures, and what it always shows."""
_WALKERS = f"file:{ZOO / 'walkers.mp4'}?pace=realtime&loop=1"
_STALL_S = 120.0
"""A machine that other work keeps busy must not lose a stream, s."""
_PATTERN = "test:?size=160x120&fps=2"
_ALL = "[input]\nmean = [0.0, 0.0, 0.0]\nstd = [1.0, 1.0, 1.0]\n"


def every_kind(folder: Path, gate: str) -> dict[str, Table]:
    """Return tables of streams with an entity of every kind.

    Args:
        folder: for models and sounds.
        gate: URI of a camera that shows a gate.
    """
    streams = {
        "front": _front(folder),
        "back_yard": {**_watcher(_WALKERS), "variant": "256"},
        "drive": {**_watcher(gate), "variant": "256", "gate": {"max_idle_s": 1.0}},
        "kitchen": {"source": f"wav:{ZOO / 'spoken.flac'}?pace=realtime&loop=1", "model": "small-speech"},
        "study": {"source": _sound(folder, "study", *_words()), "model": "speech-embedding"},
        "siren": {"source": _siren(folder), "model": str(waveform_model(folder)), "decode": {"labels": [ALARM]}},
        "press": {**_looker(person_model(folder)), "inspection": {"trigger": "command", "ng_labels": ["person"]}},
        "sorter": _looker(tint_model(folder)),
        "gauge": _looker(_gauge(folder)),
        "ramp": _looker(_plate(folder)),
    }
    return {
        name: {**one, "capture": {**one.get("capture", {}), "stall_s": _STALL_S}} for name, one in streams.items()
    }


def fused_events() -> dict[str, Table]:
    """Return the tables of `[fusion]`."""
    return {"call": {"when": 'front:person and kitchen:"nine"', "hold_s": 0.0, "window_s": 1.0}}


def _watcher(source: str) -> Table:
    return {"source": source, "model": "nanodet", "capture": {"max_fps": 2.0}}


def _looker(model: Path) -> Table:
    return {"source": _PATTERN, "model": str(model), "gate": {"motion": False}}


def _front(folder: Path) -> Table:
    """Return a camera that has everything which a camera may have."""
    halves = {"left": ([0, 0], [0.5, 0], [0.5, 1], [0, 1]), "right": ([0.5, 0], [1, 0], [1, 1], [0.5, 1])}
    zones: list[Table] = [{"name": name, "polygon": list(polygon)} for name, polygon in halves.items()]
    zones[0]["inertia"], zones[1]["loitering_s"] = 2, 0.5
    return {
        **_watcher(_WALKERS),
        "capture": {"max_fps": 3.0},
        "decode": {"labels": ["person"]},
        "zones": zones,
        "lines": [{"name": "kerb", "points": [[0.72, 0.3], [0.7, 0.8]]}],
        "filters": [{"name": "giants", "labels": ["person"], "max_area": 0.5}],
        "gate": {"masks": [[[0, 0], [0.1, 0], [0.1, 0.1]]]},
        "secondary": [{"name": "colour", "model": str(tint_model(folder, "coat")), "score_threshold": 0.0}],
        "publish": {"snapshot_every_s": 1.0},
        "condition": {"enabled": True},
    }


def _words() -> tuple[Any, ...]:
    return tuple(said(WORD, number) for number in range(8))


def _siren(folder: Path) -> str:
    return _sound(folder, "siren", story((ALARM, 4.0, 9.0), seconds=12.0))


def _sound(folder: Path, name: str, *parts: Any) -> str:
    path = folder / f"{name}.flac"
    soundfile.write(path, np.concatenate([quiet(1.5), *parts, quiet(0.8)]), RATE)
    return f"wav:{path}?pace=realtime&loop=true"


def _gauge(folder: Path) -> Path:
    options = f'[output]\ndecoder = "regression"\nlabels = ["{MEASURED}"]\noptions = {{ unit = "kPa" }}\n'
    return _model(folder, "gauge", {"reading": np.array([[READING]], np.float32)}, options)


def _plate(folder: Path) -> Path:
    """Write a model that reads `PLATE` in every picture."""
    steps = np.eye(len(PLATE) + 1, dtype=np.float32)[None, : len(PLATE)]
    labels = f'[output]\ndecoder = "ctc"\nlabels = {list(PLATE)}\n'.replace("'", '"')
    return _model(folder, "plate", {"text": steps}, labels)


def _model(folder: Path, name: str, outputs: dict[str, Any], manifest: str) -> Path:
    (folder / f"{name}.tflite").write_bytes(constant_model(outputs, (1, 8, 8, 3)))
    path = folder / f"{name}.toml"
    path.write_text(f'name = "{name}"\n{manifest}{_ALL}')
    return path
