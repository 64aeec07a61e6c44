from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner, Result

from agent.cli.main import vedette
from agent.compute.infer.litert import load_runtime
from agent.models.files import ZOO

litert = pytest.mark.skipif(load_runtime()[0] != "litert", reason="tflite-runtime has no profiler")

ROOT = Path(__file__).resolve().parents[3]
PYTHON = Path("/usr/bin/python{}.{}".format(*sys.version_info[:2]))
"""An interpreter that every user may run; that of the environment may lie in root's home."""


def call(*args: object) -> Result:
    return CliRunner().invoke(vedette, ["profile", *map(str, args)])


@litert
def test_a_table_by_kind_and_the_three_worst() -> None:
    done = call("nanodet", "--variant", "256", "--runs", "20", "--threads", "1")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].startswith("nanodet, variant 256: 1 thread, ai-edge-litert ")
    assert any("CONV_2D" in line and "Convolution (NHWC, QC8) IGEMM" in line for line in lines)
    assert any("SOFTMAX" in line and "not delegated" in line for line in lines)
    assert "not delegated to XNNPACK: 2 of " in done.output
    text = " ".join(done.output.split())
    assert "of an inference without the profiler (p50 " in text
    worst = lines[lines.index("the three worst") + 1 :]
    told = [
        re.fullmatch(r"([123])\. [A-Z_0-9]+ \w+ \d+(×\d+)+: [\d.]+ ms, ([\d.]+)%", line) for line in worst[::2]
    ]
    assert [one and one[1] for one in told] == ["1", "2", "3"]
    shares = [float(one[3]) for one in told if one]
    assert shares == sorted(shares, reverse=True)
    assert all(advice.startswith("   ") and advice.strip() for advice in worst[1::2])


@litert
def test_a_depth_is_only_what_follows_the_one_before() -> None:
    done = call("small-speech", "--variant", "4", "--runs", "1")
    assert done.output.startswith("small-speech, variant 4 after 3: ")


@litert
def test_json() -> None:
    found = json.loads(call("small-speech", "--variant", "3", "--runs", "3", "--json").output)
    assert found["variant"] == "3"
    assert found["runs"] == 3
    assert len(found["worst"]) == 3
    assert all(row["advice"] for row in found["worst"])


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (("nobody",), "no bundled model is called 'nobody'"),
        (("nanodet", "--variant", "99"), "has no variant '99'; it has: 416, 320, 256"),
        (("nanodet", "--runs", "0"), "0 is not in the range x>=1"),
        (("nanodet", "--threads", "0"), "0 is not in the range x>=1"),
    ],
)
def test_bad_input_is_told(args: tuple[str, ...], wanted: str) -> None:
    done = call(*args)
    assert done.exit_code != 0
    assert wanted in f"{done.output}{done.exception}"


def test_a_broken_model_is_told(tmp_path: Path) -> None:
    path = tmp_path / "broken.tflite"
    path.write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(40))
    done = call(path)
    assert done.exit_code == 1
    assert str(path) in str(done.exception)


@litert
@pytest.mark.skipif(os.geteuid() != 0 or not PYTHON.exists(), reason="no root, or no Python that others may run")
def test_root_has_a_model_profiled_by_another_user(tmp_path: Path) -> None:
    private = tmp_path / "small-speech.tflite"
    private.write_bytes((ZOO / "small-speech.tflite").read_bytes())
    private.with_suffix(".toml").write_bytes((ZOO / "small-speech.toml").read_bytes())
    command = [str(PYTHON), "-m", "agent", "profile", str(private), "--runs", "200"]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])}
    users = set[int]()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=paths
    ) as running:
        while running.poll() is None:
            for one in psutil.Process(running.pid).children(recursive=True):
                with suppress(psutil.Error):
                    if any("profile_worker" in word for word in one.cmdline()):
                        users.add(one.uids().effective)
        assert running.stdout is not None
        assert "small-speech" in running.stdout.read()
    assert running.returncode == 0
    assert users
    assert 0 not in users
