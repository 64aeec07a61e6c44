"""The float NanoDet that the bundled one is compared with. Part of `accuracy` and `optimise/nanodet_int4`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from common import ROOT

FLOAT = ROOT / "build" / "models" / "nanodet_float.tflite"
_MAKER = ROOT / "scripts" / "build_models" / "nanodet"


def float_file() -> Path:
    """Return the float model, made again if it is older than what makes it; the first time fetches 280 MB."""
    newest = max(path.stat().st_mtime for path in _MAKER.parent.glob("*.py"))
    if not FLOAT.is_file() or FLOAT.stat().st_mtime < newest:
        made = subprocess.run([_MAKER, "--float", FLOAT], check=False, stdout=sys.stderr)
        if made.returncode != 0:
            raise SystemExit(f"{_MAKER} --float {FLOAT}: failed with status {made.returncode}")
    return FLOAT
