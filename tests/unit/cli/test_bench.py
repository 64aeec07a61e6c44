from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agent.cli.main import vedette
from tests.support.delegates import COMPILER, NO_COMPILER, compiled, identity_model


def call(*args: object) -> Result:
    return CliRunner().invoke(vedette, ["bench", *map(str, args)])


@pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)
def test_a_table_and_why_one_is_refused(tmp_path: Path) -> None:
    library, model = compiled(tmp_path), identity_model(tmp_path)
    fast, refused = (f"external:{library}?mode={mode}" for mode in ("fast", "refuse"))
    done = call(model, "--backend", fast, "--backend", refused, "--backend", "vx")
    assert done.exit_code == 0, done.output
    assert any(line.startswith("→  external:") for line in done.output.splitlines())
    text = " ".join(done.output.split())
    assert "cannot be loaded: the device is busy" in text
    assert "vx: no device (/dev/galcore)" in text
    found = json.loads(call(model, "--backend", fast, "--json").output)
    assert found["chosen"]["settings"] == {"mode": "fast"}
    assert [one["name"] for one in found["measured"]][-1] == fast


def test_what_is_not_here_is_one_line() -> None:
    done = call("small-speech", "--rung", "3", "--by", "energy", "--backend", "cpu")
    assert done.exit_code == 1
    assert "no backend 'cpu'" in str(done.exception)
    done = call("nobody")
    assert "no bundled model is called 'nobody'" in str(done.exception)


def test_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra [charts] is not installed")
    done = call("small-speech", "--rung", "3", "--backend", "vx", "--picture", tmp_path / "bench.png")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert "vx" in done.output
