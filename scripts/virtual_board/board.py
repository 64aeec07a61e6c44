"""Programs in an arm64 root, run by qemu-user as one processor; nothing is mounted, and nothing registered.

The root's Python is started by a script in the root, which is also its name for itself. So a process that Python
starts by `sys.executable` is emulated too, and Python finds its own library and not this machine's. The programs
see this machine's `/proc` and `/sys`; without the latter XNNPACK would not be used.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


class Board:
    """An emulated processor with the aarch64 wheels and this working tree.

    Attributes:
        cpu: as QEMU calls it.
    """

    def __init__(self, root: Path, cpu: str) -> None:
        """Prepare the root; see `arm_root`.

        Args:
            root: of the arm64 files.
            cpu: as QEMU calls it.
        """
        self.cpu = cpu
        root = root.resolve()
        self._python = root / "usr" / "bin" / "emulated-python"
        real, started = shlex.quote(str(root / "usr" / "bin" / "python3")), shlex.quote(str(root))
        self._python.write_text(f'#!/bin/sh\nexec qemu-aarch64 -L {started} -0 "$0" {real} "$@"\n')
        self._python.chmod(0o755)
        self._env = {
            **os.environ,
            "QEMU_CPU": cpu,
            "PYTHONPATH": f"{root / 'site'}:{ROOT}",
            "PYTHONPYCACHEPREFIX": str(root.with_name("bytecode")),
            "CI": "1",  # Hypothesis then sets no deadlines and leaves nothing behind
        }

    def python(self, *args: str, shown: bool = False) -> tuple[int, str]:
        """Run the root's Python; return its exit status and output, with stderr if it failed.

        Args:
            args: of the interpreter.
            shown: its lines are progress, for people to see as they come.
        """
        return run([str(self._python), *args], self._env, shown=shown)


def run(command: list[str], env: dict[str, str], *, shown: bool = False) -> tuple[int, str]:
    """Run a program in the working tree; see `Board.python`."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            ["sh", "-c", 'ulimit -c 0; exec "$@"', "sh", *command],
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if shown:
                print(line, end="", file=sys.stderr, flush=True)
        status = process.wait()
        said.seek(0)
        return status, "".join(lines) + (said.read() if status else "")
