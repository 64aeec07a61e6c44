"""A whole bundle for this machine: built with what an index gives, twice the same, installed without network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.update import bundle
from tests.support.running import ROOT
from tests.support.tiny_bundles import HERE, make_key, needs_ssh_keygen

pytestmark = [pytest.mark.board, needs_ssh_keygen]


def built(path: Path, key: Path, umask: int) -> Path:
    words = [
        "--arch",
        HERE.arch,
        "--python",
        HERE.python,
        "--board",
        "pi4b",
        "--board",
        "dev-x86",
        "--counter",
        "1",
    ]
    words += ["--model", "small-speech", "--sign", str(key), "--out", str(path)]
    command = [sys.executable, "-m", "agent", "bundle", "build", *words]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        umask=umask,
        env={**os.environ, "TZ": "Asia/Tokyo"},
    )
    assert done.returncode == 0, done.stderr
    return path


@pytest.mark.usefixtures("network")
@pytest.mark.timeout(400)
def test_a_whole_bundle_is_the_same_bytes_each_time_and_installs_without_network(tmp_path: Path) -> None:
    key = make_key(tmp_path / "key").path
    first = built(tmp_path / "one.vedette", key, 0o022)
    second = built(tmp_path / "two.vedette", key, 0o077)
    assert first.read_bytes() == second.read_bytes()
    assert first.with_name("one.vedette.sig").is_file()

    described = bundle.read_description(first)
    bundle.unpack(first, described, tmp_path / "slot")
    wheels = [str(tmp_path / "slot" / wheel) for wheel in described.paths_in("wheels", ".whl")]
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    pip = [str(tmp_path / "venv" / "bin" / "pip"), "install", "--quiet", "--no-index", "--no-cache-dir", *wheels]
    subprocess.run(pip, check=True)
    installed = str(tmp_path / "venv" / "bin" / "vedette")
    found = subprocess.run([installed, "models", "list", "--json"], capture_output=True, text=True, check=True)
    assert '"nanodet"' in found.stdout
    told = subprocess.run(
        [installed, "bundle", "inspect", str(first)], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    assert f'version = "{described.version}"\ncounter = 1\nkind = "full"' in told.stdout
