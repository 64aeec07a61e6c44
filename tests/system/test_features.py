"""An installation without a feature's folder: the shortest configuration runs, one that uses it is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agent.features import FEATURES
from tests.support.doubles import person_model
from tests.support.mosquitto import Mosquitto
from tests.support.running import ROOT, Vedette, camera, kinds

BY_DEFAULT = {"governor", "homeassistant", "snapshots"}
"""What the shortest configuration uses."""
OTHERS = sorted({feature.name for feature in FEATURES} - BY_DEFAULT)
HEAD = '[streams.front]\nsource = "test:"\nmodel = "nanodet"\n'
USED = {
    "chains": '[[streams.front.secondary]]\nname = "face"\nmodel = "face"\n',
    "clips": "[streams.front.clips]\n",
    "condition": "[streams.front.condition]\nenabled = true\n",
    "inspection": '[streams.front.inspection]\ntrigger = "every"\n',
    "lines": '[[streams.front.lines]]\nname = "gate"\npoints = [[0, 0.5], [1, 0.5]]\n',
    "fusion": '[fusion.alarm]\nwhen = "front:person"\n',
    "metrics": '[metrics]\nlisten = "127.0.0.1:0"\n',
    "page": '[page]\nlisten = "127.0.0.1:0"\n',
}
"""Tables that use a feature; the others are used by manifests, commands or verbs."""


def without(folder: Path, *hidden: str) -> Path:
    """Return a folder with an `agent` in which some features are missing."""
    package = folder / "agent"
    (package / "features").mkdir(parents=True)
    for path in (ROOT / "agent").iterdir():
        if path.name != "features":
            (package / path.name).symlink_to(path)
    for path in (ROOT / "agent" / "features").iterdir():
        if path.name not in hidden:
            (package / "features" / path.name).symlink_to(path)
    return folder


def check(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    file = folder / "v.toml"
    file.write_text(f'[mqtt]\nhost = "127.0.0.1"\n[storage]\nstate_dir = "{folder}/state"\n{text}')
    command = [sys.executable, "-m", "agent", "config", "check", str(file)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("name", OTHERS)
def test_without_a_feature_the_rest_is_right_and_its_table_is_refused_by_its_line(
    tmp_path: Path, name: str
) -> None:
    folder = without(tmp_path, name)
    assert check(folder, HEAD).returncode == 0
    if name in USED:
        done = check(folder, HEAD + USED[name])
        told = done.stdout + done.stderr
        assert done.returncode == 1
        assert f"this installation has no agent/features/{name}" in told
        assert any(line.startswith(f"{folder}/v.toml:") and name in line for line in told.splitlines()), told


def test_a_daemon_runs_without_every_feature_that_it_does_not_use(tmp_path: Path, broker: Mosquitto) -> None:
    folder = without(tmp_path / "installed", *OTHERS)
    messages = broker.subscribe("vedette/#")
    vedette = Vedette(tmp_path, broker, front=camera(person_model(tmp_path)))
    vedette.prefix = ("env", "-C", str(folder))
    with vedette:
        messages.wait(lambda m: "new" in kinds(m))
        assert vedette.end()[0] == 0
    assert vedette.said("Traceback") == []
