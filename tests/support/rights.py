"""The example access list, put together by the very lines that the example configuration tells."""

from __future__ import annotations

import subprocess
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent.parent / "firmware_configs" / "examples"


def example_acl() -> str:
    """With the people of the example, and the devices `porch` and `shed`."""
    told = [line.removeprefix("#").strip() for line in (EXAMPLES / "mosquitto.conf").read_text().splitlines()]
    makes = next(line for line in told if line.startswith("device()"))
    joins = next(line for line in told if line.startswith("{ cat")).partition(" | sudo tee")[0]
    made = subprocess.run(["sh", "-ec", f"{makes}\n{joins}"], cwd=EXAMPLES, check=True, capture_output=True)
    return made.stdout.decode()
