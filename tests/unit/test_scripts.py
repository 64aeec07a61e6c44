"""What the scripts share: `scripts/lib.sh`."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.running import ROOT


def run(script: str, *words: str) -> str:
    command = ["bash", "-euo", "pipefail", "-c", f". {ROOT}/scripts/lib.sh\n{script}", "bash", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_uv_is_found_in_a_lock_file_however_much_comes_after_it(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    wanted = "uv==1.0 \\\n    --hash=sha256:12 \\\n    --hash=sha256:34\n    # via -r tools.in\n"
    more = "".join(f"z{number}==1.0 \\\n    --hash=sha256:{'0' * 8000}\n" for number in range(100))
    lock.write_text(f"click==8.0 \\\n    --hash=sha256:56\nuvicorn==1.0\n{wanted}{more}", encoding="utf-8")
    assert run('locked_uv "$1"', str(lock)) == wanted
    ours = run('locked_uv "$1"', str(ROOT / "requirements.lock")).splitlines()
    assert ours[0].startswith("uv==")
    assert all(line.startswith("    ") for line in ours[1:])
    assert len(ours) > 1
