"""Versions of Vedette as an operator would bundle them, with faults for those that are to fail."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

from tests.support.running import ROOT
from tests.support.tiny_bundles import Key

_BUILD_S = 600.0
FAULTS: Mapping[str, tuple[str, str]] = {
    "": ("agent/__main__.py", ""),
    "crash at import": ("agent/daemon/daemon.py", "raise ImportError('no module named flux')\n"),
    "crash later": (
        "agent/daemon/health.py",
        "import os, sys, threading\nif 'run' in sys.argv:\n    threading.Timer(8, os._exit, [3]).start()\n",
    ),
    "hang": ("agent/cli/run.py", "import sys, time\ntime.sleep(3600 * ('run' in sys.argv))\n"),
}
"""Text appended to a file of the version's wheel."""


def version(wheel: Path, number: str, fault: str = "") -> Path:
    """Another version out of a wheel: the same but for its number and a fault; lies beside it.

    Args:
        wheel: of Vedette.
        number: of the version.
        fault: of `FAULTS`.
    """
    old = wheel.name.split("-")[1]
    path = wheel.with_name(wheel.name.replace(old, number, 1))
    where, what = FAULTS[fault]
    record: list[str] = []
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for info in source.infolist():
            name, data = (
                info.filename.replace(f"vedette-{old}.dist-info", f"vedette-{number}.dist-info"),
                source.read(info),
            )
            if name.endswith("dist-info/RECORD"):
                continue
            if name in ("agent/__init__.py", f"vedette-{number}.dist-info/METADATA"):
                data = data.replace(old.encode(), number.encode(), 1)
            if name == where:
                data += f"\n{what}".encode()
            target.writestr(name, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(data)}\n")
        record.append(f"vedette-{number}.dist-info/RECORD,,\n")
        target.writestr(f"vedette-{number}.dist-info/RECORD", "".join(record))
    return path


def bundle(out: Path, python: str, counter: int, key: Key, *words: str, source: Path = ROOT) -> Path:
    """A bundle for this machine by `vedette bundle build`.

    Args:
        out: the file.
        python: version of the board's.
        counter: of the bundle.
        key: that signs.
        words: more of the command.
        source: clone whose program builds it.
    """
    command = [sys.executable, "-m", "agent", "bundle", "build", "--arch", "x86_64", "--python", python]
    command += ["--counter", str(counter), "--sign", str(key.path), "--out", str(out), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=source, timeout=_BUILD_S, check=False)
    assert done.returncode == 0, done.stderr
    return out
