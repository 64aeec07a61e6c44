"""Root's commands and root's daemon have models opened and run by somebody else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import soundfile

from tests.support.doubles import person_model
from tests.support.mosquitto import Mosquitto
from tests.support.publishing import wait_for
from tests.support.running import ROOT, Vedette, camera, hear
from tests.support.sizes import LEFT, RIGHT, sizes_model
from tests.support.sound import RATE, cascade_model, quiet, word

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root gives up its rights")

VEDETTE = (sys.executable, "-m", "agent")
_RECORDER = """
import os, sys
from agent.compute.infer.litert import CpuBackend

real = CpuBackend.open

def recorded(self, model, options):
    with open(os.environ["OPENED_BY"], "a") as file:
        file.write(f"{os.geteuid()}\\n")
    return real(self, model, options)

CpuBackend.open = recorded

class Unreadable:
    def find_spec(self, name, path, target=None):
        raise ModuleNotFoundError(f"{name} may not be read by this user")

change = os.setresuid

def changed(*ids):
    change(*ids)
    sys.meta_path.insert(0, Unreadable())

if any(word.endswith("_main") for word in sys.orig_argv):
    os.setresuid = changed
"""
"""Each Python imports this at its start. It writes down who opens a model with the runtime, and lets a process of
a model import nothing more after it has dropped root's rights, as where Python lies in root's home."""


@pytest.fixture
def openers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Record each opening of a model by this test's processes, a line with the user's number."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        record = Path(folder) / "openers"
        record.touch()
        record.chmod(0o666)
        (Path(folder) / "sitecustomize.py").write_text(_RECORDER)
        monkeypatch.setenv("PYTHONPATH", folder)
        monkeypatch.setenv("OPENED_BY", str(record))
        yield record


def vedette(*args: str | Path) -> str:
    """Run a command; gives what it said."""
    done = subprocess.run([*VEDETTE, *map(str, args)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def recordings(folder: Path) -> Path:
    for label in ("low", "high", "silence"):
        (folder / label).mkdir(parents=True)
        for number in range(4):
            samples = quiet(0.6) if label == "silence" else word(label, 0.5)
            soundfile.write(folder / label / f"{number}.wav", samples, RATE)
    return folder


def test_commands_of_root_open_no_model_as_root(tmp_path: Path, openers: Path) -> None:
    """The file of the model and the recordings are root's alone."""
    sizes = sizes_model(tmp_path, {"64": [(0.9, LEFT)], "32": [(0.9, LEFT), (0.6, RIGHT)]})
    config = tmp_path / "vedette.toml"
    config.write_text(f'[streams.front]\nsource = "test:"\nmodel = "{sizes}"\n')
    with subprocess.Popen([*VEDETTE, "bench", str(sizes), "--backend", "cpu"], cwd=ROOT) as bench:
        wait_for(lambda: len(openers.read_text().split()) >= 2)  # the rest takes time, and `test_bench` sees it
        bench.kill()
    assert "1 thread" in vedette("profile", sizes, "--runs", "1", "--threads", "1")
    assert "written to" in vedette(
        "optimise", "calibrate", cascade_model(tmp_path), recordings(tmp_path / "words")
    )
    vedette("config", "check", config)
    found = openers.read_text().split()
    assert len(found) >= 5
    assert "0" not in found


def test_a_daemon_of_root_has_unknown_models_opened_by_another_user_first_and_says_that_it_is_root(
    tmp_path: Path, broker: Mosquitto, openers: Path
) -> None:
    messages = broker.subscribe("vedette/#")
    with Vedette(tmp_path, broker, back=camera("nanodet"), front=camera(person_model(tmp_path))) as running:
        hear(messages, 1)
        assert "person.toml: is opened as root" in "".join(running.said("is opened as root"))
        assert len(running.said("is opened as root")) == 1
    found = openers.read_text().split()
    assert found.count("0") == 2
    assert found[0] != "0"
    assert len(found) == 4
